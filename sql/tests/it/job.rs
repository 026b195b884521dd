//! Jobs, on a node whose clock moves when it is told to.

use std::{num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use chrono::{DateTime, NaiveDateTime};
use parking_lot::Mutex;
use tailrace_engine::{Engine, EngineConfig, EngineSeams};
use tailrace_sql::{Instance, Jobs, Outcome, Remotes, SessionFactory, SqlConfig};
use tailrace_wal::{Clock, CommitTime, SystemDisk};
use tokio_util::sync::CancellationToken;

use crate::node::Client;

/// Wall clock and monotonic time.
#[derive(Debug)]
pub(crate) struct ManualClock(Mutex<(CommitTime, Duration)>);

impl ManualClock {
    /// Stands at a moment, UTC.
    pub(crate) fn at(now: &str) -> Self {
        Self(Mutex::new((moment(now), Duration::ZERO)))
    }

    /// Sets the wall clock.
    pub(crate) fn set(&self, now: CommitTime) {
        self.0.lock().0 = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> CommitTime {
        self.0.lock().0
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().1
    }
}

struct Node {
    clock: Arc<ManualClock>,
    engine: Arc<Engine>,
    jobs: Arc<Jobs>,
    factory: SessionFactory,
    running_max: NonZeroUsize,
}

impl Node {
    /// A node that stands at a moment, UTC.
    async fn at(folder: &Path, now: &str) -> Self {
        Self::limited(folder, now, 4).await
    }

    /// The same, where so many jobs may run at once.
    async fn limited(folder: &Path, now: &str, running_max: usize) -> Self {
        let clock = Arc::new(ManualClock::at(now));
        let mut config = EngineConfig::new(folder);
        config.flush_age = Duration::from_secs(3600);
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: clock.clone() };
        let (engine, _) = Engine::open(config, seams).await.unwrap();
        Self::over(engine, clock, NonZeroUsize::new(running_max).unwrap()).await
    }

    async fn over(engine: Arc<Engine>, clock: Arc<ManualClock>, running_max: NonZeroUsize) -> Self {
        let config = SqlConfig {
            node_name: "site-a".to_owned(),
            pgwire: ([127, 0, 0, 1], 0).into(),
            tls: None,
            files_allow: Vec::new(),
            memory_bytes: 256 << 20,
            threads: 2,
            // Not for jobs.
            statement_timeout: Some(Duration::from_secs(600)),
            settings: Vec::new(),
        };
        let jobs = Jobs::new(engine.clone(), running_max);
        let remotes = Arc::new(Remotes::new(engine.clone(), None, Vec::new()));
        let instance =
            Instance { engine: engine.clone(), publisher: None, follower: None, remotes, jobs: jobs.clone(), config };
        let factory = SessionFactory::new(Arc::new(instance)).await.unwrap();
        jobs.start(factory.clone()).await;
        Self { clock, engine, jobs, factory, running_max }
    }

    /// Nobody is there to run jobs until that moment.
    async fn away_until(self, now: &str) -> Self {
        self.jobs.shutdown().await;
        self.clock.set(moment(now));
        Self::over(self.engine, self.clock, self.running_max).await
    }

    /// With database `market`, table `t (n)`, and a client of it.
    async fn market(folder: &Path, now: &str) -> (Self, Client) {
        let node = Self::at(folder, now).await;
        node.client("ann", None).tag("CREATE DATABASE market").await;
        let client = node.client("ann", Some("market"));
        client.tag("CREATE TABLE t (n BIGINT)").await;
        (node, client)
    }

    fn client(&self, user: &str, database: Option<&str>) -> Client {
        Client(self.factory.session(user, database))
    }

    /// Sets the wall clock; what is due is done on return.
    async fn moved_to(&self, now: &str) {
        self.clock.set(moment(now));
        self.jobs.idle().await;
    }

    /// Lets time pass; what is due has begun on return.
    async fn passed(&self, time: Duration) {
        {
            let mut clock = self.clock.0.lock();
            clock.0 = CommitTime(clock.0.0 + i64::try_from(time.as_micros()).unwrap());
            clock.1 += time;
        }
        self.jobs.looked().await;
    }

    async fn stop(self) {
        self.jobs.shutdown().await;
        self.engine.shutdown().await.unwrap();
    }
}

pub(crate) fn moment(text: &str) -> CommitTime {
    CommitTime(NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap().and_utc().timestamp_micros())
}

/// `due|outcome|rows` of every run, and the attempt where it is not the first.
fn runs(node: &Node) -> Vec<String> {
    let shown = |time: CommitTime| DateTime::from_timestamp_micros(time.0).unwrap().format("%d %H:%M").to_string();
    let words = |run: tailrace_engine::JobRun| {
        let due = run.due.map_or_else(|| run.trigger.name().to_owned(), shown);
        let attempt = if run.attempt > 1 { format!("|{}", run.attempt) } else { String::new() };
        format!("{due}|{}|{}{attempt}", run.outcome.name(), run.rows)
    };
    node.engine.job_runs().into_iter().map(words).collect()
}

fn last_message(node: &Node) -> String {
    node.engine.job_runs().pop().unwrap().message
}

/// Ends when it is cancelled.
const FOREVER: &str = "SELECT count(*) FROM generate_series(1, 100000000000) a WHERE a.value % 7 = 8";

#[tokio::test]
async fn the_tutorials_job_runs_at_half_past_ten_every_evening() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-01-08 12:00:00").await;
    let call =
        "CALL schedule_job('syncDB', '30 22 * * *', 'INSERT INTO t VALUES (1), (2); INSERT INTO market.t SELECT 3',
                from => '2019-01-01', until => '2030-12-31')";
    for statement in client.0.parse(call).unwrap() {
        match client.0.execute(&statement, Vec::new(), CancellationToken::new()).await.unwrap() {
            Outcome::Done { tag, notices } => {
                assert_eq!(tag, "CALL");
                assert_eq!(notices[0].text, "job \"syncDB\" runs next at 2026-01-08 22:30:00 UTC");
            }
            Outcome::Rows(_) => panic!("rows"),
        }
    }
    node.moved_to("2026-01-08 22:29:59").await;
    assert!(runs(&node).is_empty());
    node.moved_to("2026-01-08 22:30:00").await;
    assert_eq!(runs(&node), ["08 22:30|SUCCEEDED|3"]);
    assert_eq!(last_message(&node), "INSERT 0 2; INSERT 0 1");
    node.moved_to("2026-01-08 22:30:59").await;
    node.moved_to("2026-01-08 22:31:30").await;
    assert_eq!(runs(&node).len(), 1, "once");
    assert_eq!(client.rows("SELECT count(*) FROM t").await, ["3"]);
    assert_eq!(
        client
            .rows("SELECT name, cron, time_zone, \"user\", database, state, next_run, last_outcome FROM system.jobs")
            .await,
        ["syncDB|30 22 * * *|UTC|ann|market|SCHEDULED|2026-01-09T22:30:00Z|SUCCEEDED"]
    );
    assert_eq!(
        client.rows("SELECT job, run, attempt, trigger, due, outcome, rows, node FROM system.job_runs").await,
        ["syncDB|1|1|SCHEDULE|2026-01-08T22:30:00Z|SUCCEEDED|3|site-a"]
    );
    node.moved_to("2030-12-31 22:30:00").await;
    assert_eq!(runs(&node).last().unwrap(), "31 22:30|SUCCEEDED|3", "the last day is one of them");
    node.moved_to("2031-01-01 22:30:00").await;
    assert_eq!(runs(&node).last().unwrap(), "31 22:30|SUCCEEDED|3");
    let ended = client.rows("SELECT state, reason, next_run FROM system.jobs").await;
    assert!(ended[0].starts_with("ENDED|no due time is left") && ended[0].ends_with('|'), "{ended:?}");
    node.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_when_it_is_scheduled() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-01-08 12:00:00").await;
    client.tag("CALL schedule_job('nightly', '@daily', 'CALL flush()')").await;
    for (call, state, words) in [
        ("schedule_job('a', '61 * * * *', 'SELECT 1')", "22023", "field 1, the minute"),
        ("schedule_job('a', '0 0 30 2 *', 'SELECT 1')", "22023", "would never run"),
        ("schedule_job('a', '@daily', 'SELECT 1', until => '2025-01-01')", "22023", "would never run"),
        ("schedule_job('a', '@daily', 'SELEC 1')", "42601", "statement of job \"a\""),
        ("schedule_job('a', '@daily', 'BEGIN; SELECT 1')", "0A000", "BEGIN is not possible in a job"),
        ("schedule_job('a', '@daily', 'COPY t FROM STDIN')", "0A000", "COPY FROM STDIN"),
        ("schedule_job('a', '@daily', '')", "22023", "no statement"),
        ("schedule_job('a', '@daily', 'SELECT 1', time_zone => 'Mars')", "22023", "time zone \"Mars\""),
        ("schedule_job('a', '@daily', 'SELECT 1', from => 'soon')", "22007", "from => \"soon\""),
        ("schedule_job('a', '@daily', 'SELECT 1', timeout => '2')", "22007", "timeout => \"2\""),
        ("schedule_job('a', '@daily', 'SELECT 1', catch_up => 'twice')", "22023", "catch_up => \"twice\""),
        ("schedule_job('a', '@daily', 'SELECT 1', retries => 101)", "22023", "101 retries"),
        ("schedule_job('a', '@daily', 'SELECT 1', retries => -1)", "22023", "out of range"),
        ("schedule_job('a', '@daily', 'SELECT 1', max_runs_kept => 0)", "22023", "0 runs"),
        ("schedule_job('', '@daily', 'SELECT 1')", "22023", "job name"),
        ("schedule_job('nightly', '@daily', 'SELECT 1')", "42710", "already exists"),
        ("run_job('nihtly')", "42704", "does not exist"),
        ("pause_job('x')", "42704", "does not exist"),
        ("resume_job('x')", "42704", "does not exist"),
        ("delete_job('x')", "42704", "does not exist"),
    ] {
        let error = client.error(&format!("CALL {call}")).await;
        assert!(error.sqlstate == state && error.message.contains(words), "{call}: {error:?}");
    }
    let error = client.error("CALL run_job('nihtly')").await;
    assert!(error.hint.unwrap().contains("nightly"));
    client.tag("CALL schedule_job('nightly', '@hourly', 'SELECT 1', replace => true)").await;
    assert_eq!(client.rows("SELECT name, cron FROM system.jobs").await, ["nightly|@hourly"]);
    node.stop().await;
}

