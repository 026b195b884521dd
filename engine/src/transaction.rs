//! Transactions: what a client writes.

use arrow_array::RecordBatch;
use bytes::Bytes;
use tailrace_wal::{CommitTime, Lsn, Position};

use crate::Result;

/// When a commit is acknowledged (`synchronous_commit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `off`: handed to the operating system and readable here.
    Written,
    /// `local`, `on`: on this node's disk and readable here.
    Durable,
}

/// How to commit.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// `None`: the server's `wal.persistence`.
    pub durability: Option<Durability>,
    /// A second transaction of this database with the same key is not applied again.
    pub idempotency_key: Option<Bytes>,
}

/// What a commit got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Position in the database's history.
    pub position: Position,
    /// Number in this node's log.
    pub lsn: Lsn,
    /// When.
    pub commit_time: CommitTime,
    /// Rows appended.
    pub rows: u64,
}

/// An open transaction of one database. Dropping it aborts it: nothing is seen by readers, and if fragments
/// were written an abort record follows.
#[derive(Debug)]
pub struct Transaction {
    _private: (),
}

impl Transaction {
    /// Adds rows to a table. The batch's columns must be those of the table, by position and type (`sql` casts); NULLs
    /// where the column forbids them are an error. Beyond `fragment_bytes`, fragments are written as rows come in.
    pub async fn append(&mut self, _table: &str, _batch: RecordBatch) -> Result<()> {
        todo!()
    }

    /// Commits: one record, applied atomically across partitions and tables. Runs to its end even when the caller's
    /// future is dropped. A transaction without rows commits nothing and returns the database's position.
    pub async fn commit(self, _options: CommitOptions) -> Result<Receipt> {
        todo!()
    }

    /// Ends it without effect.
    pub async fn abort(self) -> Result<()> {
        todo!()
    }
}
