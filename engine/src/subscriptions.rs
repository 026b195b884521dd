//! Named durable subscriptions: a pin of the log, the table that it is for, and at most one consumer.
//!
//! A subscription holds the log behind what was acknowledged, within the budgets of every pin, also while nobody reads
//! and over restarts. Where it stands is its pin; the manifest keeps both.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tailrace_wal::{HistoryId, LogError, Pin, PinKey, PinState, PinStatus, Seq};

use crate::{Engine, EngineError, Result, TableId, changes::blocking, check_name, manifest::PinRecord};

/// What the feeds of subscriptions are called before their names.
const FEED_PREFIX: &str = "subscription/";

/// A subscription, for `system.subscriptions`.
#[derive(Debug, Clone)]
pub struct SubscriptionStatus {
    /// Its name.
    pub name: String,
    /// What it is of.
    pub table: TableId,
    /// Where it stands and how. Attached: somebody reads.
    pub pin: PinStatus,
}

/// The use of a subscription by its one consumer; it ends when this is dropped.
#[derive(Debug)]
pub struct Subscribed {
    /// What the subscription is of.
    pub history: HistoryId,
    /// What the subscription is of.
    pub table: TableId,
    /// What comes after this was not acknowledged.
    pub acknowledged: Seq,
    /// Where a reader behind it has to start.
    pub restart: Seq,
    _pin: Arc<Pin>,
}

/// The subscriptions of a node.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    /// One changes at a time.
    changing: tokio::sync::Mutex<()>,
    by_name: Mutex<BTreeMap<String, Subscription>>,
}

#[derive(Debug, Clone)]
struct Subscription {
    history: HistoryId,
    table: TableId,
    /// Alive while somebody reads.
    pin: Weak<Pin>,
}

impl Engine {
    /// Begins a subscription to a table: it gives transactions from `from` on; `None`: what is committed from now on.
    /// Durable on return.
    pub async fn create_subscription(
        &self,
        name: &str,
        database: &str,
        table: &str,
        from: Option<Seq>,
    ) -> Result<SubscriptionStatus> {
        self.check_open()?;
        check_name("subscription", name)?;
        let _alone = self.subscriptions.changing.lock().await;
        if self.subscriptions.by_name.lock().contains_key(name) {
            return Err(EngineError::AlreadyExists { kind: "subscription", name: name.to_owned() });
        }
        let database = self.database_named(database)?.version();
        let found = database.table(table);
        let missing = || EngineError::NotFound { kind: "table", name: format!("{}.{table}", database.name) };
        let table = found.ok_or_else(missing)?.table.id;
        let end = database.position.seq;
        let after = from.map_or(end, |from| Seq(from.0.saturating_sub(1)));
        if after > end {
            return Err(EngineError::Invalid(format!(
                "database {:?} is at seq {end}: a subscription cannot begin with {}; leave it out to begin now",
                database.name,
                after.next()
            )));
        }
        let restart = if after == end { database.restart_seq } else { self.restart_after(database.id, after).await? };
        let key = key(name, database.id);
        self.claim(key.clone(), after, restart).await.map_err(|error| match error {
            LogError::Truncated { retained_after, .. } => EngineError::ChangesGone {
                database: database.name.clone(),
                wanted: after.next(),
                first: retained_after.next(),
            },
            error => error.into(),
        })?;
        let subscription = Subscription { history: database.id, table, pin: Weak::new() };
        self.subscriptions.by_name.lock().insert(name.to_owned(), subscription);
        if let Err(error) = self.save_pins().await {
            self.subscriptions.by_name.lock().remove(name);
            self.log.forget_pin(&key);
            return Err(error);
        }
        self.subscription(name)
    }

    /// Acknowledges everything up to `seq`: it is not given again, and its log may go. Durable on return. A mark never
    /// goes back: an older `seq` changes nothing. Returns what is acknowledged now.
    pub async fn advance_subscription(&self, name: &str, seq: Seq) -> Result<Seq> {
        self.check_open()?;
        let _alone = self.subscriptions.changing.lock().await;
        let status = self.held(name)?;
        let history = status.pin.key.history;
        if seq <= status.pin.acknowledged {
            return Ok(status.pin.acknowledged);
        }
        let end = self.history(history).map_or(Seq::ZERO, |history| history.position.seq);
        if seq > end {
            return Err(EngineError::Invalid(format!(
                "subscription {name:?} cannot acknowledge seq {seq}: its database is at {end}"
            )));
        }
        let restart = self.restart_after(history, seq).await?;
        let attached = self.subscriptions.by_name.lock().get(name).and_then(|known| known.pin.upgrade());
        let pin = match attached {
            Some(pin) => pin,
            None => Arc::new(self.claim(status.pin.key.clone(), seq, restart).await?),
        };
        if !pin.advance(seq, seq, restart) {
            return Err(self.held(name).err().unwrap_or(EngineError::Closed));
        }
        self.save_pins().await?;
        Ok(seq)
    }