#[tokio::test]
async fn missed_runs_by_policy() {
    for (policy, expected) in [
        ("skip", &["10 22:30|SKIPPED|0"][..]),
        ("once", &["09 22:30|SKIPPED|0", "10 22:30|SUCCEEDED|1"]),
        ("all", &["08 22:30|SUCCEEDED|1", "09 22:30|SUCCEEDED|1", "10 22:30|SUCCEEDED|1"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (node, client) = Node::market(folder.path(), "2026-01-08 12:00:00").await;
        let call = format!("CALL schedule_job('n', '30 22 * * *', 'INSERT INTO t VALUES (1)', catch_up => '{policy}')");
        client.tag(&call).await;
        let node = node.away_until("2026-01-11 08:00:00").await;
        node.jobs.idle().await;
        assert_eq!(runs(&node), expected, "{policy}");
        node.moved_to("2026-01-11 08:05:00").await;
        assert_eq!(runs(&node), expected, "{policy}: once");
        // The clock jumps over the next one.
        node.moved_to("2026-01-12 03:00:00").await;
        let outcome = if policy == "skip" { "11 22:30|SKIPPED|0" } else { "11 22:30|SUCCEEDED|1" };
        assert_eq!(runs(&node).last().unwrap(), outcome, "{policy}");
        // It jumps back, and what has run does not run again.
        let count = runs(&node).len();
        node.moved_to("2026-01-11 22:00:00").await;
        node.moved_to("2026-01-11 22:30:00").await;
        assert_eq!(runs(&node).len(), count, "{policy}");
        // So far back that it must have been wrong before.
        node.moved_to("2026-01-05 12:00:00").await;
        assert!(last_message(&node).contains("the clock was set back"), "{policy}: {}", last_message(&node));
        node.moved_to("2026-01-05 22:30:00").await;
        assert_eq!(runs(&node).last().unwrap(), "05 22:30|SUCCEEDED|1", "{policy}");
        node.stop().await;
    }
}

#[tokio::test]
async fn what_fails_is_tried_again_with_growing_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-01-08 22:00:00").await;
    client
        .tag(
            "CALL schedule_job('n', '30 22 * * *', 'INSERT INTO t VALUES (1); INSERT INTO later VALUES (1); CALL flush()',
              retries => 3, retry_delay => '1 min')",
        )
        .await;
    node.passed(Duration::from_secs(30 * 60)).await;
    node.jobs.idle().await;
    assert_eq!(runs(&node), ["08 22:30|FAILED|1"]);
    let message = last_message(&node);
    assert!(message.starts_with("INSERT 0 1; statement 2 of 3: ") && message.contains("42P01"), "{message}");
    let state = "SELECT state, next_run FROM system.jobs";
    assert_eq!(client.rows(state).await, ["RETRYING|2026-01-08T22:31:00Z"]);
    node.passed(Duration::from_secs(60)).await;
    node.jobs.idle().await;
    assert_eq!(runs(&node), ["08 22:30|FAILED|1", "08 22:30|FAILED|1|2"]);
    assert_eq!(client.rows(state).await, ["RETRYING|2026-01-08T22:33:00Z"]);
    client.tag("CREATE TABLE later (n BIGINT)").await;
    node.passed(Duration::from_secs(119)).await;
    node.jobs.idle().await;
    assert_eq!(runs(&node).len(), 2);
    node.passed(Duration::from_secs(1)).await;
    node.jobs.idle().await;
    assert_eq!(runs(&node)[2], "08 22:30|SUCCEEDED|2|3");
    assert_eq!(client.rows(state).await, ["SCHEDULED|2026-01-09T22:30:00Z"]);
    node.stop().await;
}

