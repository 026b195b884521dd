//! Bytes on the wire, as drawn in `PROTOCOL.md`: control messages and data streams.

pub(crate) mod body;
pub(crate) mod control;
pub(crate) mod header;
pub(crate) mod pieces;

pub(crate) use body::{RecordsEncoder, aligned_buffer, compress, decode_records, decompress};
pub(crate) use control::{
    CONTROL_PREFIX, CloseCause, FeedNumber, FollowerMessage, Offer, PrimaryMessage, control_length, decode_control,
    encode_control,
};
pub(crate) use header::{Compression, DataHeader, DataKind};
pub(crate) use pieces::Pieces;

/// ALPN of this protocol.
pub(crate) const ALPN: &[u8] = b"tailrace-replication/1";
/// Version of this protocol, in `hello` and `welcome`.
pub(crate) const PROTOCOL: u32 = 1;
/// Version byte of control messages.
pub(crate) const CONTROL_VERSION: u8 = 1;

/// A chunk is closed when it has this many raw bytes. Large enough for zstd and for one sync per chunk on the other side,
/// small enough that compressing, sending and applying overlap within a bulk load.
pub(crate) const CHUNK_RAW_TARGET: usize = 2 << 20;
/// Most raw bytes of a chunk.
pub(crate) const CHUNK_RAW_MAX: u32 = 16 << 20;
/// Most bytes of a repair piece.
pub(crate) const PIECE_MAX: u32 = 4 << 20;
/// Most raw bytes of a repair manifest.
pub(crate) const MANIFEST_RAW_MAX: u32 = 256 << 20;
/// Most encoded bytes of a repair manifest.
pub(crate) const MANIFEST_ENCODED_MAX: u32 = 64 << 20;
/// What zstd may add to incompressible bytes.
pub(crate) const ENCODED_SLACK: u32 = 64 << 10;
