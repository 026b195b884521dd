//! The tutorial's nightly job: at half past ten, a site gets the day's rows of another one. Online it asks the other site; offline
//! the other site backs the rows up, the folder is carried over, and they are restored. Two days in a row.

use std::{path::Path, process::Command, sync::Arc};

use tailrace_engine::{Engine, EngineConfig, EngineSeams};
use tailrace_replicator::TlsConfig;
use tailrace_sql::{FlightServer, Instance, Jobs, Remotes, SessionFactory, SqlConfig};
use tailrace_wal::SystemDisk;

use crate::{
    job::{ManualClock, moment},
    node::Client,
    site::Site,
};

/// A cluster on a clock that it shares with the other one.
struct Cluster {
    clock: Arc<ManualClock>,
    engine: Arc<Engine>,
    jobs: Arc<Jobs>,
    factory: SessionFactory,
    flight: FlightServer,
}

impl Cluster {
    async fn start(folder: &Path, name: &str, tls: TlsConfig, clock: &Arc<ManualClock>) -> Self {
        let folder = folder.canonicalize().unwrap().join(name);
        let files = folder.join("backups");
        std::fs::create_dir_all(&files).unwrap();
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: clock.clone() };
        let (engine, _) = Engine::open(EngineConfig::new(folder.join("data")), seams).await.unwrap();
        let config = SqlConfig {
            node_name: name.to_owned(),
            pgwire: ([127, 0, 0, 1], 0).into(),
            tls: Some(tls.clone()),
            files_allow: vec![files],
            memory_bytes: 256 << 20,
            threads: 2,
            statement_timeout: None,
            settings: Vec::new(),
        };
        let jobs = Jobs::new(engine.clone(), std::num::NonZeroUsize::MIN);
        let remotes = Arc::new(Remotes::new(engine.clone(), Some(tls), Vec::new()));
        let instance =
            Instance { engine: engine.clone(), publisher: None, follower: None, remotes, jobs: jobs.clone(), config };
        let factory = SessionFactory::new(Arc::new(instance)).await.unwrap();
        let flight = FlightServer::start(factory.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        jobs.start(factory.clone()).await;
        Self { clock: clock.clone(), engine, jobs, factory, flight }
    }

    fn client(&self) -> Client {
        Client(self.factory.session("ann", None))
    }

    /// What is due at that moment, UTC, is done on return.
    async fn at(&self, now: &str) {
        self.clock.set(moment(now));
        self.jobs.idle().await;
    }

    /// `due|outcome` of every run.
    async fn runs(&self) -> Vec<String> {
        let failed = self.client().rows("SELECT message FROM system.job_runs WHERE outcome = 'FAILED'").await;
        assert!(failed.is_empty(), "{failed:?}");
        self.client().rows("SELECT job, due, outcome FROM system.job_runs ORDER BY due").await
    }

    async fn stop(self) {
        self.jobs.shutdown().await;
        self.flight.shutdown().await;
        self.engine.shutdown().await.unwrap();
    }
}

/// Two clusters at noon; the first knows the second, which has the bars, as `siteb`.
async fn two(folder: &Path, site: &Site) -> (Cluster, Cluster) {
    let clock = Arc::new(ManualClock::at("2026-01-08 12:00:00"));
    let a = Cluster::start(folder, "sitea", site.issue("sitea"), &clock).await;
    let b = Cluster::start(folder, "siteb", site.issue("siteb"), &clock).await;
    b.client().tag("CREATE DATABASE market").await;
    b.client().tag(BARS).await;
    a.client().tag(&format!("CALL create_remote_cluster('siteb', '{}')", b.flight.local_addr())).await;
    (a, b)
}

const BARS: &str = "CREATE TABLE market.bars (security_id TEXT NOT NULL, datetime TIMESTAMP(0) NOT NULL, last_px DOUBLE \
                    PRECISION) PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)";
/// Half past ten there is half past two here.
const ZONE: &str = "time_zone => 'Asia/Shanghai'";
const ROWS: usize = 500;

/// The bars of a day of January.
fn bars(day: u32) -> String {
    let bar = |n: usize| format!("('{:06}', '2026-01-{day:02} {:02}:{:02}:00', {n}.5)", n % 7, 1 + n % 13, n % 60);
    format!("INSERT INTO market.bars VALUES {}", (0..ROWS).map(bar).collect::<Vec<_>>().join(", "))
}

async fn day(cluster: &Cluster, day: u32) -> Vec<String> {
    let sql = format!(
        "SELECT security_id, datetime, last_px FROM market.bars WHERE date_trunc('day', datetime) = '2026-01-{day:02}' \
         ORDER BY 1, 2, 3"
    );
    cluster.client().rows(&sql).await
}

async fn equal(a: &Cluster, b: &Cluster, of: u32) {
    let wanted = day(b, of).await;
    assert_eq!(wanted.len(), ROWS);
    assert_eq!(day(a, of).await, wanted, "day {of}");
}

