//! `where`: a condition over a table's columns that means the same on both sides.

use datafusion::logical_expr::Volatility;

use super::shape::Shape;
use crate::{
    Result, Session,
    statement::condition::{Condition, refused},
};

/// A condition that was checked.
#[derive(Debug, Clone)]
pub(super) struct Predicate(String);

impl Predicate {
    /// Refuses what is no condition over the rows of one table alone: it is put into queries on both sides.
    pub(super) fn check(session: &Session, shape: &Shape, text: &str) -> Result<Self> {
        let condition = Condition::parse(&session.planning_state(), &shape.schema, text)?;
        match condition.beyond(Volatility::Immutable)? {
            Some(function) => Err(refused(&format!("{function}, which is not the same on both sides"))),
            None => Ok(Self(condition.written)),
        }
    }

    /// As SQL.
    pub(super) fn as_sql(&self) -> &str {
        &self.0
    }
}
