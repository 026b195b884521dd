//! A partition is dropped, and one is replaced, on a disk of which one call fails, or all from one on: it happened or it did
//! not, the answer says so where it is known, and nothing else goes.

use std::{collections::BTreeSet, sync::Arc};

use rand::{SeedableRng, rngs::StdRng};
use tailrace_engine::{CommitOptions, Engine, EngineError};
use tailrace_wal::simulation::{Failure, SimulatedClock, SimulatedDisk};

use crate::{
    node::{open_on, settle},
    oracle::partition_of,
    seeds::run,
    support::{ids, insert, market, rows, wide_rows},
};

const DAYS: i64 = 4;
/// Partitions that are dropped and replaced.
const DROPPED: i64 = 1;
const REPLACED: i64 = 2;

/// The ids of the rows, as they are inserted: some in datafiles, some in memory.
fn old(day: i64) -> BTreeSet<i64> {
    (0..40).chain(100..120).filter(|id| id % DAYS == day).collect()
}

/// What takes their place.
fn new() -> BTreeSet<i64> {
    (200..240).filter(|id| id % DAYS == REPLACED).collect()
}

async fn drop_one(engine: &Arc<Engine>) -> Result<(), EngineError> {
    let mut transaction = engine.begin("market")?;
    transaction.drop_partition("bars", partition_of(DROPPED)).await?;
    transaction.commit(CommitOptions::default()).await.map(drop)
}

async fn replace_one(engine: &Arc<Engine>) -> Result<(), EngineError> {
    let version = engine.version();
    let database = version.database("market").unwrap();
    let seen = database.seen_partition(database.table("bars").unwrap(), &partition_of(REPLACED));
    let mut transaction = engine.begin("market")?;
    transaction.replace_partition("bars", seen).await?;
    let day = |id: &i64| id % DAYS == REPLACED;
    for id in (200..240).filter(day) {
        transaction.append("bars", rows(id..id + 1, DAYS)).await?;
    }
    transaction.commit(CommitOptions::default()).await.map(drop)
}

/// The ids on a day.
async fn on(engine: &Arc<Engine>, day: i64) -> BTreeSet<i64> {
    let all = ids(engine, "bars").await;
    let found: Vec<i64> = all.into_iter().filter(|id| id % DAYS == day).collect();
    let set: BTreeSet<i64> = found.iter().copied().collect();
    assert_eq!(set.len(), found.len(), "rows twice");
    set
}

/// What an answer permits.
fn check(
    what: &str,
    answer: &Result<(), EngineError>,
    found: &BTreeSet<i64>,
    before: BTreeSet<i64>,
    after: BTreeSet<i64>,
) {
    match answer {
        Ok(()) => assert_eq!(*found, after, "{what} was acknowledged"),
        Err(error) if error.is_full() => assert_eq!(*found, before, "{what} was refused: {error}"),
        Err(error) => assert!(*found == before || *found == after, "{what} is half done after {error}: {found:?}"),
    }
}

async fn check_all(engine: &Arc<Engine>, dropped: &Result<(), EngineError>, replaced: &Result<(), EngineError>) {
    for day in (0..DAYS).filter(|day| ![DROPPED, REPLACED].contains(day)) {
        assert_eq!(on(engine, day).await, old(day), "day {day} is none of theirs");
    }
    check("the drop", dropped, &on(engine, DROPPED).await, old(DROPPED), BTreeSet::new());
    check("the replacement", replaced, &on(engine, REPLACED).await, old(REPLACED), new());
}

/// Whether there was such a call.
async fn attempt(at: u64, failure: Failure, lasts: bool) -> bool {
    let (disk, clock) = (SimulatedDisk::new(at), SimulatedClock::new(at));
    let engine = open_on(&disk, &clock, None).await.unwrap();
    market(&engine).await;
    insert(&engine, "bars", wide_rows(0..40, DAYS)).await;
    engine.flush().await.unwrap();
    insert(&engine, "bars", rows(100..120, DAYS)).await;

    match lasts {
        true => disk.fail_from(at, failure),
        false => disk.fail_call(at, failure),
    }
    let dropped = drop_one(&engine).await;
    let replaced = replace_one(&engine).await;
    let flushed = engine.flush().await;
    engine.work_by_hand().await;
    let fired = disk.fired().is_some();
    assert!(fired || (dropped.is_ok() && replaced.is_ok() && flushed.is_ok()), "{dropped:?} {replaced:?} {flushed:?}");
    disk.heal();
    let known = |answer: &Result<(), EngineError>| answer.as_ref().map_or_else(EngineError::is_full, |()| true);
    if known(&dropped) && known(&replaced) {
        check_all(&engine, &dropped, &replaced).await;
    }

    // Power goes, and what was not done is done again.
    let image = disk.image(&mut StdRng::seed_from_u64(at));
    let again = open_on(&image, &clock, None).await.unwrap();
    check_all(&again, &dropped, &replaced).await;
    drop_one(&again).await.unwrap();
    replace_one(&again).await.unwrap();
    again.flush().await.unwrap();
    check_all(&again, &Ok(()), &Ok(())).await;

    // Where it was for want of space alone, the node goes on without a start.
    if failure == Failure::Full {
        assert!([&dropped, &replaced].into_iter().all(known), "{dropped:?} {replaced:?}");
        assert!(flushed.as_ref().map_or_else(EngineError::is_full, |_| true), "{flushed:?}");
        drop_one(&engine).await.unwrap();
        replace_one(&engine).await.unwrap();
        engine.flush().await.unwrap();
        check_all(&engine, &Ok(()), &Ok(())).await;
    }
    drop((engine, again));
    settle().await;
    fired
}

#[test]
fn a_drop_with_any_call_failing_is_done_or_not() {
    let mut tried = 0;
    for failure in [Failure::Broken, Failure::Full] {
        for lasts in [false, true] {
            for at in 0.. {
                match run(attempt(at, failure, lasts)) {
                    Ok(true) => tried += 1,
                    Ok(false) => break,
                    Err(why) => panic!("{failure:?} at call {at} (lasting: {lasts}): {why}"),
                }
            }
        }
    }
    println!("{tried} failures");
    assert!(tried > 40);
}
