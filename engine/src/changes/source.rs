//! Where a feed's records come from: the log, and where it is archived, the archive before it.

use tailrace_wal::{Archive, ArchiveTail, Frame, HistoryId, Log, LogError, Lsn, RecordKind, Seq, Tail};

use super::blocking;
use crate::{EngineError, Result};

/// Opens sources of one history.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) log: Log,
    pub(super) archive: Option<Archive>,
    pub(super) history: HistoryId,
    /// Its name, for errors.
    pub(super) database: String,
}

/// A reader of one history's records.
#[derive(Debug)]
pub(super) enum Source {
    Log(Box<Tail>),
    Archived(Box<ArchiveTail>),
}

impl Opener {
    /// A reader that gives every record that a feed behind `after` needs, and some before.
    pub(super) async fn open(&self, after: Seq, restart: Option<Seq>) -> Result<Source> {
        let restart = match restart {
            Some(restart) => restart,
            None => self.restart_of(after).await?,
        };
        let source = match self.source(restart.min(after)).await {
            // What is gone before `after` ended before it: a reader could not start at `after` otherwise.
            Err(LogError::Truncated { retained_after, .. }) if retained_after <= after => {
                self.source(retained_after).await
            }
            source => source,
        };
        source.map_err(|error| self.gone(error, after.next()))
    }

    /// One record.
    pub(super) async fn record(&self, lsn: Lsn) -> Result<Frame, LogError> {
        let log = self.log.clone();
        match (blocking(move || log.read(lsn)).await, &self.archive) {
            (Err(LogError::ReplayTruncated { .. }), Some(archive)) => {
                archive.replay(Some(&self.log), Lsn(lsn.0.saturating_sub(1))).next().await
            }
            (read, _) => read,
        }
    }

    /// What a reader's error means for a feed that wanted `seq`.
    pub(super) fn gone(&self, error: LogError, wanted: Seq) -> EngineError {
        let first = match &error {
            LogError::Truncated { retained_after, .. } => Some(retained_after.next()),
            LogError::ArchiveGap { missing: Some(missing), .. } => Some(missing.upto.next()),
            LogError::ArchiveGap { .. } | LogError::ReplayTruncated { .. } => {
                self.log.retained_after(self.history).map(Seq::next)
            }
            _ => None,
        };
        match first {
            Some(first) => EngineError::ChangesGone { database: self.database.clone(), wanted, first },
            None => error.into(),
        }
    }

    async fn source(&self, after: Seq) -> Result<Source, LogError> {
        match &self.archive {
            Some(archive) => {
                let tail = archive.tail(Some(&self.log), self.history, after).await?;
                Ok(Source::Archived(Box::new(tail)))
            }
            None => {
                let (log, history) = (self.log.clone(), self.history);
                let tail = blocking(move || log.tail(history, after)).await?;
                Ok(Source::Log(Box::new(tail)))
            }
        }
    }

    /// Where a reader that holds everything up to `after`, but no fragments, has to start.
    async fn restart_of(&self, after: Seq) -> Result<Seq> {
        if after == Seq::ZERO {
            return Ok(after);
        }
        let (log, history) = (self.log.clone(), self.history);
        if let Some(restart) = blocking(move || Ok::<_, LogError>(log.restart_at(history, after))).await? {
            return Ok(restart);
        }
        let Some(archive) = &self.archive else { return Ok(after) };
        let before = Seq(after.0 - 1);
        let mut tail = match archive.tail(Some(&self.log), history, before).await {
            Ok(tail) => tail,
            Err(LogError::Truncated { .. } | LogError::ArchiveGap { .. }) => return Ok(after),
            Err(error) => return Err(error.into()),
        };
        loop {
            let header = tail.next().await?.header;
            if header.kind == RecordKind::Commit && header.seq >= after {
                return Ok(header.restart_seq);
            }
        }
    }
}

impl Source {
    /// Whether a record is there.
    pub(super) fn is_behind(&mut self) -> Result<bool, LogError> {
        match self {
            Self::Log(tail) => tail.is_behind(),
            Self::Archived(tail) => tail.is_behind(),
        }
    }

    /// Waits for the next record. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Frame, LogError> {
        match self {
            Self::Log(tail) => tail.next().await,
            Self::Archived(tail) => tail.next().await,
        }
    }
}
