//! Both ends of a session over a simulated network: delays, chunks out of order, lost connections, crashes of either side,
//! truncation. What must hold: every replica's history is a prefix of its primary's, every commit is applied exactly
//! once and with all its fragments, and once faults cease both sides become equal.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_engine::EpochEntry;
use tailrace_wal::{
    CommitTime, Epoch, FragmentNumber, HistoryHeader, HistoryId, NodeId, PayloadHash, Position, RecordKind, Seq,
    TransactionNumber,
};

use super::{
    Acceptance, Catalog, FollowerAction, FollowerSession, HistoryView, Outcome, PublisherAction, PublisherSession,
    publisher::PublisherIdentity,
};
use crate::wire::{
    Compression, DataHeader, DataKind, FeedNumber, FollowerMessage, Offer, PrimaryMessage, control_length,
    decode_control, encode_control,
};

/// A history at its primary: all that was ever written, and how far back the log reaches.
#[derive(Debug)]
struct Origin {
    records: Vec<HistoryHeader>,
    position: Position,
    epochs: Vec<EpochEntry>,
    open: BTreeMap<TransactionNumber, (Seq, u32)>,
    epoch: Epoch,
    new_epoch: bool,
    next_transaction: u64,
    retained_after: Seq,
    on: bool,
}

impl Origin {
    fn new(id: HistoryId) -> Self {
        Self {
            records: Vec::new(),
            position: Position::start(id),
            epochs: Vec::new(),
            open: BTreeMap::new(),
            epoch: Epoch { counter: 1, nonce: 9 },
            new_epoch: true,
            next_transaction: 1,
            retained_after: Seq::ZERO,
            on: true,
        }
    }

    fn write(&mut self, kind: RecordKind, transaction: TransactionNumber, fragment: u32) {
        let time = CommitTime(self.records.len() as i64);
        let payload_hash = PayloadHash(transaction.0 * 1_000 + u64::from(fragment));
        if kind == RecordKind::Commit {
            if std::mem::take(&mut self.new_epoch) {
                self.epochs.push(EpochEntry {
                    epoch: self.epoch,
                    first_seq: self.position.seq.next(),
                    chain_before: self.position.chain,
                });
            }
            self.position = self.position.follow(self.epoch, kind, time, payload_hash);
        }
        let restart_seq = self.open.values().map(|(seq, _)| *seq).min().unwrap_or(self.position.seq);
        self.records.push(HistoryHeader {
            kind,
            history: self.position.history,
            epoch: self.epoch,
            transaction,
            fragment: FragmentNumber(fragment),
            seq: self.position.seq,
            restart_seq,
            chain: self.position.chain,
            commit_time: time,
            payload_hash,
            directory_len: 0,
            parts_len: 0,
        });
    }

    fn step(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..10) {
            0..4 => {
                let number = TransactionNumber(self.next_transaction);
                self.next_transaction += 1;
                self.write(RecordKind::Commit, number, 0);
            }
            4..7 => {
                let number = if self.open.len() < 3 && rng.random_bool(0.5) {
                    self.next_transaction += 1;
                    TransactionNumber(self.next_transaction - 1)
                } else if let Some((&number, _)) = self.open.first_key_value() {
                    number
                } else {
                    return;
                };
                let at = self.position.seq;
                let entry = self.open.entry(number).or_insert((at, 0));
                let fragment = entry.1;
                entry.1 += 1;
                self.write(RecordKind::Fragment, number, fragment);
            }
            7..9 => {
                if let Some((number, (_, fragments))) = self.open.pop_last() {
                    let kind = if rng.random_bool(0.8) { RecordKind::Commit } else { RecordKind::Abort };
                    self.write(kind, number, fragments);
                }
            }
            _ => {}
        }
    }

    /// A restart: open transactions are aborted, the next commit begins an epoch.
    fn restart(&mut self) {
        while let Some((number, (_, fragments))) = self.open.pop_first() {
            self.write(RecordKind::Abort, number, fragments);
        }
        self.epoch = Epoch { counter: self.epoch.counter + 1, nonce: self.epoch.nonce * 3 };
        self.new_epoch = true;
    }

    /// Where a reader after the commit of `after` begins.
    fn index_after(&self, after: Seq) -> usize {
        if after == Seq::ZERO {
            return 0;
        }
        1 + self
            .records
            .iter()
            .position(|record| record.kind == RecordKind::Commit && record.seq == after)
            .expect("only positions of this history are opened")
    }
}

