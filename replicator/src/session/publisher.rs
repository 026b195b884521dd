//! The primary's end of a session with one replica.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use tailrace_wal::{CommitTime, HistoryId, NodeId, Position, Seq};

use super::{
    Catalog, FEEDS_MAX, GREETING_TIMEOUT,
    decide::{Decision, decide},
};
use crate::{
    ReplicaGrant, ReplicationState,
    wire::{CloseCause, FeedNumber, FollowerMessage, Offer, PIECE_MAX, PROTOCOL, PrimaryMessage},
};

/// Offers on one page of `histories`; names are at most 256 bytes, so a page is far below the limit of a message.
const OFFERS_PER_PAGE: usize = 1_000;
/// Histories in one `progress` or `ended`.
const HISTORIES_PER_MESSAGE: usize = 4_000;
/// Least time between two `progress` messages.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two of them that tell of all feeds, moved or not: so that silence means something.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Most credit that a feed may hold, chunks.
const CREDIT_MAX: u32 = 1_024;
/// Most requests for pieces that a repair may have under way.
pub(crate) const PIECES_MAX: usize = 32;

/// What the task around the session has to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PublisherAction {
    /// Send on the control stream.
    Send(PrimaryMessage),
    /// `hello` was answered.
    Attached {
        /// The other node.
        node: NodeId,
    },
    /// Pin the history from `restart` on, then begin to read it after that commit. If the pin fails, call
    /// [`PublisherSession::feed_failed`].
    StartFeed { feed: FeedNumber, history: HistoryId, acknowledged: Seq, restart: Seq },
    /// The feed may send so many more chunks.
    Credit { feed: FeedNumber, chunks: u32 },
    /// End a feed; its pin stays.
    StopFeed { feed: FeedNumber, history: HistoryId },
    /// Move the pin.
    Acknowledge { history: HistoryId, durable: Seq, applied: Seq, restart: Seq },
    /// The replica was told that it cannot go on from where it is.
    Trouble { history: HistoryId, state: ReplicationState, reason: String },
    /// The replica has, or was told to drop, all of a history that ended: nothing is held for it.
    Done { history: HistoryId },
    /// Hold a database and send its manifest.
    StartRepair { feed: FeedNumber, history: HistoryId },
    /// Send part of a datafile.
    Fetch { feed: FeedNumber, datafile: u32, offset: u64, length: u32 },
    /// Let go of the database.
    EndRepair { feed: FeedNumber },
    /// End the connection; the replica was told why, if it is to know.
    Close(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    Serving,
    Closed,
}

#[derive(Debug)]
struct Feed {
    history: HistoryId,
    credit: u32,
    /// Acknowledged seqs never go back and never pass what was sent.
    sent: Seq,
    durable: Seq,
    applied: Seq,
}

#[derive(Debug)]
struct Repair {
    history: HistoryId,
    fetching: usize,
}

/// Who this primary is, for `welcome`.
#[derive(Debug, Clone)]
pub(crate) struct PublisherIdentity {
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct PublisherSession {
    identity: PublisherIdentity,
    replica: String,
    /// Databases granted; `None`: all.
    granted: Option<Vec<String>>,
    phase: Phase,
    deadline: Duration,
    last_feed: Option<FeedNumber>,
    feeds: BTreeMap<FeedNumber, Feed>,
    repairs: BTreeMap<FeedNumber, Repair>,
    offered: Option<(bool, Vec<Offer>)>,
    /// Histories that the replica has and was told to be off: when one of them ends it has to hear of that.
    told_off: BTreeSet<HistoryId>,
    /// Histories that it was asked about because they have ended.
    asked: BTreeSet<HistoryId>,
    progress: HashMap<HistoryId, Seq>,
    progress_sent: Duration,
    progress_due: bool,
    heartbeat_sent: Duration,
    actions: VecDeque<PublisherAction>,
}

impl PublisherSession {
    /// A session with a replica whose certificate states `replica`. `refusal`: it is not admitted, for this reason.
    pub(crate) fn new(
        identity: PublisherIdentity,
        replica: &str,
        grants: Option<&[ReplicaGrant]>,
        now: Duration,
    ) -> Result<Self, String> {
        let granted = match grants {
            None => None,
            Some(grants) => match grants.iter().find(|grant| grant.name == replica) {
                Some(grant) => grant.databases.clone(),
                None => {
                    return Err(format!(
                        "replica {replica:?} is not listed in [replication.primary] replicas of cluster {:?}; add it there",
                        identity.cluster
                    ));
                }
            },
        };
        Ok(Self {
            identity,
            replica: replica.to_owned(),
            granted,
            phase: Phase::Greeting,
            deadline: now + GREETING_TIMEOUT,
            last_feed: None,
            feeds: BTreeMap::new(),
            repairs: BTreeMap::new(),
            offered: None,
            told_off: BTreeSet::new(),
            asked: BTreeSet::new(),
            progress: HashMap::new(),
            progress_sent: Duration::ZERO,
            progress_due: false,
            heartbeat_sent: now,
            actions: VecDeque::new(),
        })
    }