    /// Ends a subscription; its log is free. [`EngineError::InUse`] while somebody reads.
    pub async fn drop_subscription(&self, name: &str) -> Result<()> {
        let status = self.subscription(name)?;
        if status.pin.attached {
            return Err(in_use(name));
        }
        self.forget_pins(&feed(name), None).await.map(|_| ())
    }

    /// All subscriptions by name.
    pub fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let known = self.subscriptions.by_name.lock().clone();
        let mut pins: BTreeMap<PinKey, PinStatus> =
            self.log.pins().into_iter().map(|pin| (pin.key.clone(), pin)).collect();
        let status = |(name, known): (String, Subscription)| {
            let pin = pins.remove(&key(&name, known.history))?;
            Some(SubscriptionStatus { name, table: known.table, pin })
        };
        known.into_iter().filter_map(status).collect()
    }

    /// One subscription.
    pub fn subscription(&self, name: &str) -> Result<SubscriptionStatus> {
        let found = self.subscriptions().into_iter().find(|status| status.name == name);
        found.ok_or_else(|| EngineError::NotFound { kind: "subscription", name: name.to_owned() })
    }

    /// Takes a subscription for a consumer. [`EngineError::InUse`] while another has it.
    pub async fn attach_subscription(&self, name: &str) -> Result<Subscribed> {
        self.check_open()?;
        let _alone = self.subscriptions.changing.lock().await;
        let SubscriptionStatus { table, pin, .. } = self.held(name)?;
        if pin.attached {
            return Err(in_use(name));
        }
        let lost = |error: LogError| match error {
            LogError::Truncated { .. } => EngineError::SubscriptionLost {
                name: name.to_owned(),
                acknowledged: pin.acknowledged,
                reason: error.to_string(),
            },
            error => error.into(),
        };
        let claimed = self.claim(pin.key.clone(), pin.acknowledged, pin.restart).await.map_err(lost)?;
        claimed.advance(pin.acknowledged, pin.applied, pin.restart);
        let claimed = Arc::new(claimed);
        if let Some(known) = self.subscriptions.by_name.lock().get_mut(name) {
            known.pin = Arc::downgrade(&claimed);
        }
        Ok(Subscribed {
            history: pin.key.history,
            table,
            acknowledged: pin.acknowledged,
            restart: pin.restart,
            _pin: claimed,
        })
    }

    /// A subscription that is not lost.
    fn held(&self, name: &str) -> Result<SubscriptionStatus> {
        let status = self.subscription(name)?;
        match &status.pin.state {
            PinState::Lost { reason } => Err(EngineError::SubscriptionLost {
                name: name.to_owned(),
                acknowledged: status.pin.acknowledged,
                reason: reason.clone(),
            }),
            _ => Ok(status),
        }
    }

    async fn claim(&self, key: PinKey, acknowledged: Seq, restart: Seq) -> Result<Pin, LogError> {
        let log = self.log.clone();
        blocking(move || log.pin(key, acknowledged, restart)).await
    }

    /// Where a reader that holds everything up to `seq` has to start, as far as the log goes back.
    async fn restart_after(&self, history: HistoryId, seq: Seq) -> Result<Seq> {
        let log = self.log.clone();
        blocking(move || {
            let restart = log.restart_at(history, seq).unwrap_or(seq);
            // What began before the log does has ended.
            Ok(restart.max(log.retained_after(history).unwrap_or(restart).min(seq)))
        })
        .await
    }
}

/// What pins over restarts need.
impl Subscriptions {
    /// The table of the subscription that a pin is of.
    pub(crate) fn table_of(&self, key: &PinKey) -> Option<TableId> {
        let name = key.feed.strip_prefix(FEED_PREFIX)?;
        self.by_name.lock().get(name).filter(|known| known.history == key.history).map(|known| known.table)
    }

    /// Takes a subscription as the manifest has it.
    pub(crate) fn restore(&self, pin: &PinRecord) {
        if let (Some(name), Some(table)) = (pin.key.feed.strip_prefix(FEED_PREFIX), pin.table) {
            let subscription = Subscription { history: pin.key.history, table, pin: Weak::new() };
            self.by_name.lock().insert(name.to_owned(), subscription);
        }
    }

    /// Its pin was forgotten.
    pub(crate) fn forget(&self, key: &PinKey) {
        if let Some(name) = key.feed.strip_prefix(FEED_PREFIX) {
            let mut known = self.by_name.lock();
            if known.get(name).is_some_and(|known| known.history == key.history) {
                known.remove(name);
            }
        }
    }
}

fn feed(name: &str) -> String {
    format!("{FEED_PREFIX}{name}")
}

fn key(name: &str, history: HistoryId) -> PinKey {
    PinKey { feed: feed(name), history }
}

fn in_use(name: &str) -> EngineError {
    EngineError::InUse { kind: "subscription", name: name.to_owned() }
}
