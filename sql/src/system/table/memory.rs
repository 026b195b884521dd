//! `system.memory`: who holds how many bytes of it, and the budgets.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "memory",
    columns: &[
        ("memtable_bytes", Kind::Int),
        ("memtable_max_bytes", Kind::Int),
        ("cache_max_bytes", Kind::Int),
        ("query_max_bytes", Kind::Int),
        ("flushes", Kind::Int),
        // Why the last flush failed; NULL when it did not.
        ("flush_failure", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    let (memory, config) = (engine.memory(), engine.config());
    rows.push([
        memory.memtable_bytes.into(),
        config.memtable_bytes.into(),
        config.cache_bytes.into(),
        context.instance.config.memory_bytes.into(),
        memory.flushes.into(),
        memory.flush_failure.into(),
    ]);
    Ok(())
}
