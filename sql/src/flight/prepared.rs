//! Prepared statements: named by handles that nobody can guess, each its owner's, few enough to be kept in memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use datafusion::{arrow::datatypes::SchemaRef, common::ScalarValue};
use parking_lot::Mutex;

use crate::{Result, SqlError, Statement};

/// Most prepared statements of one user.
const PER_USER_MAX: usize = 256;

/// Most of all users.
const ALL_MAX: usize = 2048;

/// After this long without use one may go, when another wants its place.
const IDLE: Duration = Duration::from_secs(600);

/// A prepared statement.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) statement: Statement,
    /// Columns of its result; none for a command.
    pub(super) columns: SchemaRef,
    /// Rows of parameters, as bound last.
    pub(super) parameters: Arc<Vec<Vec<ScalarValue>>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct PreparedStatements(Mutex<HashMap<Bytes, Entry>>);

#[derive(Debug)]
struct Entry {
    owner: Arc<str>,
    /// When it was used last, by the monotonic clock.
    used: Duration,
    prepared: Prepared,
}

impl PreparedStatements {
    /// Keeps a statement; returns its handle. What was idle for long makes room.
    pub(super) fn insert(
        &self,
        now: Duration,
        owner: &Arc<str>,
        statement: Statement,
        columns: SchemaRef,
    ) -> Result<Bytes> {
        let mut all = self.0.lock();
        let of_owner = |all: &HashMap<Bytes, Entry>| all.values().filter(|entry| entry.owner == *owner).count();
        if all.len() >= ALL_MAX || of_owner(&all) >= PER_USER_MAX {
            all.retain(|_, entry| now.saturating_sub(entry.used) < IDLE);
        }
        if all.len() >= ALL_MAX || of_owner(&all) >= PER_USER_MAX {
            return Err(SqlError::new("53000", format!("there are {} prepared statements", all.len()))
                .detail(format!("The limits are {PER_USER_MAX} per user and {ALL_MAX} for all."))
                .hint("close those that are not needed any more"));
        }
        let handle = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        let prepared = Prepared { statement, columns, parameters: Arc::default() };
        all.insert(handle.clone(), Entry { owner: Arc::clone(owner), used: now, prepared });
        Ok(handle)
    }

    /// The statement of a handle.
    pub(super) fn get(&self, now: Duration, owner: &Arc<str>, handle: &Bytes) -> Result<Prepared> {
        self.with(now, owner, handle, |prepared| prepared.clone())
    }

    /// Binds rows of parameters, in the place of earlier ones.
    pub(super) fn bind(
        &self,
        now: Duration,
        owner: &Arc<str>,
        handle: &Bytes,
        rows: Vec<Vec<ScalarValue>>,
    ) -> Result<()> {
        self.with(now, owner, handle, |prepared| prepared.parameters = Arc::new(rows))
    }

    /// Forgets one; it may be forgotten already.
    pub(super) fn remove(&self, owner: &Arc<str>, handle: &Bytes) {
        let mut all = self.0.lock();
        if all.get(handle).is_some_and(|entry| entry.owner == *owner) {
            all.remove(handle);
        }
    }

    fn with<T>(
        &self,
        now: Duration,
        owner: &Arc<str>,
        handle: &Bytes,
        work: impl FnOnce(&mut Prepared) -> T,
    ) -> Result<T> {
        match self.0.lock().get_mut(handle) {
            Some(entry) if entry.owner == *owner => {
                entry.used = now;
                Ok(work(&mut entry.prepared))
            }
            _ => Err(SqlError::new("26000", "the prepared statement does not exist")
                .detail("It was closed, or made room for others after it had not been used for long.")
                .hint("prepare it again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::Schema;

    use super::*;
    use crate::statement::Parser;

    fn statement() -> Statement {
        Parser::new().parse("SELECT 1").unwrap().remove(0)
    }

    #[test]
    fn statements_are_their_owners_and_make_room_when_idle() {
        let all = PreparedStatements::default();
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let insert = |now, owner| all.insert(now, owner, statement(), Arc::new(Schema::empty()));
        let first = insert(Duration::ZERO, &ann).unwrap();
        assert_eq!(all.get(Duration::ZERO, &bob, &first).unwrap_err().sqlstate, "26000");
        all.remove(&bob, &first);
        all.get(Duration::ZERO, &ann, &first).unwrap();

        for _ in 1..PER_USER_MAX {
            insert(Duration::ZERO, &ann).unwrap();
        }
        assert_eq!(insert(Duration::ZERO, &ann).unwrap_err().sqlstate, "53000");
        insert(Duration::ZERO, &bob).unwrap();
        all.get(IDLE / 2, &ann, &first).unwrap();
        insert(IDLE, &ann).unwrap();
        all.get(IDLE, &ann, &first).unwrap();
        assert_eq!(all.0.lock().len(), 2);
    }
}
