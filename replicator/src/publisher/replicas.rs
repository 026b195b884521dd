//! Who is attached, and how the feeds stand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tailrace_engine::Engine;
use tailrace_wal::{CommitTime, HistoryId, PinKey, PinState, PinStatus, Seq};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{link::ReplicaLink, wait::Reached};
use crate::{ReplicaFeedStatus, ReplicationState};

/// Name of replicas' pins before the replica's name.
pub(super) const FEED_PREFIX: &str = "replica/";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    attached: Mutex<BTreeMap<String, Attached>>,
    marks: Mutex<HashMap<(String, HistoryId), Mark>>,
    pub(super) reached: Mutex<Reached>,
    /// Told of every acknowledgement, and when waiting for one has become vain.
    pub(super) acknowledged: Notify,
    next_session: AtomicU64,
}

#[derive(Debug)]
struct Attached {
    session: u64,
    address: SocketAddr,
    link: Arc<ReplicaLink>,
    replaced: CancellationToken,
}

/// What is known of a feed beside its pin.
#[derive(Debug, Clone, Default)]
struct Mark {
    last_pull: Option<CommitTime>,
    trouble: Option<(ReplicationState, String)>,
}

/// A session's entry; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    replicas: &'a Replicas,
    name: String,
    session: u64,
    /// Fires when the same replica attached anew.
    pub(crate) replaced: CancellationToken,
}

impl Replicas {
    /// Admits a replica, in place of an older connection of the same name, unless there are too many.
    pub(crate) fn attach(
        &self,
        engine: &Engine,
        name: &str,
        address: SocketAddr,
        link: Arc<ReplicaLink>,
        max_replicas: u32,
    ) -> Result<Attachment<'_>, String> {
        let mut attached = self.attached.lock();
        let pins = engine.log().pins();
        let pinned = pins.iter().filter(|pin| !pin.state.is_lost()).filter_map(|pin| replica_of(&pin.key));
        let known: BTreeSet<&str> = attached.keys().map(String::as_str).chain(pinned).collect();
        if !known.contains(name) && known.len() >= max_replicas as usize {
            let names = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "Asynchronous replication is not properly configured for the cluster: it serves at most {max_replicas} replicas and has {names}; raise max_replicas in section [replication.primary] and restart the primary"
            ));
        }
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let entry = Attached { session, address, link, replaced: replaced.clone() };
        if let Some(older) = attached.insert(name.to_owned(), entry) {
            older.replaced.cancel();
        }
        Ok(Attachment { replicas: self, name: name.to_owned(), session, replaced })
    }

    /// The replica pulled.
    pub(crate) fn pulled(&self, name: &str, history: HistoryId, now: CommitTime) {
        self.marks.lock().entry((name.to_owned(), history)).or_default().last_pull = Some(now);
    }

    /// The replica said how far it is.
    pub(crate) fn reached(&self, engine: &Engine, name: &str, history: HistoryId, durable: Seq, applied: Seq) {
        let end = engine.log().history_end(history).map_or(durable, |end| end.position.seq);
        self.reached.lock().set(name, history, (durable, applied), end, engine.clock().monotonic());
        self.acknowledged.notify_waiters();
    }

    /// A feed runs, or why it does not.
    pub(crate) fn set_trouble(&self, name: &str, history: HistoryId, trouble: Option<(ReplicationState, String)>) {
        self.marks.lock().entry((name.to_owned(), history)).or_default().trouble = trouble;
    }

    /// Nothing more is known of a history: its replication was switched off, or it ended.
    pub(crate) fn forget(&self, engine: &Engine, history: HistoryId) {
        self.marks.lock().retain(|(_, marked), _| *marked != history);
        self.reached.lock().retain(|_, reached| reached != history);
        self.acknowledged.notify_waiters();
        for pin in engine.log().pins() {
            if pin.key.history == history && replica_of(&pin.key).is_some() {
                engine.log().forget_pin(&pin.key);
            }
        }
    }

    /// A replica has, or is about to drop, all of a history that ended: nothing is held or shown for it any more.
    pub(crate) fn done(&self, engine: &Engine, name: &str, history: HistoryId) {
        self.marks.lock().remove(&(name.to_owned(), history));
        engine.log().forget_pin(&pin_key(name, history));
    }

    /// Histories that have ended and still have a pin of this replica.
    pub(crate) fn ended(&self, engine: &Engine, name: &str) -> Vec<HistoryId> {
        let pins = engine.log().pins().into_iter().map(|pin| pin.key);
        let own = pins.filter(|key| replica_of(key) == Some(name)).map(|key| key.history);
        own.filter(|history| engine.history(*history).is_some_and(|info| info.ended)).collect()
    }

    /// Nothing more is known of a replica, of all histories or of one: its pins were forgotten.
    pub(crate) fn forget_replica(&self, name: &str, history: Option<HistoryId>) {
        let is_it = |marked: HistoryId| history.is_none_or(|history| history == marked);
        self.marks.lock().retain(|(replica, marked), _| replica != name || !is_it(*marked));
        self.reached.lock().retain(|replica, reached| replica != name || !is_it(reached));
    }

    /// Histories that replicas have pinned or tried.
    pub(crate) fn histories(&self, engine: &Engine) -> BTreeSet<HistoryId> {
        let pins = engine.log().pins();
        let pinned = pins.iter().filter(|pin| replica_of(&pin.key).is_some()).map(|pin| pin.key.history);
        pinned.chain(self.marks.lock().keys().map(|(_, history)| *history)).collect()
    }

    /// A row per replica and database, connected or pinned.
    pub(crate) fn feeds(&self, engine: &Engine) -> Vec<ReplicaFeedStatus> {
        let pins: HashMap<(String, HistoryId), PinStatus> = engine
            .log()
            .pins()
            .into_iter()
            .filter_map(|pin| Some(((replica_of(&pin.key)?.to_owned(), pin.key.history), pin)))
            .collect();
        let marks = self.marks.lock().clone();
        let attached = self.attached.lock();
        let now = engine.clock().monotonic();
        let keys: BTreeSet<&(String, HistoryId)> = pins.keys().chain(marks.keys()).collect();
        let rows = keys.into_iter().filter_map(|key| {
            let mut row = row(engine, key, attached.get(&key.0), pins.get(key), marks.get(key))?;
            row.catch_up = self.reached.lock().catch_up(&key.0, key.1, row.lag_tasks, now);
            Some(row)
        });
        rows.collect()
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        let mut attached = self.replicas.attached.lock();
        if attached.get(&self.name).is_some_and(|entry| entry.session == self.session) {
            attached.remove(&self.name);
        }
    }
}

