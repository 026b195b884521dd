//! A commit that waits for replicas.

use std::{collections::HashMap, time::Duration};

use tailrace_wal::{HistoryId, Seq};

use super::{Publisher, replicas::Replicas};
use crate::rate::{Rate, catch_up};

/// What a replica must have done with a transaction to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaStage {
    /// It is on the replica's disk.
    Durable,
    /// It is readable there.
    Applied,
}

impl Publisher {
    /// Waits until `wanted` replicas have acknowledged that everything up to `seq` has reached `stage`, at most for
    /// `timeout`. Returns how many have: fewer than `wanted` when the time was over, or when the database's replication
    /// was switched off or ended meanwhile.
    pub async fn wait_for_replicas(
        &self,
        history: HistoryId,
        seq: Seq,
        stage: ReplicaStage,
        wanted: u32,
        timeout: Duration,
    ) -> u32 {
        let replicas = &self.shared.replicas;
        let enough = async {
            loop {
                let moved = replicas.acknowledged.notified();
                tokio::pin!(moved);
                // Registered before the look, so that no acknowledgement is missed.
                moved.as_mut().enable();
                let count = replicas.count(history, seq, stage);
                if count >= wanted || !self.shared.catalog.is_on(history) {
                    return count;
                }
                moved.await;
            }
        };
        match tokio::time::timeout(timeout, enough).await {
            Ok(count) => count,
            Err(_) => replicas.count(history, seq, stage),
        }
    }

    /// Whether replicas may pull the history now.
    pub fn is_replicated(&self, history: HistoryId) -> bool {
        self.shared.catalog.is_on(history)
    }
}

/// How far replicas have come, as they said in this process's time.
#[derive(Debug, Default)]
pub(super) struct Reached {
    by_history: HashMap<HistoryId, HashMap<String, Marks>>,
}

#[derive(Debug, Default)]
struct Marks {
    durable: Seq,
    applied: Seq,
    acknowledged: Rate,
    produced: Rate,
}

impl Reached {
    /// A replica said that it has everything up to `durable` on disk, and up to `applied` readable. After a repair it
    /// may say less than before. `end` is where the history stands here, `now` monotonic time.
    pub(super) fn set(
        &mut self,
        replica: &str,
        history: HistoryId,
        (durable, applied): (Seq, Seq),
        end: Seq,
        now: Duration,
    ) {
        let marks = self.by_history.entry(history).or_default().entry(replica.to_owned()).or_default();
        (marks.durable, marks.applied) = (durable, applied);
        marks.acknowledged.sample(durable, now);
        marks.produced.sample(end, now);
    }

    /// Time until a replica has acknowledged what it lacks.
    pub(super) fn catch_up(&self, replica: &str, history: HistoryId, tasks: u64, now: Duration) -> Option<Duration> {
        let marks = self.by_history.get(&history).and_then(|replicas| replicas.get(replica));
        let (produced, acknowledged) =
            marks.map_or((0.0, 0.0), |marks| (marks.produced.per_second(now), marks.acknowledged.per_second(now)));
        catch_up(tasks, produced, acknowledged)
    }

    /// Forgets what is said of feeds for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&str, HistoryId) -> bool) {
        for (history, replicas) in &mut self.by_history {
            replicas.retain(|replica, _| keep(replica, *history));
        }
        self.by_history.retain(|_, replicas| !replicas.is_empty());
    }
}

impl Replicas {
    /// Replicas that have come so far.
    fn count(&self, history: HistoryId, seq: Seq, stage: ReplicaStage) -> u32 {
        let reached = self.reached.lock();
        let Some(replicas) = reached.by_history.get(&history) else { return 0 };
        let has = |marks: &&Marks| match stage {
            ReplicaStage::Durable => marks.durable >= seq,
            // Readable there, and not to be taken back by a loss of power.
            ReplicaStage::Applied => marks.durable.min(marks.applied) >= seq,
        };
        u32::try_from(replicas.values().filter(has).count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_count_when_they_have_come_so_far() {
        let replicas = Replicas::default();
        let (here, other) = (HistoryId([1; 16]), HistoryId([2; 16]));
        let count = |seq, stage| replicas.count(here, Seq(seq), stage);
        assert_eq!(count(0, ReplicaStage::Durable), 0);
        let set = |replica, history, durable, applied| {
            replicas.reached.lock().set(replica, history, (Seq(durable), Seq(applied)), Seq(9), Duration::ZERO);
        };
        set("b", here, 5, 4);
        set("c", here, 3, 7);
        set("d", other, 9, 9);
        assert_eq!((count(3, ReplicaStage::Durable), count(5, ReplicaStage::Durable)), (2, 1));
        assert_eq!((count(4, ReplicaStage::Applied), count(5, ReplicaStage::Applied)), (1, 0));
        replicas.reached.lock().retain(|replica, _| replica != "b");
        assert_eq!(count(5, ReplicaStage::Durable), 0);
        assert_eq!(count(3, ReplicaStage::Durable), 1);
    }
}
