//! `system.disk`: who holds how many bytes. Bytes held by pins are part of those of the log.

use std::{fs, path::Path};

use super::{PartitionFigures, SystemTable};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "disk",
    columns: &[("holder", Kind::Text), ("part_of", Kind::Text), ("bytes", Kind::Int), ("location", Kind::Text)],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    let (config, log) = (engine.config(), engine.log());
    let shown = |path: &Path| path.display().to_string();
    rows.push(["log".into(), None::<&str>.into(), log.status().bytes.into(), shown(&config.wal.dir).into()]);
    for pin in log.pins() {
        let database =
            engine.history(pin.key.history).map_or_else(|| pin.key.history.to_string(), |history| history.name);
        let holder = format!("pin {} {database}", pin.key.feed);
        rows.push([holder.into(), "log".into(), pin.held_bytes.into(), None::<&str>.into()]);
    }
    let manifest = config.data_dir.join("manifest");
    rows.push(["manifest".into(), None::<&str>.into(), folder_bytes(&manifest).into(), shown(&manifest).into()]);
    let location =
        config.storage_url.as_ref().map_or_else(|| shown(&config.data_dir.join("store")), ToString::to_string);
    let mut store = 0;
    let mut databases = Vec::new();
    for database in context.version.databases() {
        let partitions = database.tables().flat_map(|table| table.partitions());
        let bytes: u64 = partitions.map(|(_, partition)| PartitionFigures::of(partition).bytes).sum();
        store += bytes;
        databases.push((&database.name, bytes));
    }
    rows.push(["store".into(), None::<&str>.into(), store.into(), location.into()]);
    for (name, bytes) in databases {
        rows.push([format!("database {name}").into(), "store".into(), bytes.into(), None::<&str>.into()]);
    }
    Ok(())
}

/// Bytes of a flat folder's files; unknown when it cannot be read.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let files = fs::read_dir(folder).ok()?;
    Some(
        files
            .flatten()
            .filter_map(|file| file.metadata().ok())
            .filter(fs::Metadata::is_file)
            .map(|file| file.len())
            .sum(),
    )
}
