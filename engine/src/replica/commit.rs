//! A run of prepared records goes to the log and is applied, whole or up to where it failed.

use std::sync::Arc;

use tailrace_wal::{HistoryHeader, HistoryId, Payload, Persistence, RecordKind, Run, VerbatimRecord};

use super::{
    Applied, Prepared,
    check::{Action, Step, check_continues, check_followed, check_run},
};
use crate::{
    DeadLetter, Engine, EngineError, Result,
    database::Database,
    effect::Committed,
    held::{HeldFragment, OpenFragments, check_fragments, transaction_key},
};

impl Engine {
    pub(super) async fn commit_run(self: Arc<Self>, database: Arc<Database>, run: Vec<Prepared>) -> Result<Applied> {
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
