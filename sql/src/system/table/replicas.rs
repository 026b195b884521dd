//! `system.replicas`: on a primary, a row per replica and database. No rows where no replica may attach.

use super::SystemTable;
use crate::{
    Result,
    system::{
        computed::{Context, Rows},
        function::recent_slave_replication_info as feeds,
    },
};

pub(super) const TABLE: SystemTable = SystemTable { name: "replicas", columns: feeds::COLUMNS, rows };

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    if let Some(publisher) = &context.instance.publisher {
        feeds::push_feeds(publisher, rows);
    }
    Ok(())
}
