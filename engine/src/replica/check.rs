//! A whole run is checked before anything of it is appended: what is appended can be applied.

use std::{collections::HashMap, sync::Arc};

use tailrace_wal::{HistoryHeader, Payload, RecordKind, Seq};

use super::Prepared;
use crate::{
    DatabaseVersion, DeadLetter, EngineError, Result, Role,
    apply::{Changes, apply, check_left_out},
    database::Database,
    effect::{Committed, Effect, Origin, invalid},
    held::{HeldFragment, HeldTransaction, TransactionKey, assemble, check_fragments, transaction_key},
};

/// A record that was checked and is to be appended.
pub(super) struct Step {
    pub(super) header: HistoryHeader,
    pub(super) payload: Payload,
    pub(super) action: Action,
}

pub(super) enum Action {
    Hold { effects: Option<Vec<Effect>> },
    Abort,
    Commit(Body),
}

pub(super) struct Body {
    pub(super) effects: Vec<Effect>,
    pub(super) directories: Vec<tailrace_wal::Directory>,
    pub(super) bytes: u64,
    pub(super) skipped: Option<Box<DeadLetter>>,
}

impl Step {
    pub(super) fn is_skipped(&self) -> bool {
        matches!(&self.action, Action::Commit(body) if body.skipped.is_some())
    }
}

pub(super) fn check_followed(database: &Arc<Database>, version: &DatabaseVersion) -> Result<()> {
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
pub(super) fn check_run(
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
pub(super) fn check_continues(version: &DatabaseVersion, header: &HistoryHeader) -> Result<()> {
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
