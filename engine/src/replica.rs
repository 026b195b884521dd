//! A followed history: what arrives from a primary is prepared, appended and applied here.

use std::{collections::HashMap, sync::Arc};

use tailrace_wal::{
    CommitTime, HistoryEnd, HistoryHeader, HistoryId, Payload, Persistence, Position, RecordKind, Run, Seq,
    VerbatimRecord,
};

use crate::{
    DatabaseVersion, DeadLetter, Engine, EngineError, Operation, Result, Role, SystemFact, TaskInfo,
    apply::{Changes, apply, check_left_out},
    check_name,
    commit::ended_fact,
    database::Database,
    ddl::empty_version,
    effect::{Committed, Effect, Origin, decode_effects, invalid},
    held::{
        HeldFragment, HeldTransaction, OpenFragments, TransactionKey, assemble, check_fragments, decode_fragment,
        transaction_key,
    },
};

/// Applies one followed history. One exists per history; calls to `commit` come one at a time, `prepare` in parallel.
#[derive(Debug)]
pub struct Applier {
    engine: Arc<Engine>,
    database: Arc<Database>,
}

/// A record whose parts were decoded and checked against the catalog after all that was prepared before it.
#[derive(Debug)]
pub struct Prepared {
    header: HistoryHeader,
    payload: Payload,
    /// `None` where a fragment cannot be decoded now: its commit decides.
    effects: Option<Vec<Effect>>,
    /// A commit that is to be left out.
    skip: Option<Box<DeadLetter>>,
}

impl Prepared {
    /// The record's header.
    pub fn header(&self) -> &HistoryHeader {
        &self.header
    }
}

/// What one [`Applier::commit`] did.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The history's position here now: applied, readable, not yet durable.
    pub position: Position,
    /// Where a reader at that position has to start.
    pub restart_seq: Seq,
    /// Transactions among the records, in order (none for a run of fragments).
    pub tasks: Vec<TaskInfo>,
    /// The history ended: its last record was DROP DATABASE.
    pub ended: bool,
}

