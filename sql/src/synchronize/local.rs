//! This side, asked in the same words.

use std::sync::Arc;

use datafusion::{
    execution::SessionState,
    sql::sqlparser::{dialect::PostgreSqlDialect, parser::Parser},
};
use futures::future::BoxFuture;
use tailrace_engine::Engine;

use super::source::{Batches, Source};
use crate::{Result, Session, SqlError, execution::QueryThreads, provider::PinnedVersion, statement::query};

/// The node itself. Every query reads the version that is newest when it begins.
pub(super) struct Local {
    pub(super) engine: Arc<Engine>,
    threads: QueryThreads,
    state: SessionState,
}

impl Local {
    pub(super) fn new(session: &Session) -> Self {
        Self {
            engine: session.instance().engine.clone(),
            threads: session.threads().clone(),
            state: session.planning_state(),
        }
    }

    /// A state that reads the newest version.
    pub(super) fn state(&self) -> SessionState {
        let mut state = self.state.clone();
        state.config_mut().set_extension(Arc::new(PinnedVersion(self.engine.version())));
        state
    }
}

impl Source for Local {
    fn name(&self) -> &str {
        "this cluster"
    }

    fn query<'a>(&'a self, sql: &'a str) -> BoxFuture<'a, Result<Batches>> {
        Box::pin(async move {
            let statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok().and_then(|mut parsed| parsed.pop());
            let statement = statement.ok_or_else(|| SqlError::internal(format!("{sql:?} is no query")))?;
            let state = self.state();
            let plan = query::plan(&state, &statement, sql).await?;
            let physical = state.create_physical_plan(&plan).await.map_err(|error| SqlError::planning(error, sql))?;
            self.threads.run(physical, state.task_ctx())
        })
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}
