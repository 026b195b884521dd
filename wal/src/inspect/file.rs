//! One segment: its frames from the first on, and what lies behind the last.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{
    InspectedFrame, Visitor,
    folder::{Opened, RESTORE, Read},
    footer::FooterCheck,
    history::HistoryCheck,
    report::{Condition, Damage, SegmentReport},
};
use crate::{
    FileOffset, HistoryId, LogConfig, LogError, Lsn,
    error::io_error,
    footer::Footer,
    frame::FrameHeader,
    recovery::scan::{ScannedFrame, Window, look_behind, read_frame},
    segment::{FORMAT_VERSION, Predecessor, SEGMENT_HEADER_LEN},
};

/// What to do about a footer whose records are whole.
const RESEAL: &str = "its records are whole; the next start of the node makes the footer again";

/// Reads one segment.
pub(super) struct SegmentReader<'a> {
    segment: &'a Opened,
    floor: Lsn,
    replaced: &'a BTreeMap<HistoryId, Lsn>,
    histories: &'a mut BTreeMap<HistoryId, HistoryCheck>,
    window: Window<'a>,
    /// Where the next frame is expected.
    at: u64,
    last: Predecessor,
    records: u64,
    stated: Lsn,
    footer: Option<FooterCheck>,
}

/// How the reading of frames ended.
enum End {
    /// All that the footer, or the next segment, counts.
    Counted,
    /// At a place that is no frame.
    NoFrame(String),
    /// At a frame that is not what it should be.
    Damaged { offset: u64, reason: String },
    /// The visitor has seen enough.
    Stopped,
}

/// What a place in the file is.
enum Place {
    Frame(Box<ScannedFrame>),
    Other(String),
}

impl<'a> SegmentReader<'a> {
    pub(super) fn new(
        config: &'a LogConfig,
        segment: &'a Opened,
        floor: Lsn,
        replaced: &'a BTreeMap<HistoryId, Lsn>,
        histories: &'a mut BTreeMap<HistoryId, HistoryCheck>,
    ) -> Self {
        Self {
            window: Window::new(config, &segment.path, &*segment.file),
            floor,
            replaced,
            histories,
            at: SEGMENT_HEADER_LEN as u64,
            last: segment.header.predecessor,
            records: 0,
            stated: segment.header.predecessor.last,
            footer: None,
            segment,
        }
    }

    /// Reads all of it.
    pub(super) fn read(mut self, visitor: &mut dyn Visitor) -> Result<ControlFlow<(), Read>, LogError> {
        let condition = match self.find_footer()? {
            Some(damage) => Condition::Damaged(damage),
            None => loop {
                let condition = match self.frames(visitor)? {
                    End::Stopped => return Ok(ControlFlow::Break(())),
                    End::Damaged { offset, reason } => Some(self.damaged(offset, reason)),
                    End::Counted if self.footer.is_some() => Some(self.sealed()?),
                    End::Counted => Some(self.followed()?),
                    End::NoFrame(reason) => self.decide(reason)?,
                };
                if let Some(condition) = condition {
                    break condition;
                }
            },
        };
        let Opened { path, file, header, follows, .. } = self.segment;
        let report = SegmentReport {
            path: path.clone(),
            bytes: file.len().map_err(|error| io_error("stat", path, error))?,
            version: Some(FORMAT_VERSION),
            node: Some(header.node),
            salt: Some(header.salt),
            first: header.first,
            last: self.last.last,
            records: self.records,
            durable: self.stated,
            follows: *follows,
            condition,
        };
        Ok(ControlFlow::Continue(Read { report, last: self.last }))
    }

