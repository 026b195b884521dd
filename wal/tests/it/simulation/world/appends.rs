//! What is appended: commits, transactions in fragments, records of the peer, nonsense.

use futures::FutureExt;
use rand::Rng;
use tailrace_wal::{
    FragmentNumber, LogError, Payload, Persistence, Record, RecordKind, Run, TransactionNumber, VerbatimRecord,
};

use super::{
    super::oracle::{Check, Facts, ensure},
    HEADER_BYTES, Large, OWN, STRANGER, World,
};
use crate::support::part;

impl World {
    fn bytes(&mut self) -> Vec<u8> {
        let id = self.next_id;
        self.next_id += 1;
        let len = match self.random.random_range(0..100) {
            0..60 => self.random.random_range(0..300),
            60..88 => self.random.random_range(300..6000),
            88..97 => self.random.random_range(6000..40_000),
            _ => self.random.random_range(260_000..300_000),
        };
        let mut bytes = vec![(id % 251) as u8; 8 + len];
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes
    }

    pub(super) fn append(&mut self, persistence: Persistence) -> Check {
        let history = OWN[self.random.random_range(0..2)];
        let payload = Payload::new(vec![part(&self.bytes())], vec![], None).unwrap();
        let record =
            Record { history, kind: RecordKind::Commit, transaction: None, fragment: FragmentNumber(0), payload };
        self.submit(record, true, persistence)
    }

    /// Goes on with a transaction in fragments, or begins one.
    pub(super) fn large(&mut self, persistence: Persistence) -> Check {
        let Some(live) = &self.live else { return Ok(()) };
        if self.larges.len() < 3 && self.random.random_bool(0.4) {
            let history = OWN[self.random.random_range(0..2)];
            match live.log.begin_transaction(history) {
                Ok(number) => self.larges.push(Large { history, number, fragments: Vec::new() }),
                Err(LogError::Poisoned { .. }) => return Ok(()),
                Err(error) => return Err(format!("begin: {error}")),
            }
        }
        if self.larges.is_empty() {
            return Ok(());
        }
        let at = self.random.random_range(0..self.larges.len());
        let has_fragments = !self.larges[at].fragments.is_empty();
        let kind = match self.random.random_range(0..10) {
            0..6 => RecordKind::Fragment,
            6..8 if has_fragments => RecordKind::Commit,
            8..10 if has_fragments => RecordKind::Abort,
            _ => RecordKind::Fragment,
        };
        let bytes = self.bytes();
        let large = &mut self.larges[at];
        let fragments = if kind == RecordKind::Commit { large.fragments.clone() } else { vec![] };
        let count = if kind == RecordKind::Abort { 0 } else { large.fragments.len() as u32 };
        let payload = match kind {
            RecordKind::Abort => Payload::empty(),
            _ => Payload::new(vec![part(&bytes)], fragments, None).unwrap(),
        };
        let record = Record {
            history: large.history,
            kind,
            transaction: Some(large.number),
            fragment: FragmentNumber(count),
            payload,
        };
        if kind == RecordKind::Fragment {
            large.fragments.push(record.payload.hash);
        } else {
            self.larges.swap_remove(at);
        }
        self.submit(record, true, persistence)
    }

    pub(super) fn verbatim(&mut self, persistence: Persistence) -> Check {
        let may_refuse = self.oracle(|oracle| oracle.may_refuse);
        // A feed hears late of a refusal: what it had sent until then is on its way.
        if self.hears_late && self.random.random_bool(0.4) {
            // What is on its way is answered first.
            self.step()?;
            self.resync_peer();
        }
        let count = if may_refuse { self.random.random_range(1..4) } else { 1 };
        for _ in 0..count {
            let bytes = self.bytes();
            let record = self.peer.record(self.sent, &mut self.random, &bytes);
            self.sent += 1;
            self.submit_verbatim(record, Some(self.run.clone()), persistence)?;
            if may_refuse && self.random.random_bool(0.5) {
                self.step()?;
            }
        }
        Ok(())
    }

    /// Asks for what must be refused.
    pub(super) fn nonsense(&mut self, persistence: Persistence) -> Check {
        let bytes = self.bytes();
        let commit = |history, transaction, fragment| Record {
            history,
            kind: RecordKind::Commit,
            transaction,
            fragment: FragmentNumber(fragment),
            payload: Payload::new(vec![part(&bytes)], vec![], None).unwrap(),
        };
        match self.random.random_range(0..5) {
            0 => self.submit(commit(STRANGER, None, 0), false, persistence),
            1 => self.submit(commit(OWN[0], Some(TransactionNumber(1 << 40)), 0), false, persistence),
            2 => self.submit(commit(OWN[1], None, 3), false, persistence),
            3 if !self.hears_late
                && self.sent > 0
                && self.peer.records[self.sent - 1].header.kind == RecordKind::Commit =>
            {
                let again = self.peer.records[self.sent - 1].clone();
                self.submit_verbatim(again, None, persistence)
            }
            _ => {
                let mut forked = self.peer.record(self.sent, &mut self.random, &bytes);
                if forked.header.kind != RecordKind::Commit {
                    return Ok(());
                }
                forked.header.chain.0 ^= 1;
                self.submit_verbatim(forked, None, persistence)
            }
        }
    }

    pub(super) fn submit(&mut self, record: Record, is_valid: bool, persistence: Persistence) -> Check {
        let facts = Facts {
            history: record.history,
            kind: record.kind,
            transaction: record.transaction,
            fragment: record.fragment.0,
            payload: record.payload.hash,
            frame_len: HEADER_BYTES + record.payload.encoded_len() as u64,
            skipped: false,
            verbatim: None,
        };
        let Some(live) = &self.live else { return Ok(()) };
        let appending = live.log.append(record, persistence).now_or_never();
        self.submitted(facts, is_valid, persistence, appending)
    }

    /// A record of the peer: in a run, or alone and not to be taken.
    fn submit_verbatim(&mut self, record: VerbatimRecord, run: Option<Run>, persistence: Persistence) -> Check {
        // Nothing is taken behind what was refused.
        let is_valid = run.as_ref().is_some_and(|run| run.refused().is_none());
        let facts = Facts {
            history: record.header.history,
            kind: record.header.kind,
            transaction: Some(record.header.transaction),
            fragment: record.header.fragment.0,
            payload: record.payload.hash,
            frame_len: HEADER_BYTES + record.payload.encoded_len() as u64,
            skipped: record.skipped,
            verbatim: Some(record.header),
        };
        let Some(live) = &self.live else { return Ok(()) };
        let appending = match run {
            Some(run) => live.log.append_in_run(&run, record, persistence).now_or_never(),
            None => live.log.append_verbatim(record, persistence).now_or_never(),
        };
        self.submitted(facts, is_valid, persistence, appending)
    }

    fn submitted(
        &mut self,
        facts: Facts,
        is_valid: bool,
        persistence: Persistence,
        appending: Option<Result<tailrace_wal::Appending, LogError>>,
    ) -> Check {
        match appending {
            Some(Ok(appending)) => {
                self.oracle(|oracle| oracle.submit(facts, is_valid, persistence, appending));
                Ok(())
            }
            Some(Err(LogError::Poisoned { .. })) => {
                let is_poisoned = self.live.as_ref().is_some_and(|live| live.log.status().poisoned);
                ensure!(is_poisoned, "refused as poisoned, and the status hides it");
                Ok(())
            }
            Some(Err(error)) => Err(format!("append: {error}")),
            None => Err("append waits for the queue".into()),
        }
    }
}
