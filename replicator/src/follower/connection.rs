//! A connection to a primary: the session's actions become I/O, chunks go to their databases.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{ConnectError, Connection, Endpoint, RecvStream};
use tailrace_engine::Role;
use tailrace_wal::HistoryId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Known, Shared,
    link::{Command, Event, Link, Records, VerifyAnswer},
};
use crate::{
    session::{Acceptance, FollowerAction, FollowerSession, follower::Ending},
    tls,
    transport::{
        CODE_DONE, CODE_VIOLATION, ControlSender, DataError, close, open_body, read_body, read_control, read_header,
        transport,
    },
    wire::{DataHeader, DataKind, PrimaryMessage, decode_records},
};

/// Bodies up to this size are opened where they are received: handing them to another thread would take longer.
const INLINE_BYTES: u32 = 16 << 10;

/// How long one address may take to answer before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How a connection ended.
pub(crate) struct Ended {
    pub(crate) reason: String,
    /// The primary had welcomed us: the next address need not wait long.
    pub(crate) welcomed: bool,
}

type Session = Arc<Mutex<FollowerSession<Records>>>;

/// Connects to `address` and follows it until the connection ends or `stop` fires.
pub(crate) async fn follow(shared: &Arc<Shared>, address: &str, stop: &CancellationToken) -> Ended {
    let connected = tokio::select! {
        connected = connect(shared, address) => connected,
        () = stop.cancelled() => Err("stopped".into()),
    };
    let (endpoint, connection, control, messages) = match connected {
        Ok(connected) => connected,
        Err(reason) => return Ended { reason, welcomed: false },
    };
    let ended = run(shared, connection, address, control, messages, stop).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    ended
}

type Messages = mpsc::Receiver<Result<PrimaryMessage, String>>;