impl Applier {
    /// Which history.
    pub fn history(&self) -> HistoryId {
        self.database.id
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn name(&self) -> &str {
        &self.database.name
    }

    /// Where it stands here: applied position, and where a feed has to start (`Open` sends both).
    pub fn position(&self) -> (Position, Seq) {
        let version = self.database.version();
        (version.position, version.restart_seq)
    }

    /// Decodes and checks one record. Records are prepared in feed order as far as DDL is concerned: a record after DDL
    /// is prepared after that DDL was committed. CPU-bound; call it on a blocking thread. Duplicates (`seq` at or
    /// before the position, fragments that are held) are returned as `None`.
    pub fn prepare(&self, header: HistoryHeader, payload: Payload) -> Result<Option<Prepared>> {
        if header.history != self.database.id {
            return Err(invalid(&format!(
                "a record of history {} in the feed of {}",
                header.history, self.database.id
            )));
        }
        if header.payload_hash != payload.hash {
            return Err(invalid("a record's header and payload do not belong together"));
        }
        if header.restart_seq > header.seq {
            return Err(invalid(&format!("restart seq {} lies after seq {}", header.restart_seq, header.seq)));
        }
        let (version, complete_from, ended) = {
            let applying = self.database.applying.lock();
            (applying.version.clone(), applying.complete_from, applying.ended)
        };
        if ended {
            // What a client wrote into an open transaction after DROP DATABASE, and its abort.
            return Ok(None);
        }
        let here = version.position.seq;
        let key = transaction_key(&header);
        let effects = match header.kind {
            RecordKind::Commit if header.seq <= here => {
                if header.fragment.0 == 0 || complete_from == Seq::ZERO {
                    return Ok(None);
                }
                // Its fragments may have come again, in this run or before: then they are over.
                Some(Vec::new())
            }
            RecordKind::Commit => Some(decode_effects(&version, &payload, Origin::Peer)?),
            RecordKind::Fragment => {
                let held = self.database.held.lock();
                let known = held.get(&key).map(|held| held.fragments.len());
                let again = match known {
                    Some(known) => (header.fragment.0 as usize) < known,
                    // Everything has come here: it is over. After a repair, the run knows what came before it.
                    None => (header.seq < here && complete_from == Seq::ZERO) || held.was_aborted(&key),
                };
                if again {
                    return Ok(None);
                }
                drop(held);
                decode_fragment(&version, &payload)
            }
            RecordKind::Abort => {
                let over = header.seq < here && complete_from == Seq::ZERO;
                if over || self.database.held.lock().was_aborted(&key) {
                    return Ok(None);
                }
                // Its fragments may be in the same run.
                Some(Vec::new())
            }
        };
        Ok(Some(Prepared { header, payload, effects, skip: None }))
    }

    /// Leaves a transaction out that could not be taken: it is appended verbatim and marked as skipped, its position
    /// counts, what it does is kept as a [`crate::DeadLetter`], and the database is DIVERGED. The letter is durable
    /// before the record is written. `reason`: why it is skipped. It must be the next one here, with all of its
    /// fragments; the first and the last record of a history cannot be skipped. `None`: it is here already.
    pub async fn skip(&self, header: HistoryHeader, payload: Payload, reason: String) -> Result<Option<Applied>> {
        if header.history != self.database.id || header.payload_hash != payload.hash {
            return Err(invalid("a record's header and payload or history do not belong together"));
        }
        if header.kind != RecordKind::Commit {
            return Err(invalid("only a committed transaction can be skipped"));
        }
        let version = self.database.version();
        if header.seq <= version.position.seq || self.database.applying.lock().ended {
            return Ok(None);
        }
        let does = |operation: Operation| payload.directory.parts.iter().any(|part| part.operation == operation.code());
        if header.seq == Seq(1) || does(Operation::CreateDatabase) || does(Operation::DropDatabase) {
            return Err(EngineError::Invalid(format!(
                "task {} begins or ends database {:?} and cannot be skipped; if the database is not wanted here, leave it \
                 out of [replication.replica] databases",
                header.seq, version.name
            )));
        }
        // Its fragments are counted when it is committed.
        let letter = DeadLetter::of(&version, &[(header, payload.clone())], &reason, self.engine.clock.now());
        let prepared = Prepared { header, payload, effects: Some(Vec::new()), skip: Some(Box::new(letter)) };
        let (engine, database) = (self.engine.clone(), self.database.clone());
        self.engine.to_the_end(async move { engine.commit_run(database, vec![prepared]).await }).await.map(Some)
    }

    /// Appends a run of prepared records verbatim and applies them, in order, without waiting for the disk.
    pub async fn commit(&self, run: Vec<Prepared>) -> Result<Applied> {
        let (engine, database) = (self.engine.clone(), self.database.clone());
        self.engine.to_the_end(async move { engine.commit_run(database, run).await }).await
    }

    /// Waits until everything committed so far is durable: one sync, however many runs. Then it may be acknowledged.
    pub async fn durable(&self) -> Result<(Position, Seq)> {
        let reached = self.position();
        #[cfg(feature = "simulation")]
        self.engine.keep_position_apart(&self.database).await?;
        self.engine.log.sync().await?;
        Ok(reached)
    }
}

impl Engine {
    /// Opens a followed history: the one that is here already, or a new one at position 0 (logged in the system history
    /// as followed from `primary`). A local database of that name that is not this history is
    /// [`crate::EngineError::AlreadyExists`]: name taken.
    pub async fn follow(self: &Arc<Self>, history: HistoryId, name: &str, primary: &str) -> Result<Arc<Applier>> {
        let (engine, name, primary) = (self.clone(), name.to_owned(), primary.to_owned());
        self.to_the_end(async move { engine.follow_here(history, name, primary).await }).await
    }

