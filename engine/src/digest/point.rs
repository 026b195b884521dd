//! Digest points: a record of the history at which primary and replicas remember what the database is, so that they can
//! compare it at one position however far each has gone on since.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tailrace_wal::{HistoryId, Position};

use crate::{
    DatabaseVersion, DigestPoint, Engine, EngineError, Operation, Receipt, Result, TableId, ddl::body_part,
    digest::DatabaseDigests, effect::Effect, ids::unique,
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
pub(crate) struct Points(VecDeque<Captured>);

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
        while self.0.len() >= POINTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Captured { id, version: Arc::new(version.clone()), seen: None });
    }

    fn get(&self, id: PointId) -> Option<Arc<DatabaseVersion>> {
        self.0.iter().find(|captured| captured.id == id).map(|captured| captured.version.clone())
    }

    fn forget(&mut self, id: PointId) {
        self.0.retain(|captured| captured.id != id);
    }

    fn age(&mut self, now: Duration) {
        self.0.retain_mut(|captured| now.saturating_sub(*captured.seen.get_or_insert(now)) < AGE_MAX);
    }
}

impl Engine {
    /// Writes a digest point into the history of a database that is written here; durable on return. It is remembered for
    /// ten minutes, and four of a database at most: then [`Engine::point`] has it no more.
    pub async fn digest_point(self: &Arc<Self>, history: HistoryId) -> Result<(PointId, Position)> {
        let missing = || EngineError::NotFound { kind: "history", name: history.to_string() };
        let database = self.database(history).ok_or_else(missing)?;
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

    /// The database as it was at a digest point, while it is remembered here.
    pub fn point(&self, history: HistoryId, id: PointId) -> Option<Arc<DatabaseVersion>> {
        self.database(history)?.applying.lock().points.get(id)
    }

    /// Waits until a digest point of a history is applied here.
    ///
    /// # Errors
    /// Where the history has gone on beyond `position`, which is the point's, and does not remember it; where it cannot go
    /// on.
    pub async fn await_point(&self, id: PointId, position: Position) -> Result<Arc<DatabaseVersion>> {
        self.applied(position.history, position.seq).await?;
        self.point(position.history, id).ok_or_else(|| {
            EngineError::Invalid(format!(
                "digest point {id} at {position} is not remembered here: it was skipped, or four came after it"
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
    use crate::{Role, ddl::empty_version};

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
    fn a_point_is_text() {
        let id = PointId([0xab; 16]);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<PointId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<PointId>("\"ab\"").is_err());
    }
}
