//! One node follows another, record by record, without a network.

use std::sync::Arc;

use tailrace_engine::{Applied, Applier, CommitOptions, Engine, EngineError, OpenFragments, Role};
use tailrace_wal::{Frame, HistoryId, RecordKind, Seq};

use crate::support::*;

pub(crate) fn market_id(engine: &Engine) -> HistoryId {
    engine.version().database("market").unwrap().id
}

/// Every durable record of a history after `after`.
pub(crate) async fn records(engine: &Engine, history: HistoryId, after: Seq) -> Vec<Frame> {
    engine.log().sync().await.unwrap();
    let mut tail = engine.log().tail(history, after).unwrap();
    let mut found = Vec::new();
    while let Some(frame) = tail.try_next().unwrap() {
        found.push(frame);
    }
    found
}

/// Feeds records one by one; `None` where a record was a duplicate.
pub(crate) async fn feed(applier: &Applier, frames: &[Frame]) -> Vec<Option<Applied>> {
    let mut done = Vec::new();
    for frame in frames {
        done.push(match applier.prepare(frame.header, frame.payload.clone()).unwrap() {
            Some(prepared) => Some(applier.commit(vec![prepared]).await.unwrap()),
            None => None,
        });
    }
    done
}

pub(crate) async fn catch_up(from: &Arc<Engine>, applier: &Applier) -> usize {
    let (_, restart) = applier.position();
    let frames = records(from, applier.history(), restart).await;
    feed(applier, &frames).await.into_iter().flatten().count()
}

