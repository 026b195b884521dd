//! Why a command failed, and the exit code that says so to a supervisor.

use tailrace_engine::EngineError;
use tailrace_replicator::ReplicationError;
use tailrace_sql::SqlError;
use tailrace_wal::LogError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, flag or folder is wrong; the message says which and what is allowed. Exit code 2.
    #[error("{0}")]
    Configuration(String),
    /// The log stopped after a failed write or sync while the node ran. Exit code 3: a restart decides what survived.
    #[error("{0}")]
    LogStopped(LogError),
    /// The engine did not start or stop.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Replication did not start.
    #[error("replication: {0}")]
    Replication(#[from] ReplicationError),
    /// The SQL server did not start.
    #[error("listen.pgwire: {message}{hint}", message = .0.message, hint = hint_of(.0))]
    Sql(#[from] SqlError),
    /// A file or folder could not be read or written.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The call.
        operation: &'static str,
        /// Its file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Certificates could not be made.
    #[error("certificates: {0}")]
    Certificates(String),
    /// The demo's two sides differ, or one of its steps failed.
    #[error("{0}")]
    Demo(String),
}

impl Error {
    /// 2: settings; 3: the log stopped; 1: anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) => 2,
            Self::LogStopped(_) => 3,
            _ => 1,
        }
    }

    /// For `map_err` on file calls.
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<std::path::PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

fn hint_of(error: &SqlError) -> String {
    error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default()
}

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;
