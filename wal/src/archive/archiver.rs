//! What is archived when: one loop that takes sealed segments in LSN order, and never gives up but for a conflict.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{Archive, ArchiveEntry, ArchiveGap, GapHistory, pack::archive_segment};
use crate::{
    CommitTime, HistoryId, Log, LogError, Lsn, Seq, Tail, frame::FrameChecksum, log::command, queue::Item,
    segment::Segment, shared::Shared,
};

/// Settings of an archiver.
#[derive(Debug, Clone)]
pub struct ArchiverConfig {
    /// Longest time that a record waits in a segment that does not fill up before the segment is sealed. Shorter: less
    /// is lost with the node; more and smaller objects. Default 5 minutes.
    pub interval: Duration,
    /// First pause after a failure; it doubles up to `retry_max`. Default 250 ms.
    pub retry_min: Duration,
    /// Longest pause after a failure. Default 30 s.
    pub retry_max: Duration,
}

impl Default for ArchiverConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
        }
    }
}

/// How archiving goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveState {
    /// The archive's manifest has not been read yet.
    Starting,
    /// Everything sealed is archived, or on its way.
    Running,
    /// The last attempt failed; it is tried again.
    Failing,
    /// It cannot go on before somebody has acted; the reason says how.
    Stopped,
}

/// Figures for `system.archive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveStatus {
    /// How it goes.
    pub state: ArchiveState,
    /// Why, where it does not go well.
    pub reason: Option<String>,
    /// Since when the state is this one.
    pub since: CommitTime,
    /// Last record that is archived or in a gap.
    pub archived: Lsn,
    /// Segments in the archive.
    pub segments: u64,
    /// Bytes of these segments' files.
    pub raw_bytes: u64,
    /// Bytes of their objects.
    pub stored_bytes: u64,
    /// Durable records that are not archived.
    pub lag_records: u64,
    /// Bytes of the segments that hold them.
    pub lag_bytes: u64,
    /// Age of the oldest of them, by its commit time.
    pub lag: Duration,
    /// Why the log no longer keeps what is not archived, if so.
    pub lost: Option<String>,
    /// What is missing.
    pub gaps: Vec<ArchiveGap>,
}

/// Archives one log. [`Archiver::run`] does the work; the rest only looks.
#[derive(Debug)]
pub struct Archiver {
    shared: Arc<Shared>,
    archive: Archive,
    config: ArchiverConfig,
    health: Mutex<Health>,
}

#[derive(Debug)]
struct Health {
    state: ArchiveState,
    reason: Option<String>,
    since: CommitTime,
}

/// What one step did.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Archived,
    /// There is nothing sealed that is not archived.
    Idle,
}

/// What is to be done next.
#[derive(Debug)]
enum Next {
    Segment(Arc<Segment>),
    Gap(ArchiveGap),
    Idle,
}

impl Archiver {
    /// Claims the log for an archive: from here on nothing is truncated before it is archived, within the budget of a
    /// pin.
    pub fn new(log: &Log, archive: Archive, config: ArchiverConfig) -> Self {
        let shared = log.shared().clone();
        shared.claim_archive();
        let health = Health { state: ArchiveState::Starting, reason: None, since: shared.clock.now() };
        Self { shared, archive, config, health: Mutex::new(health) }
    }

    /// The archive, for readers. What it knows is always up to date.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Archives whatever is sealed, and seals what has waited for the interval, until the log is closed or a conflict
    /// stops it. Dropping it at any moment leaves the archive consistent.
    pub async fn run(&self) {
        let mut pause = self.config.retry_min;
        let mut is_loaded = false;
        loop {
            let step = async {
                if !is_loaded {
                    self.load().await?;
                    is_loaded = true;
                }
                self.step().await
            };
            let done = match step.await {
                Ok(Step::Archived) => Ok(()),
                Ok(Step::Idle) => {
                    self.running();
                    self.wait().await
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => pause = self.config.retry_min,
                Err(LogError::Closed) => return,
                Err(error @ (LogError::ArchiveConflict { .. } | LogError::Poisoned { .. })) => {
                    tracing::error!("the archive is stopped: {error}");
                    self.set(ArchiveState::Stopped, Some(error.to_string()));
                    return;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.set(ArchiveState::Failing, Some(reason.clone())) {
                        tracing::warn!("archiving the log failed, it is tried again: {reason}");
                    }
                    if self.shared.check_running().is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.config.retry_max);
                }
            }
        }
    }

