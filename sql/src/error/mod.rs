//! Errors as a SQL client sees them: SQLSTATE, message, detail, hint.

mod arrow;
mod datafusion;
mod engine;
mod names;
mod parser;

pub(crate) use names::nearest;
pub(crate) use parser::{position_of, syntax_error};

use std::borrow::Cow;

/// An error for a client. Nothing was done unless the message says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// Five characters, from PostgreSQL's list.
    pub sqlstate: Cow<'static, str>,
    /// What happened, to what.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// 1-based character in the statement, where known.
    pub position: Option<usize>,
}

impl SqlError {
    /// An error with a state and a message.
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { sqlstate: sqlstate.into(), message: message.into(), detail: None, hint: None, position: None }
    }

    /// `0A000`: a feature that is not supported, by name.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new("0A000", format!("{what} is not supported"))
    }

    /// `XX000`: our own mistake.
    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        Self::new("XX000", format!("internal error: {message}")).hint("this is a bug; nothing was changed by it")
    }

    /// `42601`: a statement that parses but makes no sense.
    pub(crate) fn syntax(message: impl Into<String>) -> Self {
        Self::new("42601", message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint that names the nearest of some names, if one is near.
    #[must_use]
    pub(crate) fn did_you_mean<'a>(self, wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        match nearest(wanted, names) {
            Some(name) => self.hint(format!("did you mean {name:?}?")),
            None => self,
        }
    }

    /// Adds where in the statement.
    #[must_use]
    pub(crate) fn at(mut self, position: Option<usize>) -> Self {
        self.position = self.position.or(position);
        self
    }

    /// Adds detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// Result of a SQL call.
pub type Result<T, E = SqlError> = std::result::Result<T, E>;
