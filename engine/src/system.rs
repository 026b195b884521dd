//! The system history: this cluster's own facts, folded.

use std::collections::{BTreeMap, BTreeSet};

use tailrace_wal::{CommitTime, HistoryId, Lsn, Part, PartEntry, PartHash, Payload, Position, Seq};

use crate::{
    EpochEntry, GrantedRight, Operation, RemoteCluster, ReplicationSwitches, Result, Role, SystemFact, TableChoice,
    apply::fold_epoch,
    effect::invalid,
    job::Jobs,
    operation::{decode_body, encode_body},
};

/// Its name where others have a database's.
pub(crate) const SYSTEM_HISTORY: &str = "system";

/// The fold of the system history at one position.
#[derive(Debug, Clone)]
pub(crate) struct System {
    pub(crate) position: Position,
    pub(crate) restart_seq: Seq,
    pub(crate) commit_time: CommitTime,
    pub(crate) epochs: Vec<EpochEntry>,
    pub(crate) applied: Lsn,
    pub(crate) switches: ReplicationSwitches,
    replicated: BTreeMap<HistoryId, bool>,
    follows: BTreeMap<HistoryId, Follows>,
    choices: BTreeMap<HistoryId, BTreeSet<String>>,
    asked_skips: BTreeMap<HistoryId, Vec<(Seq, String)>>,
    pub(crate) rights: BTreeSet<GrantedRight>,
    pub(crate) remote_clusters: BTreeMap<String, RemoteCluster>,
    pub(crate) jobs: Jobs,
    pub(crate) ended: BTreeMap<HistoryId, EndedHistory>,
    /// Since the last flush.
    pub(crate) moved: bool,
}

#[derive(Debug, Clone)]
struct Follows {
    name: String,
    primary: String,
}

/// A history that ended with DROP DATABASE.
#[derive(Debug, Clone)]
pub(crate) struct EndedHistory {
    pub(crate) name: String,
    pub(crate) end: Position,
    pub(crate) epochs: Vec<EpochEntry>,
}

impl System {
    /// Before the first fact.
    pub(crate) fn new(id: HistoryId) -> Self {
        Self {
            position: Position::start(id),
            restart_seq: Seq::ZERO,
            commit_time: CommitTime::default(),
            epochs: Vec::new(),
            applied: Lsn::ZERO,
            switches: ReplicationSwitches { primary: true, replica: true },
            replicated: BTreeMap::new(),
            follows: BTreeMap::new(),
            choices: BTreeMap::new(),
            asked_skips: BTreeMap::new(),
            rights: BTreeSet::new(),
            remote_clusters: BTreeMap::new(),
            jobs: Jobs::default(),
            ended: BTreeMap::new(),
            moved: false,
        }
    }

    /// What this cluster is to a history.
    pub(crate) fn role(&self, history: HistoryId) -> Role {
        match self.follows.get(&history) {
            Some(follows) => Role::Replica { primary: follows.primary.clone() },
            None => Role::Primary,
        }
    }

    /// Whether a history's replication is switched on.
    pub(crate) fn replicated(&self, history: HistoryId) -> bool {
        self.replicated.get(&history).copied().unwrap_or(false)
    }

    /// Which tables of a history have rows here.
    pub(crate) fn choice(&self, history: HistoryId) -> TableChoice {
        self.choices.get(&history).map_or_else(TableChoice::all, |names| TableChoice::only(names.iter().cloned()))
    }

    /// Tasks of a history that are to be skipped when they come, in order.
    pub(crate) fn asked_skips(&self, history: HistoryId) -> Vec<(Seq, String)> {
        self.asked_skips.get(&history).cloned().unwrap_or_default()
    }

    /// Followed histories that have not ended, with their names.
    pub(crate) fn followed(&self) -> impl Iterator<Item = (HistoryId, &str)> {
        let live = self.follows.iter().filter(|(id, _)| !self.ended.contains_key(id));
        live.map(|(id, follows)| (*id, follows.name.as_str()))
    }

