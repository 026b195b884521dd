//! What the primary says about a feed that was asked for: it goes on, or why it does not.

use tailrace_engine::{Operation, Right};
use tailrace_wal::Seq;

use super::{
    board::special,
    database::{Database, Phase},
};
use crate::{ReplicationState, session::Outcome, wire::CloseCause};

impl Database {
    pub(super) async fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Opened { position } => {
                self.face.set_primary_seq(position.seq);
                if self.failures == 0 {
                    self.enabled();
                }
                if let Some((position, restart_seq)) = self.applier.as_ref().map(|applier| applier.position()) {
                    // What was applied without a session is told now.
                    if self.pipeline.is_settled() {
                        self.acknowledge(position.seq, restart_seq);
                    }
                }
                self.bring_awaited();
            }
            Outcome::Forked(reason) => self.forked(&reason),
            Outcome::Lost(reason) => self.lost(reason).await,
            Outcome::Dropped { end } => self.dropped(end.seq).await,
            Outcome::Closed { cause: CloseCause::Off, reason } => {
                self.phase = Phase::Unoffered;
                let remedy = format!(
                    "on the primary: CALL set_database_for_cluster_replication('{}', true), CALL start_cluster_replication()",
                    self.face.name
                );
                self.set_state(ReplicationState::Disabled, Some(reason), Some(remedy));
            }
            Outcome::Closed { cause: CloseCause::NotGranted, reason } => {
                self.phase = Phase::Unoffered;
                let remedy = "grant it in section [replication.primary] of the primary".to_owned();
                self.set_state(ReplicationState::Disabled, Some(reason), Some(remedy));
            }
            Outcome::Closed { cause: CloseCause::Unknown, reason } => {
                let remedy = "start this replica with an empty data folder, or leave the database out of [replication.replica] databases".to_owned();
                self.block(ReplicationState::Stopped, reason, remedy);
            }
            Outcome::Closed { cause: CloseCause::Failed, reason } => {
                self.phase = Phase::Closed;
                self.pause();
                self.set_state(ReplicationState::Enabled, Some(format!("the primary cannot read on: {reason}")), None);
            }
        }
    }

    async fn lost(&mut self, reason: String) {
        self.pipeline.clear();
        self.drain().await;
        self.set_state(ReplicationState::Lost, Some(format!("{reason}; a repair runs")), None);
        self.repair_now().await;
    }

    async fn dropped(&mut self, end: Seq) {
        self.pipeline.clear();
        self.drain().await;
        let began = self.now();
        let dropped = match self.permitted(&[Right::Ddl]) {
            Ok(()) => self.shared.engine.drop_followed(self.face.history).await,
            Err(error) => Err(error),
        };
        match dropped {
            Ok(()) => {
                let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
                let info = special(end, Operation::DropDatabase, now);
                self.face.board.lock().done(info, false, began, now, monotonic);
                self.ended = true;
            }
            Err(error) => {
                self.phase = Phase::Closed;
                self.fail(&error);
            }
        }
    }
}