#[tokio::test]
async fn one_run_at_a_time_and_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-01-08 22:00:00").await;
    client.tag(&format!("CALL schedule_job('n', '*/5 22 * * *', '{FOREVER}', timeout => '12 min')")).await;
    node.passed(Duration::from_secs(300)).await;
    assert_eq!(runs(&node), ["08 22:05|RUNNING|0"]);
    assert_eq!(client.state("CALL run_job('n')").await, "55006");
    node.passed(Duration::from_secs(300)).await;
    assert_eq!(runs(&node), ["08 22:05|RUNNING|0", "08 22:10|SKIPPED|0"]);
    assert!(last_message(&node).contains("run 1, begun at 2026-01-08 22:05:00 UTC, is under way"));
    assert_eq!(client.rows("SELECT state, next_run FROM system.jobs").await, ["RUNNING|2026-01-08T22:15:00Z"]);
    node.passed(Duration::from_secs(7 * 60)).await;
    node.jobs.idle().await;
    let found = runs(&node);
    assert_eq!(found, ["08 22:05|TIMED_OUT|0", "08 22:10|SKIPPED|0", "08 22:15|SKIPPED|0"]);
    assert_eq!(
        client.rows("SELECT seconds, message FROM system.job_runs WHERE run = 1").await,
        ["720.0|it ran for its time-out of 720s and was ended"]
    );
    node.stop().await;
}

