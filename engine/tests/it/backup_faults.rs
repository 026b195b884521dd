//! Backups and restores that are disturbed: a call of the store that fails, and a cancel at any of them.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult, memory::InMemory,
    path::Path as ObjectPath,
};
use tailrace_engine::{
    BackupLocation, BackupRequest, BackupScope, BackupState, EngineError, PruneRequest, RestoreRequest, RestoreTarget,
    Result,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    backup::{into_database, restored_table, rows_of},
    support::*,
};

/// A store in memory that fails one call, or holds one up.
#[derive(Debug)]
struct Failing {
    below: InMemory,
    calls: AtomicU64,
    fails: AtomicU64,
    holds: AtomicU64,
    /// The call that is held up has come.
    reached: Notify,
    /// It goes on.
    released: Notify,
    me: Weak<Self>,
}

impl Failing {
    fn new() -> Arc<Self> {
        let never = || AtomicU64::new(u64::MAX);
        Arc::new_cyclic(|me| Self {
            below: InMemory::new(),
            calls: AtomicU64::new(0),
            fails: never(),
            holds: never(),
            reached: Notify::new(),
            released: Notify::new(),
            me: me.clone(),
        })
    }

    /// The `n`th call from now on waits.
    fn hold(&self, n: u64) {
        self.calls.store(0, Ordering::SeqCst);
        self.holds.store(n, Ordering::SeqCst);
    }

    /// For streams, which outlive a borrow.
    fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("it is asked through an Arc")
    }

    /// The `n`th call from now on fails.
    fn fail(&self, n: u64) {
        self.calls.store(0, Ordering::SeqCst);
        self.fails.store(n, Ordering::SeqCst);
    }

    /// Whether the call that was to fail has come.
    fn has_failed(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > self.fails.load(Ordering::SeqCst)
    }

    async fn call(&self) -> StoreResult<()> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        if number == self.holds.load(Ordering::SeqCst) {
            self.reached.notify_one();
            self.released.notified().await;
        }
        match number == self.fails.load(Ordering::SeqCst) {
            true => Err(Error::Generic { store: "failing", source: "planted".into() }),
            false => Ok(()),
        }
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, at: &ObjectPath, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.call().await?;
        self.below.put_opts(at, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        at: &ObjectPath,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.call().await?;
        self.below.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &ObjectPath, options: GetOptions) -> StoreResult<GetResult> {
        self.call().await?;
        self.below.get_opts(at, options).await
    }
    async fn get_ranges(&self, at: &ObjectPath, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.call().await?;
        self.below.get_ranges(at, ranges).await
    }
    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        let this = self.me();
        futures::stream::once(async move {
            this.call().await?;
            Ok::<_, Error>(this.below.delete_stream(locations))
        })
        .try_flatten()
        .boxed()
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let (this, prefix) = (self.me(), prefix.cloned());
        futures::stream::once(async move {
            this.call().await?;
            Ok::<_, Error>(this.below.list(prefix.as_ref()))
        })
        .try_flatten()
        .boxed()
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.call().await?;
        self.below.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> StoreResult<()> {
        self.call().await?;
        self.below.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn whichever_call_fails_there_is_a_whole_backup_or_none_and_the_next_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..60, 6)).await;
    let store = Failing::new();
    let location = BackupLocation::over(store.clone(), "memory");
    let (mut n, mut resumed) = (0, 0);
    loop {
        // A partition changes each time, so that there is something to write.
        insert(&engine, "bars", rows(n as i64 * 6..n as i64 * 6 + 6, 6)).await;
        store.fail(n);
        let before = location_ids(&location, &store, n).await;
        let failed = engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await;
        let has_failed = store.has_failed();
        store.fail(u64::MAX);
        let after = location.backups().await.unwrap();
        assert_eq!(after.len() - before, usize::from(failed.is_ok()), "call {n}");
        assert_eq!(engine.check_backup(&location, None).await.map(|report| report.faults).unwrap_or_default(), []);
        let done = engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
        resumed += done.resumed_files;
        assert_eq!(engine.check_backup(&location, Some(&done.id)).await.unwrap().faults, [], "call {n}");
        if !has_failed {
            break;
        }
        n += 1;
    }
    assert!(n > 10 && resumed > 0, "{n} calls, {resumed} files taken over");
}

#[tokio::test]
async fn whichever_call_fails_a_restore_or_a_prune_leaves_nothing_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..20, 2)).await;
    let store = Failing::new();
    let location = BackupLocation::over(store.clone(), "memory");
    engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    let expected = rows_of(&engine, "market", "bars").await;
    let mut n = 0;
    loop {
        let name = format!("copy{n}");
        store.fail(n);
        let restored = engine.restore(&location, into_database(&name)).await;
        let has_failed = store.has_failed();
        store.fail(u64::MAX);
        match restored {
            Ok(_) => assert_eq!(rows_of(&engine, &name, "bars").await, expected),
            Err(_) => assert!(engine.version().database(&name).is_none(), "call {n}"),
        }
        if !has_failed {
            break;
        }
        n += 1;
    }
    assert!(n >= 4, "{n} calls");
    // Nothing that a backup needs is ever gone. Copies are not backed up.
    let market = || BackupRequest { force: true, ..BackupRequest::new(BackupScope::Database("market".into())) };
    let mut n = 0;
    loop {
        for _ in 0..3 {
            engine.backup(&location, market()).await.unwrap();
        }
        store.fail(n);
        let _ = engine.prune_backups(&location, PruneRequest { keep: 2, older_than: None, dry_run: false }).await;
        let has_failed = store.has_failed();
        store.fail(u64::MAX);
        assert_eq!(engine.check_backup(&location, None).await.unwrap().faults, [], "call {n}");
        if !has_failed {
            break;
        }
        n += 1;
    }
    assert_eq!(location.backups().await.unwrap().len(), 2);
}