    /// Drops this node's copy of a followed history whose end it can no longer fetch record by record.
    pub async fn drop_followed(self: &Arc<Self>, history: HistoryId) -> Result<()> {
        let engine = self.clone();
        self.to_the_end(async move { engine.drop_followed_here(history).await }).await
    }

    async fn follow_here(self: Arc<Self>, history: HistoryId, name: String, primary: String) -> Result<Arc<Applier>> {
        check_name("database", &name)?;
        let _names = self.names.lock().await;
        let taken = || EngineError::AlreadyExists { kind: "database", name: name.clone() };
        if let Some(database) = self.database(history) {
            match &database.version().role {
                Role::Primary => return Err(taken()),
                Role::Replica { primary: known } if *known == primary => {}
                Role::Replica { .. } => {
                    let name = database.name.clone();
                    let fact = SystemFact::Follows { history, name, primary: primary.clone() };
                    self.record_facts(vec![fact]).await?;
                    database.alter(
                        |version, _| version.role = Role::Replica { primary },
                        |version, ended| self.publish(version, ended),
                    );
                    self.databases_changed();
                }
            }
            return Ok(Arc::new(Applier { engine: self.clone(), database }));
        }
        if self.system.lock().ended.contains_key(&history) {
            return Err(EngineError::Invalid(format!("history {history} of database {name:?} has ended here")));
        }
        if self.versions.load().contains_key(&name) {
            return Err(taken());
        }
        let fact = SystemFact::Follows { history, name: name.clone(), primary: primary.clone() };
        self.record_facts(vec![fact]).await?;
        self.log.open_history(HistoryEnd { position: Position::start(history), commit_time: CommitTime::default() })?;
        let database = self.install_followed(history, name, primary);
        self.databases_changed();
        Ok(Arc::new(Applier { engine: self.clone(), database }))
    }

    /// A followed database before its first record.
    pub(crate) fn install_followed(&self, history: HistoryId, name: String, primary: String) -> Arc<Database> {
        let mut version = empty_version(history, name, Role::Replica { primary });
        version.choice = self.system.lock().choice(history);
        let version = Arc::new(version);
        let database = Arc::new(Database::new(version.clone(), self.log.status().appended));
        self.databases.write().insert(history, database.clone());
        self.publish(&version, false);
        database
    }

    async fn drop_followed_here(self: Arc<Self>, history: HistoryId) -> Result<()> {
        let _names = self.names.lock().await;
        let database = self
            .database(history)
            .ok_or_else(|| EngineError::NotFound { kind: "history", name: history.to_string() })?;
        let _following = database.following.lock().await;
        let _latch = database.latch.write().await;
        if database.version().role == Role::Primary {
            return Err(EngineError::Invalid(format!("database {:?} is not followed here", database.name)));
        }
        self.record_facts(vec![ended_fact(&database.version())]).await?;
        self.abort_held(&database).await;
        self.end_here(&database);
        if !database.version().skipped.is_empty() {
            self.forget_letters(database.id).await;
        }
        Ok(())
    }

    /// The history goes no further here: what was open in it must not hold the log for ever.
    async fn abort_held(&self, database: &Arc<Database>) {
        let open = database.held.lock().drain();
        for (key, transaction) in open {
            if transaction.logged > 0 {
                self.abort_transaction(database.id, key.1).await;
            }
        }
    }

    /// Takes a database out of all later versions.
    pub(crate) fn end_here(&self, database: &Arc<Database>) {
        database.applying.lock().ended = true;
        database.alter(crate::apply::retire_all, |version, ended| self.publish(version, ended));
        self.databases.write().remove(&database.id);
        let files = std::mem::take(&mut database.applying.lock().changes.retired);
        self.retired.lock().push((database.id, files));
        database.held.lock().clear();
        self.databases_changed();
    }

