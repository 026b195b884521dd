//! `system.settings`: what this node runs with.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable =
    SystemTable { name: "settings", columns: &[("name", Kind::Text), ("value", Kind::Text)], rows };

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for (name, value) in &context.instance.config.settings {
        rows.push([name.into(), value.into()]);
    }
    Ok(())
}
