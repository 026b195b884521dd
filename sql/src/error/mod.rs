//! Errors as a SQL client sees them: SQLSTATE, message, detail, hint.

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

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
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
