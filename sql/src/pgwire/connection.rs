//! A connection: start-up, then one message after the other.

use std::{sync::Arc, task::Poll, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::{
    CancelRegistry,
    backend::{self, Severity},
    cancel::{CancelKey, Running},
    extended::Extended,
    frontend::{Frontend, violation},
    reader::{self, Frame},
    startup::{Startup, StartupMessage, check_encoding, read_startup},
};
use crate::{
    Notice, Outcome, Result, Session, SessionFactory, SqlError, Statement, provider::CATALOG,
    statement::settings::SERVER_VERSION,
};

/// Longest that the last answers to a client that said goodbye wait for it to take them.
const FAREWELL: Duration = Duration::from_secs(5);

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct ConnectionContext {
    /// Makes sessions.
    pub(crate) factory: SessionFactory,
    /// Reaches what runs.
    pub(crate) registry: Arc<CancelRegistry>,
    /// Fires when the server shuts down: statements are cancelled, connections end with a word.
    pub(crate) stop: CancellationToken,
    /// Fires when clients had their time: what they do not read is not sent.
    pub(crate) kill: CancellationToken,
    /// One for each connection that may have a session.
    pub(crate) slots: Arc<Semaphore>,
}

/// Why a message was not carried out.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client is told, and the connection goes on.
    Statement(SqlError),
    /// The client is gone, or does not read; nobody is told.
    Gone,
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Statement(error)
    }
}

/// A connection after start-up.
pub(super) struct Connection<W> {
    pub(super) session: Session,
    pub(super) extended: Extended,
    /// Messages not sent yet.
    pub(super) out: Vec<u8>,
    socket: W,
    frames: mpsc::Receiver<Result<Frame>>,
    key: CancelKey,
    /// Fires when the client is gone.
    pub(super) gone: CancellationToken,
    context: Arc<ConnectionContext>,
}

/// Serves one client until it leaves or the server stops.
pub(crate) async fn serve(mut socket: TcpStream, context: Arc<ConnectionContext>) {
    let mut buffer = BytesMut::new();
    let mut out = Vec::new();
    let startup = tokio::select! {
        startup = read_startup(&mut socket, &mut buffer) => startup,
        () = tokio::time::sleep(super::STARTUP_TIME_MAX) => return,
        () = context.stop.cancelled() => return,
    };
    // Held to the end. A cancel request needs none.
    let slot = Arc::clone(&context.slots).try_acquire_owned().ok();
    let opened = match startup {
        Ok(Startup::Gone) => return,
        Ok(Startup::Cancel { pid, secret }) => return context.registry.cancel(pid, secret),
        Ok(Startup::Session(_)) if slot.is_none() => Err(SqlError::new("53300", "too many connections")
            .detail(format!("The limit is {}.", super::CONNECTIONS_MAX))
            .hint("close some, or put a connection pool before the server")),
        Ok(Startup::Session(message)) => open(&context, &message, &mut out),
        Err(error) => Err(error),
    };
    let (session, key) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            out.clear();
            backend::error_response(&mut out, Severity::Fatal, &error);
            send(&mut socket, &out, &context.kill).await;
            return;
        }
    };
    let (read, socket) = socket.into_split();
    let gone = CancellationToken::new();
    let frames = reader::spawn(read, buffer, gone.clone());
    let mut connection = Connection { session, extended: Extended::default(), out, socket, frames, key, gone, context };
    connection.ready();
    connection.run().await;
}

