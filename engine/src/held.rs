//! Fragments that wait for the commit or abort of their transaction: on replicas and during replay.

use std::collections::{HashMap, HashSet};

use tailrace_wal::{Directory, Epoch, HistoryHeader, Payload, PayloadHash, TransactionNumber};

use crate::{
    DatabaseVersion, Result,
    effect::{Effect, Origin, check_ordinals, decode_effects, invalid},
    open_transactions::Registration,
};

/// Which transaction of a history.
pub(crate) type TransactionKey = (Epoch, TransactionNumber);

pub(crate) fn transaction_key(header: &HistoryHeader) -> TransactionKey {
    (header.epoch, header.transaction)
}

/// The open transactions of one history.
#[derive(Debug, Default)]
pub(crate) struct Held {
    transactions: HashMap<TransactionKey, HeldTransaction>,
    /// Aborted since the last commit: what a feed may send again from a position that has not moved.
    aborted: HashSet<TransactionKey>,
}

/// An open transaction.
#[derive(Debug, Default)]
pub(crate) struct HeldTransaction {
    pub(crate) fragments: Vec<HeldFragment>,
    /// So many of them, the first ones, are in this node's log; the others wait in memory for a commit that needs them.
    pub(crate) logged: usize,
    /// From before the first of them goes to the log.
    pub(crate) registration: Option<Registration>,
}

impl HeldTransaction {
    /// Whether fragments of it wait in memory alone.
    pub(crate) fn waits(&self) -> bool {
        self.logged < self.fragments.len()
    }

    /// A fragment is in the log.
    pub(crate) fn logged(&mut self, fragment: HeldFragment) {
        let number = fragment.header.fragment.0 as usize;
        if self.fragments.len() == number {
            self.fragments.push(fragment);
        }
        self.logged = self.logged.max(number + 1);
    }
}

/// One fragment.
#[derive(Debug, Clone)]
pub(crate) struct HeldFragment {
    pub(crate) header: HistoryHeader,
    pub(crate) payload: Payload,
    /// Decoded when it came in, if its tables were known then.
    pub(crate) effects: Option<Vec<Effect>>,
}

impl Held {
    pub(crate) fn get(&self, key: &TransactionKey) -> Option<&HeldTransaction> {
        self.transactions.get(key)
    }

    /// The transaction, which exists from now on.
    pub(crate) fn entry(&mut self, key: TransactionKey) -> &mut HeldTransaction {
        self.transactions.entry(key).or_default()
    }

    /// The transaction is over.
    pub(crate) fn remove(&mut self, key: &TransactionKey) -> Option<HeldTransaction> {
        self.transactions.remove(key)
    }

    pub(crate) fn note_abort(&mut self, key: TransactionKey) {
        self.aborted.insert(key);
    }

    pub(crate) fn note_commit(&mut self) {
        self.aborted.clear();
    }

    pub(crate) fn was_aborted(&self, key: &TransactionKey) -> bool {
        self.aborted.contains(key)
    }

    /// After a refusal: what did not get into the log holds no log.
    pub(crate) fn unregister_unlogged(&mut self) {
        self.transactions.retain(|_, open| !open.fragments.is_empty());
        for open in self.transactions.values_mut().filter(|open| open.logged == 0) {
            open.registration = None;
        }
    }

    /// All of them; none is left.
    pub(crate) fn drain(&mut self) -> HashMap<TransactionKey, HeldTransaction> {
        std::mem::take(&mut self.transactions)
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Puts a transaction together: its fragments' effects and its own, its directories, its bytes.
pub(crate) fn assemble(
    catalog: &DatabaseVersion,
    header: &HistoryHeader,
    payload: &Payload,
    own: Option<Vec<Effect>>,
    fragments: Vec<HeldFragment>,
    origin: Origin,
) -> Result<(Vec<Effect>, Vec<Directory>, u64)> {
    check_fragments(header, payload, fragments.iter().map(|fragment| fragment.payload.hash))?;
    let mut effects = Vec::new();
    let mut directories = Vec::with_capacity(fragments.len() + 1);
    let mut bytes = payload.encoded_len() as u64;
    for fragment in fragments {
        bytes += fragment.payload.encoded_len() as u64;
        effects.extend(match fragment.effects {
            Some(effects) => effects,
            None => {
                let effects = decode_effects(catalog, &fragment.payload, origin)?;
                if effects.iter().any(Effect::is_ddl) {
                    return Err(invalid("DDL in a fragment"));
                }
                effects
            }
        });
        directories.push(fragment.payload.directory);
    }
    effects.extend(match own {
        Some(effects) => effects,
        None => decode_effects(catalog, payload, origin)?,
    });
    directories.push(payload.directory.clone());
    check_ordinals(directories.iter())?;
    Ok((effects, directories, bytes))
}

/// A commit names exactly the fragments that went before it.
pub(crate) fn check_fragments(
    header: &HistoryHeader,
    payload: &Payload,
    held: impl ExactSizeIterator<Item = PayloadHash>,
) -> Result<()> {
    let named = &payload.directory.fragments;
    if header.fragment.0 as usize != named.len() || held.len() != named.len() {
        return Err(invalid(&format!(
            "transaction {} counts {} fragments and names {}, {} are here",
            header.seq,
            header.fragment,
            named.len(),
            held.len()
        )));
    }
    if !held.eq(named.iter().copied()) {
        return Err(invalid(&format!("transaction {} names other fragments than those that are here", header.seq)));
    }
    Ok(())
}
