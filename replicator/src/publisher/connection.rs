//! One replica's connection: the session's actions become I/O.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quinn::{Connection, Incoming, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tailrace_engine::{PointId, RepairSource};
use tailrace_wal::{HistoryId, LogError, Pin, Position, Seq};
use tokio::{
    sync::{Semaphore, mpsc},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Shared, feed::Feed, link::ReplicaLink, repair::Repair, replicas::pin_key, verify::Verification};
use crate::{
    ReplicationState,
    session::{GREETING_TIMEOUT, PublisherAction, PublisherSession, publisher::PublisherIdentity},
    tls::replica_name,
    transport::{CODE_DONE, CODE_REFUSED, CODE_VIOLATION, ControlSender, close, read_control},
    wire::{FeedNumber, FollowerMessage, PrimaryMessage},
};

/// What tasks of a session report.
pub(crate) enum Event {
    FeedFailed {
        feed: FeedNumber,
        reason: String,
    },
    FeedLost {
        feed: FeedNumber,
        retained_after: Seq,
        reason: String,
    },
    RepairHeld {
        feed: FeedNumber,
        source: Arc<RepairSource>,
    },
    RepairFailed {
        feed: FeedNumber,
        reason: String,
    },
    PieceSent {
        feed: FeedNumber,
    },
    PointWritten {
        feed: FeedNumber,
        point: PointId,
        position: Position,
    },
    /// A verification is over; why, if it failed.
    Verified {
        feed: FeedNumber,
        failed: Option<String>,
    },
}

/// Serves one incoming connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, incoming: Incoming, stop: CancellationToken) {
    let address = incoming.remote_address();
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(GREETING_TIMEOUT, greet(incoming)) => greeted,
        () = stop.cancelled() => return,
    };
    let (connection, replica, send, receive) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(reason)) => {
            tracing::warn!(%address, reason, "a connection for replication was refused");
            return;
        }
        Err(_) => {
            tracing::warn!(%address, "a connection for replication said nothing within {GREETING_TIMEOUT:?}");
            return;
        }
    };
    let control = ControlSender::new(send);
    let messages = read_control::<FollowerMessage>(receive);
    Served::run(shared, connection, control, messages, replica, stop).await;
}

