//! The way to one replica, shared by its feeds and repairs: its rate limit, what may be under way, and the form in which
//! chunks go.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{Connection, SendStream};
use tailrace_wal::Clock;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{
    bucket::{Bucket, TAKE_BYTES_MAX},
    chunk::INLINE_BYTES,
    figures::Figures,
    form::{Choice, Gauge},
    schedule::Schedule,
};
use crate::{
    CompressionPolicy, ReplicaFlow, ReplicaLinkStatus,
    transport::CODE_DONE,
    wire::{Compression, DataHeader, Pieces},
};

/// Bytes per permit of the budget.
const UNIT: usize = 1 << 10;
/// Smaller chunks are a few commits at the log's end, which somebody waits for: compression saves a packet or two of them, and
/// decompressing one alone takes 15 µs. Where a link is too slow for single commits, credit makes chunks of many.
const PAYS_MIN: usize = 4 << 10;
/// Two large chunks: while one is on its way, the next one is read and compressed.
const WAY_BYTES_MIN: u64 = 12 << 20;
/// Round trips at the fastest rate measured (what BBR calls the bandwidth-delay product). Twice, so that a link that turns out
/// faster is filled in a few round trips; and twice again, because what is under way is counted as it was before
/// compression.
const WAY_TRIPS: f64 = 4.0;

/// See the module.
#[derive(Debug)]
pub(crate) struct ReplicaLink {
    connection: Connection,
    clock: Arc<dyn Clock>,
    figures: Arc<Figures>,
    flow: ReplicaFlow,
    /// Whoever holds it is the next to take from it: in order of arrival, so that feeds and repairs share.
    bucket: Option<tokio::sync::Mutex<Bucket>>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    /// Whoever holds it is the next to get room.
    next: tokio::sync::Mutex<()>,
    freed: Arc<Notify>,
    shortest_trip: Mutex<Duration>,
    schedule: Mutex<Schedule>,
    gauge: Mutex<Gauge>,
    choice: Mutex<Choice>,
}

/// Room for something that is to be sent; it comes back when the replica has acknowledged it, or nobody sends it.
#[derive(Debug)]
pub(crate) struct Room {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.permit.take().is_some() {
            self.freed.notify_waiters();
        }
    }
}