#[derive(Debug, Default)]
struct Origins(BTreeMap<HistoryId, Origin>);

impl Origins {
    fn offers(&self) -> Vec<Offer> {
        let on = self.0.iter().filter(|(_, origin)| origin.on);
        on.map(|(&history, origin)| Offer { name: format!("db{}", history.0[0]), history, position: origin.position })
            .collect()
    }
}

impl Catalog for Origins {
    fn history(&self, id: HistoryId) -> Option<HistoryView> {
        let origin = self.0.get(&id)?;
        Some(HistoryView {
            name: format!("db{}", id.0[0]),
            on: origin.on,
            end: origin.position,
            commit_time: CommitTime(0),
            epochs: origin.epochs.clone(),
            retained_after: origin.retained_after,
            ended: false,
        })
    }

    fn behind(&self, _replica: &str) -> Vec<(HistoryId, u64)> {
        Vec::new()
    }

    fn position_at(&self, id: HistoryId, seq: Seq) -> Option<Position> {
        let origin = self.0.get(&id)?;
        if seq <= origin.retained_after {
            return None;
        }
        let commit = origin.records.iter().find(|record| record.kind == RecordKind::Commit && record.seq == seq)?;
        Some(commit.position())
    }
}

/// A replica's copy: its log, of which `durable` records survive a crash, and what waits.
#[derive(Debug)]
struct Copy {
    records: Vec<HistoryHeader>,
    seen: HashSet<Key>,
    durable: usize,
    waiting: Vec<Vec<HistoryHeader>>,
    base: Position,
    base_restart: Seq,
    repairs: u32,
}

type Key = (Epoch, TransactionNumber, RecordKind, FragmentNumber);

impl Copy {
    fn new(id: HistoryId) -> Self {
        let base = Position::start(id);
        Self {
            records: Vec::new(),
            seen: HashSet::new(),
            durable: 0,
            waiting: Vec::new(),
            base,
            base_restart: Seq::ZERO,
            repairs: 0,
        }
    }

    fn position(&self) -> (Position, Seq) {
        let commit = self.records.iter().rev().find(|record| record.kind == RecordKind::Commit);
        let position = commit.map_or(self.base, |record| record.position());
        (position, self.records.last().map_or(self.base_restart, |record| record.restart_seq.max(self.base_restart)))
    }

    fn apply(&mut self, chunk: Vec<HistoryHeader>) {
        for record in chunk {
            let (position, _) = self.position();
            let seen = &self.seen;
            if seen.contains(&key(&record)) {
                continue;
            }
            match record.kind {
                RecordKind::Commit if record.seq <= position.seq => continue,
                RecordKind::Commit => {
                    let next = position.follow(record.epoch, record.kind, record.commit_time, record.payload_hash);
                    assert_eq!(next, record.position(), "a hole or a fork");
                    let fragments = (0..record.fragment.0).filter(|&fragment| {
                        seen.contains(&(
                            record.epoch,
                            record.transaction,
                            RecordKind::Fragment,
                            FragmentNumber(fragment),
                        ))
                    });
                    assert_eq!(fragments.count(), record.fragment.0 as usize, "a commit without its fragments");
                }
                // Older ones come after a repair, whose position has open transactions.
                _ => assert!(record.seq <= position.seq, "out of order"),
            }
            self.seen.insert(key(&record));
            self.records.push(record);
        }
    }

    fn crash(&mut self) {
        self.records.truncate(self.durable);
        self.seen = self.records.iter().map(key).collect();
        self.waiting.clear();
    }
}

fn key(record: &HistoryHeader) -> Key {
    (record.epoch, record.transaction, record.kind, record.fragment)
}

#[derive(Debug)]
struct Cursor {
    history: HistoryId,
    index: usize,
    credit: u32,
    number: u64,
}

/// A connection: what is under way in both directions, with the time at which it arrives.
struct Link {
    publisher: PublisherSession,
    follower: FollowerSession<Vec<HistoryHeader>>,
    up: Vec<(Duration, FollowerMessage)>,
    down: Vec<(Duration, PrimaryMessage)>,
    chunks: Vec<(Duration, DataHeader, Vec<HistoryHeader>)>,
    feeds: BTreeMap<FeedNumber, Cursor>,
}

struct World {
    seed: u64,
    rng: StdRng,
    now: Duration,
    origins: Origins,
    copies: BTreeMap<HistoryId, Copy>,
    link: Option<Link>,
    acknowledged: HashMap<HistoryId, Seq>,
    losses: u32,
}