    async fn commit_run(self: Arc<Self>, database: Arc<Database>, run: Vec<Prepared>) -> Result<Applied> {
        let _one_at_a_time = database.following.lock().await;
        let done = self.commit_checked(&database, run).await;
        if done.is_err() {
            // What was brought back for a commit would wait in memory for the next attempt.
            database.held.lock().spill(self.config.memtable_bytes);
        }
        done
    }

    async fn commit_checked(&self, database: &Arc<Database>, mut run: Vec<Prepared>) -> Result<Applied> {
        // Nothing is held yet that others wait for.
        self.recall_fragments(database, &run).await?;
        self.write_letters(database, &mut run).await?;
        self.memtable.room().await?;
        let latch = database.latch.read().await;
        let gate = self.gate.read().await;
        self.check_open()?;
        let before = database.version();
        check_followed(database, &before)?;
        let steps = check_run(database, &before, run, self.config.transaction_max_bytes)?;
        let (written, failure) = self.append_steps(database, steps).await;
        let committed = self.take_written(database, written);
        {
            let mut held = database.held.lock();
            if failure.is_some() {
                held.unregister_unlogged();
            }
            held.spill(self.config.memtable_bytes);
        }
        let any = !committed.is_empty();
        if any {
            self.apply_all(database, committed);
        }
        drop((gate, latch));
        let after = database.version();
        let ended = database.applying.lock().ended;
        if ended {
            self.abort_held(database).await;
            if !after.skipped.is_empty() {
                self.forget_letters(database.id).await;
            }
            self.record_end(database).await?;
        }
        if let Some(reason) = &after.stopped {
            return Err(EngineError::DatabaseStopped { database: after.name.clone(), reason: reason.clone() });
        }
        if failure.as_ref().is_some_and(tailrace_wal::LogError::found_no_space) {
            self.space.starve();
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(Applied {
                position: after.position,
                restart_seq: after.restart_seq,
                tasks: database.tasks_between(before.position.seq, after.position.seq),
                ended,
            }),
        }
    }

    /// Brings back into memory what the commits of a run need of fragments that are in the log alone.
    async fn recall_fragments(&self, database: &Arc<Database>, run: &[Prepared]) -> Result<()> {
        for Prepared { header, .. } in run.iter().filter(|record| record.header.kind == RecordKind::Commit) {
            let key = transaction_key(header);
            let mut spilled = database.held.lock().spilled(&key);
            let Some(last) = spilled.iter().filter_map(|fragment| fragment.lsn).max() else { continue };
            self.sync_upto(last).await?;
            let (log, version) = (self.log.clone(), database.version());
            let recalled = tokio::task::spawn_blocking(move || {
                spilled.iter_mut().try_for_each(|fragment| fragment.recall(&log, Some(&version))).map(|()| spilled)
            });
            let recalled = recalled.await.map_err(|_| EngineError::Closed)??;
            database.held.lock().put_back(&key, recalled);
        }
        Ok(())
    }

    /// What open transactions hold of a history that is followed here.
    pub fn open_fragments(&self, history: HistoryId) -> OpenFragments {
        self.database(history).map(|database| database.held.lock().open()).unwrap_or_default()
    }

    /// Keeps what is to be skipped, durably, before its record is written: the log may be truncated.
    async fn write_letters(&self, database: &Arc<Database>, run: &mut [Prepared]) -> Result<()> {
        for Prepared { header, payload, skip, .. } in run {
            let Some(letter) = skip else { continue };
            let version = database.version();
            check_continues(&version, header)?;
            let fragments = database.held.lock().get(&transaction_key(header)).map(|held| held.fragments.clone());
            let fragments = fragments.iter().flatten();
            let mut records: Vec<(HistoryHeader, Payload)> =
                fragments.map(|fragment| Ok((fragment.header, fragment.payload()?.clone()))).collect::<Result<_>>()?;
            check_fragments(header, payload, records.iter().map(|(_, payload)| payload.hash))?;
            records.push((*header, payload.clone()));
            **letter = DeadLetter::of(&version, &records, &letter.reason, letter.skipped_at);
            let (letters, history, letter) = (self.letters.clone(), database.id, letter.clone());
            let written = tokio::task::spawn_blocking(move || letters.write(history, &letter, &records)).await;
            written.map_err(|_| EngineError::Closed)??;
        }
        Ok(())
    }

