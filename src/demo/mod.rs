//! `tailrace demo`: the replication tutorial, played between two clusters in this process.
//!
//! Real QUIC between them, real pgwire to both, real files in temporary folders. `generator` → a Parquet file →
//! `COPY` on the primary → the replica shows it → both sides compared, hot and at rest.

pub mod generator;
mod progress;
mod site;
mod summary;
mod table;

use std::time::Duration;

use tailrace_wal::{Clock, SystemClock};

use self::{generator::MINUTES, progress::Stage, site::Site, summary::Summary, table::TextTable};
use crate::{Error, Result, serve::Signals};

/// Rows of the tutorial's day: 5,000 securities, 242 minutes.
pub const TUTORIAL_ROWS: u64 = generator::SECURITIES * generator::MINUTES;

/// How long the replica may show nothing new before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

const CREATE_TABLE: &str = "CREATE TABLE market.bars (
    security_id VARCHAR NOT NULL, datetime TIMESTAMP(3) NOT NULL,
    pre_close_px DOUBLE PRECISION, open_px DOUBLE PRECISION, high_px DOUBLE PRECISION,
    low_px DOUBLE PRECISION, last_px DOUBLE PRECISION, volume INTEGER, amount DOUBLE PRECISION
) PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)";

/// Plays the tutorial with `rows` rows; with `serve`, both clusters stay up until SIGINT or SIGTERM.
///
/// # Errors
/// [`Error::Demo`] when a step fails or the sides differ.
pub async fn demo(rows: u64, serve: bool) -> Result<()> {
    let clock = SystemClock::shared();
    let mut signals = Signals::listen()?;
    let root =
        tempfile::Builder::new().prefix("tailrace-demo-").tempdir().map_err(Error::io("create", "temporary folder"))?;
    let import = root.path().join("import");
    std::fs::create_dir(&import).map_err(Error::io("create", &import))?;

    println!("The replication tutorial between two clusters in {}", root.path().display());
    let primary_flags = [
        ("listen.replication", "127.0.0.1:0".to_owned()),
        ("replication.primary.max_replicas", "8".to_owned()),
        ("files.allow", format!("[{:?}]", import.display().to_string())),
    ];
    let primary = Site::start("siteA", root.path(), None, &primary_flags, &*clock).await?;
    let address = match primary.node.publisher() {
        Some(publisher) => publisher.local_addr(),
        None => return Err(Error::Demo("siteA does not serve replicas".to_owned())),
    };
    let replica_flags = [("replication.replica.primary_addresses", format!("[\"{address}\"]"))];
    let replica = Site::start("siteB", root.path(), Some("siteA"), &replica_flags, &*clock).await?;
    println!("  siteA, primary: pgwire {}, replication {address}", primary.node.pgwire());
    println!("  siteB, replica: pgwire {}", replica.node.pgwire());

    let file = import.join("bars.parquet");
    let played = tokio::select! {
        played = play(&primary, &replica, &file, rows, &*clock) => played,
        name = signals.next() => Err(Error::Demo(format!("{name}: given up"))),
    };
    if played.is_ok() && serve {
        println!("\nBoth clusters stay up until Ctrl-C:\n  {}   # siteA, primary", primary.psql());
        println!("  {}   # siteB, replica", replica.psql());
        println!("  server-side files: {}", import.display());
        signals.next().await;
    }
    let replica_stopped = replica.node.shutdown().await;
    let primary_stopped = primary.node.shutdown().await;
    played.and(replica_stopped).and(primary_stopped)
}

async fn play(primary: &Site, replica: &Site, file: &std::path::Path, rows: u64, clock: &dyn Clock) -> Result<()> {
    primary.show("CREATE DATABASE market").await?;
    primary.show("CALL set_database_for_cluster_replication('market', true)").await?;
    primary.show("SELECT * FROM get_database_cluster_replication_status()").await?;
    primary.show(CREATE_TABLE).await?;

    println!();
    generate(file, rows, clock).await?;
    let mut summary = load(primary, replica, file, rows, clock).await?;

    let count = "SELECT count(*) FROM market.bars";
    for site in [primary, replica] {
        let shown = site.show(count).await?;
        if shown.rows != [[rows.to_string()]] {
            return Err(Error::Demo(format!("{} does not show {rows} rows", site.name)));
        }
    }
    let hot = compare(primary, replica, rows, true).await?;
    acknowledged(primary).await?;
    primary.show("SELECT * FROM get_master_replication_status()").await?;
    replica.show("SELECT * FROM get_slave_replication_status()").await?;
    primary.show("SELECT * FROM get_recent_slave_replication_info()").await?;
    replica.show("SELECT * FROM get_cluster_replication_metrics(-1)").await?;

    for site in [primary, replica] {
        site.show("CALL flush()").await?;
    }
    let at_rest = compare(primary, replica, rows, false).await?;
    if at_rest != hot {
        return Err(Error::Demo("the aggregates at rest differ from those before the flush".to_owned()));
    }
    println!("The same aggregates from the datafiles at rest: equal on both sides");
    summary.measure_at_rest(primary, replica);
    println!("\n{summary}");
    Ok(())
}