#[tokio::test]
async fn by_hand_paused_resumed_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-01-08 22:00:00").await;
    client.tag("CALL schedule_job('n', '30 22 * * *', 'INSERT INTO t SELECT 7 WHERE current_user = ''ann''')").await;
    client.tag("CALL pause_job('n')").await;
    let state = "SELECT state, next_run FROM system.jobs";
    assert_eq!(client.rows(state).await, ["PAUSED|"]);
    node.moved_to("2026-01-08 22:30:00").await;
    assert!(runs(&node).is_empty());
    // By whomever, it runs as who made it, in the database where that was.
    let bob = node.client("bob", None);
    let ran = bob.rows("CALL run_job('n')").await;
    assert_eq!(ran, ["n|1|SUCCEEDED|0.0|1|INSERT 0 1"]);
    assert_eq!(client.rows("SELECT trigger, \"user\", due FROM system.job_runs").await, ["MANUAL|bob|"]);
    client.tag("CALL resume_job('n')").await;
    node.moved_to("2026-01-09 12:00:00").await;
    assert_eq!(runs(&node), ["MANUAL|SUCCEEDED|1"], "what was due meanwhile is not made up for");
    assert_eq!(client.rows(state).await, ["SCHEDULED|2026-01-09T22:30:00Z"]);

    // Without waiting, and cancelled by who waits.
    client
        .tag(&format!("CALL schedule_job('n', '30 22 * * *', '{FOREVER}', replace => true, max_runs_kept => 3)"))
        .await;
    let begun = bob.rows("CALL run_job('n', wait => false)").await;
    assert_eq!(begun, ["n|2|RUNNING||0|"]);
    client.tag("CALL delete_job('n')").await;
    node.jobs.idle().await;
    assert!(runs(&node).is_empty() && client.rows("SELECT * FROM system.jobs").await.is_empty());

    client.tag(&format!("CALL schedule_job('n', '30 22 * * *', '{FOREVER}')")).await;
    let cancel = CancellationToken::new();
    let statement = bob.0.parse("CALL run_job('n')").unwrap().remove(0);
    let (waited, ()) = tokio::join!(bob.0.execute(&statement, Vec::new(), cancel.clone()), async {
        while runs(&node).is_empty() {
            tokio::task::yield_now().await;
        }
        // From here on it is recorded: at whatever moment the cancel comes, the run has to end.
        cancel.cancel();
    });
    assert_eq!(waited.err().unwrap().sqlstate, "57014");
    node.jobs.idle().await;
    assert_eq!(runs(&node), ["MANUAL|CANCELLED|0"]);
    node.stop().await;
}

