//! Errors of the engine and its log.

use tailrace_engine::EngineError;
use tailrace_wal::LogError;

use crate::SqlError;

const MAKE_SPACE: &str = "system.disk shows who holds how many bytes; reads go on, and writes are taken again by themselves once there is space";

impl From<EngineError> for SqlError {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::NotFound { kind, .. } => Self::new(
                match kind {
                    "database" => "3F000",
                    "column" => "42703",
                    "subscription" | "job" | "remote cluster" => "42704",
                    "backup" => "58P01",
                    _ => "42P01",
                },
                text,
            ),
            EngineError::AlreadyExists { kind, .. } => Self::new(
                match kind {
                    "database" => "42P04",
                    "column" => "42701",
                    "subscription" | "job" | "remote cluster" => "42710",
                    _ => "42P07",
                },
                text,
            ),
            EngineError::Invalid(_) => Self::new("22023", text),
            EngineError::Unsupported(_) => Self::new("0A000", text),
            EngineError::ReadOnlyReplica { .. } => Self::new("25006", text).hint("reading works here"),
            EngineError::Conflict(_) => Self::new("40001", text).hint("run the transaction again"),
            EngineError::TransactionAborted(_) => Self::new("25P03", text),
            EngineError::TransactionTooLarge { .. } => Self::new("54000", text),
            EngineError::DatabaseStopped { .. } => Self::new("55000", text),
            EngineError::NotPermitted { user, database, right } => {
                Self::new("42501", text).hint(format!("CALL grant_right('{user}', '{database}', '{}')", right.name()))
            }
            EngineError::Forked(_) => Self::new("XX001", text),
            EngineError::Indeterminate { .. } => unknown_outcome(text),
            EngineError::Log(log) => log.into(),
            EngineError::Full { .. } => Self::new("53100", text).hint(MAKE_SPACE),
            EngineError::Storage { .. } => Self::new("58030", text),
            EngineError::ChangesGone { first, .. } => Self::new("58P01", text).hint(format!(
                "start with from_seq => {first}, after reading the table itself for what lies before it; a subscription \
                 keeps the log for a reader that is away"
            )),
            EngineError::ChangesSkipped { seq, .. } => Self::new("55000", text)
                .hint(format!(
                    "retry it or repair the database (system.dead_letters), or go on without it with from_seq => {}",
                    seq.next()
                )),
            EngineError::FeedEnded(_) => Self::new("55000", text),
            EngineError::InUse { kind: "job", .. } => {
                Self::new("55006", text).hint("a run of it is under way: system.job_runs; wait for its end")
            }
            EngineError::InUse { .. } => {
                Self::new("55006", text).hint("it has one consumer at a time; end the other, or use another")
            }
            EngineError::SubscriptionLost { acknowledged, name, .. } => Self::new("55000", text).hint(format!(
                "CALL drop_subscription('{name}'), read the table itself for what came after seq {acknowledged}, and \
                 create the subscription again"
            )),
            EngineError::Cancelled(_) => Self::new("57014", text),
            EngineError::Closed => Self::new("57P01", text),
            _ => Self::new("XX000", text),
        }
    }
}

impl From<LogError> for SqlError {
    fn from(error: LogError) -> Self {
        if error.is_full() {
            return Self::new("53100", error.to_string()).hint(MAKE_SPACE);
        }
        let state = match &error {
            // The record may have been on its way to the disk when the log stopped.
            LogError::Poisoned { .. } => return unknown_outcome(error.to_string()),
            LogError::Corrupt { .. } => "XX001",
            LogError::Closed => "57P01",
            LogError::Io { .. } | LogError::Locked { .. } => "58030",
            _ => "XX000",
        };
        Self::new(state, error.to_string())
    }
}

/// `40003`: whether it happened is decided by the next start.
fn unknown_outcome(text: String) -> SqlError {
    SqlError::new("40003", text)
        .hint("restart the node, then look whether the rows are there before you write them again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_met_a_stopped_log_is_not_called_refused() {
        let stopped = LogError::Poisoned { reason: "fdatasync: Input/output error".into() };
        let error = SqlError::from(EngineError::Log(stopped));
        assert_eq!(error.sqlstate, "40003");
        assert!(error.hint.unwrap().contains("before you write them again"));
    }
}
