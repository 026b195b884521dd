//! Tasks: committed transactions as replication shows them.

use tailrace_wal::{CommitTime, Directory, Seq};

use crate::{Operation, TableId};

/// Most finished tasks kept per database for the status functions; the count is that of the documented functions.
pub const TASKS_KEPT: usize = 10_000;

/// A committed transaction of a history. Its seq is its task id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    /// Task id.
    pub seq: Seq,
    /// Group: the seq of its first task. A task joins its database's current group unless its partitions intersect
    /// those already in it, or it is DDL.
    pub group: Seq,
    /// What it does (the first operation, where it has several).
    pub operation: Operation,
    /// When it committed on the primary.
    pub commit_time: CommitTime,
    /// Tables that it touches, by id and name at the time.
    pub tables: Vec<(TableId, String)>,
    /// Rows appended.
    pub rows: u64,
    /// Payload bytes, fragments included.
    pub bytes: u64,
}

/// Decides groups: a fold over a history's transactions, the same on every node from the same start.
#[derive(Debug, Default)]
pub struct GroupFold {
    _private: (),
}

impl GroupFold {
    /// The group of the next transaction, whose own and fragments' directories are given.
    pub fn next(&mut self, _seq: Seq, _directories: &[&Directory]) -> Seq {
        todo!()
    }
}
