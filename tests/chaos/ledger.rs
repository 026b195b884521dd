//! What the nodes have promised: every transaction that was sent, and what was answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::client::Failure;

/// A writer's transaction: (writer, number).
pub(crate) type Key = (u64, u64);

/// Everything that was sent.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    pub(crate) transactions: Mutex<BTreeMap<Key, Transaction>>,
    /// Bulk loads by their number.
    pub(crate) loads: Mutex<BTreeMap<u64, Load>>,
    /// The table that loads go to has this number; older ones are dropped.
    pub(crate) generation: Mutex<Generation>,
    /// What readers have seen on the replica: the primary must have it for ever.
    pub(crate) seen_on_replica: Mutex<BTreeSet<Key>>,
    /// Databases that come and go.
    pub(crate) scratch: Mutex<BTreeMap<String, Scratch>>,
    /// How each process of the primary ended.
    pub(crate) endings: Mutex<BTreeMap<u64, Ending>>,
}

/// What is known of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Sent, not answered yet.
    Sent,
    Acknowledged,
    /// The node said that nothing was done, or it was rolled back.
    Refused,
    Unknown,
}

/// A transaction of a writer.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) parts: u64,
    /// Has a row in the second table, too.
    pub(crate) is_mirrored: bool,
    pub(crate) is_asynchronous: bool,
    /// Which process of the primary it was sent to.
    pub(crate) incarnation: u64,
    pub(crate) sent: Duration,
    pub(crate) answered: Duration,
    pub(crate) outcome: Outcome,
}

/// A bulk load.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) generation: u64,
    pub(crate) rows: u64,
    pub(crate) outcome: Outcome,
}

/// Where loads go.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    /// The table before it may still be there.
    pub(crate) is_dropping: bool,
}

/// A database that the DDL made. `None`: unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    pub(crate) exists: Option<bool>,
    pub(crate) table: Option<bool>,
    /// Rows that are there for sure, and at most.
    pub(crate) rows: (u64, u64),
}

/// How a process of the primary ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// SIGKILL: nothing that was handed to the operating system is lost.
    Killed,
    /// SIGTERM: nothing is lost.
    Terminated,
    /// The disk failed beneath it: what was not synced may be lost.
    DiskLost,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            transactions: Mutex::default(),
            loads: Mutex::default(),
            generation: Mutex::default(),
            seen_on_replica: Mutex::default(),
            scratch: Mutex::default(),
            endings: Mutex::default(),
        }
    }
}

impl Ledger {
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Before it is sent: the answer may never come.
    pub(crate) fn send(&self, key: Key, transaction: Transaction) {
        self.transactions.lock().unwrap().insert(key, transaction);
    }

    pub(crate) fn answer(&self, key: Key, outcome: Outcome) {
        let now = self.now();
        if let Some(transaction) = self.transactions.lock().unwrap().get_mut(&key) {
            transaction.answered = now;
            transaction.outcome = outcome;
        }
    }
}

impl Outcome {
    pub(crate) fn of(result: &Result<(), Failure>) -> Self {
        match result {
            Ok(()) => Self::Acknowledged,
            Err(Failure::Refused { .. }) => Self::Refused,
            Err(Failure::Unknown { .. }) => Self::Unknown,
        }
    }

    /// Whether it must be there, must not be there, or may be either.
    pub(crate) fn wants(self) -> Option<bool> {
        match self {
            Self::Acknowledged => Some(true),
            Self::Refused => Some(false),
            Self::Sent | Self::Unknown => None,
        }
    }
}
