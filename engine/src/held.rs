//! Fragments that wait for the commit or abort of their transaction: on replicas and during replay. What they hold in
//! memory is bounded: beyond that, those that are in the log are kept there alone and read again for their commit.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tailrace_wal::{Directory, Epoch, HistoryHeader, Log, Lsn, Payload, PayloadHash, TransactionNumber};

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
        } else if let Some(waiting) = self.fragments.get_mut(number) {
            waiting.lsn = fragment.lsn;
        }
        self.logged = self.logged.max(number + 1);
    }

    /// Bytes of all its fragments' parts, wherever they are.
    pub(crate) fn part_bytes(&self) -> u64 {
        self.fragments.iter().map(|fragment| fragment.part_bytes).sum()
    }
}

/// One fragment.
#[derive(Debug, Clone)]
pub(crate) struct HeldFragment {
    pub(crate) header: HistoryHeader,
    pub(crate) hash: PayloadHash,
    /// Payload bytes.
    pub(crate) bytes: u64,
    /// Its parts alone: what the primary counts against its own limit.
    pub(crate) part_bytes: u64,
    /// Where it is in this node's log, if it is.
    pub(crate) lsn: Option<Lsn>,
    /// `None`: in the log alone.
    memory: Option<InMemory>,
}

#[derive(Debug, Clone)]
struct InMemory {
    payload: Payload,
    /// Decoded when it came in, if its tables were known then.
    effects: Option<Vec<Effect>>,
}

/// What the open transactions of a history hold on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFragments {
    /// Open transactions of which fragments are here.
    pub transactions: u64,
    /// Payload bytes of these fragments.
    pub bytes: u64,
    /// So many of them are in memory, the others in the log alone.
    pub memory_bytes: u64,
}

impl HeldFragment {
    /// One that is in memory.
    pub(crate) fn new(header: HistoryHeader, payload: Payload, effects: Option<Vec<Effect>>, lsn: Option<Lsn>) -> Self {
        let (hash, bytes) = (payload.hash, payload.encoded_len() as u64);
        let part_bytes = payload.directory.parts.iter().map(|part| u64::from(part.length)).sum();
        Self { header, hash, bytes, part_bytes, lsn, memory: Some(InMemory { payload, effects }) }
    }

    /// Its payload, where that is in memory.
    pub(crate) fn payload(&self) -> Result<&Payload> {
        let gone = || invalid(&format!("fragment {} of an open transaction is not in memory", self.header.fragment));
        self.memory.as_ref().map(|memory| &memory.payload).ok_or_else(gone)
    }

    /// Reads it again, if it is in the log alone, and decodes it if that is wanted and can be done. It must be durable
    /// there. Blocks.
    pub(crate) fn recall(&mut self, log: &Log, catalog: Option<&Arc<DatabaseVersion>>) -> Result<()> {
        if let (None, Some(lsn)) = (&self.memory, self.lsn) {
            let payload = log.read(lsn)?.payload;
            if payload.hash != self.hash {
                return Err(invalid(&format!("the record with LSN {lsn} is not the fragment that was written there")));
            }
            let effects = catalog.and_then(|catalog| decode_fragment(catalog, &payload));
            self.memory = Some(InMemory { payload, effects });
        }
        Ok(())
    }

    fn is_spilled(&self) -> bool {
        self.memory.is_none()
    }

    fn memory_bytes(&self) -> u64 {
        if self.is_spilled() { 0 } else { self.bytes }
    }
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

    /// What is held.
    pub(crate) fn open(&self) -> OpenFragments {
        let fragments = || self.transactions.values().flat_map(|open| &open.fragments);
        OpenFragments {
            transactions: self.transactions.len() as u64,
            bytes: fragments().map(|fragment| fragment.bytes).sum(),
            memory_bytes: fragments().map(HeldFragment::memory_bytes).sum(),
        }
    }

    /// Lets go of fragments that are in the log, those of the oldest transactions first, until `bytes_max` are in memory.
    pub(crate) fn spill(&mut self, bytes_max: u64) {
        let mut bytes = self.open().memory_bytes;
        if bytes <= bytes_max {
            return;
        }
        let mut oldest_first: Vec<_> = self.transactions.iter_mut().collect();
        oldest_first.sort_unstable_by_key(|((epoch, transaction), _)| (epoch.counter, epoch.nonce, transaction.0));
        for fragment in oldest_first.into_iter().flat_map(|(_, open)| &mut open.fragments) {
            if bytes <= bytes_max {
                return;
            }
            if fragment.lsn.is_some() {
                bytes -= fragment.memory_bytes();
                fragment.memory = None;
            }
        }
    }

    /// The fragments of a transaction that are in the log alone.
    pub(crate) fn spilled(&self, key: &TransactionKey) -> Vec<HeldFragment> {
        let open = self.transactions.get(key).into_iter();
        open.flat_map(|open| &open.fragments).filter(|fragment| fragment.is_spilled()).cloned().collect()
    }

    /// Puts fragments that were read again in their places.
    pub(crate) fn put_back(&mut self, key: &TransactionKey, recalled: Vec<HeldFragment>) {
        let Some(open) = self.transactions.get_mut(key) else { return };
        for fragment in recalled {
            let place = open.fragments.get_mut(fragment.header.fragment.0 as usize);
            if let Some(place) = place.filter(|place| place.is_spilled() && place.hash == fragment.hash) {
                *place = fragment;
            }
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

/// What a fragment does. `None` where that cannot be said now: its commit decides. What fails, or is skipped, is the
/// transaction, which has a seq once it commits.
pub(crate) fn decode_fragment(catalog: &Arc<DatabaseVersion>, payload: &Payload) -> Option<Vec<Effect>> {
    decode_effects(catalog, payload, Origin::Peer).ok().filter(|effects| !effects.iter().any(Effect::is_ddl))
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
    check_fragments(header, payload, fragments.iter().map(|fragment| fragment.hash))?;
    let mut effects = Vec::new();
    let mut directories = Vec::with_capacity(fragments.len() + 1);
    let mut bytes = payload.encoded_len() as u64;
    for fragment in fragments {
        bytes += fragment.bytes;
        let payload = fragment.payload()?.clone();
        effects.extend(match fragment.memory.and_then(|memory| memory.effects) {
            Some(effects) => effects,
            None => {
                let effects = decode_effects(catalog, &payload, origin)?;
                if effects.iter().any(Effect::is_ddl) {
                    return Err(invalid("DDL in a fragment"));
                }
                effects
            }
        });
        directories.push(payload.directory);
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
