//! Tasks that are skipped: nothing of them is here, nothing of them is lost, and nobody takes the copy for an equal one.

use std::{path::Path, sync::Arc};

use tailrace_engine::{Applier, CommitOptions, DeadLetter, Engine, EngineError};
use tailrace_wal::{Frame, RecordKind, Seq};

use crate::{changes, replica::*, support::*};

const WHY: &str = "no such luck";

/// Feeds everything from the restart seq on, leaving out the transactions `skipped`.
async fn feed_but(from: &Arc<Engine>, applier: &Applier, skipped: &[u64]) {
    let frames = records(from, applier.history(), applier.position().1).await;
    for frame in frames {
        if frame.header.kind == RecordKind::Commit && skipped.contains(&frame.header.seq.0) {
            applier.skip(frame.header, frame.payload, WHY.to_owned()).await.unwrap();
        } else {
            feed(applier, &[frame]).await;
        }
    }
    applier.durable().await.unwrap();
}

fn letters(engine: &Engine) -> Vec<DeadLetter> {
    engine.version().database("market").unwrap().dead_letters().cloned().collect()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("dead_letters")).map_or(0, Iterator::count)
}

fn headers(frames: &[Frame]) -> Vec<tailrace_wal::HistoryHeader> {
    frames.iter().map(|frame| frame.header).collect()
}

/// Fetches and installs the other's copy.
async fn repair(from: &Arc<Engine>, to: &Arc<Engine>) {
    let source = from.repair_source(market_id(from)).await.unwrap();
    let mut install = to.repair_install("site-a", source.manifest.clone()).await.unwrap();
    for (index, bytes) in install.wanted().collect::<Vec<_>>() {
        install.write(index, source.read(index, 0, bytes).await.unwrap()).await.unwrap();
    }
    install.install().await.unwrap();
}

