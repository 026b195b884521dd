//! Reads frames from a client, in a task of its own: a disconnect is seen while a statement runs.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use super::frontend::violation;
use crate::{Result, SqlError};

/// Longest message after start-up, bytes, and the most that may wait for a connection that is busy. PostgreSQL's limit
/// is 1 GiB; nothing here needs more than a statement.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Most memory taken ahead of bytes that have not arrived: a length costs a client nothing to claim.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// Most frames that wait for a busy connection.
const FRAMES_MAX: usize = 1024;

/// A message whose body is not parsed yet. The memory it takes counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Message type.
    pub(crate) tag: u8,
    /// What follows the length.
    pub(crate) body: Bytes,
    _memory: OwnedSemaphorePermit,
}

/// Reads until the client says goodbye or breaks the protocol, or is gone, which fires `gone`. `buffer` holds what was
/// read before.
pub(crate) fn spawn<R>(read: R, buffer: BytesMut, gone: CancellationToken) -> mpsc::Receiver<Result<Frame>>
where
    R: AsyncRead + Unpin + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let memory = Arc::new(Semaphore::new(MESSAGE_BYTES_MAX));
    tokio::spawn(async move {
        let reading = async {
            let mut read = FrameReader { read, buffer };
            loop {
                let (message, last) = match read.next(&memory).await {
                    Ok(Some(frame)) => {
                        let last = frame.tag == b'X';
                        (Ok(frame), last)
                    }
                    Ok(None) => return gone.cancel(),
                    // The connection task answers it when what came before is done.
                    Err(error) => (Err(error), true),
                };
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        };
        // The receiver is dropped when the connection task ends.
        tokio::select! {
            () = reading => {}
            () = sender.closed() => {}
        }
    });
    receiver
}

struct FrameReader<R> {
    read: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// The next frame; `None` at the end of the stream, also within a frame, and when the connection breaks.
    async fn next(&mut self, memory: &Arc<Semaphore>) -> Result<Option<Frame>> {
        if !self.fill(5).await {
            return Ok(None);
        }
        let tag = self.buffer[0];
        let length = (&self.buffer[1..5]).get_i32();
        let body = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
        let Some(body) = body else {
            return Err(violation(format!("a message of {length} bytes")));
        };
        if body > MESSAGE_BYTES_MAX {
            return Err(SqlError::new("54000", format!("a message of {body} bytes is too long"))
                .detail(format!("The limit is {MESSAGE_BYTES_MAX} bytes."))
                .hint("load data with COPY … FROM '<file>'"));
        }
        let permits = u32::try_from(body).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(memory).acquire_many_owned(permits).await else {
            return Ok(None);
        };
        if !self.fill(5 + body).await {
            return Ok(None);
        }
        self.buffer.advance(5);
        let body = self.buffer.split_to(body).freeze();
        Ok(Some(Frame { tag, body, _memory: permit }))
    }

    /// Reads until `bytes` are buffered; `false` when they will not come.
    async fn fill(&mut self, bytes: usize) -> bool {
        while self.buffer.len() < bytes {
            self.buffer.reserve((bytes - self.buffer.len()).clamp(4 << 10, READ_AHEAD_BYTES));
            match self.read.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn frames_come_in_order_and_the_end_fires() {
        let (mut client, server) = tokio::io::duplex(64);
        let gone = CancellationToken::new();
        let mut frames = spawn(server, BytesMut::from(&b"Q\0\0\0\x06a"[..]), gone.clone());
        client.write_all(b"\0S\0\0\0\x04").await.unwrap();
        let first = frames.recv().await.unwrap().unwrap();
        assert_eq!((first.tag, &first.body[..]), (b'Q', &b"a\0"[..]));
        assert_eq!(frames.recv().await.unwrap().unwrap().tag, b'S');
        drop(client);
        gone.cancelled().await;
        assert!(frames.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_claimed_length_over_the_limit_is_refused_at_once() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut frames = spawn(server, BytesMut::new(), CancellationToken::new());
        client.write_all(b"Q\x7f\xff\xff\xff").await.unwrap();
        assert_eq!(frames.recv().await.unwrap().unwrap_err().sqlstate, "54000");
    }

    #[tokio::test]
    async fn a_negative_length_is_a_violation() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut frames = spawn(server, BytesMut::new(), CancellationToken::new());
        client.write_all(b"Q\xff\xff\xff\xff").await.unwrap();
        assert_eq!(frames.recv().await.unwrap().unwrap_err().sqlstate, "08P01");
    }
}
