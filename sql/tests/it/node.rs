//! A node in a temporary folder, and sessions that speak text.

use std::{path::PathBuf, sync::Arc, time::Duration};

use datafusion::{arrow::array::RecordBatch, arrow::util::pretty::pretty_format_batches, common::ScalarValue};
use futures::TryStreamExt;
use tailrace_engine::{Engine, EngineConfig, EngineSeams};
use tailrace_sql::{Instance, Jobs, Outcome, Remotes, Result, Session, SessionFactory, SqlConfig, SqlError};
use tailrace_wal::{SystemClock, SystemDisk};
use tokio_util::sync::CancellationToken;

pub(crate) struct Node {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) engine: Arc<Engine>,
    pub(crate) instance: Arc<Instance>,
    pub(crate) factory: SessionFactory,
}

impl Node {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut SqlConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = EngineConfig::new(folder.path().join("data"));
        // Tests decide when rows leave memory, and see files rather than copies of them.
        config.flush_age = Duration::from_secs(3600);
        config.cache_bytes = 0;
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let (engine, _) = Engine::open(config, seams).await.unwrap();
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let mut config = SqlConfig {
            node_name: "test".to_owned(),
            pgwire: ([127, 0, 0, 1], 0).into(),
            tls: None,
            files_allow: vec![files.canonicalize().unwrap()],
            memory_bytes: 256 << 20,
            threads: 2,
            statement_timeout: None,
            settings: Vec::new(),
        };
        change(&mut config);
        let jobs = Jobs::new(engine.clone(), std::num::NonZeroUsize::MIN.saturating_add(3));
        let remotes = Remotes::new(engine.clone(), config.tls.clone(), config.files_allow.clone());
        let remotes = Arc::new(remotes);
        let instance = Instance { engine: engine.clone(), publisher: None, follower: None, remotes, jobs, config };
        let instance = Arc::new(instance);
        let factory = SessionFactory::new(Arc::clone(&instance)).await.unwrap();
        Self { folder, engine, instance, factory }
    }

    pub(crate) fn client(&self, database: Option<&str>) -> Client {
        Client(self.factory.session("tester", database))
    }

    /// A node with database `market` and a client in it.
    pub(crate) async fn market() -> (Self, Client) {
        let node = Self::new().await;
        node.client(None).tag("CREATE DATABASE market").await;
        let client = node.client(Some("market"));
        (node, client)
    }

    /// A file that COPY may read.
    pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().canonicalize().unwrap().join("files").join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }
}

pub(crate) struct Client(pub(crate) Session);

impl Client {
    /// Runs all statements of a string; the outcome of the last: rows as a table, or the tag.
    pub(crate) async fn run(&self, sql: &str) -> Result<String> {
        self.run_with(sql, Vec::new()).await
    }

    pub(crate) async fn run_with(&self, sql: &str, parameters: Vec<ScalarValue>) -> Result<String> {
        let mut last = String::new();
        for statement in self.0.parse(sql)? {
            last = match self.0.execute(&statement, parameters.clone(), CancellationToken::new()).await? {
                Outcome::Rows(rows) => {
                    let schema = rows.schema();
                    let mut batches: Vec<RecordBatch> = rows.try_collect().await.map_err(SqlError::from)?;
                    batches.insert(0, RecordBatch::new_empty(schema));
                    pretty_format_batches(&batches).unwrap().to_string()
                }
                Outcome::Done { tag, .. } => tag,
            };
        }
        Ok(last)
    }

    /// As [`Self::run`], which must succeed.
    pub(crate) async fn tag(&self, sql: &str) -> String {
        match self.run(sql).await {
            Ok(text) => text,
            Err(error) => panic!("{sql}: {} {error:?}", error.sqlstate),
        }
    }

    /// The cells of the rows, row by row, joined: `1|a` and so on.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let table = self.tag(sql).await;
        cells(&table)
    }

    /// The error's SQLSTATE and message.
    pub(crate) async fn error(&self, sql: &str) -> SqlError {
        match self.run(sql).await {
            Ok(outcome) => panic!("{sql} gave {outcome}"),
            Err(error) => error,
        }
    }

    /// The SQLSTATE of a failing statement.
    pub(crate) async fn state(&self, sql: &str) -> String {
        self.error(sql).await.sqlstate.into_owned()
    }
}

pub(crate) fn cells(table: &str) -> Vec<String> {
    let rows = table.lines().filter(|line| line.starts_with('|')).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join("|")).collect()
}