    /// Archives whatever is sealed now. For the end of a process, and for tests.
    ///
    /// # Errors
    /// The first failure; [`Archiver::run`] would try again.
    pub async fn catch_up(&self) -> Result<(), LogError> {
        self.load().await?;
        while self.step().await? == Step::Archived {}
        self.running();
        Ok(())
    }

    /// How it goes. Blocks on the log's disk for a moment.
    pub fn status(&self) -> ArchiveStatus {
        let claim = self.shared.archive_status();
        let (mut segments, mut raw_bytes, mut stored_bytes) = (0, 0, 0);
        for entry in self.archive.entries() {
            if let ArchiveEntry::Segment(segment) = &*entry {
                segments += 1;
                raw_bytes += segment.raw_bytes;
                stored_bytes += segment.stored_bytes;
            }
        }
        let archived = self.archive.archived();
        let durable = self.shared.marks.durable();
        let oldest = archived.max(Lsn(self.shared.first().0.saturating_sub(1)));
        let oldest = (oldest < durable).then(|| Tail::of_one(self.shared.clone(), oldest).try_next().ok().flatten());
        let now = self.shared.clock.now();
        let lag = oldest.flatten().map_or(0, |frame| now.0.saturating_sub(frame.header.commit_time.0));
        let health = self.health.lock();
        ArchiveStatus {
            state: health.state,
            reason: health.reason.clone(),
            since: health.since,
            archived,
            segments,
            raw_bytes,
            stored_bytes,
            lag_records: durable.0.saturating_sub(archived.0),
            lag_bytes: claim.as_ref().map_or(0, |claim| claim.held_bytes),
            lag: Duration::from_micros(lag.max(0).unsigned_abs()),
            lost: claim.and_then(|claim| claim.lost),
            gaps: self.archive.gaps(),
        }
    }

    /// Reads the manifest and finds out whether it is of this log.
    async fn load(&self) -> Result<(), LogError> {
        self.archive.refresh().await?;
        let (archived, end) = (self.archive.archived(), self.shared.marks.appended());
        if archived > end {
            return Err(conflict(archived, format!("this node's log ends at LSN {end}")));
        }
        self.archive.set_current(true);
        self.shared.advance_archive(archived);
        Ok(())
    }