#[tokio::test(flavor = "multi_thread")]
async fn online_the_days_rows_are_asked_for_at_half_past_ten() {
    let (folder, site) = (tempfile::tempdir().unwrap(), Site::new());
    let (a, b) = two(folder.path(), &site).await;
    for before in [6, 7, 8] {
        b.client().tag(&bars(before)).await;
    }
    // Neither the database nor the table is there before the first night.
    let call = format!(
        "CALL schedule_job('nightly', '30 22 * * *', $$CALL synchronize('siteb', 'market.bars',
             where => 'datetime >= ''' || current_date || '''', create => true)$$, {ZONE})"
    );
    a.client().tag(&call).await;
    a.at("2026-01-08 14:29:59").await;
    assert!(a.runs().await.is_empty());
    a.at("2026-01-08 14:30:00").await;
    assert_eq!(a.runs().await, ["nightly|2026-01-08T14:30:00Z|SUCCEEDED"]);
    equal(&a, &b, 8).await;
    assert!(day(&a, 7).await.is_empty(), "the day's rows alone");

    b.client().tag(&bars(9)).await;
    a.at("2026-01-09 14:29:59").await;
    assert!(day(&a, 9).await.is_empty());
    a.at("2026-01-09 14:30:00").await;
    a.at("2026-01-09 15:00:00").await;
    assert_eq!(
        a.runs().await,
        ["nightly|2026-01-08T14:30:00Z|SUCCEEDED", "nightly|2026-01-09T14:30:00Z|SUCCEEDED"],
        "once a day"
    );
    equal(&a, &b, 8).await;
    equal(&a, &b, 9).await;
    let counted = a.client().rows("SELECT count(*) FROM market.bars").await;
    assert_eq!(counted, [(2 * ROWS).to_string()]);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_a_folder_with_the_days_rows_is_carried_over() {
    if Command::new("rsync").arg("--version").output().is_err() {
        println!("rsync is not installed: skipped");
        return;
    }
    let (folder, site) = (tempfile::tempdir().unwrap(), Site::new());
    let (a, b) = two(folder.path(), &site).await;
    let place = |name: &str| folder.path().canonicalize().unwrap().join(name).join("backups/days");
    let (outgoing, incoming) = (place("siteb"), place("sitea"));
    for before in [7, 8] {
        b.client().tag(&bars(before)).await;
    }
    a.client().tag("CREATE DATABASE market").await;
    let backup = format!(
        "CALL schedule_job('nightly_backup', '30 22 * * *', $$CALL backup('{}',
             'SELECT * FROM market.bars WHERE datetime >= TIMESTAMP ''' || current_date || '''')$$, {ZONE})",
        outgoing.display()
    );
    b.client().tag(&backup).await;
    let restore = format!(
        "CALL schedule_job('nightly_restore', '0 23 * * *', $$CALL restore('{}', table => 'market.bars', create => true,
             mode => 'replace')$$, {ZONE})",
        incoming.display()
    );
    a.client().tag(&restore).await;

    for (of, runs) in [(8, 1), (9, 2)] {
        if of == 9 {
            b.client().tag(&bars(9)).await;
        }
        b.at(&format!("2026-01-{of:02} 14:30:00")).await;
        assert_eq!(b.runs().await.len(), runs);
        carry(&outgoing, &incoming);
        a.at(&format!("2026-01-{of:02} 15:00:00")).await;
        assert!(a.client().rows(&format!("SELECT * FROM check_backup('{}')", incoming.display())).await.is_empty());
        equal(&a, &b, of).await;
    }
    assert_eq!(
        b.runs().await,
        ["nightly_backup|2026-01-08T14:30:00Z|SUCCEEDED", "nightly_backup|2026-01-09T14:30:00Z|SUCCEEDED"]
    );
    assert_eq!(
        a.runs().await,
        ["nightly_restore|2026-01-08T15:00:00Z|SUCCEEDED", "nightly_restore|2026-01-09T15:00:00Z|SUCCEEDED"]
    );
    equal(&a, &b, 8).await;
    let counted = a.client().rows("SELECT count(*) FROM market.bars").await;
    assert_eq!(counted, [(2 * ROWS).to_string()], "the days' rows alone");
    a.stop().await;
    b.stop().await;
}

/// As `docs/offline_synchronization.sh` does it: manifests last.
fn carry(from: &Path, to: &Path) {
    let rsync = |arguments: &[&str], from: String| {
        let output = Command::new("rsync").arg("--archive").args(arguments).arg(from).arg(to).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    rsync(
        &["--exclude", "/backups", "--exclude", "/running", "--exclude", "/.staging"],
        format!("{}/", from.display()),
    );
    rsync(&[], from.join("backups").display().to_string());
}