/// Checks what a client asks for, and answers it.
fn open(context: &ConnectionContext, message: &StartupMessage, out: &mut Vec<u8>) -> Result<(Session, CancelKey)> {
    if let Some(encoding) = message.settings.get("client_encoding") {
        check_encoding(encoding)?;
    }
    let session = context.factory.session(&message.user, message.database.as_deref());
    // The catalog itself, and the name that tools connect to by default, have no current database.
    if let Some(database) = message.database.as_deref()
        && session.current_database().is_none()
        && database != CATALOG
        && database != "postgres"
    {
        return Err(SqlError::new("3D000", format!("database {database:?} does not exist")).hint(format!(
            "connect to {CATALOG:?}, where names are written with their database, and look at system.databases"
        )));
    }
    let mut notices = Vec::new();
    for (name, value) in message.settings.iter().filter(|(name, _)| *name != "client_encoding") {
        notices.extend(session.set(name, value)?.map(Notice::from));
    }
    if let Some(options) = &message.negotiate {
        backend::negotiate_protocol_version(out, options);
    }
    backend::authentication_ok(out);
    let version = format!("{SERVER_VERSION} (Tailrace {})", env!("CARGO_PKG_VERSION"));
    let application = message.settings.get("application_name").map_or("", String::as_str);
    for (name, value) in [
        ("server_version", version.as_str()),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("session_authorization", message.user.as_str()),
        ("application_name", application),
    ] {
        backend::parameter_status(out, name, value);
    }
    notices.iter().for_each(|notice| backend::notice_response(out, notice));
    let key = context.registry.register();
    session.introduce(key.pid);
    backend::backend_key_data(out, key.pid, key.secret);
    Ok((session, key))
}

/// Sends bytes; `false` when the client does not take them.
async fn send<W: AsyncWrite + Unpin>(socket: &mut W, bytes: &[u8], kill: &CancellationToken) -> bool {
    tokio::select! {
        sent = socket.write_all(bytes) => sent.is_ok(),
        () = kill.cancelled() => false,
    }
}

impl<W: AsyncWrite + Unpin> Connection<W> {
    async fn run(&mut self) {
        let error = loop {
            // What is to be sent is sent before waiting for the client; pipelined messages are answered together.
            let frame = match self.frames.try_recv() {
                Ok(frame) => Some(frame),
                Err(_) => {
                    if self.flush().await.is_err() {
                        return;
                    }
                    tokio::select! {
                        frame = self.frames.recv() => frame,
                        () = self.context.stop.cancelled() => break stopping(),
                    }
                }
            };
            let message = match frame {
                None => return,
                Some(Err(error)) => break error,
                Some(Ok(Frame { tag, body, .. })) => Frontend::parse(tag, body).map_err(|error| (tag, error)),
            };
            let message = match message {
                Ok(message) => message,
                Err((_, error)) if error.sqlstate == "08P01" => break error,
                Err((tag, error)) => {
                    self.refuse(tag, &error);
                    continue;
                }
            };
            match self.handle(message).await {
                Ok(true) => {}
                Ok(false) => {
                    // What it asked for before it said goodbye may be read still.
                    let _ = tokio::time::timeout(FAREWELL, self.flush()).await;
                    return;
                }
                Err(Failure::Gone) => return,
                Err(Failure::Statement(error)) => break error,
            }
            if self.context.stop.is_cancelled() {
                break stopping();
            }
        };
        backend::error_response(&mut self.out, Severity::Fatal, &error);
        self.flush().await.ok();
    }

    /// Carries a message out. `false`: the client said goodbye. A failure here is one that ends the connection.
    async fn handle(&mut self, message: Frontend) -> Result<bool, Failure> {
        match message {
            Frontend::Terminate => return Ok(false),
            Frontend::Query(sql) => {
                self.extended.failed = false;
                if let Err(error) = self.simple_query(&sql).await {
                    self.report(error)?;
                }
                self.extended.end_of_query(self.session.transaction_status());
                self.ready();
            }
            Frontend::Sync => {
                self.extended.failed = false;
                self.extended.end_of_query(self.session.transaction_status());
                self.ready();
            }
            // What follows an error is skipped until Sync.
            _ if self.extended.failed => {}
            Frontend::Flush => self.flush().await?,
            Frontend::CopyData => {}
            message => {
                if let Err(error) = self.extended_message(message).await {
                    self.extended.failed = true;
                    self.report(error)?;
                }
            }
        }
        Ok(true)
    }