#[tokio::test]
async fn a_stop_ends_what_is_under_way_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-01-08 22:00:00").await;
    client.tag(&format!("CALL schedule_job('once', '30 22 * * *', '{FOREVER}')")).await;
    client.tag("CALL schedule_job('t', '30 22 * * *', 'SELECT 1', time_zone => 'Europe/Berlin')").await;
    client
        .tag(&format!("CALL schedule_job('tried', '30 22 * * *', '{FOREVER}', retries => 1, retry_delay => '5 min')"))
        .await;
    node.passed(Duration::from_secs(30 * 60)).await;
    let outcomes = |node: &Node| {
        let runs = node.engine.job_runs();
        runs.iter().map(|run| format!("{} {} {}", run.job, run.attempt, run.outcome.name())).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(&node), ["once 1 RUNNING", "tried 1 RUNNING"]);
    let node = node.away_until("2026-01-08 22:34:00").await;
    node.jobs.looked().await;
    assert_eq!(outcomes(&node), ["once 1 INTERRUPTED", "tried 1 INTERRUPTED"]);
    node.passed(Duration::from_secs(60)).await;
    assert_eq!(
        outcomes(&node)[1..],
        ["tried 1 INTERRUPTED", "tried 2 RUNNING"],
        "it may be tried again, the other may not"
    );
    let node = node.away_until("2026-01-08 23:00:00").await;
    node.jobs.looked().await;
    assert_eq!(outcomes(&node)[1..], ["tried 1 INTERRUPTED", "tried 2 INTERRUPTED"], "and not for ever");
    let client = node.client("ann", None);
    assert_eq!(
        client.rows("SELECT name, next_run FROM system.jobs WHERE name <> 'tried'").await,
        ["once|2026-01-09T22:30:00Z", "t|2026-01-09T21:30:00Z"]
    );
    node.stop().await;
}

#[tokio::test]
async fn daylight_saving_ends_and_the_job_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let (node, client) = Node::market(folder.path(), "2026-10-24 12:00:00").await;
    client.tag("CALL schedule_job('n', '30 2 * * *', 'SELECT 1', time_zone => 'Europe/Berlin')").await;
    for time in ["2026-10-25 00:30:00", "2026-10-25 01:30:00", "2026-10-26 01:30:00"] {
        node.moved_to(time).await;
    }
    assert_eq!(runs(&node), ["25 00:30|SUCCEEDED|1", "26 01:30|SUCCEEDED|1"]);
    node.stop().await;
}

