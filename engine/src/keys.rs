//! Idempotency keys: a second transaction with a key gets the first one's receipt.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{EngineError, Receipt, Result};

/// Keys remembered per database, in memory and in the manifest; the oldest go first.
pub(crate) const KEYS_KEPT: usize = 100_000;
/// Longest key, bytes: what a record's directory takes.
const KEY_BYTES_MAX: usize = 256;

/// Keys of one database, filled by apply, so that they survive a crash and are the same on replicas.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    done: HashMap<Bytes, Receipt>,
    order: VecDeque<Bytes>,
    claimed: HashSet<Bytes>,
}

/// A key whose transaction is on its way. Dropping it lets the next transaction with that key try.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    keys: &'a Keys,
    key: Bytes,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.keys.state.lock().claimed.remove(&self.key);
        self.keys.settled.notify_waiters();
    }
}

impl Keys {
    /// Claims a key, or returns the receipt of the transaction that had it. Waits while another one is on its way.
    pub(crate) async fn claim(&self, key: &Bytes) -> Result<std::result::Result<Claim<'_>, Receipt>> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(EngineError::Invalid(format!(
                "an idempotency key has 1 to {KEY_BYTES_MAX} bytes, this one has {}",
                key.len()
            )));
        }
        loop {
            let settled = self.settled.notified();
            {
                let mut state = self.state.lock();
                if let Some(receipt) = state.done.get(key) {
                    return Ok(Err(*receipt));
                }
                if state.claimed.insert(key.clone()) {
                    return Ok(Ok(Claim { keys: self, key: key.clone() }));
                }
            }
            settled.await;
        }
    }

    /// A transaction with this key was applied.
    pub(crate) fn remember(&self, key: Bytes, receipt: Receipt) {
        let mut state = self.state.lock();
        if state.done.insert(key.clone(), receipt).is_none() {
            state.order.push_back(key);
        }
        if state.order.len() > KEYS_KEPT
            && let Some(oldest) = state.order.pop_front()
        {
            state.done.remove(&oldest);
        }
    }
}
