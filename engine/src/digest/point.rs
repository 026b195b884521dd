//! Digest points: a record of the history at which primary and replicas remember what the database is, so that they can
//! compare it at one position however far each has gone on since. A copy that serves replicas of its own writes no record:
//! where it stands is the point, and they remember what they are there if they have not passed it when they hear of it.

use std::{cmp::Ordering, collections::VecDeque, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tailrace_wal::{HistoryId, Position, Seq};

use crate::{
    DatabaseVersion, DigestPoint, Engine, EngineError, Operation, Receipt, Result, Role, TableId, database::Database,
    ddl::body_part, digest::DatabaseDigests, effect::Effect, ids::unique,
};

/// Most points that a database remembers: each holds on to a version's rows and files.
const POINTS_MAX: usize = 4;
/// How long one is remembered when nobody lets go of it.
const AGE_MAX: Duration = Duration::from_secs(600);

/// A digest point's name, random. As text 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PointId(pub [u8; 16]);

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PointId({self})")
    }
}

impl Serialize for PointId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let id = crate::Digest::parse_hex(&text);
        id.map(|id| Self(id.to_be_bytes())).ok_or_else(|| D::Error::custom("a digest point has 32 hexadecimal digits"))
    }
}

/// What a database was at its latest digest points.
#[derive(Debug, Default)]
pub(crate) struct Points {
    captured: VecDeque<Captured>,
    expected: VecDeque<Expected>,
}

/// A point that another node has chosen, where this one has not been yet.
#[derive(Debug)]
struct Expected {
    id: PointId,
    seq: Seq,
    /// When it was first looked at for its age, monotonic.
    seen: Option<Duration>,
}

#[derive(Debug)]
struct Captured {
    id: PointId,
    version: Arc<DatabaseVersion>,
    /// When it was first looked at for its age, monotonic.
    seen: Option<Duration>,
}

impl Points {
    /// Remembers the version right behind the point's record.
    pub(crate) fn capture(&mut self, id: PointId, version: &DatabaseVersion) {
        self.expected.retain(|expected| expected.id != id);
        if self.get(id).is_some() {
            return;
        }
        while self.captured.len() >= POINTS_MAX {
            self.captured.pop_front();
        }
        self.captured.push_back(Captured { id, version: Arc::new(version.clone()), seen: None });
    }

    /// Remembers the version where points are expected.
    pub(crate) fn capture_expected(&mut self, version: &DatabaseVersion) {
        let here = version.position.seq;
        while let Some(expected) = self.expected.iter().find(|expected| expected.seq == here) {
            self.capture(expected.id, version);
        }
    }

    /// A point that lies at `seq`, with a record there or without one. `version` is the newest here.
    fn expect(&mut self, id: PointId, seq: Seq, version: &DatabaseVersion) {
        match version.position.seq.cmp(&seq) {
            Ordering::Less => {
                while self.expected.len() >= POINTS_MAX {
                    self.expected.pop_front();
                }
                self.expected.push_back(Expected { id, seq, seen: None });
            }
            Ordering::Equal => self.capture(id, version),
            Ordering::Greater => {}
        }
    }

    fn get(&self, id: PointId) -> Option<Arc<DatabaseVersion>> {
        self.captured.iter().find(|captured| captured.id == id).map(|captured| captured.version.clone())
    }

    fn forget(&mut self, id: PointId) {
        self.captured.retain(|captured| captured.id != id);
        self.expected.retain(|expected| expected.id != id);
    }

    fn age(&mut self, now: Duration) {
        let is_young = |seen: &mut Option<Duration>| now.saturating_sub(*seen.get_or_insert(now)) < AGE_MAX;
        self.captured.retain_mut(|captured| is_young(&mut captured.seen));
        self.expected.retain_mut(|expected| is_young(&mut expected.seen));
    }
}

impl Engine {
    /// Writes a digest point into the history of a database that is written here; durable on return. A copy that follows
    /// another cluster writes nothing: its point is where it stands. It is remembered for ten minutes, and four of a
    /// database at most: then [`Engine::point`] has it no more.
    ///
    /// # Errors
    /// A copy that is DIVERGED is nothing to compare others with.
    pub async fn digest_point(self: &Arc<Self>, history: HistoryId) -> Result<(PointId, Position)> {
        let missing = || EngineError::NotFound { kind: "history", name: history.to_string() };
        let database = self.database(history).ok_or_else(missing)?;
        if database.version().role != Role::Primary {
            return self.point_of_copy(&database);
        }
        let engine = self.clone();
        self.to_the_end(async move {
            let _ddl = database.ddl.lock().await;
            let admission = engine.admit_ddl(&database, None, false).await?;
            let id = PointId(unique(&*engine.clock));
            let part = body_part(Operation::DigestPoint, TableId(0), Some(&DigestPoint { id }))?;
            let effect = Effect::DigestPoint(id);
            let Receipt { position, .. } = engine.commit_ddl(&database, admission, part, effect).await?;
            Ok((id, position))
        })
        .await
    }