    /// Looks for the footer, unless the next segment says that what it counts is not what counts.
    fn find_footer(&mut self) -> Result<Option<Damage>, LogError> {
        let Opened { path, file, header, successor, .. } = self.segment;
        let footer = match Footer::read(path, &**file, header.salt) {
            Ok(footer) => footer,
            Err(LogError::Invalid { reason }) => {
                let offset = FileOffset(SEGMENT_HEADER_LEN as u64);
                return Ok(Some(Damage { path: path.clone(), offset, reason, remedy: RESTORE }));
            }
            Err(error) => return Err(error),
        };
        let is_counted = |footer: &Footer| {
            footer.first == header.first && successor.is_none_or(|successor| successor.last >= footer.last.last)
        };
        if let Some(footer) = footer.filter(is_counted) {
            self.stated = self.stated.max(footer.durable);
            self.footer = Some(FooterCheck::new(footer, header.salt));
        }
        Ok(None)
    }

    /// Reads frames as long as there are any that count.
    fn frames(&mut self, visitor: &mut dyn Visitor) -> Result<End, LogError> {
        loop {
            let is_counted = match (&self.footer, self.segment.successor) {
                (Some(footer), _) => self.at < footer.frames_end(),
                (None, Some(successor)) => self.last.last < successor.last,
                (None, None) => true,
            };
            if !is_counted {
                return Ok(End::Counted);
            }
            let frame = match self.place()? {
                Place::Frame(frame) => frame,
                Place::Other(reason) => return Ok(End::NoFrame(reason)),
            };
            let offset = self.at;
            if let Err((offset, reason)) = self.take(&frame)? {
                return Ok(End::Damaged { offset, reason });
            }
            let FrameHeader { lsn, durable, frame_len, skipped, record, .. } = &frame.header;
            let frame = InspectedFrame {
                path: &self.segment.path,
                offset: FileOffset(offset),
                bytes: *frame_len,
                lsn: *lsn,
                durable: *durable,
                skipped: *skipped,
                header: record.as_ref(),
                payload: &frame.payload,
            };
            if visitor.frame(&frame).is_break() {
                return Ok(End::Stopped);
            }
        }
    }

    fn place(&mut self) -> Result<Place, LogError> {
        Ok(match read_frame(&mut self.window, &self.segment.header, self.at, self.last.last)? {
            Ok(frame) => Place::Frame(Box::new(frame)),
            Err(reason) => Place::Other(reason),
        })
    }

    /// Whether a frame stands here now: what was read ahead may be older than what a running node has written since.
    fn is_frame_now(&mut self) -> Result<bool, LogError> {
        self.window = Window::new(self.window.config, &self.segment.path, &*self.segment.file);
        Ok(matches!(self.place()?, Place::Frame(_)))
    }

    /// Takes a frame whose checksums are right; the inner error is where and why it is wrong all the same.
    fn take(&mut self, frame: &ScannedFrame) -> Result<Result<(), (u64, String)>, LogError> {
        let FrameHeader { lsn, durable, frame_len, checksum, ref record, .. } = frame.header;
        let offset = self.at;
        self.at += u64::from(frame_len);
        self.stated = self.stated.max(durable);
        let Some(record) = record else { return Ok(Ok(())) };
        if durable >= lsn {
            return Ok(Err((offset, format!("the record of LSN {lsn} states LSN {durable} durable"))));
        }
        let before = Lsn(lsn.0.saturating_sub(1));
        let is_replaced = self.replaced.get(&record.history).is_some_and(|replaced| *replaced >= before);
        let may_break =
            is_replaced || self.footer.as_ref().is_none_or(|footer| footer.breaks(record.history) >= Some(before));
        let check = self.histories.entry(record.history).or_default();
        let folded = match check.take(record, &frame.payload, lsn, frame_len, may_break) {
            Ok(folded) => folded,
            Err(reason) => return Ok(Err((offset, reason))),
        };
        self.last = Predecessor { last: lsn, checksum };
        self.records += 1;
        match &mut self.footer {
            Some(footer) => footer.take(&mut self.window, record, &folded, lsn, offset, frame_len),
            None => Ok(Ok(())),
        }
    }

    /// All frames that the footer counts are read.
    fn sealed(&mut self) -> Result<Condition, LogError> {
        let Some(footer) = self.footer.take() else { return Ok(Condition::Sealed) };
        Ok(match footer.finish(self.at, self.last) {
            Ok(()) => self.end_or(Condition::Sealed),
            Err((offset, reason)) => self.damaged(offset, reason),
        })
    }

