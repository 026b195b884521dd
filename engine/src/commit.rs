//! Commit: append, apply, acknowledge.

use std::{collections::BTreeMap, sync::Arc};

use tailrace_wal::{
    Appending, Directory, FragmentNumber, LogError, Lsn, Part, Payload, PayloadHash, Persistence, Record, RecordKind,
    TransactionNumber, Written,
};

use crate::{
    CommitOptions, DatabaseVersion, Durability, Engine, EngineError, Receipt, Result, SystemFact, TableId,
    admission::{Admission, SeenTable},
    config::planted,
    database::Database,
    effect::{Committed, Effect},
    open_transactions::Registration,
    system::encode_facts,
};

/// A transaction of rows that is complete and not committed.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) database: Arc<Database>,
    pub(crate) tables: BTreeMap<TableId, SeenTable>,
    pub(crate) effects: Vec<Effect>,
    /// Parts that are in no fragment.
    pub(crate) parts: Vec<Part>,
    pub(crate) rows: u64,
    pub(crate) fragments: Option<Fragments>,
}

/// What a transaction has written before its commit.
#[derive(Debug)]
pub(crate) struct Fragments {
    pub(crate) number: TransactionNumber,
    pub(crate) hashes: Vec<PayloadHash>,
    pub(crate) directories: Vec<Directory>,
    pub(crate) bytes: u64,
    /// Fragments that the writer has not taken yet, as far as known.
    pub(crate) appending: Vec<Appending>,
    pub(crate) registration: Registration,
    /// Not even the first is in the log: there is nothing to abort.
    pub(crate) none_written: bool,
}

