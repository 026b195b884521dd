//! `system.rights`: which user may do what in which database, here.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "rights",
    columns: &[("user", Kind::Text), ("database", Kind::Text), ("right", Kind::Text)],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for granted in context.instance.engine.rights() {
        rows.push([granted.user.into(), granted.database.into(), granted.right.name().into()]);
    }
    Ok(())
}
