//! Processes to test: a folder of nodes, each started, killed and restarted at will.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::port::kept_address;

/// How long anything may take before a test calls it hung. Debug builds on a busy machine are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The binary, with no settings leaking in from this process' environment.
pub(crate) fn tailrace() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_tailrace")))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TAILRACE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    tailrace().args(args).output().unwrap()
}

/// A folder with nodes in it, and a folder `import` from which they may COPY.
pub(crate) struct Site {
    root: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("import")).unwrap();
        Self { root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A primary, running. The first node of a site makes the authority.
    pub(crate) async fn primary(&self, flags: &[&str]) -> Node {
        let mut node = self.node("siteA", None, flags);
        node.flags.push("replication.primary.max_replicas=8".to_owned());
        node.start().await;
        node
    }

    /// A replica of `primary`, running.
    pub(crate) async fn replica(&self, name: &str, primary: &Node, flags: &[&str]) -> Node {
        let mut node = self.node(name, Some("siteA"), flags);
        let address = primary.replication.unwrap();
        node.flags.push(format!("replication.replica.primary_addresses=[\"{address}\"]"));
        node.start().await;
        node
    }

    /// A node's folder.
    pub(crate) fn node(&self, name: &str, ca: Option<&str>, flags: &[&str]) -> Node {
        let dir = self.path(name);
        let mut init = tailrace();
        init.arg("init").arg(&dir);
        if let Some(ca) = ca {
            init.arg("--ca").arg(self.path(ca).join("tls"));
        }
        let made = init.output().unwrap();
        assert!(made.status.success(), "init: {}", String::from_utf8_lossy(&made.stderr));
        let mut flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        flags.push("listen.pgwire=127.0.0.1:0".to_owned());
        // Many nodes on one disk: a small reserve will do, unless a test asks for another.
        if !flags.iter().any(|flag| flag.starts_with("wal.reserve_bytes=")) {
            flags.push("wal.reserve_bytes=1MiB".to_owned());
        }
        flags.push(format!("files.allow=[{:?}]", self.path("import").display().to_string()));
        Node {
            name: name.to_owned(),
            dir,
            flags,
            environment: Vec::new(),
            file_limit: None,
            process: None,
            pgwire: None,
            flight: None,
            replication: None,
        }
    }

    /// A CSV file of ticks `ids` without a header, for COPY.
    pub(crate) fn ticks_file(&self, name: &str, ids: std::ops::Range<u64>) -> PathBuf {
        let path = self.path("import").join(name);
        let rows: String = ids.map(|id| tick(id, ',', "") + "\n").collect();
        std::fs::write(&path, rows).unwrap();
        path
    }
}

/// One `tailrace serve`. Dropping it kills the process.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) flags: Vec<String>,
    /// Environment variables of the process.
    pub(crate) environment: Vec<(String, String)>,
    /// Largest file that the process may write, bytes.
    file_limit: Option<u64>,
    process: Option<Child>,
    pgwire: Option<SocketAddr>,
    /// Kept over restarts, as others know it.
    pub(crate) flight: Option<SocketAddr>,
    /// Kept over restarts, so that replicas find it again.
    pub(crate) replication: Option<SocketAddr>,
}

