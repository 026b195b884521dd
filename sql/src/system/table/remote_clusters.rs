//! `system.remote_clusters`: clusters that can be read as catalogs. Keys are not shown, nor where they lie.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "remote_clusters",
    columns: &[
        ("name", Kind::Text),
        // With commas between several.
        ("addresses", Kind::Text),
        // NULL: this node's own.
        ("ca", Kind::Text),
        ("certificate", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for (name, cluster) in context.instance.engine.remote_clusters() {
        rows.push([name.into(), cluster.addresses.join(",").into(), cluster.ca.into(), cluster.certificate.into()]);
    }
    Ok(())
}