    /// Next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<PublisherAction> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        match self.phase {
            Phase::Greeting => Some(self.deadline),
            Phase::Serving => {
                let heartbeat = self.heartbeat_sent + HEARTBEAT_INTERVAL;
                let progress = self.progress_due.then_some(self.progress_sent + PROGRESS_INTERVAL);
                Some(progress.map_or(heartbeat, |progress| progress.min(heartbeat)))
            }
            Phase::Closed => None,
        }
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&mut self, now: Duration, catalog: &dyn Catalog) {
        match self.phase {
            Phase::Greeting if now >= self.deadline => {
                self.close(format!("replica {:?} did not say hello within {GREETING_TIMEOUT:?}", self.replica));
            }
            Phase::Serving if now >= self.heartbeat_sent + HEARTBEAT_INTERVAL => self.heartbeat(now, catalog),
            Phase::Serving if self.progress_due => self.handle_progress(now, catalog),
            _ => {}
        }
    }

    /// A message came. An error is a violation of the protocol: the connection ends.
    pub(crate) fn handle_message(
        &mut self,
        message: FollowerMessage,
        now: Duration,
        catalog: &dyn Catalog,
    ) -> Result<(), String> {
        match (self.phase, message) {
            (Phase::Closed, _) => Ok(()),
            (_, FollowerMessage::Close { reason }) => {
                self.phase = Phase::Closed;
                self.actions.push_back(PublisherAction::Close(format!("the replica left: {reason}")));
                Ok(())
            }
            (Phase::Greeting, FollowerMessage::Hello { protocol, version, cluster, node }) => {
                self.hello(protocol, &version, &cluster, node, now);
                Ok(())
            }
            (Phase::Greeting, _) => Err("its first message is not hello".into()),
            (Phase::Serving, FollowerMessage::Hello { .. }) => Err("it said hello twice".into()),
            (Phase::Serving, FollowerMessage::Open { feed, position, restart_seq, filter }) => {
                if filter.is_some() {
                    return Err("it asked for a filter, which this version does not know".into());
                }
                self.open(feed, position, restart_seq, now, catalog)
            }
            (Phase::Serving, FollowerMessage::Pull { feed, chunks }) => self.pull(feed, chunks),
            (Phase::Serving, FollowerMessage::Acknowledge { feed, durable, applied, restart_seq }) => {
                self.acknowledge(feed, durable, applied, restart_seq)
            }
            (Phase::Serving, FollowerMessage::CloseFeed { feed }) => {
                self.check_seen(feed)?;
                if let Some(closed) = self.feeds.remove(&feed) {
                    self.actions.push_back(PublisherAction::StopFeed { feed, history: closed.history });
                }
                Ok(())
            }
            (Phase::Serving, FollowerMessage::RepairBegin { feed, history }) => {
                self.repair_begin(feed, history, catalog)
            }
            (Phase::Serving, FollowerMessage::RepairFetch { feed, datafile, offset, length }) => {
                self.repair_fetch(feed, datafile, offset, length)
            }
            (Phase::Serving, FollowerMessage::RepairEnd { feed }) => {
                self.check_seen(feed)?;
                if self.repairs.remove(&feed).is_some() {
                    self.actions.push_back(PublisherAction::EndRepair { feed });
                }
                Ok(())
            }
            (Phase::Serving, FollowerMessage::Done { histories }) => self.done(histories, catalog),
        }
    }

    /// What may be opened changed, or may have: `enabled` is the cluster's switch, `offers` the databases whose
    /// replication is on. Feeds of others end.
    pub(crate) fn handle_offers(&mut self, enabled: bool, mut offers: Vec<Offer>, catalog: &dyn Catalog) {
        if self.phase != Phase::Serving {
            return;
        }
        offers.extend(self.told_off.iter().filter_map(|&history| {
            let view = catalog.history(history).filter(|view| view.on && view.ended)?;
            Some(Offer { name: view.name, history, position: view.end })
        }));
        offers.retain(|offer| self.is_granted(&offer.name));
        let ended_here: Vec<FeedNumber> = self
            .feeds
            .iter()
            .filter(|(_, feed)| catalog.history(feed.history).is_none_or(|view| !view.on))
            .map(|(&feed, _)| feed)
            .collect();
        for feed in ended_here {
            self.end_feed(feed, CloseCause::Off, &off_reason(enabled));
        }
        let repairs: Vec<FeedNumber> = self
            .repairs
            .iter()
            .filter(|(_, repair)| catalog.history(repair.history).is_none_or(|view| !view.on))
            .map(|(&feed, _)| feed)
            .collect();
        for feed in repairs {
            self.repairs.remove(&feed);
            self.actions.push_back(PublisherAction::EndRepair { feed });
            self.send(PrimaryMessage::RepairFailed { feed, reason: off_reason(enabled) });
        }
        let names =
            |offers: &[Offer]| offers.iter().map(|offer| (offer.name.clone(), offer.history)).collect::<Vec<_>>();
        if let Some((was_enabled, was)) = &self.offered
            && *was_enabled == enabled
            && names(was) == names(&offers)
        {
            return;
        }
        let mut pages = offers.chunks(OFFERS_PER_PAGE).peekable();
        if pages.peek().is_none() {
            self.actions.push_back(PublisherAction::Send(PrimaryMessage::Histories {
                enabled,
                more: false,
                histories: Vec::new(),
            }));
        }
        while let Some(page) = pages.next() {
            let more = pages.peek().is_some();
            let message = PrimaryMessage::Histories { enabled, more, histories: page.to_vec() };
            self.actions.push_back(PublisherAction::Send(message));
        }
        self.offered = Some((enabled, offers));
    }

    /// Histories that have ended while log is held in them for this replica. It may have their ends, and its word of that
    /// was lost with an earlier connection: it is asked once.
    pub(crate) fn handle_ended(&mut self, held: impl IntoIterator<Item = HistoryId>) {
        if self.phase != Phase::Serving {
            return;
        }
        let (feeds, asked) = (&self.feeds, &mut self.asked);
        let is_open = |history| feeds.values().any(|feed| feed.history == history);
        let fresh: Vec<_> = held.into_iter().filter(|&history| !is_open(history) && asked.insert(history)).collect();
        for histories in fresh.chunks(HISTORIES_PER_MESSAGE) {
            self.send(PrimaryMessage::Ended { histories: histories.to_vec() });
        }
    }

    /// Histories moved: tells the replica how far, not too often.
    pub(crate) fn handle_progress(&mut self, now: Duration, catalog: &dyn Catalog) {
        if self.phase != Phase::Serving {
            return;
        }
        if self.progress_sent != Duration::ZERO && now < self.progress_sent + PROGRESS_INTERVAL {
            self.progress_due = true;
            return;
        }
        self.progress_due = false;
        let mut moved: Vec<(HistoryId, Seq, CommitTime)> = Vec::new();
        let ids =
            self.feeds.values().map(|feed| feed.history).chain(self.repairs.values().map(|repair| repair.history));
        for id in ids {
            let Some(view) = catalog.history(id) else { continue };
            if self.progress.insert(id, view.end.seq) != Some(view.end.seq) {
                moved.push((id, view.end.seq, view.commit_time));
            }
        }
        if !moved.is_empty() {
            self.progress_sent = now;
        }
        for histories in moved.chunks(HISTORIES_PER_MESSAGE) {
            self.send(PrimaryMessage::Progress { histories: histories.to_vec(), behind: Vec::new() });
        }
    }

    /// Tells of all feeds, moved or not.
    fn heartbeat(&mut self, now: Duration, catalog: &dyn Catalog) {
        (self.heartbeat_sent, self.progress_sent, self.progress_due) = (now, now, false);
        let behind: HashMap<HistoryId, u64> = catalog.behind(&self.replica).into_iter().collect();
        let feeds: Vec<HistoryId> = self.feeds.values().map(|feed| feed.history).collect();
        for page in feeds.chunks(HISTORIES_PER_MESSAGE) {
            let mut histories = Vec::with_capacity(page.len());
            for id in page {
                let Some(view) = catalog.history(*id) else { continue };
                self.progress.insert(*id, view.end.seq);
                histories.push((*id, view.end.seq, view.commit_time));
            }
            let behind = page.iter().filter_map(|id| Some((*id, *behind.get(id)?))).collect();
            self.send(PrimaryMessage::Progress { histories, behind });
        }
    }

    /// A chunk goes out. `false`: the feed is closed or without credit, and it must not.
    pub(crate) fn handle_sent(&mut self, feed: FeedNumber, last: Seq) -> bool {
        match self.feeds.get_mut(&feed) {
            Some(open) if open.credit > 0 => {
                open.credit -= 1;
                open.sent = open.sent.max(last);
                true
            }
            _ => false,
        }
    }

    /// Reading a feed failed: the replica is told, the pin stays.
    pub(crate) fn feed_failed(&mut self, feed: FeedNumber, reason: &str) {
        self.end_feed(feed, CloseCause::Failed, reason);
    }

    /// The records that a feed wanted were truncated meanwhile.
    pub(crate) fn feed_lost(&mut self, feed: FeedNumber, retained_after: Seq, reason: &str) {
        if let Some(open) = self.feeds.remove(&feed) {
            self.actions.push_back(PublisherAction::StopFeed { feed, history: open.history });
            self.send(PrimaryMessage::Lost { feed, retained_after, reason: reason.to_owned() });
        }
    }

    /// A repair cannot go on.
    pub(crate) fn repair_failed(&mut self, feed: FeedNumber, reason: &str) {
        if self.repairs.remove(&feed).is_some() {
            self.actions.push_back(PublisherAction::EndRepair { feed });
            self.send(PrimaryMessage::RepairFailed { feed, reason: reason.to_owned() });
        }
    }

    /// A piece was sent.
    pub(crate) fn handle_piece_sent(&mut self, feed: FeedNumber) {
        if let Some(repair) = self.repairs.get_mut(&feed) {
            repair.fetching = repair.fetching.saturating_sub(1);
        }
    }

    /// Ends the session, telling the replica.
    pub(crate) fn close(&mut self, reason: String) {
        if self.phase == Phase::Closed {
            return;
        }
        let message = match self.phase {
            Phase::Greeting => PrimaryMessage::Refuse { reason: reason.clone() },
            _ => PrimaryMessage::Close { reason: reason.clone() },
        };
        self.send(message);
        self.phase = Phase::Closed;
        self.actions.push_back(PublisherAction::Close(reason));
    }

    fn hello(&mut self, protocol: u32, version: &str, cluster: &str, node: NodeId, now: Duration) {
        if protocol != PROTOCOL {
            self.close(format!(
                "the replica speaks protocol {protocol} (version {version}), this primary {PROTOCOL}; upgrade replicas first, then primaries"
            ));
            return;
        }
        if cluster != self.replica {
            self.close(format!(
                "the replica calls itself {cluster:?}, but its certificate is for {:?}; set [replication.replica] name to the name in the certificate",
                self.replica
            ));
            return;
        }
        if node == self.identity.node {
            self.close(
                "the replica is this very node; set [replication.replica] primary_addresses to another cluster".into(),
            );
            return;
        }
        self.phase = Phase::Serving;
        self.progress_sent = Duration::ZERO;
        self.deadline = now;
        self.send(PrimaryMessage::Welcome {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.identity.cluster.clone(),
            node: self.identity.node,
        });
        self.actions.push_back(PublisherAction::Attached { node });
    }

    fn open(
        &mut self,
        feed: FeedNumber,
        position: Position,
        restart: Seq,
        now: Duration,
        catalog: &dyn Catalog,
    ) -> Result<(), String> {
        self.take_number(feed)?;
        if restart > position.seq {
            return Err(format!("it opened at seq {} with restart seq {restart}", position.seq));
        }
        let history = position.history;
        if self.feeds.values().any(|open| open.history == history) {
            return Err(format!("it opened history {history} twice"));
        }
        let Some(view) = self.permitted(feed, history, catalog) else { return Ok(()) };
        let chain_here = catalog.position_at(history, position.seq);
        match decide(&view, chain_here, &position, restart) {
            Decision::Continue => {
                let (durable, applied, sent) = (position.seq, position.seq, position.seq);
                self.feeds.insert(feed, Feed { history, credit: 0, sent, durable, applied });
                self.send(PrimaryMessage::Opened { feed, after: restart, position: view.end });
                self.progress.remove(&history);
                self.actions.push_back(PublisherAction::StartFeed {
                    feed,
                    history,
                    acknowledged: position.seq,
                    restart,
                });
                self.handle_progress(now, catalog);
            }
            Decision::Forked(reason) => {
                let state = ReplicationState::Forked;
                self.actions.push_back(PublisherAction::Trouble { history, state, reason: reason.clone() });
                self.send(PrimaryMessage::Forked { feed, reason });
            }
            Decision::Lost => {
                let retained_after = view.retained_after;
                let reason = format!(
                    "the log of database {:?} reaches back to seq {retained_after}, the replica needs {restart}",
                    view.name
                );
                let state = ReplicationState::Lost;
                self.actions.push_back(PublisherAction::Trouble { history, state, reason: reason.clone() });
                self.send(PrimaryMessage::Lost { feed, retained_after, reason });
            }
            Decision::Dropped => {
                self.actions.push_back(PublisherAction::Done { history });
                self.send(PrimaryMessage::Dropped { feed, end: view.end });
            }
        }
        Ok(())
    }

    /// The history, if this replica may have it now; otherwise it is told why not.
    fn permitted(&mut self, feed: FeedNumber, history: HistoryId, catalog: &dyn Catalog) -> Option<super::HistoryView> {
        let Some(view) = catalog.history(history) else {
            let reason = format!("cluster {:?} has no history {history}", self.identity.cluster);
            self.send(PrimaryMessage::FeedClosed { feed, cause: CloseCause::Unknown, reason });
            return None;
        };
        if !self.is_granted(&view.name) {
            let reason = format!(
                "replica {:?} may not pull database {:?}; see [replication.primary] replicas of cluster {:?}",
                self.replica, view.name, self.identity.cluster
            );
            self.send(PrimaryMessage::FeedClosed { feed, cause: CloseCause::NotGranted, reason });
            return None;
        }
        if !view.on {
            self.told_off.insert(history);
            let enabled = self.offered.as_ref().is_none_or(|(enabled, _)| *enabled);
            let reason = off_reason(enabled);
            self.send(PrimaryMessage::FeedClosed { feed, cause: CloseCause::Off, reason });
            return None;
        }
        self.told_off.remove(&history);
        Some(view)
    }

    fn pull(&mut self, feed: FeedNumber, chunks: u32) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(open) = self.feeds.get_mut(&feed) else { return Ok(()) };
        open.credit = open.credit.saturating_add(chunks);
        if open.credit > CREDIT_MAX {
            return Err(format!(
                "it gave feed {feed} credit for {} chunks, at most {CREDIT_MAX} are allowed",
                open.credit
            ));
        }
        self.actions.push_back(PublisherAction::Credit { feed, chunks });
        Ok(())
    }

    fn acknowledge(&mut self, feed: FeedNumber, durable: Seq, applied: Seq, restart: Seq) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(open) = self.feeds.get_mut(&feed) else { return Ok(()) };
        if durable > open.sent || applied > open.sent || restart > durable {
            return Err(format!(
                "it acknowledged seq {durable} (applied {applied}, restart {restart}) of feed {feed}, which was sent up to {}",
                open.sent
            ));
        }
        open.durable = open.durable.max(durable);
        open.applied = open.applied.max(applied);
        self.actions.push_back(PublisherAction::Acknowledge {
            history: open.history,
            durable: open.durable,
            applied: open.applied,
            restart,
        });
        Ok(())
    }

    fn done(&mut self, histories: Vec<HistoryId>, catalog: &dyn Catalog) -> Result<(), String> {
        for history in histories {
            if !self.asked.contains(&history) {
                return Err(format!("it is done with history {history}, which it was not asked about"));
            }
            // A feed that was opened meanwhile says itself how far it is.
            let is_open = self.feeds.values().any(|feed| feed.history == history);
            if !is_open && catalog.history(history).is_some_and(|view| view.ended) {
                self.actions.push_back(PublisherAction::Done { history });
            }
        }
        Ok(())
    }

    fn repair_begin(&mut self, feed: FeedNumber, history: HistoryId, catalog: &dyn Catalog) -> Result<(), String> {
        self.take_number(feed)?;
        let reason = match catalog.history(history) {
            Some(view) if view.on && !view.ended && self.is_granted(&view.name) => {
                self.repairs.insert(feed, Repair { history, fetching: 0 });
                self.actions.push_back(PublisherAction::StartRepair { feed, history });
                return Ok(());
            }
            Some(view) => format!("database {:?} is not replicated now", view.name),
            None => format!("cluster {:?} has no history {history}", self.identity.cluster),
        };
        self.send(PrimaryMessage::RepairFailed { feed, reason });
        Ok(())
    }

    fn repair_fetch(&mut self, feed: FeedNumber, datafile: u32, offset: u64, length: u32) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(repair) = self.repairs.get_mut(&feed) else { return Ok(()) };
        if length == 0 || length > PIECE_MAX {
            return Err(format!("it asked for a piece of {length} bytes, at most {PIECE_MAX} are allowed"));
        }
        if repair.fetching >= PIECES_MAX {
            return Err(format!("it asked for more than {PIECES_MAX} pieces at a time"));
        }
        repair.fetching += 1;
        self.actions.push_back(PublisherAction::Fetch { feed, datafile, offset, length });
        Ok(())
    }

    fn end_feed(&mut self, feed: FeedNumber, cause: CloseCause, reason: &str) {
        if let Some(open) = self.feeds.remove(&feed) {
            if cause == CloseCause::Off {
                self.told_off.insert(open.history);
            }
            self.actions.push_back(PublisherAction::StopFeed { feed, history: open.history });
            self.send(PrimaryMessage::FeedClosed { feed, cause, reason: reason.to_owned() });
        }
    }

    fn take_number(&mut self, feed: FeedNumber) -> Result<(), String> {
        if self.last_feed.is_some_and(|last| feed <= last) {
            return Err(format!("it used feed number {feed} again"));
        }
        if self.feeds.len() + self.repairs.len() >= FEEDS_MAX {
            return Err(format!("it opened more than {FEEDS_MAX} feeds"));
        }
        self.last_feed = Some(feed);
        Ok(())
    }

    /// Messages about a feed that has ended meanwhile are fine; about one that never was, not.
    fn check_seen(&self, feed: FeedNumber) -> Result<(), String> {
        if self.last_feed.is_some_and(|last| feed <= last) {
            Ok(())
        } else {
            Err(format!("it spoke of feed {feed}, which it never opened"))
        }
    }

    fn is_granted(&self, database: &str) -> bool {
        self.granted.as_ref().is_none_or(|granted| granted.iter().any(|name| name == database))
    }

    fn send(&mut self, message: PrimaryMessage) {
        self.actions.push_back(PublisherAction::Send(message));
    }
}

fn off_reason(enabled: bool) -> String {
    if enabled {
        "replication of the database is switched off at the primary".into()
    } else {
        "replication is stopped at the primary cluster".into()
    }
}
