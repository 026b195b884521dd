//! The replica's end of a session with a primary.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use tailrace_engine::PointId;
use tailrace_wal::{HistoryId, NodeId, Position, Seq};

use super::{FEEDS_MAX, GREETING_TIMEOUT, NAME_BYTES_MAX};
use crate::wire::{
    CHUNK_RAW_TARGET, CloseCause, DataHeader, DataKind, FeedNumber, FollowerMessage, Offer, PROTOCOL, PrimaryMessage,
};

/// Most histories that a primary may offer.
const OFFERS_MAX: usize = 100_000;
/// Chunks that one feed may have on their way and waiting to be applied.
pub(crate) const FEED_WINDOW: u32 = 16;

/// What the task around the session has to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FollowerAction {
    /// Send on the control stream.
    Send(FollowerMessage),
    /// The primary answered.
    Welcomed {
        /// Its cluster's name.
        cluster: String,
    },
    /// What may be opened now.
    Offers { enabled: bool, offers: Vec<Offer> },
    /// These have ended at the primary, which still holds log for them here: answer with [`FollowerSession::done`]
    /// those of which nothing is needed.
    Ended { histories: Vec<HistoryId> },
    /// How a history stands.
    Outcome { history: HistoryId, outcome: Outcome },
    /// Last transaction at the primary, and log bytes that were not acknowledged there, if it says that.
    Progress { history: HistoryId, seq: Seq, behind_bytes: Option<u64> },
    /// The repair cannot go on.
    RepairFailed { feed: FeedNumber, reason: String },
    /// The digest point of a verification is written there.
    VerifyPoint { feed: FeedNumber, point: PointId, position: Position },
    /// The verification cannot go on.
    VerifyFailed { feed: FeedNumber, reason: String },
    /// End the connection.
    Close(Ending),
}

/// Answer to `open`, and the end of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Opened { position: Position },
    Forked(String),
    Lost(String),
    Dropped { end: Position },
    Closed { cause: CloseCause, reason: String },
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// `welcome` did not come in time.
    TimedOut,
    /// The primary refused.
    Refused(String),
    /// The primary left.
    Left(String),
}

/// What to do with a data stream whose header was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// Read the body.
    Take,
    /// Of a feed that was closed here: drop it unread.
    Ignore,
}

#[derive(Debug)]
struct Feed<T> {
    history: HistoryId,
    opened: bool,
    /// Granted and not received.
    credit: u32,
    /// Received and not consumed: uncompressed bytes by number.
    held: BTreeMap<u64, u32>,
    /// Uncompressed bytes of the largest chunk lately: what one more may have.
    expected: u32,
    /// Headers accepted, whose bodies have not been handed in: numbers.
    arriving: Vec<u64>,
    next: u64,
    /// Position stated by the last record handed on.
    last: Position,
    early: BTreeMap<u64, (DataHeader, T)>,
}

impl<T> Feed<T> {
    /// What it holds, and what may still come for the credit it gave.
    fn bytes(&self) -> u64 {
        let held: u64 = self.held.values().map(|&bytes| u64::from(bytes)).sum();
        held + u64::from(self.credit) * u64::from(self.expected)
    }
}

/// What of a verification has come.
#[derive(Debug)]
struct Verification {
    history: HistoryId,
    point: bool,
    digests: bool,
}

#[derive(Debug)]
enum Repair {
    Manifest,
    Pieces(Vec<(u32, u64)>),
}

/// See the module. `T` is a chunk's body.
#[derive(Debug)]
pub(crate) struct FollowerSession<T> {
    welcomed: bool,
    closed: bool,
    deadline: Duration,
    next_feed: u32,
    feeds: BTreeMap<FeedNumber, Feed<T>>,
    by_history: HashMap<HistoryId, FeedNumber>,
    repairs: BTreeMap<FeedNumber, Repair>,
    verifications: BTreeMap<FeedNumber, Verification>,
    pages: Vec<Offer>,
    /// What all feeds together may have on their way and waiting, as long as each may have one chunk.
    receive_bytes: u64,
    actions: VecDeque<FollowerAction>,
}