/// The pin of a replica's feed.
pub(crate) fn pin_key(replica: &str, history: HistoryId) -> PinKey {
    PinKey { feed: format!("{FEED_PREFIX}{replica}"), history }
}

fn replica_of(key: &PinKey) -> Option<&str> {
    key.feed.strip_prefix(FEED_PREFIX)
}

fn row(
    engine: &Engine,
    (replica, history): &(String, HistoryId),
    attached: Option<&Attached>,
    pin: Option<&PinStatus>,
    mark: Option<&Mark>,
) -> Option<ReplicaFeedStatus> {
    // What ended and is held for nobody is over, even where a last pull came after it.
    let info = engine.history(*history).filter(|info| pin.is_some() || !info.ended)?;
    let acknowledged = pin.map_or(Seq::ZERO, |pin| pin.acknowledged);
    let lag_tasks = info.position.seq.0.saturating_sub(acknowledged.0);
    let held = pin.filter(|pin| !pin.state.is_lost());
    let lost = pin
        .and_then(|pin| pin.state.reason())
        .map(|reason| (ReplicationState::Lost, format!("{reason}; the replica repairs itself when it attaches again")));
    let trouble = mark.and_then(|mark| mark.trouble.clone()).or(lost);
    let (state, reason) = trouble.map_or((ReplicationState::Enabled, None), |(state, reason)| (state, Some(reason)));
    Some(ReplicaFeedStatus {
        replica: replica.clone(),
        address: attached.map(|attached| attached.address.to_string()),
        link: attached.map(|attached| attached.link.status()),
        database: info.name,
        history: *history,
        acknowledged,
        applied: pin.map_or(Seq::ZERO, |pin| pin.applied),
        last_pull: mark.and_then(|mark| mark.last_pull),
        lag_tasks,
        lag_bytes: if lag_tasks == 0 { Some(0) } else { pin.map(|pin| pin.held_bytes) },
        lag: if lag_tasks == 0 { Duration::ZERO } else { age(engine, *history, acknowledged) },
        catch_up: None,
        stuck: pin.filter(|_| lag_tasks > 0).map(|pin| pin.stalled),
        headroom_bytes: held.map(|pin| pin.bytes_max.saturating_sub(pin.held_bytes)),
        headroom: held.map(|pin| pin.stalled_max.saturating_sub(pin.stalled)),
        pin: pin.map_or(PinState::Lost { reason: "it holds no pin".into() }, |pin| pin.state.clone()),
        state,
        reason,
    })
}

/// Age of the oldest transaction after `acknowledged`, as far as tasks are kept.
fn age(engine: &Engine, history: HistoryId, acknowledged: Seq) -> Duration {
    let now = engine.clock().now().0;
    let tasks = engine.tasks(history, acknowledged);
    tasks.first().map_or(Duration::ZERO, |task| {
        Duration::from_micros(u64::try_from(now.saturating_sub(task.commit_time.0)).unwrap_or(0))
    })
}
