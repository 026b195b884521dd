//! What must be there: every history as it was acknowledged, and what a crash may leave of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use tailrace_engine::{DatabaseVersion, Engine, PartitionKey};
use tailrace_wal::{HistoryId, Lsn, Position, Seq};

use crate::support::{Identity, Row, chunk_rows, table_contents};

/// Tables with their rows.
pub(crate) type Contents = BTreeMap<String, BTreeMap<Identity, Row>>;

/// What a transaction does.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Begin,
    End,
    CreateTable(String),
    DropTable(String),
    Rows(Work),
}

/// What a transaction does to rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    /// Partitions that lose what they had before, by table and day.
    pub(crate) drops: BTreeSet<(String, i64)>,
    /// By table; the ordinals are known once the transaction was seen.
    pub(crate) rows: BTreeMap<String, Vec<Row>>,
}

/// Ids come in blocks of so many; the rows of a block lie on so many days as its number says.
pub(crate) const BLOCK: i64 = 64;
/// The most days of a block.
pub(crate) const DAYS: i64 = 3;

/// The day of a row.
pub(crate) fn day_of(id: i64) -> i64 {
    id % days_of(id)
}

/// Over how many days the rows of an id's block lie.
pub(crate) fn days_of(id: i64) -> i64 {
    1 + (id / BLOCK) % DAYS
}

/// The key of a day's partition.
pub(crate) fn partition_of(day: i64) -> PartitionKey {
    let mut key = vec![1];
    key.extend((day ^ i64::MIN).to_be_bytes());
    PartitionKey(key.into())
}

/// A transaction that was seen.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) lsn: Lsn,
    pub(crate) position: Position,
    pub(crate) restart: Option<Seq>,
    pub(crate) change: Change,
    /// Its rows with their ordinals.
    rows: BTreeMap<String, BTreeMap<Identity, Row>>,
    pub(crate) key: Option<Bytes>,
}

/// A history from CREATE DATABASE on.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) name: String,
    pub(crate) id: Option<HistoryId>,
    pub(crate) commits: Vec<Commit>,
    pub(crate) replicated: bool,
}

/// A call under way: it may be there or not.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) history: usize,
    pub(crate) change: Change,
    pub(crate) key: Option<Bytes>,
}

/// What is known of a node that is written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Oracle {
    pub(crate) histories: Vec<History>,
    /// Everything up to here was acknowledged as durable.
    pub(crate) durable: Lsn,
    pub(crate) pending: Option<Pending>,
    /// A switch under way: history and new value.
    pub(crate) switching: Option<(usize, bool)>,
}

impl History {
    pub(crate) fn is_ended(&self) -> bool {
        self.commits.last().is_some_and(|last| matches!(last.change, Change::End))
    }

    pub(crate) fn tables(&self) -> Vec<String> {
        self.contents(self.commits.len()).into_keys().collect()
    }

    /// After the first `count` transactions.
    pub(crate) fn contents(&self, count: usize) -> Contents {
        self.contents_without(count, &BTreeSet::new())
    }

    /// The same without some of them, by seq.
    pub(crate) fn contents_without(&self, count: usize, skipped: &BTreeSet<u64>) -> Contents {
        let mut contents = Contents::new();
        for commit in self.commits[..count].iter().filter(|commit| !skipped.contains(&commit.position.seq.0)) {
            match &commit.change {
                Change::Begin => {}
                Change::End => contents.clear(),
                Change::CreateTable(name) => drop(contents.insert(name.clone(), BTreeMap::new())),
                Change::DropTable(name) => drop(contents.remove(name)),
                Change::Rows(Work { drops, .. }) => {
                    for (table, day) in drops {
                        contents.get_mut(table).unwrap().retain(|_, (id, _)| day_of(*id) != *day);
                    }
                    for (table, rows) in &commit.rows {
                        contents.get_mut(table).unwrap().extend(rows.clone());
                    }
                }
            }
        }
        contents
    }
}

/// Tables and rows of a database as an engine shows them.
pub(crate) async fn contents_of(engine: &Arc<Engine>, version: &DatabaseVersion) -> Contents {
    let mut contents = Contents::new();
    let mut tables: Vec<_> = version.tables().collect();
    tables.sort_by_key(|table| table.table.id);
    for table in tables {
        contents.insert(table.table.name.clone(), table_contents(engine, table).await);
    }
    contents
}

/// The rows of a transaction that is not flushed.
fn hot_rows(version: &DatabaseVersion, seq: u64) -> Contents {
    let mut contents = Contents::new();
    for table in version.tables() {
        let chunks = table.partitions().flat_map(|(_, partition)| &partition.chunks);
        let rows = chunks.flat_map(|chunk| chunk_rows(chunk)).filter(|((found, _), _)| *found == seq);
        contents.insert(table.table.name.clone(), rows.collect());
    }
    contents
}

impl Oracle {
    /// Live histories.
    pub(crate) fn live(&self) -> Vec<usize> {
        let live = |index: &usize| !self.histories[*index].is_ended() && !self.histories[*index].commits.is_empty();
        (0..self.histories.len()).filter(live).collect()
    }

