//! One `tailrace serve` process that may end in any way and be started again.

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::{PATIENCE, port::kept_address};

/// A node: its settings, and its process while it runs.
#[derive(Debug)]
pub(crate) struct Node {
    name: &'static str,
    dir: PathBuf,
    flags: Vec<String>,
    process: Option<Child>,
    /// Chosen at the first start and kept.
    pub(crate) pgwire: Option<SocketAddr>,
    pub(crate) replication: Option<SocketAddr>,
    /// How much of the log was there when the process was started.
    log_start: u64,
}

/// What a process writes to stdout.
type Lines = mpsc::UnboundedReceiver<String>;

/// A start that failed.
#[derive(Debug)]
pub(crate) struct NotStarted {
    /// `None`: killed, or it neither listened nor ended in time.
    pub(crate) code: Option<i32>,
    /// What it said on stderr.
    pub(crate) words: String,
}

impl Node {
    /// `tailrace init` under `folder`; data goes to `data`.
    pub(crate) fn init(folder: &Path, name: &'static str, ca: Option<&Path>, data: &Path, flags: &[String]) -> Self {
        let dir = folder.join(format!("{name}-settings"));
        let mut init = tailrace();
        init.arg("init").arg(&dir).args(["--name", name]);
        if let Some(ca) = ca {
            init.arg("--ca").arg(ca);
        }
        let made = init.output().unwrap();
        assert!(made.status.success(), "init: {}", String::from_utf8_lossy(&made.stderr));
        let mut flags = flags.to_vec();
        flags.push(format!("node.data_dir={}", data.display()));
        Self { name, dir, flags, process: None, pgwire: None, replication: None, log_start: 0 }
    }

    /// The folder with the authority's key, for the next node's `init`.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.join("tls")
    }

    pub(crate) fn set(&mut self, flag: String) {
        self.flags.push(flag);
    }

    /// Starts the process and waits until it listens, or has ended.
    pub(crate) async fn start(&mut self) -> Result<(), NotStarted> {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let is_primary = self.flags.iter().any(|flag| flag.starts_with("replication.primary."));
        let mut command = tailrace();
        command.arg("serve").arg("--config").arg(self.dir.join("tailrace.toml"));
        for flag in &self.flags {
            command.arg("--set").arg(flag);
        }
        let address = *self.pgwire.get_or_insert_with(kept_address);
        command.arg("--set").arg(format!("listen.pgwire={address}"));
        if is_primary {
            let address = *self.replication.get_or_insert_with(kept_address);
            command.arg("--set").arg(format!("listen.replication={address}"));
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        self.log_start = log.metadata().unwrap().len();
        let mut process = command.stdout(Stdio::piped()).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = lines_of(process.stdout.take().unwrap());
        self.process = Some(process);
        self.pgwire = Some(self.listening(&mut lines, "pgwire").await?);
        if is_primary {
            self.replication = Some(self.listening(&mut lines, "replication").await?);
        }
        Ok(())
    }

    async fn listening(&mut self, lines: &mut Lines, what: &str) -> Result<SocketAddr, NotStarted> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(line) = lines.try_recv() {
                let address = line.strip_prefix(&format!("listening {what} "));
                return Ok(address.unwrap_or_else(|| panic!("unexpected line {line:?}")).parse().unwrap());
            }
            if let Some(status) = self.ended() {
                return Err(NotStarted { code: status.code(), words: self.words() });
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(NotStarted { code: None, words: self.words() });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its exit status, if it has ended by itself since the last look.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().unwrap()?;
        self.process = None;
        Some(status)
    }

    /// Waits until it ends by itself. `None`: it did not within `patience`.
    pub(crate) async fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        if let Some(process) = &self.process {
            let id = process.id().to_string();
            // It may just have ended by itself.
            let _ = Command::new("kill").args([&format!("-{signal}"), &id]).stderr(Stdio::null()).status();
        }
    }

    /// SIGSTOP, and waits until no thread is within a system call: a sync under way has succeeded, and said so.
    pub(crate) async fn freeze(&self) {
        let Some(process) = &self.process else { return };
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", process.id());
        let is_stopped = |stat: String| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 'Z', 'X']));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let threads = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
            let mut states = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
            if states.all(is_stopped) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{} does not stop", self.name);
    }

    /// What the present process, or the last one, wrote to stderr; its end if it is long.
    pub(crate) fn words(&self) -> String {
        let Ok(mut log) = std::fs::File::open(self.log_path()) else { return String::new() };
        let len = log.metadata().unwrap().len();
        log.seek(SeekFrom::Start(self.log_start.max(len.saturating_sub(16 << 10)))).unwrap();
        let mut words = Vec::new();
        log.read_to_end(&mut words).unwrap();
        String::from_utf8_lossy(&words).into_owned()
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.join("stderr.log")
    }

    /// Resident memory now and at its highest, bytes.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.as_ref()?.id())).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
        };
        Some((field("VmRSS:")?, field("VmHWM:")?))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The binary, with no settings leaking in from this process' environment.
fn tailrace() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailrace"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TAILRACE_") {
            command.env_remove(name);
        }
    }
    command
}

fn lines_of(stdout: impl Read + Send + 'static) -> Lines {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
