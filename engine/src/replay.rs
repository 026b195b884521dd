//! Replay: the log's records after the last flush, through the same apply as ever.

use std::sync::Arc;

use tailrace_wal::{Frame, Lsn, RecordKind, Seq};

use crate::{
    CreateDatabase, DatabaseVersion, DeadLetter, Engine, EngineError, Operation, Result,
    choice::choose,
    commit::ended_fact,
    config::planted,
    database::Database,
    ddl::empty_version,
    effect::{Committed, Origin, decode_effects, invalid},
    held::{HeldFragment, assemble, transaction_key},
    system::decode_facts,
};

/// A replay at start. Nothing else writes or applies meanwhile.
pub(crate) struct Replay<'a> {
    engine: &'a Arc<Engine>,
    replayed: u64,
    /// Empty but where a bug is planted.
    aborted: Vec<HeldFragment>,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(engine: &'a Arc<Engine>) -> Self {
        Self { engine, replayed: 0, aborted: Vec::new() }
    }

    /// Applies everything after `from` that is not applied yet. Returns how many transactions that were.
    pub(crate) fn run(mut self, from: Lsn) -> Result<u64> {
        let mut tail = self.engine.log.replay(from)?;
        while let Some(frame) = tail.try_next()? {
            self.frame(frame)?;
        }
        Ok(self.replayed)
    }

    fn frame(&mut self, frame: Frame) -> Result<()> {
        let history = frame.header.history;
        if history == self.engine.system.lock().position.history {
            return self.system_frame(&frame);
        }
        let database = match self.engine.database(history) {
            Some(database) => database,
            None => match self.begin_history(&frame) {
                Some(database) => database,
                None => return Ok(()),
            },
        };
        {
            let applying = database.applying.lock();
            if frame.lsn <= applying.replay_after || applying.version.stopped.is_some() {
                return Ok(());
            }
        }
        if let Err(error) = self.database_frame(&database, frame) {
            let reason = format!(
                "its log could not be replayed: {error}; rebuild this copy from a replica or a backup, or start a \
                 version of the program that knows the record"
            );
            tracing::error!(database = database.name, reason, "database stopped");
            database.alter(
                |version, _| version.stopped = Some(reason),
                |version, ended| self.engine.publish(version, ended),
            );
        }
        Ok(())
    }

    fn system_frame(&mut self, frame: &Frame) -> Result<()> {
        let mut system = self.engine.system.lock();
        if frame.header.kind != RecordKind::Commit || frame.header.seq <= system.position.seq {
            return Ok(());
        }
        check_continues(&system.position, frame)?;
        for fact in decode_facts(&frame.payload)? {
            if let crate::SystemFact::Ended { history, .. } = &fact {
                self.engine.unrecorded_ends.lock().retain(
                    |missing| !matches!(missing, crate::SystemFact::Ended { history: ended, .. } if ended == history),
                );
            }
            system.fold(fact);
        }
        let header = &frame.header;
        system.advance(frame.lsn, header.position(), header.restart_seq, header.commit_time);
        drop(system);
        self.follow_facts(frame.lsn);
        Ok(())
    }

    /// Brings databases in line with the facts up to an LSN: roles, switches, tables that are chosen, histories that are
    /// followed or over.
    fn follow_facts(&self, lsn: Lsn) {
        let databases: Vec<_> = self.engine.databases.read().values().cloned().collect();
        for database in databases {
            let id = database.id;
            let (role, replicated, choice, ended) = {
                let system = self.engine.system.lock();
                (system.role(id), system.replicated(id), system.choice(id), system.ended.contains_key(&id))
            };
            if ended {
                self.engine.end_here(&database);
            } else {
                let version = database.version();
                let replay_after = database.applying.lock().replay_after;
                if version.role != role || version.replicated != replicated || version.choice != choice {
                    database.alter(
                        |version, changes| {
                            (version.role, version.replicated) = (role, replicated);
                            // What was chosen before a repair says nothing of what it brought.
                            match lsn <= replay_after {
                                true => version.choice = choice,
                                false => choose(version, changes, choice),
                            }
                        },
                        |version, ended| self.engine.publish(version, ended),
                    );
                }
            }
        }
        let followed: Vec<_> = {
            let system = self.engine.system.lock();
            system.followed().map(|(id, name)| (id, name.to_owned(), system.role(id))).collect()
        };
        for (id, name, role) in followed {
            if let crate::Role::Replica { primary } = role
                && self.engine.database(id).is_none()
            {
                self.engine.install_followed(id, name, primary);
            }
        }
    }

    /// A history that the manifest does not know begins with CREATE DATABASE.
    fn begin_history(&self, frame: &Frame) -> Option<Arc<Database>> {
        let (role, replicated, choice) = {
            let system = self.engine.system.lock();
            if system.ended.contains_key(&frame.header.history) {
                return None;
            }
            let id = frame.header.history;
            (system.role(id), system.replicated(id), system.choice(id))
        };
        let first = frame.payload.directory.parts.first()?;
        if frame.header.kind != RecordKind::Commit
            || frame.header.seq != Seq(1)
            || Operation::from_code(first.operation) != Some(Operation::CreateDatabase)
        {
            return None;
        }
        let body: CreateDatabase = serde_json::from_slice(&frame.payload.part_bytes(0)).ok()?;
        let mut version = empty_version(frame.header.history, body.name, role);
        (version.replicated, version.choice) = (replicated, choice);
        let database = Arc::new(Database::new(Arc::new(version), frame.lsn));
        self.engine.databases.write().insert(frame.header.history, database.clone());
        Some(database)
    }

    fn database_frame(&mut self, database: &Arc<Database>, frame: Frame) -> Result<()> {
        let key = transaction_key(&frame.header);
        let mut held = database.held.lock();
        match frame.header.kind {
            RecordKind::Fragment => {
                let number = frame.header.fragment.0 as usize;
                if number == 0 {
                    held.remove(&key);
                }
                let entry = held.entry(key);
                entry.registration.get_or_insert_with(|| self.engine.open.register(frame.lsn));
                // A transaction whose first fragments are not retained was over before the last flush.
                if entry.fragments.len() == number {
                    entry.logged(HeldFragment::new(frame.header, frame.payload, None, Some(frame.lsn)));
                    held.spill(self.engine.config.memtable_bytes);
                }
            }
            RecordKind::Abort => {
                let aborted = held.remove(&key);
                if planted!(self.engine.config, ShowsAborted) {
                    self.aborted = aborted.map(|open| open.fragments).unwrap_or_default();
                }
                held.note_abort(key);
            }
            RecordKind::Commit => {
                let open = held.remove(&key);
                held.note_commit();
                drop(held);
                self.commit(database, &frame, open.map(|open| open.fragments).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    fn commit(&mut self, database: &Arc<Database>, frame: &Frame, mut fragments: Vec<HeldFragment>) -> Result<()> {
        let version = database.version();
        let header = &frame.header;
        if header.seq <= version.position.seq {
            #[cfg(feature = "simulation")]
            self.engine.replay_again(database, frame);
            return Ok(());
        }
        check_continues(&version.position, frame)?;
        fragments.iter_mut().try_for_each(|fragment| fragment.recall(&self.engine.log, None))?;
        let (mut effects, directories, bytes, skipped) = if frame.skipped {
            let letter = self.letter(&version, frame, &fragments);
            let payloads = fragments.iter().map(HeldFragment::payload).chain([Ok(&frame.payload)]);
            (
                Vec::new(),
                payloads.map(|payload| payload.map(|payload| payload.directory.clone())).collect::<Result<_>>()?,
                letter.bytes,
                Some(Box::new(letter)),
            )
        } else {
            let (effects, directories, bytes) =
                assemble(&version, header, &frame.payload, None, fragments, Origin::Log)?;
            (effects, directories, bytes, None)
        };
        for fragment in self.aborted.drain(..) {
            effects.extend(decode_effects(&version, fragment.payload()?, Origin::Log)?);
        }
        self.engine.apply_all(
            database,
            [Committed {
                lsn: frame.lsn,
                position: header.position(),
                restart_seq: header.restart_seq,
                commit_time: header.commit_time,
                effects,
                directories,
                bytes,
                skipped,
            }],
        );
        self.replayed += 1;
        if database.applying.lock().ended {
            self.engine.unrecorded_ends.lock().push(ended_fact(&database.version()));
        }
        match &database.version().stopped {
            Some(reason) => {
                Err(EngineError::DatabaseStopped { database: database.name.clone(), reason: reason.clone() })
            }
            None => Ok(()),
        }
    }
}

impl Replay<'_> {
    /// What was said when the transaction was skipped. Where that cannot be read, what its record says.
    fn letter(&self, version: &DatabaseVersion, frame: &Frame, fragments: &[HeldFragment]) -> DeadLetter {
        self.engine.letters.describe(frame.header.history, frame.header.seq).unwrap_or_else(|error| {
            tracing::error!(database = version.name, task = %frame.header.seq, %error, "a dead letter is not there");
            let fragments = fragments.iter().filter_map(|held| Some((held.header, held.payload().ok()?.clone())));
            let records: Vec<_> = fragments.chain([(frame.header, frame.payload.clone())]).collect();
            let reason = format!("unknown: {error}");
            let letter = DeadLetter::of(version, &records, &reason, self.engine.clock.now());
            DeadLetter { discarded: true, ..letter }
        })
    }
}

fn check_continues(position: &tailrace_wal::Position, frame: &Frame) -> Result<()> {
    let header = &frame.header;
    let expected = position.follow(header.epoch, header.kind, header.commit_time, header.payload_hash);
    if expected == header.position() {
        return Ok(());
    }
    Err(invalid(&format!(
        "the record with LSN {} is at {} and does not continue {position}",
        frame.lsn,
        header.position()
    )))
}