impl World {
    fn new(seed: u64, histories: u8) -> Self {
        let ids: Vec<HistoryId> = (1..=histories).map(|id| HistoryId([id; 16])).collect();
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            now: Duration::from_secs(1),
            origins: Origins(ids.iter().map(|&id| (id, Origin::new(id))).collect()),
            copies: ids.iter().map(|&id| (id, Copy::new(id))).collect(),
            link: None,
            acknowledged: HashMap::new(),
            losses: 0,
        }
    }

    fn connect(&mut self) {
        let identity = PublisherIdentity { cluster: "a".into(), node: NodeId([1; 16]) };
        let mut link = Link {
            publisher: PublisherSession::new(identity, "b", None, self.now).unwrap(),
            follower: FollowerSession::new("b", NodeId([2; 16]), self.now),
            up: Vec::new(),
            down: Vec::new(),
            chunks: Vec::new(),
            feeds: BTreeMap::new(),
        };
        link.publisher.handle_offers(true, self.origins.offers(), &self.origins);
        self.link = Some(link);
        self.copies.values_mut().for_each(|copy| copy.waiting.clear());
    }

    fn disconnect(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.follower.abandon();
            for (_, header, _) in &link.chunks {
                assert_eq!(link.follower.accept(header), Ok(Acceptance::Ignore), "late chunks are dropped");
            }
        }
    }

    fn delay(&mut self) -> Duration {
        self.now + Duration::from_millis(self.rng.random_range(0..50))
    }

    /// Control arrives in order: not before what was sent earlier.
    fn ordered<M>(queue: &[(Duration, M)], at: Duration) -> Duration {
        queue.last().map_or(at, |(due, _)| at.max(*due))
    }

    fn run_actions(&mut self) {
        while let Some(mut link) = self.link.take() {
            let mut idle = true;
            let mut closed = false;
            while let Some(action) = link.publisher.poll_action() {
                idle = false;
                match action {
                    PublisherAction::Send(message) => {
                        let due = Self::ordered(&link.down, self.delay());
                        link.down.push((due, recode(&message)));
                    }
                    PublisherAction::Attached { .. } => {
                        link.publisher.handle_offers(true, self.origins.offers(), &self.origins);
                    }
                    PublisherAction::StartFeed { feed, history, restart, .. } => {
                        let index = self.origins.0[&history].index_after(restart);
                        link.feeds.insert(feed, Cursor { history, index, credit: 0, number: 0 });
                    }
                    PublisherAction::Credit { feed, chunks } => {
                        if let Some(cursor) = link.feeds.get_mut(&feed) {
                            cursor.credit += chunks;
                        }
                    }
                    PublisherAction::StopFeed { feed, .. } => drop(link.feeds.remove(&feed)),
                    PublisherAction::Acknowledge { history, durable, applied, .. } => {
                        assert!(applied >= durable || self.copies[&history].repairs > 0);
                        let copy = &self.copies[&history];
                        assert!(copy.position().0.seq >= durable, "acknowledged more than is there");
                        self.acknowledged.insert(history, durable);
                    }
                    PublisherAction::Trouble { .. } => {}
                    PublisherAction::Close(reason) => panic!("seed {}: the primary closed: {reason}", self.seed),
                    other => panic!("seed {}: {other:?}", self.seed),
                }
            }
            while let Some(action) = link.follower.poll_action() {
                idle = false;
                match action {
                    FollowerAction::Send(message) => {
                        let due = Self::ordered(&link.up, self.delay());
                        link.up.push((due, recode(&message)));
                    }
                    FollowerAction::Offers { offers, .. } => {
                        for offer in offers {
                            let (position, restart) = self.copies[&offer.history].position();
                            link.follower.open(position, restart);
                        }
                    }
                    FollowerAction::Outcome { history, outcome: Outcome::Lost(_) } => {
                        self.losses += 1;
                        // An offer that came with it may have opened the history again, where it was before.
                        link.follower.close_feed(history);
                        self.repair(history);
                        let (position, restart) = self.copies[&history].position();
                        link.follower.open(position, restart);
                    }
                    FollowerAction::Outcome { history, outcome: Outcome::Closed { .. } } => {
                        // What came before is applied before the feed is opened anew.
                        let copy = self.copies.get_mut(&history).unwrap();
                        for chunk in std::mem::take(&mut copy.waiting) {
                            copy.apply(chunk);
                        }
                    }
                    FollowerAction::Outcome { outcome: Outcome::Opened { .. }, .. }
                    | FollowerAction::Progress { .. }
                    | FollowerAction::Welcomed { .. } => {}
                    FollowerAction::Close(_) => closed = true,
                    other => panic!("seed {}: {other:?}", self.seed),
                }
            }
            if !closed {
                self.link = Some(link);
            }
            if idle || closed {
                break;
            }
        }
    }

    /// The database as it is at the primary, put in place at once.
    fn repair(&mut self, history: HistoryId) {
        let origin = &self.origins.0[&history];
        let copy = self.copies.get_mut(&history).unwrap();
        *copy = Copy {
            base: origin.position,
            base_restart: origin.open.values().map(|(seq, _)| *seq).min().unwrap_or(origin.position.seq),
            repairs: copy.repairs + 1,
            ..Copy::new(history)
        };
    }

    fn send_chunk(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        let ready: Vec<FeedNumber> = link
            .feeds
            .iter()
            .filter(|(_, cursor)| cursor.credit > 0 && cursor.index < self.origins.0[&cursor.history].records.len())
            .map(|(&feed, _)| feed)
            .collect();
        if !ready.is_empty() {
            let feed = ready[self.rng.random_range(0..ready.len())];
            let cursor = link.feeds.get_mut(&feed).unwrap();
            let records = &self.origins.0[&cursor.history].records;
            let end = (cursor.index + self.rng.random_range(1..6)).min(records.len());
            let chunk = records[cursor.index..end].to_vec();
            let (first, last) = (chunk[0].position(), chunk[chunk.len() - 1].position());
            let header = DataHeader {
                kind: DataKind::Chunk,
                compression: Compression::Raw,
                feed,
                records: chunk.len() as u32,
                number: cursor.number,
                raw_len: chunk.len() as u32 * 192,
                encoded_len: chunk.len() as u32 * 192,
                first,
                last,
                offset: 0,
                body_hash: 0,
            };
            cursor.index = end;
            cursor.credit -= 1;
            cursor.number += 1;
            if !link.publisher.handle_sent(feed, last.seq) {
                // Switched off at this moment; the action that says so waits.
                assert!(!self.origins.0[&first.history].on, "seed {}: sent without credit", self.seed);
                self.link = Some(link);
                return;
            }
            let header = DataHeader::decode(&header.encode()).unwrap();
            let due = self.delay();
            link.chunks.push((due, header, chunk));
        }
        self.link = Some(link);
    }

    fn deliver(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        let (now, seed) = (self.now, self.seed);
        while link.up.first().is_some_and(|(due, _)| *due <= now) {
            let (_, message) = link.up.remove(0);
            link.publisher
                .handle_message(message, now, &self.origins)
                .unwrap_or_else(|reason| panic!("seed {seed}: the replica broke the protocol: {reason}"));
        }
        while link.down.first().is_some_and(|(due, _)| *due <= now) {
            let (_, message) = link.down.remove(0);
            link.follower
                .handle_message(message)
                .unwrap_or_else(|reason| panic!("seed {seed}: the primary broke the protocol: {reason}"));
        }
        // A chunk may not overtake the message that opened its feed: the stream is read, then waits for `opened`. Here
        // the primary sends it later, so it is enough that control was delivered first.
        while let Some(index) = link.chunks.iter().position(|(due, header, _)| {
            *due <= now && !link.down.iter().any(|(_, message)| opens(message, header.feed))
        }) {
            let (_, header, chunk) = link.chunks.swap_remove(index);
            match link.follower.accept(&header) {
                Ok(Acceptance::Take) => {
                    let ready = link
                        .follower
                        .handle_chunk(header, chunk)
                        .unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
                    for (header, chunk) in ready {
                        self.copies.get_mut(&header.history()).unwrap().waiting.push(chunk);
                    }
                }
                Ok(Acceptance::Ignore) => {}
                Err(reason) => panic!("seed {seed}: {reason}"),
            }
        }
        link.publisher.handle_timeout(now, &self.origins);
        link.publisher.handle_progress(now, &self.origins);
        link.follower.handle_timeout(now);
        self.link = Some(link);
    }

    fn apply_some(&mut self, all: bool) {
        let ids: Vec<HistoryId> = self.copies.keys().copied().collect();
        for id in ids {
            let copy = self.copies.get_mut(&id).unwrap();
            let count = if all { copy.waiting.len() } else { self.rng.random_range(0..=copy.waiting.len()) };
            for chunk in copy.waiting.drain(..count).collect::<Vec<_>>() {
                copy.apply(chunk);
            }
            if let Some(link) = &mut self.link {
                link.follower.consumed(id, count as u32);
                let (position, restart) = copy.position();
                if all || self.rng.random_bool(0.5) {
                    copy.durable = copy.records.len();
                    link.follower.acknowledge(id, position.seq, position.seq, restart);
                }
            }
        }
    }

    fn truncate(&mut self) {
        for origin in self.origins.0.values_mut() {
            if self.rng.random_bool(0.5) {
                let restart = origin.open.values().map(|(seq, _)| *seq).min().unwrap_or(origin.position.seq);
                origin.retained_after = restart;
            }
        }
        // Feeds that were reading there end, as the connection does.
        self.disconnect();
    }

    fn check_prefixes(&self) {
        for (id, copy) in &self.copies {
            let origin = &self.origins.0[id];
            let commits = |records: &[HistoryHeader]| -> Vec<Position> {
                records
                    .iter()
                    .filter(|record| record.kind == RecordKind::Commit)
                    .map(|record| record.position())
                    .collect()
            };
            let (mine, theirs) = (commits(&copy.records), commits(&origin.records));
            let from = copy.base.seq.0 as usize;
            assert_eq!(mine, theirs[from..from + mine.len()], "seed {}: not a prefix", self.seed);
        }
    }

    fn equal(&self) -> bool {
        self.copies.iter().all(|(id, copy)| copy.position().0 == self.origins.0[id].position)
    }
}