    fn point_of_copy(&self, database: &Database) -> Result<(PointId, Position)> {
        self.check_open()?;
        let mut applying = database.applying.lock();
        let version = applying.version.clone();
        if let Some(reason) = version.stopped.clone() {
            return Err(EngineError::DatabaseStopped { database: version.name.clone(), reason });
        }
        if let Some(divergence) = version.divergence() {
            return Err(EngineError::Invalid(format!(
                "database {:?} is DIVERGED here, and its replicas cannot be compared with it: {}; {} here first",
                version.name, divergence.reason, divergence.remedy
            )));
        }
        let id = PointId(unique(&*self.clock));
        applying.points.capture(id, &version);
        Ok((id, version.position))
    }

    /// The database as it was at a digest point, while it is remembered here.
    pub fn point(&self, history: HistoryId, id: PointId) -> Option<Arc<DatabaseVersion>> {
        self.database(history)?.applying.lock().points.get(id)
    }

    /// Waits until a digest point of a history is applied here.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] where the history has gone on beyond `position`, which is the point's, and does not
    /// remember it: another point may be more lucky. Others where it cannot go on.
    pub async fn await_point(&self, id: PointId, position: Position) -> Result<Arc<DatabaseVersion>> {
        if let Some(database) = self.database(position.history) {
            let mut applying = database.applying.lock();
            let version = applying.version.clone();
            applying.points.expect(id, position.seq, &version);
        }
        self.applied(position.history, position.seq).await?;
        self.point(position.history, id).ok_or_else(|| {
            EngineError::Conflict(format!(
                "digest point {id} at {position} is not remembered here: it was skipped, this copy had passed it before it \
                 heard of it, or four came after it"
            ))
        })
    }

    /// Lets go of a digest point.
    pub fn forget_point(&self, history: HistoryId, id: PointId) {
        if let Some(database) = self.database(history) {
            database.applying.lock().points.forget(id);
        }
    }

    /// Digests of everything in a version that the caller holds, by table and partition; `from_files`: of what its
    /// datafiles hold now rather than of what was written. Dropping the future ends the work.
    pub async fn database_digests(&self, version: &DatabaseVersion, from_files: bool) -> Result<DatabaseDigests> {
        let mut tables: Vec<_> = version.tables().cloned().collect();
        tables.sort_by_key(|table| table.table.id);
        let mut digests = DatabaseDigests { position: version.position, tables: Vec::with_capacity(tables.len()) };
        for table in tables {
            digests.tables.push(self.table_digests(&table, from_files).await?);
        }
        Ok(digests)
    }

    /// Lets go of digest points that nobody asked about for long.
    pub(crate) fn forget_points(&self) {
        let now = self.clock.monotonic();
        let databases: Vec<_> = self.databases.read().values().cloned().collect();
        for database in databases {
            database.applying.lock().points.age(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ddl::empty_version;

    #[test]
    fn points_are_few_and_do_not_last() {
        let version = empty_version(HistoryId([1; 16]), "market".into(), Role::Primary);
        let mut points = Points::default();
        let id = |n| PointId([n; 16]);
        (0..6).for_each(|n| points.capture(id(n), &version));
        let known = |points: &Points| (0..9).filter(|n| points.get(id(*n)).is_some()).collect::<Vec<_>>();
        assert_eq!(known(&points), [2, 3, 4, 5]);
        points.forget(id(3));
        points.age(Duration::from_secs(100));
        points.capture(id(8), &version);
        points.age(Duration::from_secs(699));
        assert_eq!(known(&points), [2, 4, 5, 8]);
        points.age(Duration::from_secs(700));
        assert_eq!(known(&points), [8]);
        points.age(Duration::from_secs(1299));
        assert!(known(&points).is_empty());
    }

    #[test]
    fn a_point_is_captured_where_it_is_expected() {
        let at = |seq: u64| {
            let mut version = empty_version(HistoryId([1; 16]), "market".into(), Role::Primary);
            version.position.seq = Seq(seq);
            version
        };
        let id = |n: u8| PointId([n; 16]);
        let mut points = Points::default();
        points.expect(id(1), Seq(4), &at(5));
        points.expect(id(2), Seq(5), &at(5));
        for n in 3..10 {
            points.expect(id(n), Seq(3 + u64::from(n) / 3 * 3), &at(5));
        }
        points.forget(id(8));
        for seq in 6..20 {
            points.capture_expected(&at(seq));
        }
        let known: Vec<_> = (0..12).filter_map(|n| Some((n, points.get(id(n))?.position.seq.0))).collect();
        // Four are expected at most, the latest, and one of them was given up.
        assert_eq!(known, [(2, 5), (6, 9), (7, 9), (9, 12)]);
        points.expect(id(10), Seq(30), &at(20));
        points.age(Duration::from_secs(1));
        points.age(Duration::from_secs(601));
        points.capture_expected(&at(30));
        assert!(points.get(id(10)).is_none() && points.expected.is_empty());
    }

    #[test]
    fn a_point_is_text() {
        let id = PointId([0xab; 16]);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<PointId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<PointId>("\"ab\"").is_err());
    }
}
