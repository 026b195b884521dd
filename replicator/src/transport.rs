//! QUIC, bounded, and the framing of what goes over it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    ReplicationError, Result, TlsConfig,
    tls::lasting_secret,
    wire::{CONTROL_PREFIX, Compression, DataHeader, aligned_buffer, control_length, decode_control, encode_control},
};

/// What a connection may buffer here.
const RECEIVE_WINDOW: u32 = 64 << 20;
/// What a stream may: more than a chunk, so that a chunk never waits for the round trip.
const STREAM_WINDOW: u32 = 16 << 20;
const SEND_WINDOW: u64 = 64 << 20;
const DATA_STREAMS_MAX: u32 = 256;
/// A peer whose machine is gone is noticed after this; one that was only started anew says so itself, see [`listen`].
const IDLE_TIMEOUT_MS: u32 = 5_000;
/// Taken for the round trip before it was measured: a first packet that a restarting peer missed is sent again after
/// thrice this, where the standard's third of a second would take one second.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// A peer that was started anew is asked no later than after this. A packet of some 40 bytes each way.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How long a last word may take to arrive before the connection is closed anyway.
const FAREWELL: Duration = Duration::from_secs(1);
/// Control messages read and not yet handled.
const CONTROL_QUEUE: usize = 256;

/// Close codes; the reason goes with them as text.
pub(crate) const CODE_DONE: VarInt = VarInt::from_u32(0);
pub(crate) const CODE_VIOLATION: VarInt = VarInt::from_u32(1);
pub(crate) const CODE_REFUSED: VarInt = VarInt::from_u32(2);

/// Limits of a connection. A replica (`receives_data`) lets the primary open data streams; nobody opens more than the one
/// bidirectional stream, which is the replica's.
pub(crate) fn transport(receives_data: bool) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(u32::from(!receives_data)))
        .max_concurrent_uni_streams(VarInt::from_u32(if receives_data { DATA_STREAMS_MAX } else { 0 }))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .datagram_receive_buffer_size(None);
    Arc::new(transport)
}

/// The socket of a primary. To packets of connections from before its start it answers with a stateless reset (RFC 9000,
/// section 10.3), so that a replica does not wait for its idle timeout when the primary's process was killed: what proves a
/// reset genuine, and what tells own connection ids from others', is the same after every start.
pub(crate) fn listen(tls: &TlsConfig, server: ServerConfig, address: SocketAddr) -> Result<Endpoint> {
    let reset_key = lasting_secret(tls, "stateless reset")?;
    let ids = lasting_secret(tls, "connection ids")?.number();
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    let bound = std::net::UdpSocket::bind(address).and_then(|socket| {
        let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("there is no runtime"))?;
        Endpoint::new(endpoint, Some(server), socket, runtime)
    });
    bound.map_err(|error| {
        ReplicationError::Configuration(format!(
            "cannot listen for replication on {address}: {error}; set replication in section [listen]"
        ))
    })
}

/// Reads control messages until the stream or the reader ends; the last item says why it ended.
pub(crate) fn read_control<M>(mut stream: RecvStream) -> mpsc::Receiver<Result<M, String>>
where
    M: DeserializeOwned + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(CONTROL_QUEUE);
    tokio::spawn(async move {
        loop {
            let message = match next_message(&mut stream).await {
                Ok(Some(message)) => Ok(message),
                Ok(None) => return,
                Err(reason) => Err(reason),
            };
            let ended = message.is_err();
            if sender.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    receiver
}

/// `None`: the stream or connection ended; an error: the peer broke the protocol.
async fn next_message<M: DeserializeOwned>(stream: &mut RecvStream) -> Result<Option<M>, String> {
    let mut prefix = [0; CONTROL_PREFIX];
    if stream.read_exact(&mut prefix).await.is_err() {
        return Ok(None);
    }
    let mut body = vec![0; control_length(prefix)?];
    if stream.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    decode_control(&body).map(Some)
}

/// Sends control messages one after another.
#[derive(Debug)]
pub(crate) struct ControlSender {
    stream: SendStream,
}

impl ControlSender {
    pub(crate) fn new(stream: SendStream) -> Self {
        // Control goes before data.
        let _ = stream.set_priority(1);
        Self { stream }
    }

    /// Sends one message. The error is about the connection.
    pub(crate) async fn send<M: Serialize>(&mut self, message: &M) -> Result<(), String> {
        let bytes = encode_control(message)?;
        self.stream.write_all(&bytes).await.map_err(|error| error.to_string())
    }

    /// Lets what was sent arrive, then closes the connection.
    pub(crate) async fn farewell(mut self, connection: &Connection, code: VarInt, reason: &str) {
        if self.stream.finish().is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.stream.stopped()).await;
        }
        close(connection, code, reason);
    }
}

/// Closes with a reason that fits a packet.
pub(crate) fn close(connection: &Connection, code: VarInt, reason: &str) {
    let mut end = reason.len().min(500);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    connection.close(code, &reason.as_bytes()[..end]);
}

/// Why a data stream gave nothing.
#[derive(Debug)]
pub(crate) enum DataError {
    /// The connection or stream ended.
    Gone,
    /// The peer broke the protocol.
    Violation(String),
}

/// Reads a data stream's header.
pub(crate) async fn read_header(stream: &mut RecvStream) -> Result<DataHeader, DataError> {
    let mut bytes = [0; DataHeader::LEN];
    match stream.read_exact(&mut bytes).await {
        Ok(()) => DataHeader::decode(&bytes).map_err(DataError::Violation),
        Err(quinn::ReadExactError::FinishedEarly(len)) => {
            Err(DataError::Violation(format!("a data stream ends after {len} bytes")))
        }
        Err(quinn::ReadExactError::ReadError(_)) => Err(DataError::Gone),
    }
}

/// Reads a body whose header was accepted, as it was sent. The second value is where the body begins in the buffer, which
/// is aligned so that an uncompressed body is used where it lies.
pub(crate) async fn read_body(stream: &mut RecvStream, header: &DataHeader) -> Result<Bytes, DataError> {
    let length = header.encoded_len as usize;
    let (mut buffer, start) = aligned_buffer(length);
    while buffer.len() < start + length {
        match stream.read_chunk(start + length - buffer.len(), true).await {
            Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
            Ok(None) => {
                let got = buffer.len() - start;
                return Err(DataError::Violation(format!("a body of {length} bytes ends after {got}")));
            }
            Err(_) => return Err(DataError::Gone),
        }
    }
    match stream.read_chunk(1, true).await {
        Ok(None) => Ok(Bytes::from(buffer).slice(start..)),
        Ok(Some(_)) => Err(DataError::Violation(format!("a body goes on after its {length} bytes"))),
        Err(_) => Err(DataError::Gone),
    }
}

/// Checks a body against its header and decompresses it. Call it on a blocking thread.
pub(crate) fn open_body(header: &DataHeader, encoded: Bytes) -> Result<Bytes, String> {
    let hash = xxh3_64(&encoded);
    if hash != header.body_hash {
        return Err(format!("a body has hash {hash:016x}, its header says {:016x}", header.body_hash));
    }
    match header.compression {
        Compression::Raw => Ok(encoded),
        Compression::Zstd => crate::wire::decompress(&encoded, header.raw_len as usize),
    }
}