/// Everything that must hold of a copy whose transaction 4 was skipped.
async fn lacks_the_fourth(a: &Arc<Engine>, b: &Arc<Engine>) {
    let (left, right) = (a.version(), b.version());
    let (one, two) = (left.database("market").unwrap(), right.database("market").unwrap());
    assert_eq!((one.position, one.commit_time, &one.epochs), (two.position, two.commit_time, &two.epochs));
    let mut expected = contents(a, &left, "bars").await;
    let before = expected.len();
    expected.retain(|(seq, _), _| *seq != 4);
    assert!(expected.len() < before);
    assert_eq!(contents(b, &right, "bars").await, expected);
    let divergence = two.divergence().unwrap();
    assert!(divergence.reason.contains("task 4 was skipped"), "{}", divergence.reason);
    assert!(divergence.remedy.contains("retry_dead_letter('market', 4)"), "{}", divergence.remedy);
    assert_eq!(one.divergence(), None);
    let letters = letters(b);
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.seq, &*letter.reason, letter.operation_name()), (Seq(4), WHY, "APPEND".to_owned()));
    assert_eq!(letter.tables.iter().map(|(_, name)| &**name).collect::<Vec<_>>(), ["bars"]);
    assert!(b.dead_letter_path(two.id, Seq(4)).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_task_stays_visible_through_starts_and_flushes_until_it_is_applied() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, mut b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    for start in 0..4 {
        insert(&a, "bars", rows(start * 100..start * 100 + 100, 7)).await;
    }
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    feed_but(&a, &applier, &[4]).await;
    lacks_the_fourth(&a, &b).await;
    let task = b.tasks(id, Seq(0)).into_iter().find(|task| task.skipped).unwrap();
    assert_eq!((task.seq, task.rows), (Seq(4), 100));
    // What goes downstream is the history, verbatim.
    let (original, copy) = (records(&a, id, Seq(0)).await, records(&b, id, Seq(0)).await);
    assert_eq!(headers(&original), headers(&copy));
    assert_eq!(copy.iter().filter(|frame| frame.skipped).map(|frame| frame.header.seq).collect::<Vec<_>>(), [Seq(4)]);

    // A crash, an orderly start, a flush and a start.
    drop(applier);
    let crashed = tempfile::tempdir().unwrap();
    copy_folder(dir_b.path(), crashed.path());
    let other = open(crashed.path()).await;
    lacks_the_fourth(&a, &other).await;
    assert_eq!(letters(&other), letters(&b));
    assert_eq!(other.tasks(id, Seq(0)), b.tasks(id, Seq(0)));
    drop(other);
    for flushes in [false, true] {
        let before = letters(&b);
        if flushes {
            b.flush().await.unwrap();
        }
        b.shutdown().await.unwrap();
        drop(b);
        b = open(dir_b.path()).await;
        lacks_the_fourth(&a, &b).await;
        assert_eq!(letters(&b), before);
    }

    // It serves no repairs (asking for one flushes).
    let refused = b.repair_source(id).await.unwrap_err();
    assert!(matches!(&refused, EngineError::Invalid(why) if why.contains("DIVERGED")), "{refused}");

    // Applied late, its rows have the identities that they have on the primary.
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    insert(&a, "bars", rows(900..950, 7)).await;
    feed_but(&a, &applier, &[]).await;
    let unknown = b.retry_dead_letter("market", Seq(5)).await.unwrap_err().to_string();
    assert!(unknown.contains("no dead letter") && unknown.ends_with(": 4"), "{unknown}");
    b.retry_dead_letter("market", Seq(4)).await.unwrap();
    assert_equal(&a, &b).await;
    assert_eq!(b.version().database("market").unwrap().divergence(), None);
    assert_eq!(files(dir_b.path()), 0);
    b.repair_source(id).await.unwrap();
    drop(applier);
    let crashed = tempfile::tempdir().unwrap();
    copy_folder(dir_b.path(), crashed.path());
    let other = open(crashed.path()).await;
    assert_equal(&a, &other).await;
    assert_eq!(other.version().database("market").unwrap().divergence(), None);
    let again = b.retry_dead_letter("market", Seq(4)).await.unwrap_err().to_string();
    assert!(again.ends_with("none"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_stops_at_a_task_that_is_missing_and_goes_on_when_it_was_retried() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    for start in 0..4 {
        insert(&a, "bars", rows(start * 100..start * 100 + 100, 7)).await;
    }
    let applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
    feed_but(&a, &applier, &[4]).await;
    let gap = changes::read(&b, changes::request(&b, "bars")).await.unwrap_err();
    assert!(matches!(gap, EngineError::ChangesSkipped { seq: Seq(4), .. }), "{gap}");
    b.retry_dead_letter("market", Seq(4)).await.unwrap();
    let (fed, original) = (changes::request(&b, "bars"), changes::request(&a, "bars"));
    assert_eq!(changes::read(&b, fed).await.unwrap(), changes::read(&a, original).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_skipped_whole_and_comes_back_whole() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, mut b) = (open_with(small).await.0, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(0..10, 3)).await;
    let id = market_id(&a);
    let mut large = a.begin("market").unwrap();
    for start in 1..6 {
        large.append("bars", wide_rows(start * 100..start * 100 + 20, 3)).await.unwrap();
    }
    large.commit(CommitOptions::default()).await.unwrap();
    insert(&a, "bars", rows(900..910, 3)).await;
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    feed_but(&a, &applier, &[4]).await;
    lacks_the_fourth(&a, &b).await;
    assert_eq!(letters(&b)[0].rows, 100);
    drop(applier);
    let before = b.tasks(id, Seq(0));
    b.shutdown().await.unwrap();
    drop(b);
    b = open(dir_b.path()).await;
    lacks_the_fourth(&a, &b).await;
    assert_eq!(b.tasks(id, Seq(0)), before);
    b.retry_dead_letter("market", Seq(4)).await.unwrap();
    assert_equal(&a, &b).await;
    b.shutdown().await.unwrap();
    drop(b);
    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_table_whose_creation_was_skipped_fails_by_its_name_until_a_repair() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    a.create_table("market", bars("ticks")).await.unwrap();
    insert(&a, "bars", rows(0..10, 3)).await;
    insert(&a, "ticks", rows(10..20, 3)).await;
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    let frames = records(&a, id, Seq(0)).await;
    let first = applier.skip(frames[0].header, frames[0].payload.clone(), WHY.into()).await.unwrap_err();
    assert!(first.to_string().contains("cannot be skipped"), "{first}");
    feed(&applier, &frames[..2]).await;
    applier.skip(frames[2].header, frames[2].payload.clone(), WHY.into()).await.unwrap();
    // Again, as after a lost answer.
    assert!(applier.skip(frames[2].header, frames[2].payload.clone(), WHY.into()).await.unwrap().is_none());
    feed(&applier, &frames[3..4]).await;
    let named =
        "table \"ticks\" (id 2) of database \"market\" is not here because task 3, which creates it, was skipped";
    let error = applier.prepare(frames[4].header, frames[4].payload.clone()).unwrap_err().to_string();
    assert!(error.contains(named), "{error}");
    // Not in order.
    a.drop_table("market", "ticks").await.unwrap();
    let frames = records(&a, id, Seq(0)).await;
    let early = applier.skip(frames[5].header, frames[5].payload.clone(), WHY.into()).await.unwrap_err();
    assert!(matches!(early, EngineError::Forked(_)), "{early}");
    applier.skip(frames[4].header, frames[4].payload.clone(), WHY.into()).await.unwrap();
    let prepared = applier.prepare(frames[5].header, frames[5].payload.clone()).unwrap().unwrap();
    let error = applier.commit(vec![prepared]).await.unwrap_err().to_string();
    assert!(error.contains("DROP TABLE: ") && error.contains(named), "{error}");
    assert_eq!(b.version().database("market").unwrap().stopped, None);
    applier.durable().await.unwrap();

    let shown: Vec<_> = letters(&b).iter().map(|letter| (letter.seq.0, letter.operation_name())).collect();
    assert_eq!(shown, [(3, "CREATE_TABLE".to_owned()), (5, "APPEND".to_owned())]);
    assert!(letters(&b).iter().all(|letter| letter.tables[0].1 == "ticks"));
    let refused = b.retry_dead_letter("market", Seq(3)).await.unwrap_err().to_string();
    assert!(refused.contains("changes the tables"), "{refused}");
    let refused = b.retry_dead_letter("market", Seq(5)).await.unwrap_err().to_string();
    assert!(refused.contains(named), "{refused}");
    b.discard_dead_letter("market", Seq(5)).await.unwrap();
    b.discard_dead_letter("market", Seq(3)).await.unwrap();
    assert!(letters(&b).is_empty());
    assert_eq!(files(dir_b.path()), 0);
    drop(applier);
    b.shutdown().await.unwrap();
    drop(b);
    let b = open(dir_b.path()).await;
    let divergence = b.version().database("market").unwrap().divergence().unwrap();
    assert!(divergence.reason.contains("tasks 3, 5 were skipped here and discarded"), "{}", divergence.reason);
    repair(&a, &b).await;
    assert_equal(&a, &b).await;
    assert_eq!(b.version().database("market").unwrap().divergence(), None);
    b.shutdown().await.unwrap();
    drop(b);
    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
    assert_eq!(b.version().database("market").unwrap().divergence(), None);
}

/// A crash after the payload was written and before the record was.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_without_a_skip_goes_with_the_next_start_and_a_lost_letter_is_said() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(0..10, 3)).await;
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    feed_but(&a, &applier, &[3]).await;
    let path = b.dead_letter_path(id, Seq(3));
    let folder = path.parent().unwrap();
    std::fs::copy(&path, folder.join(format!("{id}-4.letter"))).unwrap();
    std::fs::write(folder.join(format!("{id}-5.part")), "x").unwrap();
    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    drop(applier);
    b.shutdown().await.unwrap();
    drop(b);
    let b = open(dir_b.path()).await;
    let mut left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [path.file_name().unwrap().to_owned(), "notes.txt".into()]);
    b.shutdown().await.unwrap();
    drop(b);
    std::fs::remove_file(&path).unwrap();
    let b = open(dir_b.path()).await;
    let version = b.version();
    let database = version.database("market").unwrap();
    assert_eq!((database.stopped.clone(), database.position.seq), (None, Seq(3)));
    assert!(database.divergence().unwrap().remedy.contains("repair_database"));
    assert!(letters(&b).is_empty());
}
