//! Change feeds as table functions: `changes('market.bars', from_seq => 5)` ends, `tail('market.bars')` does not.
//!
//! [`planner`] reads the arguments, by position or by name; [`provider`] plans a scan, to which filters and columns are
//! pushed down as a whole ([`bounds`]): a filter above it would gather rows before it lets them through. [`rows`] is
//! the stream, fed by the engine's `Changes`.

mod bounds;
mod planner;
mod provider;
mod rows;

use std::sync::Arc;

pub use planner::parse_table_name;
pub(crate) use planner::table_name;

use datafusion::{
    catalog::default_table_source::source_as_provider,
    common::{Result, tree_node::TreeNodeRecursion},
    logical_expr::LogicalPlan,
    prelude::SessionContext,
};
use tailrace_engine::Engine;

/// The two functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Up to what is there when the statement begins.
    Changes,
    /// Without an end.
    Tail,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::Tail => "tail",
        }
    }
}

/// Adds both functions to the planning template.
pub(crate) fn register(context: &SessionContext, engine: &Arc<Engine>) -> Result<()> {
    planner::register(context, engine)
}

/// What feeds a query reads: `None`: none; a tail, if there is one among them.
pub(crate) fn feeds_of(plan: &LogicalPlan) -> Result<Option<Kind>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
            && let Some(feed) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<provider::Feed>()
            && found != Some(Kind::Tail)
        {
            found = Some(feed.kind());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}
