//! The log's archive, by the settings of a real node: in a folder, and in a real S3-compatible server.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tailrace_engine::open_archive;
use tailrace_wal::{ArchiveEntry, Lsn};

use crate::harness::{CREATE_TICKS, Node, Site, insert};

const STATE: &str = "SELECT state, reason, pin_state, gaps, lag_records FROM system.archive";
const DONE: &[&[&str]] = &[&["RUNNING", "", "RESERVED", "0", "0"]];

/// Rows are written and archived, the node is killed in between, and everything that it logged is in the archive once.
async fn archives_and_goes_on_after_a_kill(node: &mut Node) {
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    for round in 0..3 {
        client.rows(&insert(round * 100..round * 100 + 100)).await;
        node.wait_for(STATE, DONE).await;
    }
    client.rows(&insert(300..400)).await;
    node.kill();
    node.start().await;
    let client = node.connect().await;
    client.rows(&insert(400..500)).await;
    client.rows("CALL flush()").await;
    node.wait_for(STATE, DONE).await;
    let figures = node.sql("SELECT segments > 3, stored_bytes > 0, lag_seconds = 0 FROM system.archive").await;
    assert_eq!(figures, [["t", "t", "t"]]);
    assert!(node.sql("SELECT * FROM system.archive_gaps").await.is_empty());
    assert_eq!(node.sql("SELECT count(*) FROM market.ticks").await, [["500"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_archives_to_a_folder_and_anybody_can_read_it() {
    let site = Site::new();
    let folder = site.path("archive");
    let url = url::Url::from_directory_path(&folder).unwrap();
    let mut node = site.node("siteA", None, &[&format!("wal.archive={url}"), "wal.archive_interval=50ms"]);
    archives_and_goes_on_after_a_kill(&mut node).await;
    let end: u64 = node.sql("SELECT archived_lsn FROM system.archive").await[0][0].parse().unwrap();
    node.stop();
    let name = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().file_name();
    let archive = open_archive(&url, name.to_str().unwrap().parse().unwrap()).unwrap();
    archive.refresh().await.unwrap();
    let mut tail = archive.replay(None, Lsn::ZERO);
    let mut count = 0;
    while tail.try_next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, end);
    for entry in archive.entries() {
        let ArchiveEntry::Segment(segment) = &*entry else { panic!("{entry:?}") };
        archive.verify(segment).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_archives_to_a_real_s3_server_and_waits_for_it_while_it_is_down() {
    let Some(mut server) = Server::start() else {
        eprintln!("SKIPPED: no S3-compatible server here; `.ci/run` installs one, see S3_TEST_SERVER");
        return;
    };
    let site = Site::new();
    let flags = ["wal.archive=s3://archive/tailrace", "wal.archive_interval=50ms"];
    let mut node = site.node("siteA", None, &flags);
    node.environment = server.environment();
    archives_and_goes_on_after_a_kill(&mut node).await;
    server.stop();
    node.sql(&insert(500..600)).await;
    node.wait_for("SELECT state, reason IS NULL FROM system.archive", &[&["FAILING", "f"]]).await;
    assert_eq!(node.sql("SELECT count(*) FROM market.ticks").await, [["600"]], "the primary goes on");
    server.restart();
    node.wait_for(STATE, DONE).await;
}

/// The program `s3s-fs` as a server with one bucket, `archive`; killed when dropped.
pub(crate) struct Server {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Server {
    pub(crate) fn start() -> Option<Self> {
        let program = match std::env::var_os("S3_TEST_SERVER") {
            Some(program) => PathBuf::from(program),
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path).map(|folder| folder.join("s3s-fs")).find(|program| program.is_file())?
            }
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("archive")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = spawn(&program, folder.path(), port);
        Some(Self { program, folder, port, process })
    }

    /// What a node has to know of it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("AWS_ENDPOINT_URL".to_owned(), format!("http://127.0.0.1:{}", self.port)),
            ("AWS_REGION".to_owned(), "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID".to_owned(), "tailrace".to_owned()),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "tailrace-secret".to_owned()),
        ]
    }

    fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.process = spawn(&self.program, self.folder.path(), self.port);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the server and waits until it takes connections.
fn spawn(program: &std::path::Path, root: &std::path::Path, port: u16) -> Child {
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--access-key", "tailrace", "--secret-key", "tailrace-secret"]).arg(root);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..3_000 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return process;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = process.kill();
    let _ = process.wait();
    panic!("{} does not listen on port {port}", program.display());
}
