//! From a backup to a later point of the same history, by its log.
//!
//! The log's transactions are applied to a version that nobody sees, with the code that applies them everywhere; rows in
//! memory become datafiles whenever there are many. What comes out is installed like the backup itself.

use std::{collections::HashMap, sync::Arc};

use tailrace_wal::{Archive, ArchiveEntry, ArchiveTail, Frame, LogError, RecordKind, Seq, Tail};

use super::{PointInTime, Restore, RestorePoint, install::Staged};
use crate::{
    Chunk, DatabaseVersion, Datafile, EngineError, PartitionVersion, Result, TableChoice, TableVersion, WriteRequest,
    apply::{Changes, apply},
    archive::open_archive,
    backup::manifest::BackupDatabase,
    effect::{Committed, Origin, invalid},
    held::{HeldFragment, TransactionKey, assemble, transaction_key},
    ids::unique,
    partition::datafile_path,
    write_datafile,
};

/// Payload bytes of rows in memory at which they are written.
const HOT_BYTES: u64 = 64 << 20;

/// What replays.
pub(super) struct Replayed<'a, 'b> {
    pub(super) restore: &'a Restore<'b>,
    pub(super) database: &'a BackupDatabase,
    pub(super) staged: &'a Staged,
}

/// The log of a history.
enum Source {
    Log(Box<Tail>),
    Archived(Box<ArchiveTail>),
}

impl Source {
    async fn next(self) -> std::result::Result<(Self, Option<Frame>), LogError> {
        match self {
            Self::Log(mut tail) => {
                let read = tokio::task::spawn_blocking(move || tail.try_next().map(|frame| (tail, frame))).await;
                let (tail, frame) = read.map_err(|_| LogError::Closed)??;
                Ok((Self::Log(tail), frame))
            }
            Self::Archived(mut tail) => {
                let frame = tail.try_next().await?;
                Ok((Self::Archived(tail), frame))
            }
        }
    }
}

impl Replayed<'_, '_> {
    /// Brings a version at the backup's position to the point that is wanted.
    pub(super) async fn run(&self, mut version: DatabaseVersion, until: &PointInTime) -> Result<DatabaseVersion> {
        let from = self.database.position.seq;
        let is_behind = match until.target {
            RestorePoint::Seq(seq) => seq < from,
            RestorePoint::Time(time) => time < self.database.commit_time,
        };
        if is_behind {
            return Err(EngineError::Invalid(format!(
                "{} lies before backup {}, which is at seq {from}; name an earlier one",
                until.target, self.restore.manifest.id
            )));
        }
        // What is chosen of a history that is followed here concerns that copy alone.
        version.choice = TableChoice::all();
        let ids: Vec<_> = version.tables().filter(|table| table.left_out).map(|table| table.table.id).collect();
        for id in ids {
            if let Some(table) = version.tables.get(&id) {
                let table = TableVersion { left_out: false, ..TableVersion::clone(table) };
                version.tables.insert_mut(id, Arc::new(table));
            }
        }
        if RestorePoint::Seq(from) != until.target {
            self.replay(&mut version, until).await?;
        }
        match until.target {
            RestorePoint::Seq(seq) if version.position.seq < seq => Err(self.ends(version.position.seq, until)),
            _ => Ok(version),
        }
    }

    async fn replay(&self, version: &mut DatabaseVersion, until: &PointInTime) -> Result<()> {
        let unreadable = |error: LogError, at: Seq, archive: Option<&Archive>| self.unreadable(error, at, archive);
        let archive = self.archive(until).map_err(|error| unreadable(error, version.position.seq, None))?;
        let archive = archive.as_ref();
        let opened = self.open(until, archive).await;
        let mut source = opened.map_err(|error| unreadable(error, version.position.seq, archive))?;
        let mut changes = Changes::default();
        let mut held: HashMap<TransactionKey, Vec<HeldFragment>> = HashMap::new();
        let mut bytes = 0;
        loop {
            let next = source.next().await.map_err(|error| unreadable(error, version.position.seq, archive))?;
            source = next.0;
            let Some(frame) = next.1 else { break };
            let key = transaction_key(&frame.header);
            match frame.header.kind {
                RecordKind::Fragment => {
                    let fragments = held.entry(key).or_default();
                    // One that comes again counts once.
                    if frame.header.fragment.0 as usize == fragments.len() {
                        fragments.push(HeldFragment::new(frame.header, frame.payload, None, None));
                    }
                }
                RecordKind::Abort => drop(held.remove(&key)),
                RecordKind::Commit if frame.header.seq <= version.position.seq => drop(held.remove(&key)),
                RecordKind::Commit => {
                    let is_beyond = match until.target {
                        RestorePoint::Seq(seq) => frame.header.seq > seq,
                        RestorePoint::Time(time) => frame.header.commit_time > time,
                    };
                    if is_beyond {
                        break;
                    }
                    let fragments = held.remove(&key).unwrap_or_default();
                    bytes += self.commit(version, &mut changes, &frame, fragments)?;
                    if bytes >= HOT_BYTES {
                        self.write(version, &mut changes).await?;
                        bytes = 0;
                    }
                    if RestorePoint::Seq(version.position.seq) == until.target {
                        break;
                    }
                }
            }
        }
        self.write(version, &mut changes).await
    }

    /// The archive that is named, or this node's own.
    fn archive(&self, until: &PointInTime) -> std::result::Result<Option<Archive>, LogError> {
        let Some(url) = &until.archive else { return Ok(self.restore.engine.archive().cloned()) };
        let archive = open_archive(url, self.restore.manifest.node).map_err(|error| LogError::Archive {
            operation: "open",
            object: url.to_string(),
            reason: error.to_string(),
        })?;
        Ok(Some(archive))
    }

