//! Procedures: what `CALL name(…)` does.

use datafusion::common::ScalarValue;

use crate::{Outcome, Result, Session, SqlError};

/// An argument of a call, already evaluated.
#[derive(Debug, Clone)]
pub(crate) struct Argument {
    /// Its name in `name => value`.
    pub(crate) name: Option<String>,
    /// Its value.
    pub(crate) value: ScalarValue,
}

/// Runs a procedure. `name` is in lower case unless it was quoted.
pub(crate) async fn call(_session: &Session, name: &str, arguments: Vec<Argument>) -> Result<Outcome> {
    let arguments: Vec<_> = arguments.iter().map(|argument| (argument.name.as_deref(), &argument.value)).collect();
    Err(SqlError::new("42883", format!("procedure {name:?} does not exist"))
        .detail(format!("called with {arguments:?}")))
}