pub(crate) async fn assert_equal(a: &Arc<Engine>, b: &Arc<Engine>) {
    let (left, right) = (a.version(), b.version());
    let (one, two) = (left.database("market").unwrap(), right.database("market").unwrap());
    assert_eq!((one.position, one.commit_time, &one.epochs), (two.position, two.commit_time, &two.epochs));
    assert_eq!(contents(a, &left, "bars").await, contents(b, &right, "bars").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_equal_and_drops_duplicates() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    for start in 0..5 {
        insert(&a, "bars", rows(start * 100..start * 100 + 100, 7)).await;
    }
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    assert_eq!(b.version().database("market").unwrap().role, Role::Replica { primary: "site-a".into() });
    assert_eq!(catch_up(&a, &applier).await, 7);
    assert_equal(&a, &b).await;
    let (position, _) = applier.durable().await.unwrap();
    assert_eq!(position, a.version().database("market").unwrap().position);
    let frames = records(&a, id, Seq(0)).await;
    assert!(feed(&applier, &frames).await.iter().all(Option::is_none), "duplicates were applied");
    assert_equal(&a, &b).await;
    // The same tasks on both sides.
    let tasks = |engine: &Engine| engine.tasks(id, Seq(0));
    assert_eq!(tasks(&a), tasks(&b));

    // It is read-only, and its name is taken.
    let refused = b.begin("market").unwrap_err();
    assert!(matches!(refused, EngineError::ReadOnlyReplica { .. }), "{refused}");
    let refused = b.create_table("market", bars("more")).await.unwrap_err();
    assert!(matches!(refused, EngineError::ReadOnlyReplica { .. }), "{refused}");
    let taken = b.follow(HistoryId::random(), "market", "site-a").await.unwrap_err();
    assert!(matches!(taken, EngineError::AlreadyExists { .. }), "{taken}");

    // A record that does not continue is a fork, and leaves all as it was.
    insert(&a, "bars", rows(1000..1001, 1)).await;
    insert(&a, "bars", rows(1001..1002, 1)).await;
    let frames = records(&a, id, position.seq).await;
    let skipped = applier.prepare(frames[1].header, frames[1].payload.clone()).unwrap().unwrap();
    let forked = applier.commit(vec![skipped]).await.unwrap_err();
    assert!(matches!(forked, EngineError::Forked(_)), "{forked}");
    assert_eq!(applier.position().0, position);
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_restarts_in_the_middle_of_fragments() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, _) = open_with(small).await;
    market(&a).await;
    let id = market_id(&a);
    let mut long = a.begin("market").unwrap();
    let mut aborted = a.begin("market").unwrap();
    for start in 0..4 {
        long.append("bars", rows(start * 50..start * 50 + 50, 3)).await.unwrap();
        aborted.append("bars", rows(5000..5100, 3)).await.unwrap();
        insert(&a, "bars", rows(1000 + start..1001 + start, 1)).await;
    }
    aborted.abort().await.unwrap();
    insert(&a, "bars", rows(2000..2010, 3)).await;
    long.append("bars", rows(900..910, 3)).await.unwrap();
    long.commit(CommitOptions::default()).await.unwrap();
    insert(&a, "bars", rows(3000..3010, 3)).await;
    let frames = records(&a, id, Seq(0)).await;
    assert!(frames.len() > 20, "the transaction was not fragmented");

    // At every record: a restart, or a flush and a restart, then everything from the restart seq again.
    let mut b = open(dir_b.path()).await;
    for upto in 1..=frames.len() {
        let applier = b.follow(id, "market", "site-a").await.unwrap();
        let (position, restart) = applier.position();
        let again: Vec<Frame> = records(&a, id, restart).await;
        let end = frames[upto - 1].lsn;
        let part: Vec<Frame> = again.into_iter().filter(|frame| frame.lsn <= end).collect();
        let done = feed(&applier, &part).await;
        assert_eq!(
            done.iter().flatten().count(),
            1,
            "record {upto} from {position} (restart {restart}) with seed-free order"
        );
        drop(applier);
        if upto % 3 == 0 {
            b.flush().await.unwrap();
        }
        if upto % 2 == 0 {
            b.shutdown().await.unwrap();
        }
        drop(b);
        b = open(dir_b.path()).await;
    }
    assert_equal(&a, &b).await;
    // What B holds is the history verbatim.
    let copied = records(&b, id, b.history(id).unwrap().retained_after).await;
    let first = copied[0].header;
    let original: Vec<_> = frames.iter().map(|frame| frame.header).skip_while(|header| *header != first).collect();
    assert_eq!(copied.iter().map(|frame| frame.header).collect::<Vec<_>>(), original);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_transactions_larger_than_memory_allows_wait_in_the_log() {
    const MEMORY: u64 = 6_000;
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fragmented = config(dir_a.path());
    fragmented.fragment_bytes = 1_000;
    let (a, _) = open_with(fragmented).await;
    market(&a).await;
    let id = market_id(&a);
    let mut long = a.begin("market").unwrap();
    for start in 0..20 {
        long.append("bars", rows(start * 50..start * 50 + 50, 3)).await.unwrap();
        insert(&a, "bars", rows(5_000 + start..5_001 + start, 1)).await;
    }
    long.commit(CommitOptions::default()).await.unwrap();
    let frames = records(&a, id, Seq(0)).await;
    let fragments = frames.iter().filter(|frame| frame.header.kind == RecordKind::Fragment);
    let bytes: u64 = fragments.map(|frame| frame.payload.encoded_len() as u64).sum();
    assert!(bytes > 4 * MEMORY, "the transaction has {bytes} bytes");
    let (commit, before) = frames.split_last().unwrap();
    assert!(commit.header.fragment.0 > 10, "the last record is its commit");

    let small = || {
        let mut small = config(dir_b.path());
        small.memtable_bytes = MEMORY;
        small
    };
    let (mut b, _) = open_with(small()).await;
    let mut applier = b.follow(id, "market", "site-a").await.unwrap();
    for (number, frame) in before.iter().enumerate() {
        feed(&applier, std::slice::from_ref(frame)).await;
        let open = b.open_fragments(id);
        assert!(open.memory_bytes <= MEMORY, "{open:?} after record {number}");
        if number == before.len() / 2 {
            // Replay keeps to it as well.
            b.shutdown().await.unwrap();
            drop((applier, b));
            b = open_with(small()).await.0;
            applier = b.follow(id, "market", "site-a").await.unwrap();
            let again = b.open_fragments(id);
            assert_eq!((again.transactions, again.bytes), (open.transactions, open.bytes));
            assert!(again.memory_bytes <= MEMORY, "{again:?}");
        }
    }
    assert_eq!((b.open_fragments(id).transactions, b.open_fragments(id).bytes), (1, bytes));
    feed(&applier, std::slice::from_ref(commit)).await;
    assert_equal(&a, &b).await;
    assert_eq!(b.open_fragments(id), OpenFragments::default());

    // From the log alone, once more.
    b.shutdown().await.unwrap();
    drop((applier, b));
    let (b, _) = open_with(small()).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_lets_go_of_what_waits_in_the_log() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fragmented = config(dir_a.path());
    fragmented.fragment_bytes = 1_000;
    let (a, _) = open_with(fragmented).await;
    market(&a).await;
    let id = market_id(&a);
    let (mut kept, mut aborted) = (a.begin("market").unwrap(), a.begin("market").unwrap());
    for start in 0..10 {
        kept.append("bars", rows(start * 50..start * 50 + 50, 3)).await.unwrap();
        aborted.append("bars", rows(5_000 + start * 50..5_050 + start * 50, 3)).await.unwrap();
    }
    // Nothing fits into memory.
    let mut none = config(dir_b.path());
    none.memtable_bytes = 1;
    let (b, _) = open_with(none).await;
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    let both = b.open_fragments(id);
    assert_eq!((both.transactions, both.memory_bytes), (2, 0));
    aborted.abort().await.unwrap();
    catch_up(&a, &applier).await;
    let one = b.open_fragments(id);
    assert_eq!((one.transactions, one.memory_bytes), (1, 0));
    assert!(one.bytes < both.bytes, "{one:?} of {both:?}");
    kept.commit(CommitOptions::default()).await.unwrap();
    catch_up(&a, &applier).await;
    assert_eq!(b.open_fragments(id), OpenFragments::default());
    assert_equal(&a, &b).await;
    // Nothing holds the log for them any more.
    b.log().roll().await.unwrap();
    insert(&a, "bars", rows(9_000..9_001, 1)).await;
    catch_up(&a, &applier).await;
    b.flush().await.unwrap();
    assert!(b.log().retained_after(id).unwrap() > Seq(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_beyond_the_limit_is_refused_by_name() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fragmented = config(dir_a.path());
    fragmented.fragment_bytes = 1_000;
    let (a, _) = open_with(fragmented).await;
    market(&a).await;
    let mut long = a.begin("market").unwrap();
    for start in 0..10 {
        long.append("bars", rows(start * 50..start * 50 + 50, 3)).await.unwrap();
    }
    long.commit(CommitOptions::default()).await.unwrap();
    let mut limited = config(dir_b.path());
    limited.transaction_max_bytes = 5_000;
    let (b, _) = open_with(limited).await;
    let applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
    let mut refusal = None;
    for frame in records(&a, market_id(&a), Seq(0)).await {
        let prepared = applier.prepare(frame.header, frame.payload.clone()).unwrap().unwrap();
        if let Err(error) = applier.commit(vec![prepared]).await {
            refusal = Some(error);
            break;
        }
    }
    let refusal = refusal.unwrap();
    assert!(matches!(refusal, EngineError::TransactionTooLarge { bytes_max: 5_000, .. }), "{refusal}");
    assert!(refusal.to_string().contains("engine.transaction_max_bytes of this node (5000 bytes)"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_one_batch_and_an_end_ends_the_copy() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    for start in 0..50 {
        insert(&a, "bars", rows(start..start + 1, 3)).await;
    }
    let frames = records(&a, id, Seq(2)).await;
    let run = frames.iter().map(|frame| applier.prepare(frame.header, frame.payload.clone()).unwrap().unwrap());
    let applied = applier.commit(run.collect()).await.unwrap();
    assert_eq!((applied.position.seq, applied.tasks.len(), applied.ended), (Seq(52), 50, false));
    assert_equal(&a, &b).await;
    b.flush().await.unwrap();

    a.drop_database("market").await.unwrap();
    let frames = records(&a, id, Seq(52)).await;
    let end = feed(&applier, &frames).await.remove(0).unwrap();
    assert!(end.ended);
    assert!(b.version().database("market").is_none());
    let info = b.history(id).unwrap();
    assert!(info.ended);
    assert_eq!(info.position, a.history(id).unwrap().position);
    // The successor of that name begins.
    market(&a).await;
    insert(&a, "bars", rows(7..9, 1)).await;
    let next = b.follow(market_id(&a), "market", "site-a").await.unwrap();
    catch_up(&a, &next).await;
    assert_equal(&a, &b).await;
    b.flush().await.unwrap();
    b.shutdown().await.unwrap();
    drop((b, applier, next));
    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
    assert!(b.history(id).unwrap().ended);

    // A copy that cannot be followed to its end is dropped here alone.
    let second = market_id(&a);
    b.drop_followed(second).await.unwrap();
    assert!(b.version().database("market").is_none());
    drop(b);
    let b = open(dir_b.path()).await;
    assert!(b.version().database("market").is_none());
    assert!(b.history(second).unwrap().ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_cannot_put_rows_into_another_partition() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(1..2, 5)).await;
    insert(&a, "bars", rows(2..3, 5)).await;
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    let frames = records(&a, id, Seq(0)).await;
    feed(&applier, &frames[..2]).await;
    // The first row's bytes under the second row's partition.
    let (one, two) = (&frames[2].payload, &frames[3].payload);
    let mut entry = one.directory.parts[0].clone();
    entry.partition = two.directory.parts[0].partition.clone();
    let part = tailrace_wal::Part::new(entry, vec![one.part_bytes(0)]).unwrap();
    let forged = tailrace_wal::Payload::new(vec![part], Vec::new(), None).unwrap();
    let mut header = frames[2].header;
    header.payload_hash = forged.hash;
    let refused = applier.prepare(header, forged).unwrap_err();
    assert!(refused.to_string().contains("do not belong to the partition"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_in_the_run_of_its_fragments_is_logged() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, b) = (open_with(small).await.0, open(dir_b.path()).await);
    market(&a).await;
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    let mut aborted = a.begin("market").unwrap();
    aborted.append("bars", wide_rows(0..20, 1)).await.unwrap();
    aborted.append("bars", wide_rows(20..40, 1)).await.unwrap();
    aborted.abort().await.unwrap();
    let frames = records(&a, id, applier.position().1).await;
    assert!(frames.iter().any(|frame| frame.header.kind == RecordKind::Fragment));
    assert_eq!(frames.last().unwrap().header.kind, RecordKind::Abort);
    // All are prepared before any of them is held.
    let run = frames.iter().filter_map(|frame| applier.prepare(frame.header, frame.payload.clone()).unwrap());
    let run: Vec<_> = run.collect();
    applier.commit(run).await.unwrap();
    applier.durable().await.unwrap();
    // Without it, the transaction would be open here, and hold the log, for ever.
    let copy = records(&b, id, applier.position().1).await;
    assert_eq!(copy.len(), frames.len());
    assert_eq!(copy.last().unwrap().header.kind, RecordKind::Abort);
    insert(&a, "bars", rows(0..10, 1)).await;
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fragments_of_an_aborted_transaction_come_again_after_a_flush_and_a_start() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, b) = (open_with(small).await.0, open(dir_b.path()).await);
    market(&a).await;
    let id = market_id(&a);
    // A commit lies between the first fragment and the second, and none behind the abort.
    let mut aborted = a.begin("market").unwrap();
    aborted.append("bars", wide_rows(0..20, 1)).await.unwrap();
    insert(&a, "bars", rows(0..10, 1)).await;
    aborted.append("bars", wide_rows(20..40, 1)).await.unwrap();
    aborted.abort().await.unwrap();
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    drop(applier);
    b.flush().await.unwrap();
    b.shutdown().await.unwrap();
    drop(b);
    let b = open(dir_b.path()).await;
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    insert(&a, "bars", rows(10..20, 1)).await;
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_primary_left_open_when_it_was_killed_ends_on_its_replica() {
    let (dir_a, dir_b, killed) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, b) = (open_with(small).await.0, open(dir_b.path()).await);
    market(&a).await;
    let id = market_id(&a);
    let mut left = a.begin("market").unwrap();
    left.append("bars", wide_rows(0..20, 1)).await.unwrap();
    insert(&a, "bars", rows(0..10, 1)).await;
    left.append("bars", wide_rows(20..40, 1)).await.unwrap();
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    applier.durable().await.unwrap();
    let left_open = |engine: &Engine| engine.log().holders().transactions.len();
    assert_eq!((left_open(&a), left_open(&b)), (1, 1));
    // While it is open it holds the replica's log, and what a start there has to replay.
    b.flush().await.unwrap();
    assert!(b.log().holders().transactions[0].held_bytes > 0);
    copy_folder(dir_a.path(), killed.path());
    drop((left, a));
    // The next start of the primary ends it with a record, which the replica gets like any other.
    let a = open(killed.path()).await;
    assert_eq!(left_open(&a), 0);
    catch_up(&a, &applier).await;
    assert_eq!(left_open(&b), 0);
    insert(&a, "bars", rows(10..20, 1)).await;
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
    b.log().roll().await.unwrap();
    b.flush().await.unwrap();
    assert!(b.log().status().first > tailrace_wal::Lsn(1), "the log is still held");
}