    /// Appends records in order until one fails: what is written is the beginning of `steps`, and all of that is
    /// returned. A record that is in the log and not applied would be received again, and refused for ever.
    async fn append_steps(
        &self,
        database: &Arc<Database>,
        steps: Vec<Step>,
    ) -> (Vec<(Step, tailrace_wal::Written)>, Option<tailrace_wal::LogError>) {
        let mut appending = Vec::with_capacity(steps.len());
        let mut at_door = None;
        let run = Run::new();
        for step in steps {
            if step.header.kind == RecordKind::Fragment {
                let mut held = database.held.lock();
                let entry = held.entry(transaction_key(&step.header));
                entry.registration.get_or_insert_with(|| self.open.register(self.log.status().appended.next()));
            }
            let skipped = step.is_skipped();
            let record = VerbatimRecord { header: step.header, payload: step.payload.clone(), skipped };
            match self.log.append_in_run(&run, record, Persistence::Async).await {
                Ok(mut queued) => {
                    if self.config.is_by_hand() {
                        // What it says is asked for again below.
                        let _ = queued.written().await;
                    }
                    appending.push((step, queued));
                }
                Err(error) => {
                    at_door = Some(error);
                    break;
                }
            }
        }
        let mut done = Vec::with_capacity(appending.len());
        for (step, mut queued) in appending {
            match queued.written().await {
                Ok(written) => done.push((step, written)),
                Err(error) => return (done, Some(error)),
            }
        }
        (done, at_door)
    }

