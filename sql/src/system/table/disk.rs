//! `system.disk`: who holds how many bytes. Rows with a `part_of` are shares of that holder; shares may overlap, as a
//! record can be held by several pins.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use tailrace_wal::HistoryId;

use super::{PartitionFigures, SystemTable};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows, Value},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "disk",
    columns: &[
        ("holder", Kind::Text),
        ("part_of", Kind::Text),
        ("bytes", Kind::Int),
        ("location", Kind::Text),
        // Of the file system that the location is on.
        ("disk_bytes", Kind::Int),
        ("disk_free_bytes", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    log(context, rows);
    let config = context.instance.engine.config();
    for reserve in context.instance.engine.reserves() {
        whole(context, rows, "reserve", reserve.held_bytes.into(), &reserve.path);
    }
    let manifest = config.data_dir.join("manifest");
    whole(context, rows, "manifest", folder_bytes(&manifest).into(), &manifest);
    store(context, rows);
    Ok(())
}

/// The log, and what each holder keeps of it.
fn log(context: &Context<'_>, rows: &mut Rows) {
    let engine = &context.instance.engine;
    let log = engine.log();
    let name = |history: HistoryId| engine.history(history).map_or_else(|| history.to_string(), |found| found.name);
    let holders = log.holders();
    let bytes = log.status().bytes + holders.preallocated_bytes;
    whole(context, rows, "log", bytes.into(), &engine.config().wal.dir);
    part(rows, "not flushed", "log", holders.unflushed_bytes);
    part(rows, "preallocated", "log", holders.preallocated_bytes);
    for pin in log.pins().into_iter().filter(|pin| !pin.state.is_lost()) {
        part(rows, &format!("pin {} {}", pin.key.feed, name(pin.key.history)), "log", pin.held_bytes);
    }
    if let Some(bytes) = holders.archive_bytes {
        part(rows, "archive", "log", bytes);
    }
    for open in holders.transactions {
        let holder = format!("open transaction {} of {}", open.transaction, name(open.history));
        part(rows, &holder, "log", open.held_bytes);
    }
}

/// The datafiles: those of the newest version by database, those on the disk beside them, and what is being written.
fn store(context: &Context<'_>, rows: &mut Rows) {
    let config = context.instance.engine.config();
    let root = match &config.storage_url {
        None => Some(config.data_dir.join("store")),
        Some(url) => url.to_file_path().ok(),
    };
    let mut live = BTreeMap::new();
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for database in context.version.databases() {
        let mut bytes = 0;
        for (_, partition) in database.tables().flat_map(|table| table.partitions()) {
            bytes += PartitionFigures::of(partition).bytes;
            named.extend(partition.datafiles.iter().map(|file| file.path().0.as_str()));
        }
        live.insert(&database.name, bytes);
    }
    let live_bytes: u64 = live.values().sum();
    match root {
        None => {
            let location = config.storage_url.as_ref().map(ToString::to_string);
            let bytes = live_bytes.into();
            rows.push(["store".into(), Value::Null, bytes, location.into(), Value::Null, Value::Null]);
        }
        Some(root) => {
            let mut found = Found::default();
            found.walk(&root, &root, &named);
            whole(context, rows, "store", (live_bytes + found.unnamed + found.staging).into(), &root);
            // Not named by the newest version: readers of an older one may use them still, or they are to be removed.
            part(rows, "superseded", "store", found.unnamed);
            part(rows, "staging", "store", found.staging);
        }
    }
    for (name, bytes) in live {
        part(rows, &format!("database {name}"), "store", bytes);
    }
}

fn whole(context: &Context<'_>, rows: &mut Rows, holder: &str, bytes: Value, location: &Path) {
    let folder = if location.is_dir() { location } else { location.parent().unwrap_or(location) };
    let space = context.instance.engine.disk_space(folder);
    rows.push([
        holder.into(),
        Value::Null,
        bytes,
        location.display().to_string().into(),
        space.map(|space| space.total).into(),
        space.map(|space| space.available).into(),
    ]);
}

fn part(rows: &mut Rows, holder: &str, of: &str, bytes: u64) {
    rows.push([holder.into(), of.into(), bytes.into(), Value::Null, Value::Null, Value::Null]);
}

/// Bytes in the store's folder that no version names.
#[derive(Debug, Default)]
struct Found {
    unnamed: u64,
    staging: u64,
}

impl Found {
    fn walk(&mut self, root: &Path, folder: &Path, named: &BTreeSet<&str>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                self.walk(root, &path, named);
                continue;
            }
            let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) else { continue };
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            if name.starts_with('.') {
                self.staging += bytes;
            } else if !named.contains(name) {
                self.unnamed += bytes;
            }
        }
    }
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