#[tokio::test]
async fn what_is_due_beyond_the_limit_waits_for_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::limited(folder.path(), "2026-01-08 22:00:00", 1).await;
    let client = node.client("ann", None);
    client.tag(&format!("CALL schedule_job('long', '10 22 * * *', '{FOREVER}', timeout => '30 min')")).await;
    client.tag("CALL schedule_job('a_later', '20 22 * * *', 'SELECT 1')").await;
    client.tag("CALL schedule_job('sooner', '15 22 * * *', 'SELECT 1, 2')").await;
    client.tag("CALL schedule_job('gone', '15 22 * * *', 'SELECT 1')").await;
    for minutes in [10, 5, 5] {
        node.passed(Duration::from_secs(minutes * 60)).await;
    }
    let shown = "SELECT job, run, attempt, trigger, due, begun, outcome FROM system.job_runs ORDER BY due, job";
    let waiting = [
        "long|1|1|SCHEDULE|2026-01-08T22:10:00Z|2026-01-08T22:10:00Z|RUNNING",
        "gone|1|1|SCHEDULE|2026-01-08T22:15:00Z||WAITING",
        "sooner|1|1|SCHEDULE|2026-01-08T22:15:00Z||WAITING",
        "a_later|1|1|SCHEDULE|2026-01-08T22:20:00Z||WAITING",
    ];
    assert_eq!(client.rows(shown).await, waiting);
    assert_eq!(
        client.rows("SELECT state, reason, next_run FROM system.jobs WHERE name = 'a_later'").await,
        ["WAITING|waits for its turn, with 2 before it: jobs.max_running = 1|2026-01-08T22:20:00Z"]
    );
    // It is asked again, and nothing changes; who waits may be deleted; who is asked for need not wait.
    node.passed(Duration::from_secs(5 * 60)).await;
    assert_eq!(client.rows(shown).await, waiting);
    client.tag("CALL delete_job('gone')").await;
    client.tag("CALL schedule_job('asked', '0 3 * * *', 'SELECT 1')").await;
    assert_eq!(client.rows("CALL run_job('asked')").await[0].split('|').nth(2), Some("SUCCEEDED"));
    node.jobs.looked().await;
    assert_eq!(
        client.rows("SELECT name FROM system.jobs WHERE state = 'WAITING' ORDER BY 1").await,
        ["a_later", "sooner"]
    );

    // The long one takes too long; who waited much longer than a run may be late is not too late.
    node.passed(Duration::from_secs(16 * 60)).await;
    node.jobs.idle().await;
    let mut ran = node.engine.job_runs();
    ran.sort_by_key(|run| run.due);
    let outcomes: Vec<_> = ran.iter().map(|run| (&*run.job, run.outcome.name())).collect();
    assert_eq!(
        outcomes,
        [("asked", "SUCCEEDED"), ("long", "TIMED_OUT"), ("sooner", "SUCCEEDED"), ("a_later", "SUCCEEDED")]
    );
    assert!(ran[1].ended <= Some(ran[2].begun) && ran[2].ended <= Some(ran[3].begun), "one after the other: {ran:?}");

    // Who waits when the node stops has not begun: its due time is a missed one.
    for minutes in [23 * 60 + 29, 5, 5] {
        node.passed(Duration::from_secs(minutes * 60)).await;
    }
    assert_eq!(
        client.rows("SELECT job, outcome FROM system.job_runs WHERE ended IS NULL ORDER BY job").await,
        ["a_later|WAITING", "long|RUNNING", "sooner|WAITING"]
    );
    let node = node.away_until("2026-01-10 12:00:00").await;
    node.jobs.idle().await;
    let client = node.client("ann", None);
    assert_eq!(
        client
            .rows(
                "SELECT job, outcome FROM system.job_runs WHERE due > '2026-01-09T12:00:00' AND job <> 'asked' ORDER BY job"
            )
            .await,
        ["a_later|SKIPPED", "long|INTERRUPTED", "sooner|SKIPPED"]
    );
    node.stop().await;
}
