//! The primary's end of a session with one replica.
//!
//! `offers.rs` says what may be opened and how far it is, `feeds.rs` opens feeds and keeps to their credit, `repairs.rs`
//! serves repairs, `verifications.rs` verifications.

mod feeds;
mod offers;
mod repairs;
mod verifications;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use tailrace_wal::{HistoryId, NodeId, Seq};

use self::offers::{HEARTBEAT_INTERVAL, PROGRESS_INTERVAL};
use super::{Catalog, FEEDS_MAX, GREETING_TIMEOUT};
use crate::{
    ReplicaGrant, ReplicationState,
    wire::{FeedNumber, FollowerMessage, Offer, PROTOCOL, PrimaryMessage},
};

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
    /// Write a digest point and send what the database is there.
    StartVerify { feed: FeedNumber, history: HistoryId, from_files: bool },
    /// Nobody waits for it any more.
    EndVerify { feed: FeedNumber },
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
    verifications: BTreeSet<FeedNumber>,
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
            verifications: BTreeSet::new(),
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
            (Phase::Serving, FollowerMessage::VerifyBegin { feed, history, from_files }) => {
                self.verify_begin(feed, history, from_files, catalog)
            }
            (Phase::Serving, FollowerMessage::VerifyEnd { feed }) => self.verify_end(feed),
            (Phase::Serving, FollowerMessage::Done { histories }) => self.done(histories, catalog),
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

    fn take_number(&mut self, feed: FeedNumber) -> Result<(), String> {
        if self.last_feed.is_some_and(|last| feed <= last) {
            return Err(format!("it used feed number {feed} again"));
        }
        if self.feeds.len() + self.repairs.len() + self.verifications.len() >= FEEDS_MAX {
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
