//! Jobs and their runs as facts: begun once, and the same after a crash, a flush and a start.

use tailrace_engine::{
    CatchUp, EngineError, JobBegin, JobDefinition, JobEnd, JobOutcome, JobTrigger, RunNumber, SkippedRuns,
};
use tailrace_wal::CommitTime;

use crate::support::{copy_folder, open};

fn definition(name: &str, retries: u32) -> JobDefinition {
    JobDefinition {
        name: name.into(),
        cron: "30 22 * * *".into(),
        time_zone: "UTC".into(),
        from: None,
        until: Some(CommitTime(9)),
        statement: "CALL flush()".into(),
        user: "ann".into(),
        database: Some("market".into()),
        catch_up: CatchUp::Once,
        timeout_ms: Some(1000),
        retries,
        retry_delay_ms: 1000,
        runs_kept: 10,
    }
}

fn due(settled: CommitTime, due: CommitTime) -> JobBegin {
    JobBegin::Due { settled, due, trigger: JobTrigger::Schedule }
}

fn later(time: CommitTime, micros: i64) -> CommitTime {
    CommitTime(time.0 + micros)
}

#[tokio::test]
async fn of_all_who_find_a_due_time_one_begins_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    engine.schedule_job(definition("a", 0), false).await.unwrap();
    let settled = engine.job("a").unwrap().settled;
    let next = later(settled, 5);
    let begun = futures::future::join_all((0..8).map(|_| engine.begin_job_run("a", due(settled, next)))).await;
    let begun: Vec<_> = begun.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(begun.len(), 1);
    assert_eq!((begun[0].run, begun[0].outcome, begun[0].due), (RunNumber(1), JobOutcome::Running, Some(next)));
    let asked = engine.begin_job_run("a", JobBegin::Manual { user: "bob".into() }).await;
    assert!(matches!(asked, Err(EngineError::InUse { kind: "job", .. })), "{asked:?}");

    let end = JobEnd { outcome: JobOutcome::Succeeded, took: None, rows: 3, message: "x".repeat(5000) };
    let ended = engine.end_job_run(begun[0].clone(), end.clone()).await.unwrap();
    assert!(ended.message.len() <= 2048 && ended.message.ends_with('…'));
    // It has ended: a second end, and a due time that is settled, change nothing.
    let again = JobEnd { outcome: JobOutcome::Failed, ..end };
    engine.end_job_run(begun[0].clone(), again).await.unwrap();
    assert_eq!(engine.job_runs(), [ended]);
    assert_eq!(engine.begin_job_run("a", due(settled, next)).await.unwrap(), None);

    // Of a job that is paused or gone nothing begins by itself.
    assert!(engine.pause_job("a", "bob", true).await.unwrap());
    assert!(!engine.pause_job("a", "bob", true).await.unwrap());
    let settled = engine.job("a").unwrap().settled;
    assert_eq!(engine.begin_job_run("a", due(settled, later(settled, 5))).await.unwrap(), None);
    engine.delete_job("a").await.unwrap();
    assert_eq!(engine.begin_job_run("a", due(settled, later(settled, 5))).await.unwrap(), None);
    assert!(engine.job_runs().is_empty());
    for gone in [engine.delete_job("a").await, engine.pause_job("a", "bob", true).await.map(|_| ())] {
        assert!(matches!(gone, Err(EngineError::NotFound { kind: "job", .. })), "{gone:?}");
    }
}

#[tokio::test]
async fn a_crash_between_begin_and_end_is_an_interruption() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("0")).await;
    for (name, retries) in [("never", 0), ("again", 1)] {
        engine.schedule_job(definition(name, retries), false).await.unwrap();
        let settled = engine.job(name).unwrap().settled;
        let skipped = SkippedRuns { settled, until: later(settled, 5), message: "missed".into() };
        engine.skip_job_runs(name, skipped).await.unwrap();
        let begin = due(later(settled, 5), later(settled, 9));
        assert!(engine.begin_job_run(name, begin).await.unwrap().is_some());
    }
    let taken = engine.schedule_job(definition("never", 0), false).await;
    assert!(matches!(taken, Err(EngineError::AlreadyExists { kind: "job", .. })), "{taken:?}");
    let (jobs, runs) = (engine.jobs(), engine.job_runs());

    // Out of the log alone, then out of the manifest.
    copy_folder(&dir.path().join("0"), &dir.path().join("1"));
    let crashed = open(&dir.path().join("1")).await;
    assert_eq!((crashed.jobs(), crashed.job_runs()), (jobs.clone(), runs.clone()));
    crashed.flush().await.unwrap();
    copy_folder(&dir.path().join("1"), &dir.path().join("2"));
    let crashed = open(&dir.path().join("2")).await;
    assert_eq!((crashed.jobs(), crashed.job_runs()), (jobs, runs));

    assert_eq!(crashed.interrupt_job_runs("it died").await.unwrap(), 2);
    assert_eq!(crashed.interrupt_job_runs("it died").await.unwrap(), 0);
    let outcomes: Vec<_> = crashed.job_runs().into_iter().map(|run| (run.job, run.run.0, run.outcome)).collect();
    assert_eq!(
        outcomes,
        [
            ("again".to_owned(), 1, JobOutcome::Skipped),
            ("again".to_owned(), 2, JobOutcome::Interrupted),
            ("never".to_owned(), 1, JobOutcome::Skipped),
            ("never".to_owned(), 2, JobOutcome::Interrupted),
        ]
    );
    assert_eq!(crashed.job("never").unwrap().retry, None);
    let retry = crashed.job("again").unwrap().retry.unwrap();
    assert_eq!((retry.run, retry.attempt), (RunNumber(2), 2));
    let second = crashed.begin_job_run("again", JobBegin::Retry(retry.clone())).await.unwrap().unwrap();
    assert_eq!((second.run, second.attempt), (RunNumber(2), 2));
    assert_eq!(crashed.begin_job_run("again", JobBegin::Retry(retry)).await.unwrap(), None, "once");
    let failed = JobEnd { outcome: JobOutcome::Failed, took: None, rows: 0, message: "no".into() };
    crashed.end_job_run(second, failed).await.unwrap();
    assert_eq!(crashed.job("again").unwrap().retry, None, "one retry was allowed");
}