    /// All records that the next segment follows are read, and there is no footer that says so.
    fn followed(&mut self) -> Result<Condition, LogError> {
        let Some(successor) = self.segment.successor else { return Ok(Condition::Active) };
        if self.last != successor {
            let reason =
                format!("the record of LSN {} is another than the one that the next segment follows", successor.last);
            return Ok(self.damaged(self.at, reason));
        }
        loop {
            match self.place()? {
                Place::Frame(frame) if frame.header.record.is_none() => {
                    self.at += u64::from(frame.header.frame_len);
                }
                Place::Frame(_) => return Ok(Condition::Superseded { offset: FileOffset(self.at) }),
                Place::Other(_) if self.sealed_now()?.is_some() => return Ok(Condition::Sealed),
                Place::Other(_) => break,
            }
        }
        let reason = "the footer is damaged or missing".to_owned();
        let damage = Damage { path: self.path(), offset: FileOffset(self.at), reason, remedy: RESEAL };
        Ok(Condition::Damaged(damage))
    }

    /// What it means that no frame stands here. `None`: one does by now, or the segment was sealed further on.
    fn decide(&mut self, reason: String) -> Result<Option<Condition>, LogError> {
        if self.is_frame_now()? {
            return Ok(None);
        }
        let expected = self.last.last.next();
        let successor = self.segment.successor.map_or(Lsn::ZERO, |successor| successor.last);
        if self.footer.is_none()
            && successor == Lsn::ZERO
            && let Some(frames_end) = self.sealed_now()?
        {
            // Sealed since it was opened: nothing of it changes any more.
            return Ok(match self.is_frame_now()? {
                true => None,
                false if frames_end == self.at => Some(Condition::Sealed),
                false => Some(self.damaged(self.at, format!("{reason}, where LSN {expected} was"))),
            });
        }
        let counted = self.stated.max(successor).max(self.floor);
        let Some(behind) = look_behind(&mut self.window, &self.segment.header, self.at, reason)? else {
            if counted < expected && self.footer.is_none() {
                return Ok(Some(Condition::Active));
            }
            let reason =
                format!("the records end before LSN {expected}, LSN {} is known to be durable", counted.max(expected));
            return Ok(Some(self.damaged(self.at, reason)));
        };
        let counted = counted.max(behind.stated_later);
        if counted < expected {
            let (offset, bytes, reason) = (behind.offset, behind.bytes, behind.reason);
            return Ok(Some(Condition::Tail { offset, bytes, reason }));
        }
        // The later frame was read after this one; by now this one must be there.
        if self.is_frame_now()? {
            return Ok(None);
        }
        let reason = format!("{}, where LSN {expected} was; LSN {counted} is known to be durable", behind.reason);
        Ok(Some(self.damaged(self.at, reason)))
    }

    /// End of the frames by a footer that was not there at first.
    fn sealed_now(&self) -> Result<Option<u64>, LogError> {
        let Opened { path, file, header, .. } = self.segment;
        let footer = Footer::read(path, &**file, header.salt)?;
        Ok(footer.map(|footer| footer.frames_end).filter(|end| *end >= self.at))
    }

    /// `condition`, unless the log ends here and others have seen more of it.
    fn end_or(&self, condition: Condition) -> Condition {
        let is_last = self.segment.successor.is_none();
        if is_last && self.last.last < self.floor {
            let reason = format!("the log ends with LSN {}, LSN {} is known to be durable", self.last.last, self.floor);
            return self.damaged(self.at, reason);
        }
        condition
    }

    fn damaged(&self, offset: u64, reason: String) -> Condition {
        Condition::Damaged(Damage { path: self.path(), offset: FileOffset(offset), reason, remedy: RESTORE })
    }

    fn path(&self) -> PathBuf {
        let path: &Path = &self.segment.path;
        path.into()
    }
}