    /// The log behind the backup. That of this node goes on where its own archive ends.
    async fn open(&self, until: &PointInTime, archive: Option<&Archive>) -> std::result::Result<Source, LogError> {
        let engine = self.restore.engine;
        let (history, after) = (self.database.position.history, self.database.restart_seq);
        match archive {
            Some(archive) => {
                archive.refresh().await?;
                let log = until.archive.is_none().then(|| engine.log());
                Ok(Source::Archived(Box::new(archive.tail(log, history, after).await?)))
            }
            None => {
                let log = engine.log().clone();
                let tail = tokio::task::spawn_blocking(move || log.tail(history, after)).await;
                Ok(Source::Log(Box::new(tail.map_err(|_| LogError::Closed)??)))
            }
        }
    }

    /// Applies one transaction. Returns the bytes of its rows.
    fn commit(
        &self,
        version: &mut DatabaseVersion,
        changes: &mut Changes,
        frame: &Frame,
        fragments: Vec<HeldFragment>,
    ) -> Result<u64> {
        let header = &frame.header;
        let expected = version.position.follow(header.epoch, header.kind, header.commit_time, header.payload_hash);
        if expected != header.position() {
            return Err(EngineError::Forked(format!(
                "the log does not continue backup {}: behind {} it has {}",
                self.restore.manifest.id,
                version.position,
                header.position()
            )));
        }
        if frame.skipped {
            return Err(invalid(&format!(
                "transaction {} was skipped on the node whose log this is; restore to seq {} at most, or from its primary",
                header.seq, version.position.seq
            )));
        }
        let (effects, directories, bytes) = assemble(version, header, &frame.payload, None, fragments, Origin::Peer)?;
        let committed = Committed {
            lsn: frame.lsn,
            position: header.position(),
            restart_seq: header.restart_seq,
            commit_time: header.commit_time,
            effects,
            directories,
            bytes,
            skipped: None,
        };
        if apply(version, committed, changes)?.0 {
            return Err(EngineError::Invalid(format!(
                "database {:?} was dropped with transaction {}; restore to a point before it",
                self.database.name, header.seq
            )));
        }
        Ok(bytes)
    }

    /// Makes datafiles of all rows in memory.
    async fn write(&self, version: &mut DatabaseVersion, changes: &mut Changes) -> Result<()> {
        let engine = self.restore.engine;
        changes.retired.clear();
        for (id, key) in std::mem::take(&mut changes.partitions) {
            let Some(table) = version.tables.get(&id).cloned() else { continue };
            let Some(partition) = table.partition(&key).filter(|partition| !partition.chunks.is_empty()) else {
                continue;
            };
            let path = datafile_path(&version.name, &table.table.name, &table.scheme, &key, unique(&*engine.clock))?;
            self.staged.add(path.clone());
            let chunks: Vec<Chunk> = partition.chunks.iter().map(|chunk| Chunk::clone(chunk)).collect();
            let meta =
                write_datafile(&engine.store, WriteRequest { table: &table.table, path, chunks: &chunks }).await?;
            let mut partition = PartitionVersion::clone(partition);
            partition.chunks.clear();
            partition.datafiles.push(Datafile::new(meta, engine.garbage.clone()));
            let mut table = TableVersion::clone(&table);
            table.partitions.insert_mut(key, Arc::new(partition));
            version.tables.insert_mut(id, Arc::new(table));
        }
        Ok(())
    }

    fn ends(&self, seq: Seq, until: &PointInTime) -> EngineError {
        EngineError::Invalid(format!(
            "{} of database {:?} is not there: the log that was read ends at seq {seq}",
            until.target, self.database.name
        ))
    }

    /// What stands between the backup and the point, by its seqs.
    fn unreadable(&self, error: LogError, at: Seq, archive: Option<&Archive>) -> EngineError {
        let (name, history) = (&self.database.name, self.database.position.history);
        let gone = |first: Seq, last: Option<Seq>, reason: String| {
            let which = match last {
                Some(last) if last != first => format!("transactions {first} to {last}"),
                _ => format!("transaction {first}"),
            };
            EngineError::Storage {
                operation: "read",
                object: format!("{which} of database {name:?} (history {history})"),
                reason: format!("{reason}; restore to seq {at} at most, or from a later backup"),
            }
        };
        // The archive's list says what was in a segment that is not there, or damaged.
        let listed = || {
            let entries = archive.map(Archive::entries).unwrap_or_default();
            entries.iter().find_map(|entry| match &**entry {
                ArchiveEntry::Segment(segment) => {
                    let held = segment.histories.iter().find(|held| held.history == history)?;
                    (held.upto > at).then_some(held.upto)
                }
                ArchiveEntry::Gap(_) => None,
            })
        };
        match &error {
            LogError::Archive { .. } | LogError::Corrupt { .. } => match listed() {
                Some(upto) => gone(at.next(), Some(upto), error.to_string()),
                None => error.into(),
            },
            LogError::ArchiveGap { missing: Some(missing), .. } => {
                gone(missing.after.next(), Some(missing.upto), error.to_string())
            }
            LogError::ArchiveGap { missing: None, .. } | LogError::ReplayTruncated { .. } => {
                gone(at.next(), None, error.to_string())
            }
            LogError::Truncated { retained_after, .. } => gone(
                at.next(),
                Some(*retained_after),
                "they are neither in the log nor in an archive that was named (wal.archive, archive => '…')".to_owned(),
            ),
            _ => error.into(),
        }
    }
}