async fn generate(file: &std::path::Path, rows: u64, clock: &dyn Clock) -> Result<()> {
    let stage = Stage::rows("generate", rows);
    let path = file.to_owned();
    let started = clock.monotonic();
    let written = tokio::task::spawn_blocking(move || {
        let written = generator::write_parquet(&path, rows, |done| stage.at(done));
        (stage, written)
    });
    let (stage, written) = written.await.map_err(|error| Error::Demo(format!("generator: {error}")))?;
    written.map_err(|error| Error::Demo(format!("generator: {error}")))?;
    let seconds = (clock.monotonic() - started).as_secs_f64();
    stage.done(&format!("{rows} one-minute bars as Parquet in {seconds:.2} s"));
    Ok(())
}

/// Loads the file into the primary while the replica is watched; both measured from the statement's start.
async fn load(primary: &Site, replica: &Site, file: &std::path::Path, rows: u64, clock: &dyn Clock) -> Result<Summary> {
    let copy = format!("COPY market.bars FROM '{}'", file.display().to_string().replace('\'', "''"));
    println!("\n{}=> {copy}", primary.name);
    let stage = Stage::open("replicate");
    let started = clock.monotonic();
    let loading = async {
        primary.query(&copy).await?;
        Ok::<_, Error>(clock.monotonic() - started)
    };
    let showing = async {
        shown(replica, rows, &stage, clock).await?;
        Ok::<_, Error>(clock.monotonic() - started)
    };
    let (loaded, shown) = tokio::try_join!(loading, showing)?;
    stage.done(&format!(
        "durable on {} after {:.2} s, shown by {} after {:.2} s",
        primary.name,
        loaded.as_secs_f64(),
        replica.name,
        shown.as_secs_f64()
    ));
    Ok(Summary::new(rows, loaded, shown, primary, replica))
}

/// Waits until the replica's SQL shows all rows; asks again whenever it has applied something.
async fn shown(replica: &Site, rows: u64, stage: &Stage, clock: &dyn Clock) -> Result<()> {
    let mut applied = replica.node.engine().watch_applied();
    let mut last = (0, 0, clock.monotonic());
    loop {
        applied.borrow_and_update();
        let seen = replica.rows().await;
        if seen >= rows {
            return Ok(());
        }
        let received = replica.node.follower().map_or(0, |follower| follower.status().wire_bytes);
        if (seen, received) != (last.0, last.1) {
            last = (seen, received, clock.monotonic());
        } else if clock.monotonic() - last.2 > PATIENCE {
            let status = replica.node.follower().map(|follower| format!("{:?}", follower.status()));
            return Err(Error::Demo(format!(
                "{} shows {seen} of {rows} rows and received nothing for {} s: {}",
                replica.name,
                PATIENCE.as_secs(),
                status.unwrap_or_default()
            )));
        }
        stage.note(format!("{} received by {}", summary::bytes(received), replica.name));
        // The pause only bounds the bar's refresh; what ends the wait is the signal.
        let _ = tokio::time::timeout(Duration::from_millis(100), applied.changed()).await;
    }
}

/// The same questions to both sides; their answers, compared as text, digit by digit.
async fn compare(primary: &Site, replica: &Site, rows: u64, print: bool) -> Result<Vec<TextTable>> {
    let securities = rows.div_ceil(MINUTES).min(generator::SECURITIES);
    let some = [0, securities / 2, securities - 1].map(|number| format!("'{}'", generator::security(number)));
    // Sums of floats depend on the order of the rows; of cents they do not.
    let questions = [
        "SELECT count(*) AS bars, count(DISTINCT security_id) AS securities, min(datetime) AS first, max(datetime) AS last,
    sum(volume) AS volume, sum(CAST(round(last_px * 100) AS BIGINT)) AS last_px_cents,
    sum(CAST(round(amount * 100) AS BIGINT)) AS amount_cents, min(low_px) AS low, max(high_px) AS high
FROM market.bars"
            .to_owned(),
        format!(
            "SELECT security_id, count(*) AS bars, sum(volume) AS volume, min(low_px) AS low, max(high_px) AS high,
    round(avg(last_px), 4) AS mean
FROM market.bars WHERE security_id IN ({}) GROUP BY security_id ORDER BY security_id",
            some.join(", ")
        ),
    ];
    let mut answers = Vec::new();
    for question in &questions {
        let (ours, theirs) = if print {
            (primary.show(question).await?, replica.show(question).await?)
        } else {
            (primary.query(question).await?, replica.query(question).await?)
        };
        if ours != theirs || ours.rows.is_empty() {
            return Err(Error::Demo(format!(
                "the sides differ in {question}\n{}:\n{ours}{}:\n{theirs}",
                primary.name, replica.name
            )));
        }
        answers.push(ours);
    }
    if print {
        println!("\nBoth sides answer alike, digit by digit");
    }
    Ok(answers)
}

/// Waits until the primary has heard that the replica holds everything, so that its tables say so.
async fn acknowledged(primary: &Site) -> Result<()> {
    let Some(publisher) = primary.node.publisher() else { return Ok(()) };
    let heard = async {
        loop {
            let feeds = publisher.feeds();
            if !feeds.is_empty() && feeds.iter().all(|feed| feed.lag_tasks == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, heard).await;
    waited.map_err(|_| Error::Demo(format!("{} never heard that its replica holds everything", primary.name)))
}
