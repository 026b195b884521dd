//! Control messages.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tailrace_engine::PointId;
use tailrace_wal::{CommitTime, HistoryId, NodeId, Position, Seq};

use super::CONTROL_VERSION;

/// Longest body of a control message, bytes.
pub(crate) const CONTROL_BYTES_MAX: usize = 1 << 20;
/// Length and version before the body.
pub(crate) const CONTROL_PREFIX: usize = 5;

/// A feed or repair within a session, numbered by the replica, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct FeedNumber(pub(crate) u32);

impl fmt::Display for FeedNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a replica says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum FollowerMessage {
    Hello {
        protocol: u32,
        version: String,
        cluster: String,
        node: NodeId,
    },
    Open {
        feed: FeedNumber,
        position: Position,
        restart_seq: Seq,
        /// Later: tables and partitions. Anything but null is refused.
        #[serde(default)]
        filter: Option<serde_json::Value>,
    },
    Pull {
        feed: FeedNumber,
        chunks: u32,
    },
    Acknowledge {
        feed: FeedNumber,
        durable: Seq,
        applied: Seq,
        restart_seq: Seq,
    },
    CloseFeed {
        feed: FeedNumber,
    },
    RepairBegin {
        feed: FeedNumber,
        history: HistoryId,
    },
    RepairFetch {
        feed: FeedNumber,
        datafile: u32,
        offset: u64,
        length: u32,
    },
    RepairEnd {
        feed: FeedNumber,
    },
    /// Write a digest point, and say what the database is there.
    VerifyBegin {
        feed: FeedNumber,
        history: HistoryId,
        /// What datafiles hold now, not what was written.
        from_files: bool,
    },
    /// No more of it, please.
    VerifyEnd {
        feed: FeedNumber,
    },
    /// Answer to `ended`.
    Done {
        histories: Vec<HistoryId>,
    },
    Close {
        reason: String,
    },
}

/// What a primary says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum PrimaryMessage {
    Welcome {
        protocol: u32,
        version: String,
        cluster: String,
        node: NodeId,
    },
    Refuse {
        reason: String,
    },
    Histories {
        enabled: bool,
        more: bool,
        histories: Vec<Offer>,
    },
    Opened {
        feed: FeedNumber,
        after: Seq,
        position: Position,
    },
    Forked {
        feed: FeedNumber,
        reason: String,
    },
    Lost {
        feed: FeedNumber,
        retained_after: Seq,
        reason: String,
    },
    Dropped {
        feed: FeedNumber,
        end: Position,
    },
    FeedClosed {
        feed: FeedNumber,
        cause: CloseCause,
        reason: String,
    },
    Progress {
        histories: Vec<(HistoryId, Seq, CommitTime)>,
        /// Of some of them: log bytes that the replica has not acknowledged.
        #[serde(default)]
        behind: Vec<(HistoryId, u64)>,
    },
    /// These have ended, and log is held for the replica.
    Ended {
        histories: Vec<HistoryId>,
    },
    RepairFailed {
        feed: FeedNumber,
        reason: String,
    },
    /// The digest point of a verification is in the history; the digests follow on a data stream.
    VerifyPoint {
        feed: FeedNumber,
        point: PointId,
        position: Position,
    },
    VerifyFailed {
        feed: FeedNumber,
        reason: String,
    },
    Close {
        reason: String,
    },
}

/// A history that may be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) history: HistoryId,
    pub(crate) position: Position,
}

/// Why a primary closes a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CloseCause {
    /// Replication of the database, or of the cluster, is switched off there.
    Off,
    /// It has no such history and never had.
    Unknown,
    /// The replica may not pull it.
    NotGranted,
    /// Reading it failed; may be tried again.
    Failed,
}

/// A message as it is sent. A message beyond the limit is a bug of the sender and reported as such.
pub(crate) fn encode_control<M: Serialize>(message: &M) -> Result<Bytes, String> {
    let mut bytes = vec![0; CONTROL_PREFIX];
    serde_json::to_writer(&mut bytes, message)
        .map_err(|error| format!("a control message does not encode: {error}"))?;
    let length = bytes.len() - CONTROL_PREFIX;
    if length > CONTROL_BYTES_MAX {
        return Err(format!("a control message of {length} bytes, at most {CONTROL_BYTES_MAX} are allowed"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[4] = CONTROL_VERSION;
    Ok(bytes.into())
}

/// Length of the body that follows a prefix, checked.
pub(crate) fn control_length(prefix: [u8; CONTROL_PREFIX]) -> Result<usize, String> {
    let [a, b, c, d, version] = prefix;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if version != CONTROL_VERSION {
        return Err(format!("a control message of version {version}, this node speaks {CONTROL_VERSION}"));
    }
    if length > CONTROL_BYTES_MAX {
        return Err(format!("a control message of {length} bytes, at most {CONTROL_BYTES_MAX} are allowed"));
    }
    Ok(length)
}

/// Decodes a body.
pub(crate) fn decode_control<M: DeserializeOwned>(body: &[u8]) -> Result<M, String> {
    serde_json::from_slice(body).map_err(|error| format!("a control message does not parse: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_keeps_64_bits() {
        let mut position = Position::start(HistoryId([7; 16]));
        position.seq = Seq(u64::MAX);
        position.chain = tailrace_wal::Chain(u64::MAX - 1);
        let message = FollowerMessage::Open { feed: FeedNumber(3), position, restart_seq: Seq(5), filter: None };
        let bytes = encode_control(&message).unwrap();
        let (prefix, body) = bytes.split_at(CONTROL_PREFIX);
        assert_eq!(control_length(prefix.try_into().unwrap()).unwrap(), body.len());
        assert_eq!(decode_control::<FollowerMessage>(body).unwrap(), message);
    }

    #[test]
    fn oversized_and_foreign_prefixes_are_refused() {
        assert!(control_length([0, 0, 16, 0, 1]).is_ok());
        assert!(control_length([1, 0, 16, 0, 1]).unwrap_err().contains("at most"));
        assert!(control_length([255, 255, 255, 255, 1]).is_err());
        assert!(control_length([0, 0, 0, 0, 2]).unwrap_err().contains("version 2"));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(decode_control::<PrimaryMessage>(b"\xff\x00{").is_err());
        assert!(decode_control::<PrimaryMessage>(b"{\"type\":\"nonsense\"}").is_err());
        assert!(decode_control::<PrimaryMessage>(b"{\"type\":\"refuse\"}").is_err());
        let deep = [b'['; 100_000];
        assert!(decode_control::<FollowerMessage>(&deep).is_err());
    }
}