impl<T> FollowerSession<T> {
    /// Begins with `hello`. `receive_bytes`: chunks on their way and waiting to be applied, uncompressed.
    pub(crate) fn new(cluster: &str, node: NodeId, receive_bytes: u64, now: Duration) -> Self {
        let hello = FollowerMessage::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: cluster.to_owned(),
            node,
        };
        Self {
            welcomed: false,
            closed: false,
            deadline: now + GREETING_TIMEOUT,
            next_feed: 1,
            feeds: BTreeMap::new(),
            by_history: HashMap::new(),
            repairs: BTreeMap::new(),
            verifications: BTreeMap::new(),
            pages: Vec::new(),
            receive_bytes,
            actions: VecDeque::from([FollowerAction::Send(hello)]),
        }
    }

    /// Next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<FollowerAction> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        (!self.welcomed && !self.closed).then_some(self.deadline)
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_some_and(|deadline| now >= deadline) {
            self.end(Ending::TimedOut);
        }
    }

    /// A message came. An error is a violation of the protocol: the connection ends.
    pub(crate) fn handle_message(&mut self, message: PrimaryMessage) -> Result<(), String> {
        if self.closed {
            return Ok(());
        }
        match message {
            PrimaryMessage::Welcome { protocol, cluster, .. } if !self.welcomed => {
                if protocol != PROTOCOL {
                    return Err(format!("it speaks protocol {protocol}, this replica {PROTOCOL}"));
                }
                check_name("cluster", &cluster)?;
                self.welcomed = true;
                self.actions.push_back(FollowerAction::Welcomed { cluster });
            }
            PrimaryMessage::Refuse { reason } => self.end(Ending::Refused(reason)),
            PrimaryMessage::Close { reason } => self.end(Ending::Left(reason)),
            _ if !self.welcomed => return Err("its first message is not welcome".into()),
            PrimaryMessage::Welcome { .. } => return Err("it said welcome twice".into()),
            PrimaryMessage::Histories { enabled, more, histories } => self.offers(enabled, more, histories)?,
            PrimaryMessage::Opened { feed, after, position } => self.opened(feed, after, position)?,
            PrimaryMessage::Forked { feed, reason } => self.outcome(feed, Outcome::Forked(reason))?,
            PrimaryMessage::Lost { feed, reason, .. } => self.outcome(feed, Outcome::Lost(reason))?,
            PrimaryMessage::Dropped { feed, end } => self.outcome(feed, Outcome::Dropped { end })?,
            PrimaryMessage::FeedClosed { feed, cause, reason } => {
                self.outcome(feed, Outcome::Closed { cause, reason })?;
            }
            PrimaryMessage::Progress { histories, behind } => {
                let behind: HashMap<HistoryId, u64> = behind.into_iter().collect();
                for (history, seq, _) in histories {
                    let behind_bytes = behind.get(&history).copied();
                    self.actions.push_back(FollowerAction::Progress { history, seq, behind_bytes });
                }
            }
            PrimaryMessage::Ended { histories } => {
                if histories.len() > OFFERS_MAX {
                    return Err(format!("it ended {} histories at once", histories.len()));
                }
                self.actions.push_back(FollowerAction::Ended { histories });
            }
            PrimaryMessage::RepairFailed { feed, reason } => {
                self.check_seen(feed)?;
                if self.repairs.remove(&feed).is_some() {
                    self.actions.push_back(FollowerAction::RepairFailed { feed, reason });
                }
            }
            PrimaryMessage::VerifyPoint { feed, point, position } => self.verify_point(feed, point, position)?,
            PrimaryMessage::VerifyFailed { feed, reason } => {
                self.check_seen(feed)?;
                if self.verifications.remove(&feed).is_some() {
                    self.actions.push_back(FollowerAction::VerifyFailed { feed, reason });
                }
            }
        }
        Ok(())
    }

    /// Asks for a history from a position on. Nothing happens when it is open already or the session has no room.
    pub(crate) fn open(&mut self, position: Position, restart_seq: Seq) {
        if !self.welcomed || self.closed || self.by_history.contains_key(&position.history) {
            return;
        }
        let Some(feed) = self.take_number() else { return };
        self.by_history.insert(position.history, feed);
        self.feeds.insert(
            feed,
            Feed {
                history: position.history,
                opened: false,
                credit: 0,
                held: BTreeMap::new(),
                expected: CHUNK_RAW_TARGET as u32,
                arriving: Vec::new(),
                next: 0,
                last: position,
                early: BTreeMap::new(),
            },
        );
        self.send(FollowerMessage::Open { feed, position, restart_seq, filter: None });
    }

    /// Ends a feed from this side; what is on its way is dropped.
    pub(crate) fn close_feed(&mut self, history: HistoryId) {
        if let Some(feed) = self.by_history.remove(&history) {
            self.feeds.remove(&feed);
            self.send(FollowerMessage::CloseFeed { feed });
            self.grant_all();
        }
    }

    /// A data stream's header was read: may its body be?
    pub(crate) fn accept(&mut self, header: &DataHeader) -> Result<Acceptance, String> {
        self.check_seen(header.feed)?;
        match header.kind {
            DataKind::Chunk => {}
            DataKind::Manifest | DataKind::Piece => return self.accept_repair(header),
            DataKind::Digests => return self.accept_digests(header),
        }
        let Some(feed) = self.feeds.get_mut(&header.feed) else { return Ok(Acceptance::Ignore) };
        if header.history() != feed.history {
            return Err(format!("it sent history {} on feed {}", header.history(), header.feed));
        }
        if !feed.opened {
            return Err(format!("it sent records on feed {} before opening it", header.feed));
        }
        if feed.credit == 0 {
            return Err(format!("it sent more chunks on feed {} than it had credit for", header.feed));
        }
        let number = header.number;
        if number < feed.next || number - feed.next >= u64::from(FEED_WINDOW) {
            return Err(format!("it sent chunk {number} on feed {}, {} is next", header.feed, feed.next));
        }
        if feed.arriving.contains(&number) || feed.early.contains_key(&number) {
            return Err(format!("it sent chunk {number} on feed {} twice", header.feed));
        }
        feed.credit -= 1;
        feed.held.insert(number, header.raw_len);
        // Falls slowly, so that a large one among small ones is expected again.
        feed.expected = header.raw_len.max(feed.expected - feed.expected / 8).max(CHUNK_RAW_TARGET as u32);
        feed.arriving.push(number);
        Ok(Acceptance::Take)
    }

    /// The body of an accepted chunk is here. Returns the chunks that can be used now, in order.
    pub(crate) fn handle_chunk(&mut self, header: DataHeader, body: T) -> Result<Vec<(DataHeader, T)>, String> {
        let Some(feed) = self.feeds.get_mut(&header.feed) else { return Ok(Vec::new()) };
        feed.arriving.retain(|&number| number != header.number);
        feed.early.insert(header.number, (header, body));
        let mut ready = Vec::new();
        while let Some((header, body)) = feed.early.remove(&feed.next) {
            let (last, first) = (feed.last.seq, header.first.seq);
            if first != last && first != last.next() {
                return Err(format!("feed {} goes from seq {last} to {first}", header.feed));
            }
            feed.last = header.last;
            feed.next += 1;
            ready.push((header, body));
        }
        Ok(ready)
    }

    /// So many chunks of a history were applied, or dropped: there is room for others.
    pub(crate) fn consumed(&mut self, history: HistoryId, chunks: u32) {
        if let Some(feed) = self.by_history.get(&history).and_then(|feed| self.feeds.get_mut(feed)) {
            for _ in 0..chunks {
                feed.held.pop_first();
            }
            self.grant_all();
        }
    }

    /// Tells the primary what is durable and readable here.
    pub(crate) fn acknowledge(&mut self, history: HistoryId, durable: Seq, applied: Seq, restart_seq: Seq) {
        if let Some(&feed) = self.by_history.get(&history)
            && self.feeds.get(&feed).is_some_and(|open| open.opened)
        {
            self.send(FollowerMessage::Acknowledge { feed, durable, applied, restart_seq });
        }
    }

    /// Nothing more is needed of these, which the primary asked about.
    pub(crate) fn done(&mut self, histories: Vec<HistoryId>) {
        if self.welcomed && !self.closed && !histories.is_empty() {
            self.send(FollowerMessage::Done { histories });
        }
    }

    /// Asks for a repair. `None` when the session is not up or has no room.
    pub(crate) fn begin_repair(&mut self, history: HistoryId) -> Option<FeedNumber> {
        if !self.welcomed || self.closed {
            return None;
        }
        let feed = self.take_number()?;
        self.repairs.insert(feed, Repair::Manifest);
        self.send(FollowerMessage::RepairBegin { feed, history });
        Some(feed)
    }

    /// Asks for a piece. `false` when the repair is over.
    pub(crate) fn fetch(&mut self, feed: FeedNumber, datafile: u32, offset: u64, length: u32) -> bool {
        match self.repairs.get_mut(&feed) {
            Some(Repair::Pieces(pieces)) => {
                pieces.push((datafile, offset));
                self.send(FollowerMessage::RepairFetch { feed, datafile, offset, length });
                true
            }
            _ => false,
        }
    }

    /// A repair is over on this side.
    pub(crate) fn end_repair(&mut self, feed: FeedNumber) {
        if self.repairs.remove(&feed).is_some() {
            self.send(FollowerMessage::RepairEnd { feed });
        }
    }

    /// Asks for a verification. `None` when the session is not up or has no room.
    pub(crate) fn begin_verify(&mut self, history: HistoryId, from_files: bool) -> Option<FeedNumber> {
        if !self.welcomed || self.closed {
            return None;
        }
        let feed = self.take_number()?;
        self.verifications.insert(feed, Verification { history, point: false, digests: false });
        self.send(FollowerMessage::VerifyBegin { feed, history, from_files });
        Some(feed)
    }

    /// A verification is over on this side.
    pub(crate) fn end_verify(&mut self, feed: FeedNumber) {
        if let Some(over) = self.verifications.remove(&feed)
            && !(over.point && over.digests)
        {
            self.send(FollowerMessage::VerifyEnd { feed });
        }
    }

    /// Says good-bye.
    pub(crate) fn close(&mut self, reason: &str) {
        if !self.closed {
            self.closed = true;
            self.send(FollowerMessage::Close { reason: reason.to_owned() });
        }
    }

    /// The connection is gone: what still comes of it is dropped.
    pub(crate) fn abandon(&mut self) {
        self.closed = true;
        self.feeds.clear();
        self.by_history.clear();
        self.repairs.clear();
        self.verifications.clear();
    }

    fn accept_repair(&mut self, header: &DataHeader) -> Result<Acceptance, String> {
        let Some(repair) = self.repairs.get_mut(&header.feed) else { return Ok(Acceptance::Ignore) };
        match (header.kind, repair) {
            (DataKind::Manifest, repair @ Repair::Manifest) => *repair = Repair::Pieces(Vec::new()),
            (DataKind::Piece, Repair::Pieces(pieces)) => {
                let asked = pieces
                    .iter()
                    .position(|&(datafile, offset)| u64::from(datafile) == header.number && offset == header.offset);
                let Some(asked) = asked else {
                    return Err(format!("it sent a piece of datafile {} that was not asked for", header.number));
                };
                pieces.swap_remove(asked);
            }
            _ => return Err(format!("it sent a {:?} that was not asked for", header.kind)),
        }
        Ok(Acceptance::Take)
    }

    fn accept_digests(&mut self, header: &DataHeader) -> Result<Acceptance, String> {
        let Some(verification) = self.verifications.get_mut(&header.feed) else { return Ok(Acceptance::Ignore) };
        if header.history() != verification.history || std::mem::replace(&mut verification.digests, true) {
            return Err("it sent digests that were not asked for".into());
        }
        Ok(Acceptance::Take)
    }

    fn verify_point(&mut self, feed: FeedNumber, point: PointId, position: Position) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(verification) = self.verifications.get_mut(&feed) else { return Ok(()) };
        if position.history != verification.history || std::mem::replace(&mut verification.point, true) {
            return Err("it wrote a digest point that was not asked for".into());
        }
        self.actions.push_back(FollowerAction::VerifyPoint { feed, point, position });
        Ok(())
    }

    fn offers(&mut self, enabled: bool, more: bool, histories: Vec<Offer>) -> Result<(), String> {
        for offer in &histories {
            check_name("database", &offer.name)?;
            if offer.history != offer.position.history {
                return Err(format!("it offered database {:?} with two histories", offer.name));
            }
        }
        if self.pages.len() + histories.len() > OFFERS_MAX {
            return Err(format!("it offered more than {OFFERS_MAX} databases"));
        }
        self.pages.extend(histories);
        if !more {
            let offers = std::mem::take(&mut self.pages);
            self.actions.push_back(FollowerAction::Offers { enabled, offers });
        }
        Ok(())
    }

    fn opened(&mut self, number: FeedNumber, after: Seq, position: Position) -> Result<(), String> {
        self.check_seen(number)?;
        let Some(feed) = self.feeds.get_mut(&number) else { return Ok(()) };
        if feed.opened {
            return Err(format!("it opened feed {number} twice"));
        }
        if after > feed.last.seq || position.history != feed.history || position.seq < feed.last.seq {
            return Err(format!(
                "it opened feed {number} after seq {after} of {position}, {} was asked for",
                feed.last
            ));
        }
        feed.opened = true;
        feed.last.seq = after;
        let history = feed.history;
        self.actions.push_back(FollowerAction::Outcome { history, outcome: Outcome::Opened { position } });
        self.grant_all();
        Ok(())
    }

    fn outcome(&mut self, number: FeedNumber, outcome: Outcome) -> Result<(), String> {
        self.check_seen(number)?;
        let Some(feed) = self.feeds.get(&number) else { return Ok(()) };
        if feed.opened && matches!(outcome, Outcome::Forked(_) | Outcome::Dropped { .. }) {
            return Err(format!("it answered feed {number} twice"));
        }
        if let Outcome::Dropped { end } = &outcome
            && (end.history != feed.history || end.seq < feed.last.seq)
        {
            return Err(format!("it ended feed {number} at {end}, which is not after {}", feed.last));
        }
        let history = feed.history;
        self.feeds.remove(&number);
        self.by_history.remove(&history);
        self.actions.push_back(FollowerAction::Outcome { history, outcome });
        self.grant_all();
        Ok(())
    }

    /// Gives credit: one chunk to every open feed, then more while the session's budget lasts. Small amounts wait until
    /// a quarter of the window is free, so that a message serves several chunks.
    fn grant_all(&mut self) {
        let mut free_bytes =
            self.feeds.values().fold(self.receive_bytes, |free, feed| free.saturating_sub(feed.bytes()));
        let mut granted = Vec::new();
        for (&number, feed) in self.feeds.iter_mut().filter(|(_, feed)| feed.opened) {
            let mine = feed.credit + feed.held.len() as u32;
            let room = u32::try_from(free_bytes / u64::from(feed.expected)).unwrap_or(u32::MAX);
            let free = FEED_WINDOW.saturating_sub(mine).min(room);
            let least = u32::from(mine == 0);
            let grant = if free >= FEED_WINDOW / 4 || feed.credit == 0 { free.max(least) } else { least };
            if grant > 0 {
                feed.credit += grant;
                free_bytes = free_bytes.saturating_sub(u64::from(grant) * u64::from(feed.expected));
                granted.push((number, grant));
            }
        }
        for (feed, chunks) in granted {
            self.send(FollowerMessage::Pull { feed, chunks });
        }
    }

    fn take_number(&mut self) -> Option<FeedNumber> {
        if self.feeds.len() + self.repairs.len() + self.verifications.len() >= FEEDS_MAX {
            return None;
        }
        let number = FeedNumber(self.next_feed);
        self.next_feed = self.next_feed.checked_add(1)?;
        Some(number)
    }

    /// Messages and chunks of a feed that was closed here may still be on their way; of others, not.
    fn check_seen(&self, feed: FeedNumber) -> Result<(), String> {
        if feed.0 < self.next_feed && feed.0 > 0 {
            Ok(())
        } else {
            Err(format!("it spoke of feed {feed}, which was never opened"))
        }
    }

    fn end(&mut self, ending: Ending) {
        self.closed = true;
        self.actions.push_back(FollowerAction::Close(ending));
    }

    fn send(&mut self, message: FollowerMessage) {
        self.actions.push_back(FollowerAction::Send(message));
    }
}

