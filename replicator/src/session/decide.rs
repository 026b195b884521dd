//! The handshake's decision: may a replica's position be continued?

use tailrace_engine::EpochEntry;
use tailrace_wal::{CommitTime, HistoryId, Position, Seq};

/// A history as the handshake sees it.
#[derive(Debug, Clone)]
pub(crate) struct HistoryView {
    pub(crate) name: String,
    /// Replication is on, for the database and the cluster.
    pub(crate) on: bool,
    /// Where it ends now: nothing beyond has been sent to anyone.
    pub(crate) end: Position,
    pub(crate) commit_time: CommitTime,
    pub(crate) epochs: Vec<EpochEntry>,
    /// Readers can start after this seq.
    pub(crate) retained_after: Seq,
    pub(crate) ended: bool,
}

/// The primary's histories, for the session.
pub(crate) trait Catalog {
    /// One history, ended or not.
    fn history(&self, id: HistoryId) -> Option<HistoryView>;
    /// Log bytes that a replica has not acknowledged, per history that it has pinned.
    fn behind(&self, replica: &str) -> Vec<(HistoryId, u64)>;
    /// Its position at a seq, where that commit is retained.
    fn position_at(&self, id: HistoryId, seq: Seq) -> Option<Position>;
}

/// Answer to `open`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Continue,
    Forked(String),
    Lost,
    Dropped,
}

/// Decides by the chain where the primary still has the replica's commit, else by the list of epochs.
pub(crate) fn decide(view: &HistoryView, chain_here: Option<Position>, at: &Position, restart: Seq) -> Decision {
    if at.seq > view.end.seq {
        return Decision::Forked(format!(
            "the replica is at seq {}, the primary's history ends at {}: the primary lost transactions or was set back",
            at.seq, view.end.seq
        ));
    }
    match chain_here.filter(|_| at.seq > Seq::ZERO) {
        Some(here) if here.chain != at.chain => {
            return Decision::Forked(format!(
                "at seq {} the replica's chain is {:016x} (epoch {}), the primary's {:016x} (epoch {}): both went on separately",
                at.seq, at.chain.0, at.epoch, here.chain.0, here.epoch
            ));
        }
        Some(_) => {}
        None if at.seq > Seq::ZERO => {
            if let Err(reason) = epoch_covers(&view.epochs, at) {
                return Decision::Forked(reason);
            }
        }
        None => {}
    }
    if restart >= view.retained_after {
        Decision::Continue
    } else if view.ended {
        Decision::Dropped
    } else {
        Decision::Lost
    }
}

fn epoch_covers(epochs: &[EpochEntry], at: &Position) -> Result<(), String> {
    let Some(index) = epochs.iter().position(|entry| entry.epoch == at.epoch) else {
        return Err(format!("the replica's epoch {} is not part of the primary's history", at.epoch));
    };
    let first = epochs[index].first_seq;
    if at.seq < first {
        return Err(format!("the replica's epoch {} begins at seq {first}, the replica is at {}", at.epoch, at.seq));
    }
    let Some(next) = epochs.get(index + 1) else { return Ok(()) };
    if at.seq >= next.first_seq {
        return Err(format!(
            "the replica's epoch {} was left before seq {}, the replica is at {}",
            at.epoch, next.first_seq, at.seq
        ));
    }
    if at.seq.next() == next.first_seq && at.chain != next.chain_before {
        return Err(format!("the replica's chain differs from the primary's at seq {}", at.seq));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tailrace_wal::{Chain, Epoch};

    use super::*;

    fn epoch(counter: u32) -> Epoch {
        Epoch { counter, nonce: 100 + counter }
    }

    fn at(counter: u32, seq: u64) -> Position {
        let epoch = if seq == 0 { Epoch::default() } else { epoch(counter) };
        Position { history: HistoryId([3; 16]), epoch, seq: Seq(seq), chain: Chain(seq * 7) }
    }

    /// Epoch 1 has 1..=10, epoch 2 has 11..=20.
    fn view(retained_after: u64) -> HistoryView {
        let entry = |counter, first: u64| EpochEntry {
            epoch: epoch(counter),
            first_seq: Seq(first),
            chain_before: Chain((first - 1) * 7),
        };
        HistoryView {
            name: "market".into(),
            on: true,
            end: at(2, 20),
            commit_time: CommitTime(0),
            epochs: vec![entry(1, 1), entry(2, 11)],
            retained_after: Seq(retained_after),
            ended: false,
        }
    }

    fn forked(decision: Decision) -> bool {
        matches!(decision, Decision::Forked(_))
    }

    #[test]
    fn continues_where_the_chain_is_the_same() {
        assert_eq!(decide(&view(0), Some(at(1, 5)), &at(1, 5), Seq(5)), Decision::Continue);
        assert_eq!(decide(&view(0), Some(at(2, 20)), &at(2, 20), Seq(18)), Decision::Continue);
        assert_eq!(decide(&view(0), None, &at(0, 0), Seq(0)), Decision::Continue);
    }

    #[test]
    fn a_different_chain_is_forked_whatever_is_retained() {
        let mut other = at(1, 5);
        other.chain = Chain(1);
        assert!(forked(decide(&view(0), Some(at(1, 5)), &other, Seq(5))));
        assert!(forked(decide(&view(15), Some(at(1, 5)), &other, Seq(5))));
    }

    #[test]
    fn epochs_decide_where_the_commit_is_gone() {
        assert_eq!(decide(&view(15), None, &at(1, 5), Seq(5)), Decision::Lost);
        assert_eq!(decide(&view(15), None, &at(1, 10), Seq(10)), Decision::Lost);
        assert_eq!(decide(&view(15), None, &at(2, 15), Seq(15)), Decision::Continue);
        assert!(forked(decide(&view(15), None, &at(1, 11), Seq(11))), "beyond its epoch");
        assert!(forked(decide(&view(15), None, &at(2, 10), Seq(10))), "before its epoch");
        assert!(forked(decide(&view(15), None, &at(3, 12), Seq(12))), "an epoch unknown here");
        let mut other = at(1, 10);
        other.chain = Chain(1);
        assert!(forked(decide(&view(15), None, &other, Seq(10))), "the chain before the next epoch");
    }

    #[test]
    fn a_replica_ahead_is_forked() {
        assert!(forked(decide(&view(0), None, &at(2, 21), Seq(21))));
    }

    #[test]
    fn open_transactions_need_their_beginning() {
        assert_eq!(decide(&view(15), Some(at(2, 16)), &at(2, 16), Seq(12)), Decision::Lost);
        assert_eq!(decide(&view(15), None, &at(0, 0), Seq(0)), Decision::Lost);
    }

    #[test]
    fn an_ended_history_is_dropped_when_its_end_is_gone() {
        let ended = HistoryView { ended: true, ..view(20) };
        assert_eq!(decide(&ended, None, &at(1, 5), Seq(5)), Decision::Dropped);
        assert_eq!(decide(&ended, Some(at(2, 20)), &at(2, 20), Seq(20)), Decision::Continue);
        let ended = HistoryView { ended: true, ..view(3) };
        assert_eq!(decide(&ended, Some(at(1, 5)), &at(1, 5), Seq(5)), Decision::Continue);
    }
}
