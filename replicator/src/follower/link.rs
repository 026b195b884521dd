//! What a session and the databases say to each other.

use tailrace_engine::PointId;
use tailrace_wal::{HistoryHeader, HistoryId, Payload, Position, Seq};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Refused,
    session::Outcome,
    wire::{DataHeader, FeedNumber},
};

/// Records of a chunk, checked and decoded.
pub(crate) type Records = Vec<(HistoryHeader, Payload)>;

/// To a database.
#[derive(Debug)]
pub(crate) enum Command {
    /// A session is up.
    Attach(Link),
    /// It ended: what was received and is not being committed is dropped and will be sent again.
    Detach,
    /// Whether the primary offers the database now, and where it stands there.
    Offered(Option<Seq>),
    Outcome(Outcome),
    Chunk(Records),
    /// Last transaction at the primary, and log bytes not acknowledged there.
    Progress {
        seq: Seq,
        behind_bytes: Option<u64>,
    },
    Manifest {
        feed: FeedNumber,
        json: bytes::Bytes,
    },
    Piece {
        header: DataHeader,
        bytes: bytes::Bytes,
    },
    RepairFailed {
        feed: FeedNumber,
        reason: String,
    },
    /// Forget failures, try again.
    Retry,
    /// Leave these tasks out. Answered once it is decided whether that is to be done.
    Skip {
        tasks: Vec<Seq>,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Take the primary's database as a whole. Answered like the above.
    Repair {
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Finish what is being committed, then end.
    Stop,
}

/// From a database.
#[derive(Debug)]
pub(crate) enum Event {
    Open { position: Position, restart_seq: Seq },
    CloseFeed { history: HistoryId },
    Consumed { history: HistoryId, chunks: u32 },
    Acknowledge { history: HistoryId, durable: Seq, applied: Seq, restart_seq: Seq },
    BeginRepair { history: HistoryId, reply: oneshot::Sender<Option<FeedNumber>> },
    Fetch { feed: FeedNumber, datafile: u32, offset: u64, length: u32 },
    EndRepair { feed: FeedNumber },
    BeginVerify { history: HistoryId, from_files: bool, answers: mpsc::UnboundedSender<VerifyAnswer> },
    EndVerify { feed: FeedNumber },
}

/// To whoever verifies a database. When they end, the session did.
#[derive(Debug)]
pub(crate) enum VerifyAnswer {
    /// Asked for, under this number.
    Begun(FeedNumber),
    /// The digest point is in the history.
    Point(PointId, Position),
    /// The primary's digests, as JSON.
    Digests(bytes::Bytes),
    Failed(String),
}

/// A database's way to the session that is up.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) primary: String,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl Link {
    /// Says something; a session that is over does not hear it.
    pub(crate) fn say(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