    async fn step(&self) -> Result<Step, LogError> {
        match self.next()? {
            Next::Idle => Ok(Step::Idle),
            Next::Gap(gap) => {
                let (from, to) = (gap.from, gap.to);
                tracing::warn!("the archive has a gap from LSN {from} to {to}: {}", gap.reason);
                self.archive.append(ArchiveEntry::Gap(gap)).await?;
                self.shared.advance_archive(to);
                Ok(Step::Archived)
            }
            Next::Segment(segment) => {
                let archived = match archive_segment(&self.shared, self.archive.store(), segment.clone()).await {
                    // Truncated meanwhile, as the claim is lost: the next step finds the gap.
                    Err(LogError::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound
                            && self.shared.first() > segment.header.first =>
                    {
                        return Ok(Step::Archived);
                    }
                    Err(LogError::ReplayTruncated { .. }) => return Ok(Step::Archived),
                    archived => archived?,
                };
                let (last, ratio) = (archived.last, (archived.raw_bytes, archived.stored_bytes));
                self.archive.append(ArchiveEntry::Segment(archived)).await?;
                self.shared.advance_archive(last);
                tracing::debug!("archived the log up to LSN {last}: {} bytes in {}", ratio.0, ratio.1);
                self.running();
                Ok(Step::Archived)
            }
        }
    }

    /// Decides. The log's segments follow the archive's without a hole, or there is a gap, or it is another log.
    fn next(&self) -> Result<Next, LogError> {
        let archived = self.archive.archived();
        let (first, boundaries) = self.shared.retained_boundaries();
        if first > archived.next() {
            return Ok(Next::Gap(self.gap(archived.next(), Lsn(first.0 - 1), &boundaries)));
        }
        let (segment, has_successor) = {
            let segments = self.shared.segments.read();
            let segment = segments.get(&archived.next()).cloned();
            (segment, segments.range(archived.next()..).nth(1).is_some())
        };
        let Some(segment) = segment else {
            return Err(conflict(archived, "no segment of this node's log begins after it".into()));
        };
        if let Some(ArchiveEntry::Segment(last)) = self.archive.covering(archived).as_deref()
            && segment.header.predecessor.checksum != FrameChecksum(last.last_checksum().0)
        {
            return Err(conflict(archived, "this node's log holds other records there".into()));
        }
        // Only the next segment's existence states that all of this one is durable.
        let is_ready = segment.state().sealed && has_successor;
        Ok(if is_ready { Next::Segment(segment) } else { Next::Idle })
    }

    fn gap(&self, from: Lsn, to: Lsn, boundaries: &BTreeMap<HistoryId, Seq>) -> ArchiveGap {
        let known = self.archive.ends();
        let missing = boundaries.iter().filter_map(|(history, upto)| {
            let after = known.get(history).copied().unwrap_or_default();
            (after < *upto).then_some(GapHistory { history: *history, after, upto: *upto })
        });
        let histories = missing.collect();
        let lost = self.shared.archive_status().and_then(|claim| claim.lost);
        let reason = match lost {
            Some(reason) => format!("the archive's claim on the log was lost: {reason}"),
            None if from == Lsn(1) => "they were truncated before the log was archived for the first time".into(),
            None => "they were truncated while the log was not archived".into(),
        };
        ArchiveGap { from, to, found_at: self.shared.clock.now(), reason, histories }
    }

    /// Waits until a segment is sealed, and seals one that has waited for the interval.
    async fn wait(&self) -> Result<(), LogError> {
        let mut durable = self.shared.marks.watch();
        loop {
            durable.borrow_and_update();
            let rolled = self.shared.rolled.notified();
            if self.has_unsealed() {
                tokio::select! {
                    () = rolled => return Ok(()),
                    () = tokio::time::sleep(self.config.interval) => {
                        command(&self.shared, Item::Roll).await?;
                        return Ok(());
                    }
                    closed = until_closed(&mut durable) => return self.ended(closed),
                }
            }
            tokio::select! {
                () = rolled => return Ok(()),
                changed = durable.changed() => if changed.is_err() { return self.ended(()) },
            }
        }
    }

    fn ended(&self, (): ()) -> Result<(), LogError> {
        Err(self.shared.poison.get().unwrap_or(LogError::Closed))
    }

    /// Whether the segment that is written has records.
    fn has_unsealed(&self) -> bool {
        let active = self.shared.segments.read().values().next_back().cloned();
        active.is_some_and(|active| active.last() >= active.header.first)
    }

    fn running(&self) {
        self.set(ArchiveState::Running, None);
    }

    /// `true` when it is news.
    fn set(&self, state: ArchiveState, reason: Option<String>) -> bool {
        let mut health = self.health.lock();
        let is_news = health.state != state || health.reason != reason;
        if health.state != state {
            if health.state == ArchiveState::Failing {
                tracing::info!("archiving the log goes on");
            }
            health.since = self.shared.clock.now();
        }
        health.state = state;
        health.reason = reason;
        is_news
    }
}

impl Drop for Archiver {
    /// Nobody archives any more: nothing is kept for it.
    fn drop(&mut self) {
        self.archive.set_current(false);
        *self.shared.archive.lock() = None;
    }
}

async fn until_closed(durable: &mut tokio::sync::watch::Receiver<Lsn>) {
    while durable.changed().await.is_ok() {}
}

fn conflict(archived: Lsn, reason: String) -> LogError {
    LogError::ArchiveConflict { object: format!("the archive of this node, which goes up to LSN {archived}"), reason }
}