    /// Takes one fact.
    pub(crate) fn fold(&mut self, fact: SystemFact) {
        match fact {
            SystemFact::DatabaseReplication { history, on } => {
                self.replicated.insert(history, on);
            }
            SystemFact::PrimaryReplication { on } => self.switches.primary = on,
            SystemFact::ReplicaReplication { on } => self.switches.replica = on,
            SystemFact::Follows { history, name, primary } => {
                self.follows.insert(history, Follows { name, primary });
            }
            SystemFact::ChosenTables { history, tables } => {
                match tables {
                    Some(tables) => self.choices.insert(history, tables),
                    None => self.choices.remove(&history),
                };
            }
            SystemFact::AskedSkips { history, tasks } => {
                if tasks.is_empty() {
                    self.asked_skips.remove(&history);
                } else {
                    self.asked_skips.insert(history, tasks);
                }
            }
            SystemFact::Right { user, database, right, granted } => {
                let of = GrantedRight { user, database, right };
                if granted {
                    self.rights.insert(of)
                } else {
                    self.rights.remove(&of)
                };
            }
            SystemFact::RemoteCluster { name, cluster } => {
                match cluster {
                    Some(cluster) => self.remote_clusters.insert(name, cluster),
                    None => self.remote_clusters.remove(&name),
                };
            }
            SystemFact::Job { job } => self.jobs.set(*job),
            SystemFact::JobDeleted { name } => self.jobs.remove(&name),
            SystemFact::JobRun { run } => self.jobs.set_run(*run),
            SystemFact::Ended { history, name, end, epochs } => {
                self.replicated.remove(&history);
                self.choices.remove(&history);
                self.asked_skips.remove(&history);
                self.ended.insert(history, EndedHistory { name, end, epochs });
            }
        }
    }

    /// A record of the history was written.
    pub(crate) fn advance(&mut self, lsn: Lsn, position: Position, restart_seq: Seq, commit_time: CommitTime) {
        fold_epoch(&mut self.epochs, &self.position, &position);
        self.position = position;
        self.restart_seq = restart_seq;
        self.commit_time = commit_time;
        self.applied = lsn;
        self.moved = true;
    }

    /// The shortest list of facts that folds into this.
    pub(crate) fn facts(&self) -> Vec<SystemFact> {
        let mut facts = vec![
            SystemFact::PrimaryReplication { on: self.switches.primary },
            SystemFact::ReplicaReplication { on: self.switches.replica },
        ];
        facts.extend(self.follows.iter().map(|(history, follows)| SystemFact::Follows {
            history: *history,
            name: follows.name.clone(),
            primary: follows.primary.clone(),
        }));
        facts.extend(
            self.choices
                .iter()
                .map(|(history, tables)| SystemFact::ChosenTables { history: *history, tables: Some(tables.clone()) }),
        );
        facts.extend(
            self.asked_skips
                .iter()
                .map(|(history, tasks)| SystemFact::AskedSkips { history: *history, tasks: tasks.clone() }),
        );
        facts.extend(
            self.replicated.iter().map(|(history, on)| SystemFact::DatabaseReplication { history: *history, on: *on }),
        );
        facts.extend(self.rights.iter().cloned().map(|GrantedRight { user, database, right }| SystemFact::Right {
            user,
            database,
            right,
            granted: true,
        }));
        facts.extend(
            self.remote_clusters.iter().map(|(name, cluster)| SystemFact::RemoteCluster {
                name: name.clone(),
                cluster: Some(cluster.clone()),
            }),
        );
        facts.extend(self.jobs.facts());
        facts.extend(self.ended.iter().map(|(history, ended)| SystemFact::Ended {
            history: *history,
            name: ended.name.clone(),
            end: ended.end,
            epochs: ended.epochs.clone(),
        }));
        facts
    }
}

/// The record of some facts.
pub(crate) fn encode_facts(facts: &[SystemFact]) -> Result<Payload> {
    let parts = facts.iter().map(|fact| {
        let body = encode_body(fact)?;
        Ok(Part::new(body_entry(Operation::System, crate::TableId(0)), vec![body.into()])?)
    });
    Ok(Payload::new(parts.collect::<Result<Vec<_>>>()?, Vec::new(), None)?)
}