impl Node {
    /// Starts the process and waits until it says that it listens.
    pub(crate) async fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let is_primary = self.flags.iter().any(|flag| flag.starts_with("replication.primary."));
        let mut command = self.command();
        if is_primary {
            let address = *self.replication.get_or_insert_with(kept_address);
            command.arg("--set").arg(format!("listen.replication={address}"));
        }
        let serves_flight = self.flags.iter().any(|flag| flag.starts_with("listen.flight="));
        if serves_flight {
            let address = *self.flight.get_or_insert_with(kept_address);
            command.arg("--set").arg(format!("listen.flight={address}"));
        }
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(process.stdout.take().unwrap());
        self.process = Some(process);
        self.pgwire = Some(self.listening(&lines, "pgwire"));
        if serves_flight {
            self.flight = Some(self.listening(&lines, "flight"));
        }
        if is_primary {
            self.replication = Some(self.listening(&lines, "replication"));
        }
    }

    /// The `serve` command, stderr appended to a file in the node's folder.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.file_limit {
            // The signal is ignored, so that the write fails with an error instead. Blocks of 1024 bytes.
            Some(bytes) => {
                let mut shell = clean(Command::new("bash"));
                let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes >> 10);
                shell.args(["-c", &script, env!("CARGO_BIN_EXE_tailrace")]);
                shell
            }
            None => tailrace(),
        };
        command.arg("serve").arg("--config").arg(self.dir.join("tailrace.toml"));
        for flag in &self.flags {
            command.arg("--set").arg(flag);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("stderr.log")).unwrap();
        command.envs(self.environment.iter().cloned()).stderr(log).stdin(Stdio::null());
        command
    }

    fn listening(&self, lines: &mpsc::Receiver<String>, what: &str) -> SocketAddr {
        let line = lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|error| panic!("{} did not start: {error}\n{}", self.name, self.log()));
        let address = line.strip_prefix(&format!("listening {what} "));
        address.unwrap_or_else(|| panic!("unexpected line {line:?}")).parse().unwrap()
    }

    /// What it wrote to stderr.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("stderr.log")).unwrap_or_default()
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// From the next start on, no file may grow beyond `bytes`.
    pub(crate) fn limit_files(&mut self, bytes: u64) {
        self.file_limit = Some(bytes);
    }

    /// Ends the limit from the next start on.
    pub(crate) fn unlimit_files(&mut self) {
        self.file_limit = None;
    }

    /// A signal by name, and the exit status that follows.
    pub(crate) fn signal(&mut self, signal: &str) -> ExitStatus {
        let process = self.process.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(process).status().unwrap();
        assert!(sent.success());
        self.wait()
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = process.kill();
                panic!("{} did not end\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM; must end with 0.
    pub(crate) fn stop(&mut self) {
        let status = self.signal("TERM");
        assert_eq!(status.code(), Some(0), "{}\n{}", self.name, self.log());
    }

    pub(crate) fn pgwire(&self) -> SocketAddr {
        self.pgwire.unwrap()
    }

    /// A connection to the node as a whole: names are written with their database.
    pub(crate) async fn connect(&self) -> Sql {
        let address = self.pgwire();
        let (client, connection) = tokio_postgres::Config::new()
            .host(address.ip().to_string())
            .port(address.port())
            .user("test")
            .dbname("tailrace")
            .connect(NoTls)
            .await
            .unwrap_or_else(|error| panic!("{}: {}\n{}", self.name, words(&error), self.log()));
        tokio::spawn(connection);
        Sql { client, name: self.name.clone() }
    }

    /// One statement on a connection of its own.
    pub(crate) async fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.connect().await.rows(sql).await
    }

    /// Waits until `sql` answers `wanted`; errors count as "not yet".
    pub(crate) async fn wait_for(&self, sql: &str, wanted: &[&[&str]]) {
        let deadline = Instant::now() + PATIENCE;
        let client = self.connect().await;
        loop {
            let answer = client.try_rows(sql).await;
            if answer.as_ref().is_ok_and(|rows| rows == wanted) {
                return;
            }
            if Instant::now() > deadline {
                panic!("{}: {sql}: wanted {wanted:?}, last {answer:?}\n{}", self.name, self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the process has logged `text`.
    pub(crate) async fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "{} never logged {text:?}\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log());
        }
    }
}

/// A client connection; values come as text, NULL as an empty one.
pub(crate) struct Sql {
    pub(crate) client: Client,
    name: String,
}

impl Sql {
    pub(crate) fn new(client: Client, node: &Node) -> Self {
        Self { client, name: node.name.clone() }
    }

    pub(crate) async fn try_rows(&self, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or("").to_owned()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        self.try_rows(sql).await.unwrap_or_else(|error| panic!("{}: {sql}: {}", self.name, words(&error)))
    }

    /// The error's SQLSTATE and words.
    pub(crate) async fn refusal(&self, sql: &str) -> (String, String) {
        let error = self.try_rows(sql).await.expect_err(sql);
        let state = error.code().map(|code| code.code().to_owned());
        (state.unwrap_or_default(), words(&error))
    }
}

/// The table of most tests, in a database of its own that is replicated.
pub(crate) async fn create_ticks(primary: &Node) {
    let client = primary.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows("CALL set_database_for_cluster_replication('market', true)").await;
    client.rows(CREATE_TICKS).await;
}

pub(crate) const CREATE_TICKS: &str = "CREATE TABLE market.ticks (id BIGINT NOT NULL, at TIMESTAMP(3) NOT NULL, \
     price DOUBLE PRECISION) PARTITION BY VALUE (day(at)) ORDER BY (id)";

/// What must be equal on two sides.
pub(crate) const SUMS: &str = "SELECT count(*), count(DISTINCT id), coalesce(min(id), 0), coalesce(max(id), 0), \
     coalesce(sum(id), 0), coalesce(sum(CAST(price AS BIGINT)), 0) FROM market.ticks";

/// What [`SUMS`] says of the ticks `ids`, each there once.
pub(crate) fn sums(ids: std::ops::Range<u64>) -> Vec<String> {
    let count = ids.end - ids.start;
    let sum: u64 = ids.clone().sum();
    let prices: u64 = ids.clone().map(price).sum();
    [count, count, ids.start, ids.end - 1, sum, prices].map(|number| number.to_string()).to_vec()
}

/// `INSERT` of the ticks `ids`.
pub(crate) fn insert(ids: std::ops::Range<u64>) -> String {
    let rows: Vec<_> = ids.map(|id| format!("({})", tick(id, ',', "'"))).collect();
    format!("INSERT INTO market.ticks VALUES {}", rows.join(", "))
}

/// `COPY` of a file that [`Site::ticks_file`] wrote.
pub(crate) fn copy(path: &Path) -> String {
    format!("COPY market.ticks FROM '{}' WITH (FORMAT csv)", path.display())
}

fn tick(id: u64, separator: char, quote: &str) -> String {
    let (day, second) = (8 + id % 5, id / 5 % 60);
    format!("{id}{separator}{quote}2023-01-{day:02} 09:30:{second:02}{quote}{separator}{}", price(id))
}

fn price(id: u64) -> u64 {
    100 + id * 7 % 13
}

fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} {}", error.message(), error.hint().unwrap_or_default()),
        None => error.to_string(),
    }
}

fn lines_of(stdout: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A seed for this run, printed so that a failure can be run again: `TICKS_SEED=… cargo test`.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("TICKS_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    println!("seed {seed}: TICKS_SEED={seed} repeats it");
    seed
}

/// A Python that has the clients of other makers; `None`, and a word, where there is none.
pub(crate) fn client_python() -> Option<OsString> {
    let python = std::env::var_os("CLIENT_PYTHON");
    if python.is_none() {
        eprintln!("SKIPPED: no Python with the drivers of other makers; `.ci/run` installs one, see CLIENT_PYTHON");
    }
    python
}

/// Runs a script that lies beside the tests; returns what it printed.
pub(crate) async fn client(python: OsString, script: &str, arguments: impl IntoIterator<Item = String>) -> String {
    let mut command = Command::new(python);
    command.arg(format!("{}/tests/it/{script}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::time::timeout(PATIENCE, run).await.expect("it hangs").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}