impl Fragments {
    /// Waits until all fragments are written: a commit must not name one that is not.
    pub(crate) async fn written(&mut self) -> Result<()> {
        for (index, mut appending) in self.appending.drain(..).enumerate() {
            if let Err(error) = appending.written().await {
                self.none_written = index == 0 && error.is_full();
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl Engine {
    /// Commits a transaction of rows. On an error before the append, fragments are followed by an abort record.
    pub(crate) async fn commit(self: Arc<Self>, sealed: Sealed, options: CommitOptions) -> Result<Receipt> {
        let durability = options.durability.unwrap_or(match self.config.persistence {
            Persistence::Sync => Durability::Durable,
            Persistence::Async => Durability::Written,
        });
        let engine = self.clone();
        let (appending, receipt) =
            self.to_the_end(async move { engine.commit_once(sealed, &options, durability).await }).await?;
        // It is in the log and applied: who goes away from here on leaves nothing half done, and who waits does so where it
        // is, not in another task.
        if durability == Durability::Durable {
            match appending {
                Some(_) if planted!(self.config, AcknowledgesEarly) => {}
                Some(appending) => {
                    appending.durable().await.map_err(|source| indeterminate(&receipt, source))?;
                }
                None => self.wait_durable(&receipt).await?,
            }
        }
        Ok(receipt)
    }

    /// Appends and applies, unless a commit with this key did so before: nothing is appending then.
    async fn commit_once(
        self: &Arc<Self>,
        sealed: Sealed,
        options: &CommitOptions,
        durability: Durability,
    ) -> Result<(Option<Appending>, Receipt)> {
        let database = sealed.database.clone();
        let claim = match &options.idempotency_key {
            None => None,
            Some(key) => match database.keys.claim(key).await {
                Ok(Ok(claim)) => Some(claim),
                Err(error) => {
                    self.abort_fragments(&database, sealed.fragments).await;
                    return Err(error);
                }
                Ok(Err(receipt)) => {
                    self.abort_fragments(&database, sealed.fragments).await;
                    return Ok((None, receipt));
                }
            },
        };
        let (appending, receipt) = self.commit_sealed(sealed, options, durability).await?;
        drop(claim);
        Ok((Some(appending), receipt))
    }

    async fn commit_sealed(
        self: &Arc<Self>,
        mut sealed: Sealed,
        options: &CommitOptions,
        durability: Durability,
    ) -> Result<(Appending, Receipt)> {
        let database = sealed.database.clone();
        let mut fragments = sealed.fragments.take();
        let outcome = self.append_sealed(&database, sealed, &mut fragments, options, durability).await;
        match &outcome {
            // Whether the commit record survives is for the next start to say.
            Ok(_) | Err(EngineError::Log(LogError::Poisoned { .. })) => {}
            Err(error) => {
                if matches!(error, EngineError::Log(error) if error.found_no_space()) {
                    self.space.starve();
                }
                self.abort_fragments(&database, fragments).await;
            }
        }
        outcome
    }

    /// Admits, appends and applies. After an error that is not [`LogError::Poisoned`], no commit record was written.
    async fn append_sealed(
        &self,
        database: &Arc<Database>,
        sealed: Sealed,
        fragments: &mut Option<Fragments>,
        options: &CommitOptions,
        durability: Durability,
    ) -> Result<(Appending, Receipt)> {
        if sealed.rows > 0 {
            self.memtable.room().await?;
        }
        let (mut hashes, mut directories, mut bytes) = (Vec::new(), Vec::new(), 0);
        if let Some(fragments) = fragments {
            fragments.written().await?;
            hashes = std::mem::take(&mut fragments.hashes);
            directories = std::mem::take(&mut fragments.directories);
            bytes = fragments.bytes;
        }
        let count = u32::try_from(directories.len()).unwrap_or(u32::MAX);
        let payload = Payload::new(sealed.parts, hashes, options.idempotency_key.clone())?;
        directories.push(payload.directory.clone());
        bytes += payload.encoded_len() as u64;
        let record = Record {
            history: database.id,
            kind: RecordKind::Commit,
            transaction: fragments.as_ref().map(|fragments| fragments.number),
            fragment: FragmentNumber(count),
            payload,
        };
        let persistence = match durability {
            Durability::Durable => Persistence::Sync,
            Durability::Written => Persistence::Async,
        };
        let body = Body { effects: sealed.effects, directories, bytes };
        let frees = body.frees();
        let mut alone = false;
        let (admission, (appending, written)) = loop {
            let admission = self.admit_commit(database, &sealed.tables, alone).await?;
            match self.append_record(record.clone(), persistence, frees).await {
                // What a flush had written, or a failed one had taken, is free for what makes space.
                Err(error) if frees && !alone && error.is_full() => alone = true,
                appended => break (admission, appended?),
            }
        };
        self.apply_written(database, &written, body).await?;
        drop(admission);
        Ok((appending, receipt(&written, sealed.rows)))
    }

    /// Commits DDL that was admitted, and waits until it is durable.
    pub(crate) async fn commit_ddl(
        &self,
        database: &Arc<Database>,
        admission: Admission,
        part: Part,
        effect: Effect,
    ) -> Result<Receipt> {
        let payload = Payload::new(vec![part], Vec::new(), None)?;
        let body = Body {
            effects: vec![effect],
            directories: vec![payload.directory.clone()],
            bytes: payload.encoded_len() as u64,
        };
        let record = Record {
            history: database.id,
            kind: RecordKind::Commit,
            transaction: None,
            fragment: FragmentNumber(0),
            payload,
        };
        let (appending, written) = self.append_and_apply(database, record, Persistence::Sync, body).await?;
        drop(admission);
        let receipt = receipt(&written, 0);
        appending.durable().await.map_err(|source| indeterminate(&receipt, source))?;
        Ok(receipt)
    }

    /// Appends an admitted record and applies it in its turn. The caller holds its [`Admission`] until this returns.
    async fn append_and_apply(
        &self,
        database: &Arc<Database>,
        record: Record,
        persistence: Persistence,
        body: Body,
    ) -> Result<(Appending, Written)> {
        let (appending, written) = self.append_record(record, persistence, body.frees()).await?;
        self.apply_written(database, &written, body).await?;
        Ok((appending, written))
    }

    /// Applies what an appended record does, in its turn.
    async fn apply_written(&self, database: &Arc<Database>, written: &Written, body: Body) -> Result<()> {
        self.apply_all(
            database,
            [Committed {
                lsn: written.lsn,
                position: written.position,
                restart_seq: written.restart_seq,
                commit_time: written.commit_time,
                effects: body.effects,
                directories: body.directories,
                bytes: body.bytes,
                skipped: None,
            }],
        );
        database.applied(written.position.seq).await
    }

    /// Appends a record. Where there is no space for it, what can be freed is. One that `frees` space gets what the
    /// reserve has.
    async fn append_record(
        &self,
        record: Record,
        persistence: Persistence,
        frees: bool,
    ) -> Result<(Appending, Written)> {
        if !frees {
            let outcome = await_written(self.log.append(record, persistence)).await;
            if let Err(EngineError::Log(error)) = &outcome
                && error.found_no_space()
            {
                self.space.starve();
            }
            return outcome;
        }
        let append = || await_written(self.log.append_for_space(record.clone(), persistence));
        let outcome = self.space.needed("a DROP", append).await;
        if self.space.is_short() {
            self.space.press();
        }
        outcome
    }

    /// Applies transactions in their turn and tells whoever watches.
    pub(crate) fn apply_all(&self, database: &Arc<Database>, committed: impl IntoIterator<Item = Committed>) {
        let outcome = database.apply(committed, |version, ended| self.publish(version, ended));
        if outcome.bytes > 0 {
            self.memtable.add(outcome.bytes, self.clock.monotonic());
        }
        if let Some(reason) = &outcome.failed {
            tracing::error!(database = database.name, reason, "database stopped");
        }
        if outcome.ended {
            // Known as ended at once; the fact's own record follows.
            {
                let mut system = self.system.lock();
                system.fold(ended_fact(&database.version()));
                // A flush between the two takes the history out of the manifest: the fact must be in it then.
                system.moved = true;
            }
            self.databases.write().remove(&database.id);
            self.paused_repairs.forget(database.id);
            let files = std::mem::take(&mut database.applying.lock().changes.retired);
            self.retired.lock().push((database.id, files));
        }
        if outcome.version.is_some() {
            self.applied_changed();
        }
        if outcome.ended || outcome.failed.is_some() {
            self.databases_changed();
        }
    }

    /// Appends facts to the system history and folds them; durable on return.
    pub(crate) async fn record_facts(&self, facts: Vec<SystemFact>) -> Result<()> {
        self.record_decided(|| Ok((facts, ()))).await
    }

    /// The same for facts that follow from what is known while nobody else writes to the history; none: nothing is written.
    pub(crate) async fn record_decided<T>(&self, decide: impl FnOnce() -> Result<(Vec<SystemFact>, T)>) -> Result<T> {
        self.check_open()?;
        let _one_at_a_time = self.system_writing.lock().await;
        let (facts, decided) = decide()?;
        if facts.is_empty() {
            return Ok(decided);
        }
        let gate = self.gate.read().await;
        let history = self.system.lock().position.history;
        let record = Record {
            history,
            kind: RecordKind::Commit,
            transaction: None,
            fragment: FragmentNumber(0),
            payload: encode_facts(&facts)?,
        };
        // Small, and the end of a database is among them.
        let append = || await_written(self.log.append_for_space(record.clone(), Persistence::Sync));
        let (appending, written) = self.space.needed("a fact of the cluster", append).await?;
        {
            let mut system = self.system.lock();
            facts.into_iter().for_each(|fact| system.fold(fact));
            system.advance(written.lsn, written.position, written.restart_seq, written.commit_time);
        }
        drop(gate);
        appending.durable().await?;
        Ok(decided)
    }

    /// Ends a transaction that has written fragments. Best effort: a start aborts what is left open.
    pub(crate) async fn abort_fragments(&self, database: &Arc<Database>, fragments: Option<Fragments>) {
        if let Some(fragments) = fragments {
            if !fragments.none_written {
                self.abort_transaction(database.id, fragments.number).await;
            }
            drop(fragments.registration);
        }
    }

    /// Writes an abort record.
    pub(crate) async fn abort_transaction(&self, history: tailrace_wal::HistoryId, number: TransactionNumber) {
        let append = || async {
            let record = Record {
                history,
                kind: RecordKind::Abort,
                transaction: Some(number),
                fragment: FragmentNumber(0),
                payload: Payload::empty(),
            };
            self.log.append(record, Persistence::Async).await?.written().await?;
            Ok(())
        };
        // Without it the transaction would hold the log.
        match self.space.needed("an abort record", append).await {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                tracing::debug!(%history, transaction = %number, %error, "no abort record was written; it is tried again");
                self.unaborted.lock().push((history, number));
            }
            Err(error) => {
                tracing::warn!(%history, transaction = %number, %error, "no abort record was written; the next start does it");
            }
        }
    }

    /// Waits until an LSN is durable.
    async fn wait_durable(&self, receipt: &Receipt) -> Result<()> {
        self.sync_upto(receipt.lsn).await.map_err(|error| match error {
            EngineError::Log(source) => indeterminate(receipt, source),
            error => error,
        })
    }

    /// Makes everything up to `lsn` durable.
    pub(crate) async fn sync_upto(&self, lsn: Lsn) -> Result<()> {
        if self.log.status().durable < lsn {
            self.log.sync().await?;
        }
        Ok(())
    }
}

/// The fact that a database has ended where it stands.
pub(crate) fn ended_fact(version: &DatabaseVersion) -> SystemFact {
    SystemFact::Ended {
        history: version.id,
        name: version.name.clone(),
        end: version.position,
        epochs: version.epochs.clone(),
    }
}

/// Waits until a record is written.
async fn await_written(appending: impl Future<Output = Result<Appending, LogError>>) -> Result<(Appending, Written)> {
    let mut appending = appending.await?;
    let written = appending.written().await?;
    Ok((appending, written))
}

struct Body {
    effects: Vec<Effect>,
    directories: Vec<Directory>,
    bytes: u64,
}

impl Body {
    /// Whether it takes away and brings nothing: then it gets what the reserve has. One that brings rows as well finds its
    /// space as others do.
    fn frees(&self) -> bool {
        let drops =
            |effect: &Effect| matches!(effect, Effect::DropTable(_) | Effect::DropDatabase | Effect::DropPartition(_));
        !self.effects.is_empty() && self.effects.iter().all(drops) && self.directories.len() == 1
    }
}

fn receipt(written: &Written, rows: u64) -> Receipt {
    Receipt { position: written.position, lsn: written.lsn, commit_time: written.commit_time, rows }
}

fn indeterminate(receipt: &Receipt, source: LogError) -> EngineError {
    EngineError::Indeterminate { position: Box::new(receipt.position), source }
}