/// The facts of a record.
pub(crate) fn decode_facts(payload: &Payload) -> Result<Vec<SystemFact>> {
    let entries = payload.directory.parts.iter().enumerate();
    let facts = entries.map(|(index, entry)| {
        if Operation::from_code(entry.operation) != Some(Operation::System) {
            return Err(invalid(&format!("operation {} in the system history", entry.operation)));
        }
        decode_body(Operation::System, &payload.part_bytes(index))
    });
    facts.collect()
}

/// The entry of a part without rows.
pub(crate) fn body_entry(operation: Operation, table: crate::TableId) -> PartEntry {
    PartEntry {
        table: table.0,
        schema_version: 0,
        operation: operation.code(),
        first_ordinal: 0,
        rows: 0,
        length: 0,
        hash: PartHash::default(),
        partition: bytes::Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_fold_into_what_they_came_from() {
        let (followed, ended) = (HistoryId::random(), HistoryId::random());
        let mut system = System::new(HistoryId::random());
        system.fold(SystemFact::ReplicaReplication { on: false });
        system.fold(SystemFact::Follows { history: followed, name: "market".into(), primary: "a".into() });
        system.fold(SystemFact::DatabaseReplication { history: followed, on: true });
        system.fold(SystemFact::DatabaseReplication { history: ended, on: true });
        let choose = |history, names: Option<&[&str]>| SystemFact::ChosenTables {
            history,
            tables: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        };
        system.fold(choose(followed, Some(&["old"])));
        system.fold(choose(followed, Some(&["bars", "risk"])));
        system.fold(choose(ended, Some(&["bars"])));
        let skip = |history, tasks: &[u64]| SystemFact::AskedSkips {
            history,
            tasks: tasks.iter().map(|task| (Seq(*task), "no".to_owned())).collect(),
        };
        system.fold(skip(followed, &[7]));
        system.fold(skip(followed, &[8, 9]));
        system.fold(skip(ended, &[3]));
        system.fold(SystemFact::Ended {
            history: ended,
            name: "old".into(),
            end: Position::start(ended),
            epochs: Vec::new(),
        });
        let right = |database: &str, granted| SystemFact::Right {
            user: "replicator".into(),
            database: database.into(),
            right: crate::Right::Ddl,
            granted,
        };
        [right("market", true), right("other", true), right("other", false)]
            .into_iter()
            .for_each(|fact| system.fold(fact));
        let remote = |name: &str, address: Option<&str>| SystemFact::RemoteCluster {
            name: name.into(),
            cluster: address
                .map(|address| RemoteCluster { addresses: vec![address.into()], ..RemoteCluster::default() }),
        };
        [remote("b", Some("old:1")), remote("b", Some("new:1")), remote("c", Some("c:1")), remote("c", None)]
            .into_iter()
            .for_each(|fact| system.fold(fact));
        let mut again = System::new(system.position.history);
        system.facts().into_iter().for_each(|fact| again.fold(fact));
        assert_eq!(again.facts(), system.facts());
        assert_eq!(again.role(followed), Role::Replica { primary: "a".into() });
        assert!(again.replicated(followed) && !again.replicated(ended));
        assert_eq!(again.choice(followed), TableChoice::only(["risk", "bars"]));
        assert_eq!(again.choice(ended), TableChoice::all());
        assert_eq!(again.asked_skips(followed), [(Seq(8), "no".to_owned()), (Seq(9), "no".to_owned())]);
        assert_eq!(again.asked_skips(ended), []);
        again.fold(skip(followed, &[]));
        assert_eq!(again.asked_skips(followed), []);
        again.fold(skip(followed, &[8, 9]));
        again.fold(choose(followed, None));
        assert_eq!(again.choice(followed), TableChoice::all());
        again.fold(choose(followed, Some(&["bars", "risk"])));
        assert_eq!(again.switches, ReplicationSwitches { primary: true, replica: false });
        assert_eq!(again.ended.len(), 1);
        assert_eq!(again.remote_clusters.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(again.remote_clusters["b"].addresses, ["new:1"]);
        assert_eq!(again.rights.iter().map(|right| right.database.as_str()).collect::<Vec<_>>(), ["market"]);
    }
}