    /// Refuses a message that was whole but cannot be used.
    fn refuse(&mut self, tag: u8, error: &SqlError) {
        if tag != b'Q' && self.extended.failed {
            return;
        }
        backend::error_response(&mut self.out, Severity::Error, error);
        if tag == b'Q' {
            self.ready();
        } else {
            self.extended.failed = true;
        }
    }

    /// Tells the client of a failed statement.
    fn report(&mut self, failure: Failure) -> Result<(), Failure> {
        match failure {
            Failure::Statement(error) => {
                tracing::debug!(user = self.session.user(), sqlstate = %error.sqlstate, %error, "statement failed");
                backend::error_response(&mut self.out, Severity::Error, &error);
                Ok(())
            }
            Failure::Gone => Err(Failure::Gone),
        }
    }

    fn ready(&mut self) {
        backend::ready_for_query(&mut self.out, self.session.transaction_status());
    }

    /// Sends what waits.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        flush(&mut self.socket, &mut self.out, &self.gone, &self.context.kill).await
    }

    /// A token for a statement: fires on a cancel request while the guard lives, and when the server stops.
    pub(super) fn cancellable(&self) -> (CancellationToken, Running) {
        let token = self.context.stop.child_token();
        let running = self.key.run(token.clone());
        (token, running)
    }

    /// The same for a token that was made earlier.
    pub(super) fn cancellable_again(&self, token: &CancellationToken) -> Running {
        self.key.run(token.clone())
    }

    /// Runs a statement to its end: it is cancelled when the client goes, never dropped, so that a commit is whole. What
    /// earlier statements answered is sent while it runs.
    pub(super) async fn execute(
        &mut self,
        statement: &Statement,
        parameters: Vec<datafusion::common::ScalarValue>,
        token: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        let execution = self.session.execute(statement, parameters, token.clone());
        let mut execution = std::pin::pin!(execution);
        let outcome = match futures::poll!(&mut execution) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                let sent = flush(&mut self.socket, &mut self.out, &self.gone, &self.context.kill).await;
                if sent.is_err() {
                    token.cancel();
                }
                let outcome = unless_gone(&self.gone, token, execution).await?;
                sent?;
                outcome
            }
        };
        outcome.map_err(|error| self.cancelled(token, error))
    }

    /// The error of a statement whose token fired says why it fired.
    pub(super) fn cancelled(&self, token: &CancellationToken, error: SqlError) -> Failure {
        if !token.is_cancelled() || (error.sqlstate != "57014" && !error.sqlstate.starts_with("XX")) {
            return Failure::Statement(error);
        }
        self.cancellation()
    }

    /// Why a statement was cancelled.
    pub(super) fn cancellation(&self) -> Failure {
        if self.gone.is_cancelled() {
            Failure::Gone
        } else if self.context.stop.is_cancelled() {
            Failure::Statement(stopping())
        } else {
            Failure::Statement(SqlError::new("57014", "the statement was cancelled on request"))
        }
    }
}

/// Sends `out` and empties it.
async fn flush<W: AsyncWrite + Unpin>(
    socket: &mut W,
    out: &mut Vec<u8>,
    gone: &CancellationToken,
    kill: &CancellationToken,
) -> Result<(), Failure> {
    if out.is_empty() {
        return Ok(());
    }
    let sent = tokio::select! {
        sent = send(socket, out, kill) => sent,
        () = gone.cancelled() => false,
    };
    out.clear();
    if sent { Ok(()) } else { Err(Failure::Gone) }
}

/// Waits for `work`; when the client is gone, fires `token` and waits on.
pub(super) async fn unless_gone<T>(
    gone: &CancellationToken,
    token: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return Ok(done),
        () = gone.cancelled() => token.cancel(),
    }
    work.await;
    Err(Failure::Gone)
}

fn stopping() -> SqlError {
    SqlError::new("57P01", "the server is shutting down").hint("connect again when it is back")
}

/// Refuses a message where it may not stand.
pub(super) fn unexpected(what: &str) -> Failure {
    Failure::Statement(violation(what))
}
