//! How one followed database stands, for those who ask.

use std::time::Duration;

use parking_lot::Mutex;
use tailrace_engine::{DatabaseVersion, Divergence, OpenFragments};
use tailrace_wal::{CommitTime, HistoryId, Seq};
use tokio::sync::watch;

use super::{
    board::{Board, Whose},
    lag::Lag,
};
use crate::{FollowedDatabaseStatus, ReplicationState};

/// Remedy that most conditions share.
pub(crate) const RETRY: &str = "CALL start_cluster_replication()";

/// Reason of a state while a repair that was asked for is waited for or runs.
pub(crate) const REPAIRING: &str = "a repair that was asked for runs";

/// A database as others see it.
#[derive(Debug)]
pub(crate) struct Face {
    pub(crate) history: HistoryId,
    pub(crate) name: String,
    pub(crate) board: Mutex<Board>,
    standing: Mutex<Standing>,
    lag: Mutex<(Lag, &'static str)>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Clone)]
struct Standing {
    primary: String,
    state: ReplicationState,
    reason: Option<String>,
    remedy: Option<String>,
    since: CommitTime,
    applied: Seq,
    acknowledged: Seq,
    primary_seq: Option<Seq>,
    failing: Failing,
    ended: bool,
}

/// What fails, and how often it did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failing {
    pub(crate) attempts: u32,
    pub(crate) next_try: Option<CommitTime>,
    pub(crate) task: Option<Seq>,
}

impl Face {
    /// `applied`: what is here already.
    pub(crate) fn new(whose: Whose, history: HistoryId, applied: Seq, now: CommitTime, monotonic: Duration) -> Self {
        Self {
            lag: Mutex::new((Lag::new(applied, monotonic), "starting")),
            history,
            name: whose.database.clone(),
            standing: Mutex::new(Standing {
                primary: whose.source.clone(),
                state: ReplicationState::Enabled,
                reason: None,
                remedy: None,
                since: now,
                applied,
                acknowledged: applied,
                primary_seq: None,
                failing: Failing::default(),
                ended: false,
            }),
            changed: watch::Sender::new(()),
            board: Mutex::new(Board::new(whose, applied)),
        }
    }

    /// Sets the state and what fails in it; `since` moves only when the state changes.
    pub(crate) fn set_state(
        &self,
        state: ReplicationState,
        reason: Option<String>,
        remedy: Option<String>,
        failing: Failing,
        now: CommitTime,
    ) {
        let mut standing = self.standing.lock();
        if standing.state != state {
            standing.since = now;
            tracing::info!(database = self.name, state = state.name(), reason, "replication of a database");
        }
        (standing.state, standing.reason, standing.remedy) = (state, reason, remedy);
        standing.failing = failing;
        drop(standing);
        self.changed.send_replace(());
    }

    /// It is tried again: for now, nothing fails.
    pub(crate) fn set_trying(&self) {
        self.standing.lock().failing = Failing::default();
        self.changed.send_replace(());
    }

    /// The task that fails, if one does.
    pub(crate) fn failed_task(&self) -> Option<Seq> {
        let standing = self.standing.lock();
        standing.failing.task.filter(|_| !standing.ended)
    }

    /// Whether nothing is to be said of it.
    pub(crate) fn is_well(&self) -> bool {
        let standing = self.standing.lock();
        standing.state == ReplicationState::Enabled && standing.reason.is_none()
    }

    /// Last transaction known at the primary.
    pub(crate) fn primary_seq(&self) -> Option<Seq> {
        self.standing.lock().primary_seq
    }

    /// Reason of its state.
    pub(crate) fn reason(&self) -> Option<String> {
        self.standing.lock().reason.clone()
    }

    /// Whether the history has ended.
    pub(crate) fn is_ended(&self) -> bool {
        self.standing.lock().ended
    }