async fn connect(shared: &Shared, address: &str) -> Result<(Endpoint, Connection, ControlSender, Messages), String> {
    let (host, _) = address.rsplit_once(':').ok_or_else(|| format!("{address:?} is not host:port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut client = tls::client_config(&shared.config.tls).map_err(|error| error.to_string())?;
    client.transport_config(transport(true));
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host(address).await.map_err(|error| format!("cannot resolve {address}: {error}"))?.collect();
    let mut last = format!("{address} has no address");
    for socket in found {
        let local: SocketAddr = match socket {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::client(local).map_err(|error| error.to_string())?;
        let connecting = endpoint.connect_with(client.clone(), socket, host).map_err(|error| match error {
            ConnectError::InvalidServerName(name) => format!("{name:?} is not a host name"),
            error => error.to_string(),
        })?;
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => match connection.open_bi().await {
                Ok((send, receive)) => {
                    return Ok((endpoint, connection, ControlSender::new(send), read_control(receive)));
                }
                Err(error) => last = error.to_string(),
            },
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer within {CONNECT_TIMEOUT:?}"),
        }
    }
    Err(last)
}

async fn run(
    shared: &Arc<Shared>,
    connection: Connection,
    address: &str,
    control: ControlSender,
    mut messages: Messages,
    stop: &CancellationToken,
) -> Ended {
    let clock = shared.engine.clock();
    let config = &shared.config;
    let session = FollowerSession::new(&config.name, shared.engine.node(), config.receive_bytes, clock.monotonic());
    let session: Session = Arc::new(Mutex::new(session));
    let (events, mut heard) = mpsc::unbounded_channel();
    let (violations, mut violated) = mpsc::channel(1);
    let mut streams = tokio::spawn(accept_streams(shared.clone(), connection.clone(), session.clone(), violations));
    let mut following = Following {
        shared: shared.clone(),
        session,
        control,
        events,
        address: address.to_owned(),
        primary: None,
        attached: HashSet::new(),
    };
    let mut stopping = false;
    let (code, reason) = loop {
        match following.act().await {
            Ok(None) => {}
            Ok(Some(ending)) => break (CODE_DONE, ending),
            // What the primary said when it closed tells more than the write that failed by it.
            Err(reason) => break (CODE_DONE, connection.close_reason().map_or(reason, |closed| closed.to_string())),
        }
        if stopping {
            break (CODE_DONE, "stopped".to_owned());
        }
        let timeout = following.session.lock().poll_timeout();
        let sleep = timeout.map_or(Duration::from_secs(3600), |at| at.saturating_sub(clock.monotonic()));
        tokio::select! {
            message = messages.recv() => match message {
                Some(Ok(message)) => {
                    if let Err(reason) = following.session.lock().handle_message(message) {
                        break (CODE_VIOLATION, format!("protocol violation by the primary: {reason}"));
                    }
                }
                Some(Err(reason)) => break (CODE_VIOLATION, format!("protocol violation by the primary: {reason}")),
                None => {
                    // The reason comes with the connection's close, if it comes.
                    let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
                    break (CODE_DONE, closed.map_or("the control stream ended".into(), |error| error.to_string()));
                }
            },
            Some(reason) = violated.recv() => {
                break (CODE_VIOLATION, format!("protocol violation by the primary: {reason}"));
            }
            Some(event) = heard.recv() => {
                following.handle_event(event);
                while let Ok(event) = heard.try_recv() {
                    following.handle_event(event);
                }
            }
            () = tokio::time::sleep(sleep) => following.session.lock().handle_timeout(clock.monotonic()),
            () = stop.cancelled() => {
                following.session.lock().close("the replica stops");
                stopping = true;
            }
            error = connection.closed() => break (CODE_DONE, error.to_string()),
            // With the connection, or by a bug: a session without chunks would stand still in silence.
            _ = &mut streams => {
                let closed = connection.close_reason().map(|error| error.to_string());
                break (CODE_DONE, closed.unwrap_or_else(|| "what takes chunks has ended".to_owned()));
            }
        }
    };
    streams.abort();
    // Before the databases hear of it: a chunk of this session must not come between those of the next.
    following.session.lock().abandon();
    shared.detach_all();
    let welcomed = following.primary.is_some();
    if code == CODE_VIOLATION {
        tracing::warn!(address, reason, "left a primary");
        close(&connection, code, &reason);
    } else {
        following.control.farewell(&connection, code, &reason).await;
    }
    Ended { reason, welcomed }
}

struct Following {
    shared: Arc<Shared>,
    session: Session,
    control: ControlSender,
    events: mpsc::UnboundedSender<Event>,
    address: String,
    primary: Option<String>,
    attached: HashSet<HistoryId>,
}

impl Following {
    /// Does what the session wants; `Ok(Some)`: it is over.
    async fn act(&mut self) -> Result<Option<String>, String> {
        loop {
            let Some(action) = self.session.lock().poll_action() else { return Ok(None) };
            match action {
                FollowerAction::Send(message) => self.control.send(&message).await?,
                FollowerAction::Welcomed { cluster } => {
                    tracing::info!(primary = cluster, address = self.address, "attached to a primary");
                    self.shared.connected(&self.address);
                    self.attach_known(&cluster);
                    let link = Link { primary: cluster.clone(), events: self.events.clone() };
                    *self.shared.session.lock() = Some(link);
                    self.primary = Some(cluster);
                }
                FollowerAction::Offers { offers, .. } => {
                    let Some(primary) = self.primary.clone() else { continue };
                    let offered: HashSet<HistoryId> = offers.iter().map(|offer| offer.history).collect();
                    for history in self.attached.difference(&offered) {
                        self.shared.tell(*history, Command::Offered(None));
                    }
                    for offer in offers {
                        if !self.shared.is_selected(&offer.name) || self.is_own(offer.history) {
                            continue;
                        }
                        let known = self.attach(offer.history, &offer.name, &primary);
                        known.send(Command::Offered(Some(offer.position.seq)));
                    }
                }
                FollowerAction::Ended { histories } => {
                    let engine = &self.shared.engine;
                    // What is here and goes on ends by its feed. What is not here at all is not wanted any more.
                    let is_over = |history: &HistoryId| engine.history(*history).is_none_or(|info| info.ended);
                    let over: Vec<HistoryId> = histories.into_iter().filter(is_over).collect();
                    self.session.lock().done(over);
                }
                FollowerAction::Outcome { history, outcome } => self.shared.tell(history, Command::Outcome(outcome)),
                FollowerAction::Progress { history, seq, behind_bytes } => {
                    self.shared.tell(history, Command::Progress { seq, behind_bytes });
                }
                FollowerAction::RepairFailed { feed, reason } => {
                    self.shared.tell_all(|| Command::RepairFailed { feed, reason: reason.clone() })
                }
                FollowerAction::VerifyPoint { feed, point, position } => {
                    self.shared.tell_verifying(feed, VerifyAnswer::Point(point, position));
                }
                FollowerAction::VerifyFailed { feed, reason } => {
                    self.shared.tell_verifying(feed, VerifyAnswer::Failed(reason));
                }
                FollowerAction::Close(ending) => {
                    return Ok(Some(match ending {
                        Ending::TimedOut => "the primary did not answer hello in time".to_owned(),
                        Ending::Refused(reason) => format!("refused by the primary: {reason}"),
                        Ending::Left(reason) => format!("the primary left: {reason}"),
                    }));
                }
            }
        }
    }

    /// Databases that are followed from this primary already, whether it offers them now or not: it says how they stand.
    fn attach_known(&mut self, primary: &str) {
        for info in self.shared.engine.histories() {
            let ours = matches!(&info.role, Role::Replica { primary: of } if of == primary);
            if ours && !info.ended && self.shared.is_selected(&info.name) {
                self.attach(info.id, &info.name, primary);
            }
        }
    }

    /// Whether a history is written here: another cluster that follows it offers it on, to its writer as well.
    fn is_own(&self, history: HistoryId) -> bool {
        self.shared.engine.history(history).is_some_and(|info| info.role == Role::Primary)
    }

    /// A database's way to this session, told to it once.
    fn attach(&mut self, history: HistoryId, name: &str, primary: &str) -> Known {
        let known = self.shared.database(history, name, primary);
        if self.attached.insert(history) {
            known.send(Command::Attach(Link { primary: primary.to_owned(), events: self.events.clone() }));
        }
        known
    }

    fn handle_event(&mut self, event: Event) {
        let mut session = self.session.lock();
        match event {
            Event::Open { position, restart_seq } => session.open(position, restart_seq),
            Event::CloseFeed { history } => session.close_feed(history),
            Event::Consumed { history, chunks } => session.consumed(history, chunks),
            Event::Acknowledge { history, durable, applied, restart_seq } => {
                session.acknowledge(history, durable, applied, restart_seq);
            }
            Event::BeginRepair { history, reply } => drop(reply.send(session.begin_repair(history))),
            Event::Fetch { feed, datafile, offset, length } => drop(session.fetch(feed, datafile, offset, length)),
            Event::EndRepair { feed } => session.end_repair(feed),
            Event::BeginVerify { history, from_files, answers } => match session.begin_verify(history, from_files) {
                Some(feed) => {
                    let _ = answers.send(VerifyAnswer::Begun(feed));
                    self.shared.verifying.lock().insert(feed, answers);
                }
                None => drop(answers.send(VerifyAnswer::Failed("the session with the primary has no room".to_owned()))),
            },
            Event::EndVerify { feed } => {
                self.shared.verifying.lock().remove(&feed);
                session.end_verify(feed);
            }
        }
    }
}

/// Reads data streams as they come, each in a task of its own: there are never more than the connection's limit.
async fn accept_streams(
    shared: Arc<Shared>,
    connection: Connection,
    session: Session,
    violations: mpsc::Sender<String>,
) {
    while let Ok(stream) = connection.accept_uni().await {
        let (shared, session, violations) = (shared.clone(), session.clone(), violations.clone());
        let mut reading = Box::pin(async move {
            if let Err(DataError::Violation(reason)) = read_stream(&shared, stream, &session).await {
                let _ = violations.try_send(reason);
            }
        });
        // A small chunk has come whole with its stream, and is handed on sooner than another thread would begin.
        if futures::poll!(&mut reading).is_pending() {
            tokio::spawn(reading);
        }
    }
}

async fn read_stream(shared: &Shared, mut stream: RecvStream, session: &Session) -> Result<(), DataError> {
    let header = read_header(&mut stream).await?;
    let acceptance = session.lock().accept(&header).map_err(DataError::Violation)?;
    if acceptance == Acceptance::Ignore {
        let _ = stream.stop(CODE_DONE);
        return Ok(());
    }
    let body = read_body(&mut stream, &header).await?;
    shared.wire_bytes.fetch_add((DataHeader::LEN + body.len()) as u64, Ordering::Relaxed);
    shared.raw_bytes.fetch_add(u64::from(header.raw_len), Ordering::Relaxed);
    let open = move || {
        let raw = open_body(&header, body)?;
        match header.kind {
            DataKind::Chunk => decode_records(&raw, header.records).and_then(|records| check(&header, records)),
            DataKind::Manifest | DataKind::Piece | DataKind::Digests => Ok(Opened::Bytes(raw)),
        }
    };
    let opened = match header.raw_len.max(header.encoded_len) <= INLINE_BYTES {
        true => open(),
        false => tokio::task::spawn_blocking(open).await.map_err(|_| DataError::Gone)?,
    };
    let opened = opened.map_err(DataError::Violation)?;
    match opened {
        Opened::Records(records) => {
            // The lock is held while chunks are handed on, so that they stay in order.
            let mut session = session.lock();
            for (header, records) in session.handle_chunk(header, records).map_err(DataError::Violation)? {
                shared.tell(header.history(), Command::Chunk(records));
            }
        }
        Opened::Bytes(bytes) if header.kind == DataKind::Manifest => {
            shared.tell(header.history(), Command::Manifest { feed: header.feed, json: bytes });
        }
        Opened::Bytes(bytes) if header.kind == DataKind::Digests => {
            shared.tell_verifying(header.feed, VerifyAnswer::Digests(bytes));
        }
        Opened::Bytes(bytes) => shared.tell(header.history(), Command::Piece { header, bytes }),
    }
    Ok(())
}

enum Opened {
    Records(Records),
    Bytes(bytes::Bytes),
}

/// What a chunk's header states of its records must be so.
fn check(header: &DataHeader, records: Records) -> Result<Opened, String> {
    if records.iter().any(|(record, _)| record.history != header.history()) {
        return Err("a chunk holds records of another history".into());
    }
    let ends = records.first().zip(records.last());
    if ends.is_none_or(|((first, _), (last, _))| first.position() != header.first || last.position() != header.last) {
        return Err("a chunk's records are not those that its header states".into());
    }
    Ok(Opened::Records(records))
}