impl ReplicaLink {
    pub(crate) fn new(
        connection: Connection,
        clock: Arc<dyn Clock>,
        figures: Arc<Figures>,
        flow: ReplicaFlow,
        send_bytes: u64,
    ) -> Arc<Self> {
        let now = clock.monotonic();
        let units = usize::try_from(send_bytes / UNIT as u64).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize >> 3);
        Arc::new(Self {
            bucket: flow.rate_limit.map(|rate| tokio::sync::Mutex::new(Bucket::new(rate, now))),
            choice: Mutex::new(Choice::new(flow.compression, now)),
            connection,
            clock,
            figures,
            flow,
            budget: Arc::new(Semaphore::new(units)),
            budget_units: units as u32,
            next: tokio::sync::Mutex::default(),
            freed: Arc::default(),
            shortest_trip: Mutex::new(Duration::MAX),
            schedule: Mutex::default(),
            gauge: Mutex::default(),
        })
    }

    /// The form of the next chunk, which has so many bytes.
    pub(crate) fn next_form(&self, bytes: usize) -> Compression {
        if bytes < PAYS_MIN && self.flow.compression == CompressionPolicy::Auto {
            return Compression::Raw;
        }
        let link = self.gauge.lock().bytes_per_second();
        self.choice.lock().next(link, self.figures.speed(), self.clock.monotonic())
    }

    /// Room for something of this length, if there is some now. What is small needs none.
    pub(crate) fn try_room(&self, bytes: usize) -> Option<Room> {
        let units = self.units(bytes);
        if units == 0 {
            return Some(self.hold(None));
        }
        let _next = self.next.try_lock().ok()?;
        if !self.keeps_way_short(bytes) {
            return None;
        }
        self.budget.clone().try_acquire_many_owned(units).ok().map(|permit| self.hold(Some(permit)))
    }

    /// Waits for room; in order of arrival.
    pub(crate) async fn room(&self, bytes: usize) -> Room {
        let units = self.units(bytes);
        if units == 0 {
            return self.hold(None);
        }
        let _next = self.next.lock().await;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.keeps_way_short(bytes) {
                break;
            }
            freed.await;
        }
        // Never closed.
        self.hold(self.budget.clone().acquire_many_owned(units).await.ok())
    }

    fn hold(&self, permit: Option<OwnedSemaphorePermit>) -> Room {
        Room { permit, freed: self.freed.clone() }
    }

    /// Whether no more is under way with so many bytes than keeps the link busy. What waits beyond that arrives no sooner,
    /// costs memory and the processor time to read it early, and stands before whatever comes next.
    fn keeps_way_short(&self, bytes: usize) -> bool {
        let under_way = self.in_flight_bytes();
        if under_way == 0 {
            return true;
        }
        let trip = {
            let mut shortest = self.shortest_trip.lock();
            *shortest = (*shortest).min(self.connection.rtt());
            *shortest
        };
        let rate = self.gauge.lock().bytes_per_second().unwrap_or_default();
        under_way + bytes as u64 <= WAY_BYTES_MIN + (WAY_TRIPS * rate * trip.as_secs_f64()) as u64
    }

    /// Sends a header and its body on a stream of its own, as fast as the limit allows. When it is given up on the way,
    /// the stream is reset: the replica then takes nothing of it.
    pub(crate) async fn send(
        self: &Arc<Self>,
        header: &DataHeader,
        body: impl Into<Pieces>,
        room: Room,
    ) -> Result<(), String> {
        let body = body.into();
        let length = DataHeader::LEN + body.len();
        self.figures.sent(length, header.raw_len);
        let is_small = length <= INLINE_BYTES;
        let tag = self.schedule.lock().next(header.feed, length, is_small);
        let departure = self.gauge.lock().departs(self.clock.monotonic());
        let stream = self.connection.open_uni().await.map_err(|error| error.to_string())?;
        let mut stream = Sending { stream, finished: false };
        // Only a stream that has ended cannot be given one.
        let _ = stream.stream.set_priority(tag.priority());
        let mut pieces = body.into_pieces();
        pieces.insert(0, Bytes::copy_from_slice(&header.encode()));
        if self.bucket.is_none() {
            stream.stream.write_all_chunks(&mut pieces).await.map_err(|error| error.to_string())?;
        } else {
            for piece in pieces {
                self.write_slowly(&mut stream.stream, piece).await?;
            }
        }
        stream.stream.finish().map_err(|error| error.to_string())?;
        stream.finished = true;
        if !is_small {
            let (link, acknowledged) = (self.clone(), stream.stream.stopped());
            tokio::spawn(async move {
                if let Ok(None) = acknowledged.await {
                    link.schedule.lock().served(tag);
                    link.gauge.lock().arrived(departure, length as u64, link.clock.monotonic());
                }
                drop(room);
            });
        }
        Ok(())
    }

    /// For those who look.
    pub(crate) fn status(&self) -> ReplicaLinkStatus {
        ReplicaLinkStatus {
            compressed: self.choice.lock().form() == Compression::Zstd,
            bytes_per_second: self.gauge.lock().bytes_per_second().map(|rate| rate as u64),
            rate_limit: self.flow.rate_limit,
            in_flight_bytes: self.in_flight_bytes(),
        }
    }

    fn in_flight_bytes(&self) -> u64 {
        (self.budget_units as usize - self.budget.available_permits()) as u64 * UNIT as u64
    }

    async fn write_slowly(&self, stream: &mut SendStream, mut bytes: Bytes) -> Result<(), String> {
        while !bytes.is_empty() {
            let slice = bytes.split_to(bytes.len().min(TAKE_BYTES_MAX));
            self.take(slice.len()).await;
            stream.write_chunk(slice).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn take(&self, bytes: usize) {
        let Some(bucket) = &self.bucket else { return };
        let mut bucket = bucket.lock().await;
        while let Err(wait) = bucket.take(bytes, self.clock.monotonic()) {
            tokio::time::sleep(wait).await;
        }
    }

    fn units(&self, bytes: usize) -> u32 {
        if bytes <= INLINE_BYTES {
            return 0;
        }
        // One thing larger than the whole budget may go alone.
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.budget_units)
    }
}

/// A stream that is reset when it is dropped halfway; by itself it would be finished there.
struct Sending {
    stream: SendStream,
    finished: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(CODE_DONE);
        }
    }
}