fn check_name(kind: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(format!("its {kind} name has {} bytes, 1 to {NAME_BYTES_MAX} are allowed", name.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Compression;

    fn history() -> HistoryId {
        HistoryId([4; 16])
    }

    fn at(seq: u64) -> Position {
        Position { seq: Seq(seq), ..Position::start(history()) }
    }

    fn welcomed() -> FollowerSession<u8> {
        let mut session = FollowerSession::new("b", NodeId([1; 16]), 48 << 20, Duration::ZERO);
        let welcome =
            PrimaryMessage::Welcome { protocol: 1, version: "0".into(), cluster: "a".into(), node: NodeId([2; 16]) };
        session.handle_message(welcome).unwrap();
        session
    }

    fn opened() -> FollowerSession<u8> {
        let mut session = welcomed();
        session.open(at(10), Seq(10));
        let opened = PrimaryMessage::Opened { feed: FeedNumber(1), after: Seq(10), position: at(20) };
        session.handle_message(opened).unwrap();
        session
    }

    fn chunk(number: u64, first: u64, last: u64) -> DataHeader {
        DataHeader {
            kind: DataKind::Chunk,
            compression: Compression::Raw,
            feed: FeedNumber(1),
            records: 1,
            number,
            raw_len: 256,
            encoded_len: 256,
            first: at(first),
            last: at(last),
            offset: 0,
            body_hash: 0,
        }
    }

    fn actions(session: &mut FollowerSession<u8>) -> Vec<FollowerAction> {
        std::iter::from_fn(|| session.poll_action()).collect()
    }

    #[test]
    fn a_verification_takes_what_it_asked_for_once() {
        let digests = |feed: u32, history: [u8; 16]| DataHeader {
            kind: DataKind::Digests,
            feed: FeedNumber(feed),
            first: Position::start(HistoryId(history)),
            last: Position::start(HistoryId(history)),
            ..chunk(0, 0, 0)
        };
        let point = |feed: u32, history: [u8; 16]| PrimaryMessage::VerifyPoint {
            feed: FeedNumber(feed),
            point: PointId([7; 16]),
            position: Position::start(HistoryId(history)),
        };
        let begun = || {
            let mut session = opened();
            assert_eq!(session.begin_verify(history(), false), Some(FeedNumber(2)));
            session
        };
        let mut session = begun();
        session.handle_message(point(2, [4; 16])).unwrap();
        assert_eq!(session.accept(&digests(2, [4; 16])), Ok(Acceptance::Take));
        // Both came: the primary has nothing to end.
        actions(&mut session);
        session.end_verify(FeedNumber(2));
        assert_eq!(actions(&mut session), []);
        // What comes for one that is over is dropped.
        assert_eq!(session.accept(&digests(2, [4; 16])), Ok(Acceptance::Ignore));
        session.handle_message(point(2, [4; 16])).unwrap();
        assert_eq!(actions(&mut session), []);
        let mut session = begun();
        actions(&mut session);
        session.end_verify(FeedNumber(2));
        let end = FollowerMessage::VerifyEnd { feed: FeedNumber(2) };
        assert_eq!(actions(&mut session), [FollowerAction::Send(end)]);

        let mut session = begun();
        session.handle_message(point(2, [4; 16])).unwrap();
        assert!(session.handle_message(point(2, [4; 16])).unwrap_err().contains("not asked for"));
        assert!(begun().handle_message(point(2, [5; 16])).unwrap_err().contains("not asked for"));
        assert!(begun().handle_message(point(3, [4; 16])).unwrap_err().contains("never opened"));
        let mut session = begun();
        assert_eq!(session.accept(&digests(2, [4; 16])), Ok(Acceptance::Take));
        assert!(session.accept(&digests(2, [4; 16])).unwrap_err().contains("not asked for"));
        assert!(begun().accept(&digests(2, [5; 16])).unwrap_err().contains("not asked for"));
        assert!(begun().accept(&digests(3, [4; 16])).unwrap_err().contains("never opened"));
    }

    #[test]
    fn chunks_are_used_in_order() {
        let mut session = opened();
        for header in [chunk(1, 12, 12), chunk(0, 11, 11)] {
            assert_eq!(session.accept(&header).unwrap(), Acceptance::Take);
        }
        assert!(session.handle_chunk(chunk(1, 12, 12), 1).unwrap().is_empty());
        let ready = session.handle_chunk(chunk(0, 11, 11), 0).unwrap();
        assert_eq!(ready.iter().map(|(_, body)| *body).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn holes_doubles_and_overdrafts_are_violations() {
        let mut session = opened();
        assert!(session.accept(&chunk(99, 11, 11)).unwrap_err().contains("is next"));
        session.accept(&chunk(0, 11, 11)).unwrap();
        assert!(session.accept(&chunk(0, 11, 11)).unwrap_err().contains("twice"));
        session.handle_chunk(chunk(0, 11, 11), 0).unwrap();
        assert!(session.accept(&chunk(0, 11, 11)).unwrap_err().contains("is next"));
        session.accept(&chunk(1, 13, 13)).unwrap();
        assert!(session.handle_chunk(chunk(1, 13, 13), 0).unwrap_err().contains("from seq 11 to 13"));

        let mut session = opened();
        for number in 0..u64::from(FEED_WINDOW) {
            session.accept(&chunk(number, 11 + number, 11 + number)).unwrap();
        }
        assert!(session.accept(&chunk(16, 27, 27)).unwrap_err().contains("credit"));
    }

    #[test]
    fn strangers_are_violations() {
        let mut session = welcomed();
        let never = FeedNumber(9);
        assert!(session.accept(&DataHeader { feed: never, ..chunk(0, 11, 11) }).is_err());
        assert!(session.handle_message(PrimaryMessage::Forked { feed: never, reason: String::new() }).is_err());
        session.open(at(10), Seq(10));
        assert!(session.accept(&chunk(0, 11, 11)).unwrap_err().contains("before opening"));
        let piece = DataHeader { kind: DataKind::Piece, ..chunk(0, 0, 0) };
        assert_eq!(session.accept(&piece).unwrap(), Acceptance::Ignore);
        let mut fresh: FollowerSession<u8> = FollowerSession::new("b", NodeId([1; 16]), 48 << 20, Duration::ZERO);
        let early = PrimaryMessage::Histories { enabled: true, more: false, histories: vec![] };
        assert!(fresh.handle_message(early).unwrap_err().contains("welcome"));
    }

    #[test]
    fn pieces_come_as_asked() {
        let mut session = welcomed();
        let feed = session.begin_repair(history()).unwrap();
        let piece = DataHeader { kind: DataKind::Piece, offset: 7, ..chunk(3, 0, 0) };
        assert!(session.accept(&piece).unwrap_err().contains("not asked"));
        let manifest = DataHeader { kind: DataKind::Manifest, ..chunk(0, 0, 0) };
        assert_eq!(session.accept(&manifest).unwrap(), Acceptance::Take);
        assert!(session.accept(&manifest).unwrap_err().contains("not asked"));
        assert!(session.fetch(feed, 3, 7, 100));
        assert_eq!(session.accept(&piece).unwrap(), Acceptance::Take);
        assert!(session.accept(&piece).is_err());
        session.end_repair(feed);
        assert!(!session.fetch(feed, 3, 8, 100));
        assert_eq!(session.accept(&piece).unwrap(), Acceptance::Ignore);
    }

    #[test]
    fn credit_follows_consumption() {
        let mut session = opened();
        let granted = |session: &mut FollowerSession<u8>| -> u32 {
            actions(session)
                .iter()
                .map(|action| match action {
                    FollowerAction::Send(FollowerMessage::Pull { chunks, .. }) => *chunks,
                    _ => 0,
                })
                .sum()
        };
        assert_eq!(granted(&mut session), FEED_WINDOW);
        for number in 0..4 {
            session.accept(&chunk(number, 11 + number, 11 + number)).unwrap();
        }
        assert_eq!(granted(&mut session), 0, "received but not consumed");
        session.consumed(history(), 1);
        assert_eq!(granted(&mut session), 0, "small amounts wait");
        session.consumed(history(), 3);
        assert_eq!(granted(&mut session), 4);
    }

    #[test]
    fn large_chunks_get_less_credit() {
        let mut session = opened();
        let granted = |session: &mut FollowerSession<u8>| -> u32 {
            let pulls = actions(session).into_iter().filter_map(|action| match action {
                FollowerAction::Send(FollowerMessage::Pull { chunks, .. }) => Some(chunks),
                _ => None,
            });
            pulls.sum()
        };
        let mut credit = granted(&mut session);
        let mut held = VecDeque::new();
        for number in 0..200 {
            while credit == 0 {
                held.pop_front();
                session.consumed(history(), 1);
                credit += granted(&mut session);
            }
            let header = DataHeader { raw_len: 9 << 20, ..chunk(number, 11 + number, 11 + number) };
            assert_eq!(session.accept(&header), Ok(Acceptance::Take));
            session.handle_chunk(header, 0).unwrap();
            credit -= 1;
            held.push_back(header.raw_len);
            let bytes: u64 = held.iter().map(|&bytes| u64::from(bytes)).sum::<u64>() + u64::from(credit) * (9 << 20);
            // The first window was given before the first of them was seen.
            assert!(number < u64::from(FEED_WINDOW) || bytes <= 48 << 20, "{bytes} bytes at chunk {number}");
        }
    }

    #[test]
    fn a_silent_primary_is_left() {
        let mut session: FollowerSession<u8> = FollowerSession::new("b", NodeId([1; 16]), 48 << 20, Duration::ZERO);
        assert_eq!(session.poll_timeout(), Some(GREETING_TIMEOUT));
        session.handle_timeout(GREETING_TIMEOUT);
        assert_eq!(actions(&mut session).last(), Some(&FollowerAction::Close(Ending::TimedOut)));
    }
}