/// How many backups there are, without counting the calls that tell.
async fn location_ids(location: &BackupLocation, store: &Failing, n: u64) -> usize {
    store.fail(u64::MAX);
    let count = location.backups().await.unwrap().len();
    store.fail(n);
    count
}

/// Runs `work`, whose cancel fires when the call that is held up comes. `None`: it did not come.
async fn cancelled_at<T>(
    store: &Failing,
    n: u64,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Option<Result<T>> {
    store.hold(n);
    let mut work = std::pin::pin!(work);
    let done = tokio::select! {
        done = &mut work => {
            done.unwrap();
            None
        }
        () = store.reached.notified() => {
            cancel.cancel();
            // What is not cancelled goes on.
            store.released.notify_one();
            Some(work.await)
        }
    };
    store.hold(u64::MAX);
    // Of a call that was dropped, the word stays behind.
    while futures::FutureExt::now_or_never(store.released.notified()).is_some() {}
    done
}

async fn marks(location: &Failing) -> usize {
    location.below.list(Some(&ObjectPath::from("running"))).try_collect::<Vec<_>>().await.unwrap().len()
}

#[tokio::test]
async fn a_backup_that_is_cancelled_is_none_and_the_next_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..60, 6)).await;
    let store = Failing::new();
    let location = BackupLocation::over(store.clone(), "memory");
    let (mut n, mut cancelled, mut resumed) = (0, 0, 0);
    loop {
        insert(&engine, "bars", rows(n as i64 * 6..n as i64 * 6 + 6, 6)).await;
        let before = location.backups().await.unwrap().len();
        let cancel = CancellationToken::new();
        let request = BackupRequest { cancel: cancel.clone(), ..BackupRequest::new(BackupScope::Cluster) };
        let ended = cancelled_at(&store, n, &cancel, engine.backup(&location, request)).await;
        let after = location.backups().await.unwrap().len();
        let state = engine.backup_tasks().last().unwrap().state.clone();
        assert_eq!(marks(&store).await, 0, "call {n}");
        match &ended {
            Some(Err(EngineError::Cancelled(_))) => {
                assert_eq!((after, state), (before, BackupState::Cancelled), "call {n}");
                cancelled += 1;
            }
            None | Some(Ok(_)) => assert_eq!((after, state), (before + 1, BackupState::Finished), "call {n}"),
            Some(Err(error)) => panic!("call {n}: {error}"),
        }
        let done = engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
        resumed += done.resumed_files;
        assert_eq!(engine.check_backup(&location, Some(&done.id)).await.unwrap().faults, [], "call {n}");
        if ended.is_none() {
            break;
        }
        n += 1;
    }
    // All but the manifest's put and what follows it.
    assert!(cancelled > 8 && cancelled + 2 >= n, "{cancelled} of {n} calls");
    assert!(resumed > 0, "files were taken over");
}

#[tokio::test]
async fn a_restore_that_is_cancelled_leaves_nothing_and_the_rerun_completes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..60, 6)).await;
    let store = Failing::new();
    let location = BackupLocation::over(store.clone(), "memory");
    engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    let expected = rows_of(&engine, "market", "bars").await;
    let into_table = |name: &str| RestoreRequest {
        what: restored_table(None),
        into: Some(RestoreTarget::Table { database: name.into(), table: "bars".into() }),
        create: true,
        ..RestoreRequest::default()
    };
    let mut cancelled = 0;
    // As files, and through a transaction, whose database and table are made for it.
    for (how, request) in
        [("files", into_database as fn(&str) -> RestoreRequest), ("rows", into_table as fn(&str) -> RestoreRequest)]
    {
        for n in 0.. {
            let name = format!("{how}{n}");
            let cancel = CancellationToken::new();
            let wanted = RestoreRequest { cancel: cancel.clone(), ..request(&name) };
            let ended = cancelled_at(&store, n, &cancel, engine.restore(&location, wanted)).await;
            let state = engine.backup_tasks().last().unwrap().state.clone();
            match &ended {
                Some(Err(EngineError::Cancelled(_))) => {
                    assert_eq!(state, BackupState::Cancelled, "{name}");
                    assert!(engine.version().database(&name).is_none(), "{name}");
                    cancelled += 1;
                    engine.restore(&location, request(&name)).await.unwrap();
                }
                None | Some(Ok(_)) => assert_eq!(state, BackupState::Finished, "{name}"),
                Some(Err(error)) => panic!("{name}: {error}"),
            }
            assert_eq!(rows_of(&engine, &name, "bars").await, expected, "{name}");
            if ended.is_none() {
                break;
            }
        }
    }
    assert!(cancelled > 12, "{cancelled} calls");
    // Before it begins.
    let cancel = CancellationToken::new();
    cancel.cancel();
    let request = RestoreRequest { cancel, ..into_database("early") };
    let error = engine.restore(&location, request).await.unwrap_err();
    assert!(matches!(error, EngineError::Cancelled(_)), "{error}");
}