    /// Holds written fragments and returns the transactions that are to be applied.
    fn take_written(&self, database: &Arc<Database>, written: Vec<(Step, tailrace_wal::Written)>) -> Vec<Committed> {
        let mut held = database.held.lock();
        let mut committed = Vec::new();
        for (step, written) in written {
            let key = transaction_key(&step.header);
            match step.action {
                Action::Hold { effects } => {
                    let lsn = Some(written.lsn);
                    held.entry(key).logged(HeldFragment::new(step.header, step.payload, effects, lsn));
                }
                Action::Abort => {
                    held.remove(&key);
                    held.note_abort(key);
                }
                Action::Commit(body) => {
                    held.remove(&key);
                    held.note_commit();
                    committed.push(Committed {
                        lsn: written.lsn,
                        position: step.header.position(),
                        restart_seq: step.header.restart_seq,
                        commit_time: step.header.commit_time,
                        effects: body.effects,
                        directories: body.directories,
                        bytes: body.bytes,
                        skipped: body.skipped,
                    });
                }
            }
        }
        committed
    }
}

/// A record that was checked and is to be appended.
struct Step {
    header: HistoryHeader,
    payload: Payload,
    action: Action,
}

enum Action {
    Hold { effects: Option<Vec<Effect>> },
    Abort,
    Commit(Body),
}

struct Body {
    effects: Vec<Effect>,
    directories: Vec<tailrace_wal::Directory>,
    bytes: u64,
    skipped: Option<Box<DeadLetter>>,
}

impl Step {
    fn is_skipped(&self) -> bool {
        matches!(&self.action, Action::Commit(body) if body.skipped.is_some())
    }
}

fn check_followed(database: &Arc<Database>, version: &DatabaseVersion) -> Result<()> {
    if let Some(reason) = &version.stopped {
        return Err(EngineError::DatabaseStopped { database: version.name.clone(), reason: reason.clone() });
    }
    if database.applying.lock().ended {
        return Err(EngineError::Invalid(format!("history {} has ended here", version.id)));
    }
    if version.role == Role::Primary {
        return Err(EngineError::Invalid(format!("database {:?} is not followed here", version.name)));
    }
    Ok(())
}

/// Checks a whole run before anything of it is appended: what is appended can be applied.
fn check_run(
    database: &Arc<Database>,
    version: &Arc<DatabaseVersion>,
    run: Vec<Prepared>,
    bytes_max: u64,
) -> Result<Vec<Step>> {
    let held = database.held.lock();
    let complete_from = database.applying.lock().complete_from;
    let mut scratch = DatabaseVersion::clone(version);
    // Fragments of this run, and whether those held before it are still to be counted.
    let mut fresh: HashMap<TransactionKey, Vec<HeldFragment>> = HashMap::new();
    let mut over: Vec<TransactionKey> = Vec::new();
    let mut steps = Vec::with_capacity(run.len());
    let mut early: Vec<(TransactionKey, HeldFragment)> = Vec::new();
    let mut forgotten: Vec<TransactionKey> = Vec::new();
    for Prepared { header, payload, effects, skip } in run {
        let key = transaction_key(&header);
        let before = held.get(&key).filter(|_| !over.contains(&key));
        match header.kind {
            RecordKind::Fragment => {
                let known = before.is_some() || fresh.contains_key(&key);
                let was_here = header.seq < scratch.position.seq && header.seq >= complete_from;
                if !known && (was_here || header.fragment.0 > 0) {
                    // Everything that was written since `complete_from` has come here: it is over, and so is what
                    // follows it. A commit whose fragments are not here is refused.
                    continue;
                }
                let count = before.map_or(0, |held| held.fragments.len()) + fresh.get(&key).map_or(0, Vec::len);
                let number = header.fragment.0 as usize;
                // Fewer: it came again. More: those between were truncated at the primary after its transaction had
                // been aborted. If it was not, its commit says so.
                if number != count {
                    continue;
                }
                let fragment = HeldFragment::new(header, payload.clone(), effects.clone(), None);
                let earlier = fresh.get(&key).into_iter().flatten().map(|fragment| fragment.part_bytes).sum::<u64>();
                if before.map_or(0, HeldTransaction::part_bytes) + earlier + fragment.part_bytes > bytes_max {
                    return Err(EngineError::TransactionTooLarge { database: version.name.clone(), bytes_max });
                }
                // Once some of its fragments wait in memory only, the others join them: the log gets them in order.
                let waits = before.is_some_and(HeldTransaction::waits) || early.iter().any(|(early, _)| *early == key);
                if header.seq < complete_from || waits {
                    early.push((key, fragment.clone()));
                } else {
                    steps.push(Step { header, payload, action: Action::Hold { effects } });
                }
                fresh.entry(key).or_default().push(fragment);
            }
            RecordKind::Abort => {
                let waits = before.is_some_and(HeldTransaction::waits) || early.iter().any(|(early, _)| *early == key);
                // Then the transaction is open in the log, and only a record ends it there.
                let is_logged = before.is_some_and(|held| held.logged > 0) || (fresh.contains_key(&key) && !waits);
                early.retain(|(early, _)| *early != key);
                fresh.remove(&key);
                if is_logged {
                    steps.push(Step { header, payload, action: Action::Abort });
                } else if before.is_some() {
                    forgotten.push(key);
                }
                over.push(key);
            }
            RecordKind::Commit => {
                if header.seq <= scratch.position.seq {
                    // Fragments that came again, for a commit that is here already.
                    early.retain(|(early, _)| *early != key);
                    fresh.remove(&key);
                    if before.is_some_and(|held| held.logged == 0) {
                        forgotten.push(key);
                    }
                    over.push(key);
                    continue;
                }
                check_continues(&scratch, &header)?;
                let mut fragments = before.map(|held| held.fragments.clone()).unwrap_or_default();
                let logged = before.map_or(0, |held| held.logged);
                let waits = before.is_some_and(HeldTransaction::waits) || early.iter().any(|(early, _)| *early == key);
                fragments.extend(fresh.remove(&key).unwrap_or_default());
                over.push(key);
                early.retain(|(early, _)| *early != key);
                check_fragments(&header, &payload, fragments.iter().map(|fragment| fragment.hash))?;
                if waits {
                    // From here on the log needs them. Some may be there, from an attempt that found no space.
                    for fragment in fragments.iter().skip(logged) {
                        let action = Action::Hold { effects: None };
                        steps.push(Step { header: fragment.header, payload: fragment.payload()?.clone(), action });
                    }
                }
                let body = match skip {
                    Some(letter) => skipped_body(&payload, &fragments, letter)?,
                    None => {
                        let (effects, directories, bytes) =
                            assemble(&scratch, &header, &payload, effects, fragments, Origin::Peer)?;
                        Body { effects, directories, bytes, skipped: None }
                    }
                };
                advance(&mut scratch, &header, &body)?;
                steps.push(Step { header, payload, action: Action::Commit(body) });
            }
        }
    }
    drop(held);
    let mut held = database.held.lock();
    for key in forgotten {
        held.remove(&key);
    }
    for (key, fragment) in early {
        held.entry(key).fragments.push(fragment);
    }
    Ok(steps)
}

/// A commit has to continue the chain.
fn check_continues(version: &DatabaseVersion, header: &HistoryHeader) -> Result<()> {
    let expected = version.position.follow(header.epoch, header.kind, header.commit_time, header.payload_hash);
    if expected != header.position() || header.commit_time <= version.commit_time {
        return Err(EngineError::Forked(format!(
            "database {:?} is at {} here, the next record received says {}",
            version.name,
            version.position,
            header.position()
        )));
    }
    Ok(())
}

/// Moves the scratch version over a transaction: DDL in full, rows only as far as their tables are concerned.
fn advance(scratch: &mut DatabaseVersion, header: &HistoryHeader, body: &Body) -> Result<()> {
    let Body { effects, skipped, .. } = body;
    if header.seq == Seq(1) && !matches!(effects.first(), Some(Effect::CreateDatabase(_))) {
        return Err(invalid("a history does not begin with CREATE DATABASE"));
    }
    let mut ddl = Vec::new();
    for effect in effects {
        match effect {
            Effect::Append(append) => {
                let table = scratch.table_by_id(append.table);
                if table.is_none_or(|table| table.table.schema_version != append.schema_version) {
                    return Err(invalid(&format!("rows for a table: {}", scratch.unusable_table(append.table))));
                }
            }
            Effect::DropPartition(dropped) => {
                let table = scratch.table_by_id(dropped.table);
                if table.is_none_or(|table| table.table.schema_version != dropped.schema_version) {
                    let reason = scratch.unusable_table(dropped.table);
                    return Err(invalid(&format!("a partition of a table: {reason}")));
                }
            }
            Effect::LeftOut { table, schema_version, .. } => check_left_out(scratch, *table, *schema_version)?,
            other => ddl.push(other.clone()),
        }
    }
    apply(
        scratch,
        Committed {
            lsn: tailrace_wal::Lsn::ZERO,
            position: header.position(),
            restart_seq: header.restart_seq,
            commit_time: header.commit_time,
            effects: ddl,
            directories: Vec::new(),
            bytes: 0,
            skipped: skipped.clone(),
        },
        &mut Changes::default(),
    )
    .map(drop)
}

/// A transaction that is left out: nothing of it is decoded.
fn skipped_body(payload: &Payload, fragments: &[HeldFragment], letter: Box<DeadLetter>) -> Result<Body> {
    let directories = fragments.iter().map(|fragment| Ok(fragment.payload()?.directory.clone()));
    let mut directories = directories.collect::<Result<Vec<_>>>()?;
    directories.push(payload.directory.clone());
    Ok(Body { effects: Vec::new(), directories, bytes: letter.bytes, skipped: Some(letter) })
}