fn opens(message: &PrimaryMessage, number: FeedNumber) -> bool {
    matches!(message, PrimaryMessage::Opened { feed, .. } if *feed == number)
}

/// Through the bytes, so that every message is also tested as encoded.
fn recode<M: serde::Serialize + serde::de::DeserializeOwned>(message: &M) -> M {
    let bytes = encode_control(message).unwrap();
    let (prefix, body) = bytes.split_first_chunk().unwrap();
    assert_eq!(control_length(*prefix).unwrap(), body.len());
    decode_control(body).unwrap()
}

fn run(seed: u64, truncations: bool) -> u32 {
    let mut world = World::new(seed, 3);
    for _ in 0..1_500 {
        world.now += Duration::from_millis(world.rng.random_range(0..10));
        for origin in world.origins.0.values_mut() {
            if world.rng.random_bool(0.3) {
                origin.step(&mut world.rng);
            }
        }
        match world.rng.random_range(0..400) {
            0..3 => world.disconnect(),
            3 => {
                world.disconnect();
                world.origins.0.values_mut().for_each(Origin::restart);
            }
            4 => {
                world.disconnect();
                world.copies.values_mut().for_each(Copy::crash);
            }
            5 if truncations => world.truncate(),
            6..9 => {
                let index = world.rng.random_range(1..=3);
                let origin = world.origins.0.get_mut(&HistoryId([index; 16])).unwrap();
                origin.on = !origin.on;
                let offers = world.origins.offers();
                if let Some(link) = &mut world.link {
                    link.publisher.handle_offers(true, offers, &world.origins);
                }
            }
            _ => {}
        }
        if world.link.is_none() && world.rng.random_bool(0.2) {
            world.connect();
        }
        for _ in 0..world.rng.random_range(0..4) {
            world.send_chunk();
        }
        world.deliver();
        world.run_actions();
        world.apply_some(false);
        world.run_actions();
    }
    world.check_prefixes();
    // Faults cease.
    world.origins.0.values_mut().for_each(|origin| origin.on = true);
    world.connect();
    for _ in 0..20_000 {
        world.now += Duration::from_millis(20);
        world.send_chunk();
        world.deliver();
        world.run_actions();
        world.apply_some(true);
        world.run_actions();
        if world.equal() {
            break;
        }
    }
    world.check_prefixes();
    assert!(world.equal(), "seed {seed}: the replica did not catch up");
    assert!(world.origins.0.values().all(|origin| origin.position.seq > Seq(20)), "seed {seed}: nothing happened");
    world.losses
}

#[test]
fn replicas_become_equal_whatever_the_network_does() {
    for seed in 0..20 {
        assert_eq!(run(seed, false), 0, "seed {seed}: lost although the log reached back");
    }
}

#[test]
fn truncated_histories_are_repaired() {
    let losses: u32 = (1_000..1_020).map(|seed| run(seed, true)).sum();
    assert!(losses > 5, "only {losses} losses: the test does not test");
}