    /// Waits until `seq` is applied, or something fails, or it ends.
    pub(crate) async fn settled(&self, seq: Seq) {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let standing = self.standing.lock();
                if standing.applied >= seq || standing.failing.attempts > 0 || standing.ended {
                    return;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until a repair that was asked for is over.
    pub(crate) async fn repaired(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let standing = self.standing.lock();
                if standing.reason.as_deref() != Some(REPAIRING) || standing.ended {
                    return;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn state(&self) -> ReplicationState {
        self.standing.lock().state
    }

    /// Where it stands here.
    pub(crate) fn set_applied(&self, seq: Seq, monotonic: Duration) {
        self.lag.lock().0.applied(seq, monotonic);
        let mut standing = self.standing.lock();
        standing.applied = seq;
        standing.acknowledged = standing.acknowledged.min(seq);
        standing.primary_seq = standing.primary_seq.map(|known| known.max(seq));
        drop(standing);
        self.changed.send_replace(());
    }

    pub(crate) fn set_acknowledged(&self, seq: Seq) {
        self.standing.lock().acknowledged = seq;
    }

    /// Last transaction known at the primary.
    pub(crate) fn set_primary_seq(&self, seq: Seq) {
        self.standing.lock().primary_seq = Some(seq);
    }

    /// This transaction was heard of.
    pub(crate) fn raise_primary_seq(&self, seq: Seq) {
        let mut standing = self.standing.lock();
        standing.primary_seq = standing.primary_seq.max(Some(seq));
    }

    /// The primary told where it stands.
    pub(crate) fn heard(&self, seq: Seq, behind_bytes: Option<u64>, monotonic: Duration) {
        self.raise_primary_seq(seq);
        self.lag.lock().0.heard(seq, behind_bytes, monotonic);
    }

    /// The primary tells nothing any more.
    pub(crate) fn lost_sight(&self) {
        self.lag.lock().0.lost_sight();
    }

    /// What its task is doing.
    pub(crate) fn set_activity(&self, activity: &'static str) {
        self.lag.lock().1 = activity;
    }

    /// For how long it has stood still with something to move on to, and in what.
    pub(crate) fn stuck(&self, monotonic: Duration) -> Option<(Duration, &'static str)> {
        let lag = self.lag.lock();
        lag.0.stuck(monotonic).map(|since| (since, lag.1))
    }

    pub(crate) fn set_ended(&self) {
        self.standing.lock().ended = true;
        self.changed.send_replace(());
    }

    /// Transactions known at the primary and not applied here.
    pub(crate) fn behind(&self) -> u64 {
        let standing = self.standing.lock();
        standing.primary_seq.map_or(0, |seq| seq.0.saturating_sub(standing.applied.0))
    }

    /// As it is shown; `None` once it ended. `disabled`: why nothing is followed now.
    /// `here`: what there is of it.
    pub(crate) fn show(
        &self,
        disabled: Option<&(String, String, CommitTime)>,
        here: Option<&DatabaseVersion>,
        open: OpenFragments,
        monotonic: Duration,
    ) -> Option<FollowedDatabaseStatus> {
        let standing = self.standing.lock().clone();
        if standing.ended {
            return None;
        }
        let lag = self.lag.lock().0.show(monotonic);
        let mut shown = FollowedDatabaseStatus {
            database: self.name.clone(),
            history: self.history,
            primary: standing.primary,
            state: standing.state,
            reason: standing.reason,
            remedy: standing.remedy,
            since: standing.since,
            applied: standing.applied,
            acknowledged: standing.acknowledged,
            primary_seq: standing.primary_seq,
            lag,
            stuck: self.stuck(monotonic),
            attempts: standing.failing.attempts,
            next_try: standing.failing.next_try,
            failed_task: standing.failing.task,
            tables: here.and_then(|here| here.choice().names().cloned()),
            open,
        };
        if let Some(awaited) = here.map(|here| here.awaited_tables()).filter(|awaited| !awaited.is_empty()) {
            let reason =
                format!("chosen, and not here before a repair has brought them: tables {}", awaited.join(", "));
            // What goes on besides is said first.
            shown.reason = Some(shown.reason.map_or_else(|| reason.clone(), |now| format!("{now}; {reason}")));
            shown.remedy.get_or_insert_with(|| format!("CALL repair_database('{}')", self.name));
        }
        // Before that, it may still come.
        let is_at_end = shown.primary_seq.is_some_and(|end| shown.applied >= end);
        let unknown = here.filter(|_| is_at_end).map(|here| here.unknown_tables()).filter(|names| !names.is_empty());
        if let Some(names) = unknown {
            let reason = format!(
                "[replication.replica] tables names what the primary's database does not have: {}",
                names.join(", ")
            );
            shown.reason = Some(shown.reason.map_or_else(|| reason.clone(), |now| format!("{now}; {reason}")));
            let remedy = "put the names in [replication.replica] tables right and start this node again, or create the tables \
                          on the primary";
            shown.remedy.get_or_insert_with(|| remedy.to_owned());
        }
        if let Some(Divergence { since, reason, remedy }) = here.and_then(DatabaseVersion::divergence)
            && shown.state == ReplicationState::Enabled
        {
            shown.state = ReplicationState::Diverged;
            shown.since = since;
            // What goes on besides is said first.
            shown.reason = Some(shown.reason.map_or_else(|| reason.clone(), |now| format!("{now}; {reason}")));
            shown.remedy = Some(shown.remedy.unwrap_or(remedy));
        }
        if let Some((reason, remedy, since)) = disabled
            && matches!(shown.state, ReplicationState::Enabled | ReplicationState::Diverged)
        {
            shown.state = ReplicationState::Disabled;
            (shown.reason, shown.remedy, shown.since) = (Some(reason.clone()), Some(remedy.clone()), *since);
        }
        Some(shown)
    }
}
