//! The archive in a real S3-compatible server, which is a process of its own.
//!
//! The server is the program `s3s-fs` (`cargo install s3s-fs --version 0.14.1 --features binary`): where
//! `S3_TEST_SERVER` says, or on the path. Without it these tests say that they are skipped.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, RetryConfig, aws::AmazonS3Builder,
    path::Path as ObjectPath,
};
use rand::{RngCore as _, SeedableRng, rngs::StdRng};
use tailrace_wal::{ArchiveState, Archiver, ArchiverConfig, LogConfig, Lsn, Seq};

use super::{archive_in, assert_contiguous, drain, log_with, lsns};
use crate::support::{HISTORY, append, append_numbers, commit, open_history_with};

const BUCKET: &str = "archive";

/// A running server; killed when dropped.
struct Server {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Server {
    /// `None`, and a word about it, when there is no such program here.
    async fn start(test: &str) -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("SKIPPED {test}: no S3-compatible server here; `.ci/run` installs one, see S3_TEST_SERVER");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = spawn(&program, folder.path(), port);
        let server = Self { program, folder, port, process };
        server.wait().await;
        Some(server)
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.process = spawn(&self.program, self.folder.path(), self.port);
        self.wait().await;
    }

    /// Until it takes connections.
    async fn wait(&self) {
        for _ in 0..3_000 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} does not listen on port {}", self.program.display(), self.port);
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        let store = AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id("tailrace")
            .with_secret_access_key("tailrace-secret")
            .with_retry(RetryConfig { max_retries: 1, ..RetryConfig::default() })
            .build();
        Arc::new(store.unwrap())
    }

    fn archiver(&self, log: &tailrace_wal::Log) -> Archiver {
        let retry = Duration::from_millis(20);
        let config = ArchiverConfig { retry_min: retry, retry_max: retry, ..ArchiverConfig::default() };
        Archiver::new(log, archive_in(self.store(), Duration::from_secs(20)), config)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("S3_TEST_SERVER") {
        let program = PathBuf::from(program);
        assert!(program.is_file(), "S3_TEST_SERVER is {}, which is no file", program.display());
        return Some(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("s3s-fs")).find(|program| program.is_file())
}

fn spawn(program: &Path, root: &Path, port: u16) -> Child {
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--access-key", "tailrace", "--secret-key", "tailrace-secret"]);
    command.arg(root).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn a_real_server_archives_and_gives_back() {
    let Some(server) = Server::start("a_real_server_archives_and_gives_back").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 3).await;
    let archiver = server.archiver(&log);
    archiver.catch_up().await.unwrap();
    assert_eq!(log.truncate(Lsn(u64::MAX)).unwrap(), Lsn(31));
    let frames = drain(archiver.archive().replay(Some(&log), Lsn::ZERO)).await.unwrap();
    assert_eq!(lsns(&frames), (1..=32).collect::<Vec<_>>());
    assert_contiguous(archiver.archive());

    // A second archiver goes on where the first one ended.
    drop(archiver);
    log.roll().await.unwrap();
    let archiver = server.archiver(&log);
    archiver.catch_up().await.unwrap();
    assert_eq!(archiver.archive().archived(), Lsn(32));
    let tail = archiver.archive().tail(None, HISTORY, Seq(17)).await.unwrap();
    assert_eq!(lsns(&drain(tail).await.unwrap()), (18..=32).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_real_server_puts_a_name_once() {
    let Some(server) = Server::start("a_real_server_puts_a_name_once").await else { return };
    let (store, name) = (server.store(), ObjectPath::from("a/b"));
    let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(&name, "one".into(), create()).await.unwrap();
    let error = store.put_opts(&name, "two".into(), create()).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(store.get(&name).await.unwrap().bytes().await.unwrap(), "one");
}

#[tokio::test]
async fn a_server_that_is_killed_in_an_upload_is_waited_for() {
    let Some(mut server) = Server::start("a_server_that_is_killed_in_an_upload_is_waited_for").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history_with(LogConfig::new(dir.path()));
    let mut random = StdRng::seed_from_u64(7);
    let archiver = Arc::new(server.archiver(&log));
    let running = tokio::spawn({
        let archiver = archiver.clone();
        async move { archiver.run().await }
    });
    let mut appended = 0;
    for round in 1..=3_u64 {
        // Bytes that do not shrink: an upload of several parts.
        for _ in 0..24 {
            let mut bytes = vec![0; 1 << 20];
            random.fill_bytes(&mut bytes);
            append(&log, commit(HISTORY, &bytes)).await.unwrap();
            appended += 1;
        }
        log.roll().await.unwrap();
        append_numbers(&log, 0..1).await;
        appended += 1;
        // The first time it has begun; later it may be anywhere.
        while round == 1 && !has_begun(server.folder.path()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        while archiver.status().state != ArchiveState::Failing && archiver.archive().archived() < Lsn(appended - 1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.restart().await;
        while archiver.archive().archived() < Lsn(appended - 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    running.abort();
    let _ = running.await;
    assert_contiguous(archiver.archive());
    let alone = archive_in(server.store(), Duration::from_secs(20));
    alone.refresh().await.unwrap();
    let frames = drain(alone.replay(None, Lsn::ZERO)).await.unwrap();
    assert_eq!(lsns(&frames), (1..appended).collect::<Vec<_>>());
}

/// Whether the server holds any part of an upload.
fn has_begun(root: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(root) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("part"))
        || std::fs::read_dir(root.join(BUCKET)).is_ok_and(|mut entries| entries.next().is_some())
}
