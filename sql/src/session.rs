//! A session: one connection's settings, open transaction and prepared statements' planning.

use std::sync::Arc;

use datafusion::{arrow::datatypes::SchemaRef, execution::SendableRecordBatchStream};
use tokio_util::sync::CancellationToken;

use crate::{Instance, Result};

/// State shared by all sessions of a node, made once: the planning template with all functions and catalogs.
#[derive(Debug, Clone)]
pub struct SessionFactory {
    _private: (),
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    _private: (),
}

/// A parsed, checked and (where it is a query) planned statement.
#[derive(Debug, Clone)]
pub struct Statement {
    _private: (),
}

/// What a statement gives.
pub enum Outcome {
    /// Rows, as they come.
    Rows(SendableRecordBatchStream),
    /// A command: its tag (`INSERT 0 3`, `CREATE TABLE`) and notices.
    Done {
        /// Command tag.
        tag: String,
        /// Warnings and notices for the client.
        notices: Vec<String>,
    },
}

impl SessionFactory {
    /// Builds the template.
    pub async fn new(_instance: Arc<Instance>) -> Result<Self> {
        todo!()
    }

    /// A session in `database` (the startup packet's database; `None` or an unknown one: no current database, names
    /// must be qualified).
    pub fn session(&self, _user: &str, _database: Option<&str>) -> Session {
        todo!()
    }
}

impl Session {
    /// Splits and parses a simple-query string; each statement is planned only when its turn comes.
    pub fn parse(&self, _sql: &str) -> Result<Vec<Statement>> {
        todo!()
    }

    /// Parameter types and result schema, for Describe. `hints` are the client's parameter type OIDs mapped to Arrow.
    pub async fn describe(
        &self,
        _statement: &Statement,
    ) -> Result<(Vec<Option<datafusion::arrow::datatypes::DataType>>, SchemaRef)> {
        todo!()
    }

    /// Runs it. `parameters` are typed values, `$1` first. The stream ends early when `cancel` fires.
    pub async fn execute(
        &self,
        _statement: &Statement,
        _parameters: Vec<datafusion::common::ScalarValue>,
        _cancel: CancellationToken,
    ) -> Result<Outcome> {
        todo!()
    }

    /// `I` idle, `T` in a transaction, `E` in a failed one.
    pub fn transaction_status(&self) -> char {
        todo!()
    }
}
