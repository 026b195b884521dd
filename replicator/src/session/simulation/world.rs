//! Both sides and the network between them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::{HistoryHeader, HistoryId, NodeId, Position, RecordKind, Seq};

use super::{
    copy::Copy,
    origin::{Origin, Origins},
};
use crate::{
    session::{
        Acceptance, FollowerAction, FollowerSession, Outcome, PublisherAction, PublisherSession,
        publisher::PublisherIdentity,
    },
    wire::{
        Compression, DataHeader, DataKind, FeedNumber, FollowerMessage, PrimaryMessage, control_length, decode_control,
        encode_control,
    },
};

#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) history: HistoryId,
    pub(super) index: usize,
    pub(super) credit: u32,
    pub(super) number: u64,
}

/// A connection: what is under way in both directions, with the time at which it arrives.
pub(super) struct Link {
    pub(super) publisher: PublisherSession,
    pub(super) follower: FollowerSession<Vec<HistoryHeader>>,
    pub(super) up: Vec<(Duration, FollowerMessage)>,
    pub(super) down: Vec<(Duration, PrimaryMessage)>,
    pub(super) chunks: Vec<(Duration, DataHeader, Vec<HistoryHeader>)>,
    pub(super) feeds: BTreeMap<FeedNumber, Cursor>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: StdRng,
    pub(super) now: Duration,
    pub(super) origins: Origins,
    pub(super) copies: BTreeMap<HistoryId, Copy>,
    pub(super) link: Option<Link>,
    pub(super) acknowledged: HashMap<HistoryId, Seq>,
    pub(super) losses: u32,
}

impl World {
    pub(super) fn new(seed: u64, histories: u8) -> Self {
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

    pub(super) fn connect(&mut self) {
        let identity = PublisherIdentity { cluster: "a".into(), node: NodeId([1; 16]) };
        let mut link = Link {
            publisher: PublisherSession::new(identity, "b", None, self.now).unwrap(),
            follower: FollowerSession::new("b", NodeId([2; 16]), 24 << 20, self.now),
            up: Vec::new(),
            down: Vec::new(),
            chunks: Vec::new(),
            feeds: BTreeMap::new(),
        };
        link.publisher.handle_offers(true, self.origins.offers(), &self.origins);
        self.link = Some(link);
        self.copies.values_mut().for_each(|copy| copy.waiting.clear());
    }

    pub(super) fn disconnect(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.follower.abandon();
            for (_, header, _) in &link.chunks {
                assert_eq!(link.follower.accept(header), Ok(Acceptance::Ignore), "late chunks are dropped");
            }
        }
    }

    pub(super) fn delay(&mut self) -> Duration {
        self.now + Duration::from_millis(self.rng.random_range(0..50))
    }

    /// Control arrives in order: not before what was sent earlier.
    pub(super) fn ordered<M>(queue: &[(Duration, M)], at: Duration) -> Duration {
        queue.last().map_or(at, |(due, _)| at.max(*due))
    }

    pub(super) fn run_actions(&mut self) {
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
    pub(super) fn repair(&mut self, history: HistoryId) {
        let origin = &self.origins.0[&history];
        let copy = self.copies.get_mut(&history).unwrap();
        *copy = Copy {
            base: origin.position,
            base_restart: origin.open.values().map(|(seq, _)| *seq).min().unwrap_or(origin.position.seq),
            repairs: copy.repairs + 1,
            ..Copy::new(history)
        };
    }

    pub(super) fn send_chunk(&mut self) {
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

    pub(super) fn deliver(&mut self) {
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

    pub(super) fn apply_some(&mut self, all: bool) {
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

    pub(super) fn truncate(&mut self) {
        for origin in self.origins.0.values_mut() {
            if self.rng.random_bool(0.5) {
                let restart = origin.open.values().map(|(seq, _)| *seq).min().unwrap_or(origin.position.seq);
                origin.retained_after = restart;
            }
        }
        // Feeds that were reading there end, as the connection does.
        self.disconnect();
    }

    pub(super) fn check_prefixes(&self) {
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

    pub(super) fn equal(&self) -> bool {
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