    pub(crate) fn acknowledge(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn);
    }

    /// The pending transaction is there: what the engine shows of it is what was asked for.
    pub(crate) fn adopt(&mut self, engine: &Arc<Engine>, lsn: Lsn) {
        let Pending { history, change, key } = self.pending.take().unwrap();
        let model = &mut self.histories[history];
        let seq = model.commits.len() as u64 + 1;
        let version = engine.version();
        let version = version.database(&model.name).filter(|version| model.id.is_none_or(|id| id == version.id));
        let Some(version) = version else {
            assert!(matches!(change, Change::End), "{} is gone", model.name);
            let ended = engine.history(model.id.unwrap()).unwrap();
            assert!(ended.ended);
            assert_eq!(ended.position.seq, Seq(seq));
            let restart = None;
            model.commits.push(Commit { lsn, position: ended.position, restart, change, rows: BTreeMap::new(), key });
            return;
        };
        assert!(!matches!(change, Change::End), "{} is still there", model.name);
        assert_eq!(version.position.seq, Seq(seq));
        model.id = Some(version.id);
        let mut rows = BTreeMap::new();
        if let Change::Rows(Work { rows: expected, .. }) = &change {
            let mut ordinals = Vec::new();
            for (table, found) in hot_rows(version, seq) {
                ordinals.extend(found.keys().map(|(_, ordinal)| *ordinal));
                let mut seen: Vec<&Row> = found.values().collect();
                let mut wanted: Vec<&Row> = expected.get(&table).into_iter().flatten().collect();
                seen.sort();
                wanted.sort();
                assert_eq!(seen, wanted, "rows of transaction {seq} in {table}");
                if !found.is_empty() {
                    rows.insert(table, found);
                }
            }
            ordinals.sort_unstable();
            assert!(
                ordinals.iter().copied().eq(0..ordinals.len() as u64),
                "ordinals of transaction {seq}: {ordinals:?}"
            );
        }
        let restart = Some(version.restart_seq);
        model.commits.push(Commit { lsn, position: version.position, restart, change, rows, key });
    }

    /// A running engine shows exactly what is known.
    pub(crate) async fn check_live(&self, engine: &Arc<Engine>) {
        let version = engine.version();
        for model in &self.histories {
            let Some(database) = version.database(&model.name).filter(|version| Some(version.id) == model.id) else {
                assert!(model.is_ended() || model.commits.is_empty(), "{} is gone", model.name);
                continue;
            };
            assert_eq!(database.stopped, None);
            assert_eq!(database.position, model.commits.last().unwrap().position);
            assert_eq!(contents_of(engine, database).await, model.contents(model.commits.len()));
        }
    }

    /// An engine that has just started shows a prefix of what is known, with everything that was acknowledged as
    /// durable, and nothing else. `whole`: nothing written was lost. From here on, that prefix is what is known.
    pub(crate) async fn recovered(&mut self, engine: &Arc<Engine>, whole: bool) {
        let version = engine.version();
        let pending = self.pending.clone();
        let mut kept = Lsn::ZERO;
        let mut lost: Option<Lsn> = None;
        let mut adopted = false;
        for index in 0..self.histories.len() {
            let model = &self.histories[index];
            let is_pending = pending.as_ref().is_some_and(|pending| pending.history == index);
            // One whose CREATE was refused has no id; its name may be another's now.
            let is_it = |id: HistoryId| model.id.map_or(is_pending, |known| known == id);
            let found = version.database(&model.name).filter(|found| is_it(found.id));
            if let Some(found) = found {
                assert_eq!(found.stopped, None, "database {} does not start", model.name);
            }
            let here = match (found, model.id.and_then(|id| engine.history(id))) {
                (Some(found), _) => found.position.seq.0 as usize,
                (None, Some(ended)) => {
                    assert!(ended.ended);
                    ended.position.seq.0 as usize
                }
                (None, None) => 0,
            };
            let known = model.commits.len();
            assert!(here <= known + usize::from(is_pending), "{} has {here} of {known} transactions", model.name);
            for (at, commit) in model.commits.iter().enumerate() {
                if at < here {
                    kept = kept.max(commit.lsn);
                } else {
                    assert!(
                        commit.lsn > self.durable && !whole,
                        "{}: transaction {} (LSN {}) was acknowledged (durable {}) and is lost: {here} of {known} are there",
                        model.name,
                        at + 1,
                        commit.lsn,
                        self.durable,
                    );
                    lost = Some(lost.map_or(commit.lsn, |lost| lost.min(commit.lsn)));
                }
            }
            if here > known {
                adopted = true;
                let lsn = engine.log().status().appended;
                self.adopt(engine, lsn);
            } else {
                self.histories[index].commits.truncate(here);
            }
            let model = &mut self.histories[index];
            if let Some(last) = model.commits.last() {
                let info = engine.history(model.id.unwrap()).unwrap();
                assert_eq!(info.position, last.position, "{}", model.name);
                if !model.is_ended() {
                    assert!(
                        last.restart.is_none_or(|restart| restart == info.restart_seq),
                        "restart seq of {}",
                        model.name
                    );
                }
                assert_eq!(info.ended, model.is_ended());
            }
            if let Some(found) = found {
                let expected = model.contents(model.commits.len());
                assert_eq!(contents_of(engine, found).await, expected, "contents of {}", model.name);
                if found.replicated != model.replicated {
                    assert_eq!(self.switching, Some((index, found.replicated)), "switch of {}", model.name);
                    model.replicated = found.replicated;
                }
            }
        }
        assert!(lost.is_none_or(|lost| kept < lost), "LSN {kept} is there, {lost:?} is not");
        assert!(!adopted || lost.is_none(), "the last transaction is there, earlier ones are not");
        for database in version.databases() {
            assert!(
                self.histories.iter().any(|model| model.id == Some(database.id)),
                "{} came from nowhere",
                database.name
            );
        }
        self.pending = None;
        self.switching = None;
        // What is served after a start is durable.
        self.durable = engine.log().status().durable;
    }
}
