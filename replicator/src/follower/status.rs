//! How one followed database stands, for those who ask.

use std::time::Duration;

use parking_lot::Mutex;
use tailrace_wal::{CommitTime, HistoryId, Seq};

use super::{
    board::{Board, Whose},
    lag::Lag,
};
use crate::{FollowedDatabaseStatus, ReplicationState};

/// Remedy that most conditions share.
pub(crate) const RETRY: &str = "CALL start_cluster_replication()";

/// A database as others see it.
#[derive(Debug)]
pub(crate) struct Face {
    pub(crate) history: HistoryId,
    pub(crate) name: String,
    pub(crate) board: Mutex<Board>,
    standing: Mutex<Standing>,
    lag: Mutex<(Lag, &'static str)>,
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
    ended: bool,
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
                ended: false,
            }),
            board: Mutex::new(Board::new(whose, applied)),
        }
    }

    /// Sets the state; `since` moves only when it changes.
    pub(crate) fn set_state(
        &self,
        state: ReplicationState,
        reason: Option<String>,
        remedy: Option<String>,
        now: CommitTime,
    ) {
        let mut standing = self.standing.lock();
        if standing.state != state {
            standing.since = now;
            tracing::info!(database = self.name, state = state.name(), reason, "replication of a database");
        }
        (standing.state, standing.reason, standing.remedy) = (state, reason, remedy);
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
    }

    /// Transactions known at the primary and not applied here.
    pub(crate) fn behind(&self) -> u64 {
        let standing = self.standing.lock();
        standing.primary_seq.map_or(0, |seq| seq.0.saturating_sub(standing.applied.0))
    }

    /// As it is shown; `None` once it ended. `disabled`: why nothing is followed now.
    pub(crate) fn show(
        &self,
        disabled: Option<&(String, String, CommitTime)>,
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
        };
        if let Some((reason, remedy, since)) = disabled
            && shown.state == ReplicationState::Enabled
        {
            shown.state = ReplicationState::Disabled;
            (shown.reason, shown.remedy, shown.since) = (Some(reason.clone()), Some(remedy.clone()), *since);
        }
        Some(shown)
    }
}