/// The handshake: who is it, and its control stream.
async fn greet(incoming: Incoming) -> Result<(Connection, String, SendStream, RecvStream), String> {
    let connection = incoming.await.map_err(|error| error.to_string())?;
    let identity = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or_else(|| "it sent no certificate".to_owned())
        .and_then(|chain| replica_name(&chain));
    let replica = identity.inspect_err(|reason| close(&connection, CODE_REFUSED, reason))?;
    let (send, receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    Ok((connection, replica, send, receive))
}

struct OpenFeed {
    credit: Arc<Semaphore>,
    task: AbortHandle,
    history: HistoryId,
}

struct Served {
    shared: Arc<Shared>,
    connection: Connection,
    link: Arc<ReplicaLink>,
    control: ControlSender,
    session: Arc<Mutex<PublisherSession>>,
    replica: String,
    events: mpsc::Sender<Event>,
    feeds: HashMap<FeedNumber, OpenFeed>,
    pins: HashMap<HistoryId, Pin>,
    repairs: HashMap<FeedNumber, (Repair, Option<Arc<RepairSource>>)>,
    verifications: HashMap<FeedNumber, AbortHandle>,
}

/// Why a session is over.
enum End {
    Said(String),
    Violation(String),
    Gone(String),
}

impl Served {
    async fn run(
        shared: Arc<Shared>,
        connection: Connection,
        mut control: ControlSender,
        mut messages: mpsc::Receiver<Result<FollowerMessage, String>>,
        replica: String,
        stop: CancellationToken,
    ) {
        let address = connection.remote_address();
        let config = &shared.config;
        let identity = PublisherIdentity { cluster: config.name.clone(), node: shared.engine.node() };
        let now = shared.engine.clock().monotonic();
        let admitted = PublisherSession::new(identity, &replica, config.replicas.as_deref(), now).and_then(|session| {
            let link = shared.link(connection.clone(), &replica);
            let attached =
                shared.replicas.attach(&shared.engine, &replica, address, link.clone(), config.max_replicas)?;
            Ok((session, link, attached))
        });
        let (session, link, attachment) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                tracing::warn!(replica, %address, reason, "a replica was refused");
                let _ = control.send(&PrimaryMessage::Refuse { reason: reason.clone() }).await;
                control.farewell(&connection, CODE_REFUSED, &reason).await;
                return;
            }
        };
        let (events, mut reports) = mpsc::channel(64);
        let mut served = Self {
            shared: shared.clone(),
            connection: connection.clone(),
            link,
            control,
            session: Arc::new(Mutex::new(session)),
            replica,
            events,
            feeds: HashMap::new(),
            pins: HashMap::new(),
            repairs: HashMap::new(),
            verifications: HashMap::new(),
        };
        tracing::info!(replica = served.replica, %address, "a replica connected");
        let end = served.serve(&mut messages, &mut reports, &attachment.replaced, &stop).await;
        for feed in served.feeds.values() {
            feed.task.abort();
        }
        served.repairs.values().for_each(|(repair, _)| repair.over.cancel());
        served.verifications.values().for_each(AbortHandle::abort);
        let reason = match end {
            End::Said(reason) => {
                served.control.farewell(&connection, CODE_DONE, &reason).await;
                reason
            }
            End::Violation(reason) => {
                let reason = format!("protocol violation: {reason}");
                close(&connection, CODE_VIOLATION, &reason);
                reason
            }
            End::Gone(reason) => {
                close(&connection, CODE_DONE, "");
                reason
            }
        };
        tracing::info!(replica = served.replica, %address, reason, "a replica disconnected");
        drop(attachment);
    }

    async fn serve(
        &mut self,
        messages: &mut mpsc::Receiver<Result<FollowerMessage, String>>,
        reports: &mut mpsc::Receiver<Event>,
        replaced: &CancellationToken,
        stop: &CancellationToken,
    ) -> End {
        let mut databases = self.shared.engine.watch_databases();
        let mut applied = self.shared.engine.watch_applied();
        loop {
            if let Some(end) = self.act().await {
                return end;
            }
            let (timeout, is_progress_due) = {
                let session = self.session.lock();
                (session.poll_timeout(), session.is_progress_due())
            };
            let now = self.shared.engine.clock().monotonic();
            let sleep = timeout.map_or(Duration::from_secs(3600), |at| at.saturating_sub(now));
            tokio::select! {
                message = messages.recv() => match message {
                    None => return End::Gone(self.lost()),
                    Some(Err(reason)) => return End::Violation(reason),
                    Some(Ok(message)) => {
                        let now = self.shared.engine.clock().monotonic();
                        let handled = self.session.lock().handle_message(message, now, &self.shared.catalog);
                        if let Err(reason) = handled {
                            return End::Violation(reason);
                        }
                    }
                },
                Some(event) = reports.recv() => self.handle_event(event),
                Ok(()) = databases.changed() => self.handle_databases(),
                // What is due is said when its time comes: no need to wake up for every commit until then.
                Ok(()) = applied.changed(), if !is_progress_due => {
                    let now = self.shared.engine.clock().monotonic();
                    self.session.lock().handle_progress(now, &self.shared.catalog);
                }
                () = tokio::time::sleep(sleep) => {
                    let now = self.shared.engine.clock().monotonic();
                    self.session.lock().handle_timeout(now, &self.shared.catalog);
                }
                () = replaced.cancelled() => self.session.lock().close("the replica attached anew".into()),
                () = stop.cancelled() => self.session.lock().close("the primary is shutting down".into()),
                error = self.connection.closed() => return End::Gone(error.to_string()),
            }
        }
    }

    fn handle_databases(&mut self) {
        let (enabled, offers) = self.shared.catalog.offers();
        let ended = self.shared.replicas.ended(&self.shared.engine, &self.replica);
        let mut session = self.session.lock();
        session.handle_offers(enabled, offers, &self.shared.catalog);
        session.handle_ended(ended);
    }

    fn handle_event(&mut self, event: Event) {
        let mut session = self.session.lock();
        match event {
            Event::FeedFailed { feed, reason } => {
                tracing::warn!(replica = self.replica, reason, "a feed failed");
                session.feed_failed(feed, &reason);
            }
            Event::FeedLost { feed, retained_after, reason } => session.feed_lost(feed, retained_after, &reason),
            Event::RepairHeld { feed, source } => {
                if let Some((_, held)) = self.repairs.get_mut(&feed) {
                    *held = Some(source);
                }
            }
            Event::RepairFailed { feed, reason } => session.repair_failed(feed, &reason),
            Event::PieceSent { feed } => session.handle_piece_sent(feed),
            Event::PointWritten { feed, point, position } => session.handle_point(feed, point, position),
            Event::Verified { feed, failed } => {
                self.verifications.remove(&feed);
                match failed {
                    None => session.handle_verified(feed),
                    Some(reason) => session.verify_failed(feed, &reason),
                }
            }
        }
    }

    /// Does what the session wants.
    async fn act(&mut self) -> Option<End> {
        loop {
            let action = self.session.lock().poll_action()?;
            match action {
                PublisherAction::Send(message) => {
                    if let Err(reason) = self.control.send(&message).await {
                        return Some(End::Gone(reason));
                    }
                }
                PublisherAction::Attached { node } => {
                    tracing::info!(replica = self.replica, %node, "a replica attached");
                    self.handle_databases();
                }
                PublisherAction::StartFeed { feed, history, acknowledged, restart } => {
                    self.start_feed(feed, history, acknowledged, restart);
                }
                PublisherAction::Credit { feed, chunks } => {
                    if let Some(open) = self.feeds.get(&feed) {
                        open.credit.add_permits(chunks as usize);
                        let now = self.shared.engine.clock().now();
                        self.shared.replicas.pulled(&self.replica, open.history, now);
                    }
                }
                PublisherAction::StopFeed { feed, history } => {
                    if let Some(open) = self.feeds.remove(&feed) {
                        open.task.abort();
                    }
                    self.pins.remove(&history);
                }
                PublisherAction::Acknowledge { history, durable, applied, restart } => {
                    self.acknowledge(history, durable, applied, restart);
                }
                PublisherAction::Trouble { history, state, reason } => {
                    self.shared.replicas.set_trouble(&self.replica, history, Some((state, reason)));
                }
                PublisherAction::Done { history } => {
                    self.pins.remove(&history);
                    self.shared.replicas.done(&self.shared.engine, &self.replica, history);
                }
                PublisherAction::StartRepair { feed, history } => self.start_repair(feed, history),
                PublisherAction::Fetch { feed, datafile, offset, length } => match self.repairs.get(&feed) {
                    Some((repair, Some(source))) => {
                        tokio::spawn(repair.clone().fetch(source.clone(), datafile, offset, length));
                    }
                    _ => return Some(End::Violation("it asked for a piece before it had the manifest".into())),
                },
                PublisherAction::EndRepair { feed } => {
                    if let Some((repair, _)) = self.repairs.remove(&feed) {
                        repair.over.cancel();
                    }
                }
                PublisherAction::StartVerify { feed, history, from_files } => {
                    let (shared, link) = (self.shared.clone(), self.link.clone());
                    let verify = Verification { shared, link, events: self.events.clone(), feed, history, from_files };
                    self.verifications.insert(feed, tokio::spawn(verify.run()).abort_handle());
                }
                PublisherAction::EndVerify { feed } => {
                    if let Some(task) = self.verifications.remove(&feed) {
                        task.abort();
                    }
                }
                PublisherAction::Close(reason) => return Some(End::Said(reason)),
            }
        }
    }

    fn start_feed(&mut self, feed: FeedNumber, history: HistoryId, acknowledged: Seq, restart: Seq) {
        let pinned = self.shared.engine.log().pin(pin_key(&self.replica, history), acknowledged, restart);
        match pinned {
            Ok(pin) => drop(self.pins.insert(history, pin)),
            Err(LogError::Truncated { retained_after, .. }) => {
                let reason = format!("the log reaches back to seq {retained_after} only");
                self.session.lock().feed_lost(feed, retained_after, &reason);
                return;
            }
            Err(error) => {
                self.session.lock().feed_failed(feed, &error.to_string());
                return;
            }
        }
        self.shared.replicas.set_trouble(&self.replica, history, None);
        self.shared.replicas.reached(&self.shared.engine, &self.replica, history, acknowledged, Seq::ZERO);
        let credit = Arc::new(Semaphore::new(0));
        let running = Feed {
            shared: self.shared.clone(),
            link: self.link.clone(),
            session: self.session.clone(),
            events: self.events.clone(),
            feed,
            history,
            restart,
            credit: credit.clone(),
        };
        let task = tokio::spawn(running.run()).abort_handle();
        self.feeds.insert(feed, OpenFeed { credit, task, history });
    }

    fn acknowledge(&mut self, history: HistoryId, durable: Seq, applied: Seq, restart: Seq) {
        self.shared.replicas.reached(&self.shared.engine, &self.replica, history, durable, applied);
        // Credit lasts for a while; what it took is told now.
        self.shared.replicas.pulled(&self.replica, history, self.shared.engine.clock().now());
        if let Some(pin) = self.pins.get(&history)
            && !pin.advance(durable, applied, restart)
        {
            // Lost while its feed went on: as soon as the budget allows, it is under protection again.
            pin.renew(durable, applied, restart);
        }
        let ended = self.shared.engine.history(history).is_some_and(|info| info.ended && info.position.seq <= durable);
        if ended {
            self.pins.remove(&history);
            self.shared.replicas.done(&self.shared.engine, &self.replica, history);
        }
    }

    /// The pin comes first: what is committed while the repair is made and fetched must still be in the log after it.
    fn start_repair(&mut self, feed: FeedNumber, history: HistoryId) {
        let engine = &self.shared.engine;
        if let Some(info) = engine.history(history) {
            let key = pin_key(&self.replica, history);
            match engine.log().pin(key, info.restart_seq, info.restart_seq) {
                Ok(pin) => drop(self.pins.insert(history, pin)),
                Err(error) => return self.session.lock().repair_failed(feed, &error.to_string()),
            }
        }
        let trouble = (ReplicationState::Lost, "a repair of the replica is under way".to_owned());
        self.shared.replicas.set_trouble(&self.replica, history, Some(trouble));
        let repair = Repair {
            shared: self.shared.clone(),
            link: self.link.clone(),
            events: self.events.clone(),
            feed,
            history,
            over: CancellationToken::new(),
        };
        tokio::spawn(repair.clone().begin());
        self.repairs.insert(feed, (repair, None));
    }

    fn lost(&self) -> String {
        self.connection.close_reason().map_or("the control stream ended".into(), |error| error.to_string())
    }
}
