//! Verification: what is here compared with the primary at one position.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tailrace_engine::{ComparedPartition, DatabaseDigests, DatabaseVersion, EngineError, PointId, compare_digests};
use tailrace_wal::{HistoryId, Position};
use tokio::sync::mpsc;

use super::{
    Follower, Shared,
    link::{Event, Link, VerifyAnswer},
};
use crate::{Refused, ReplicationState, wire::FeedNumber};

/// How often a point is chosen anew that this copy had passed before it heard of it.
const TRIES: u32 = 5;

/// How a followed database compares with its primary's.
#[derive(Debug, Clone)]
pub struct VerifiedDatabase {
    /// At which position both were compared.
    pub position: Position,
    /// Every partition that is on either side, by table and key; none of tables that are left out.
    pub partitions: Vec<ComparedPartition>,
    /// Tables that are left out here, or at a primary that is a replica itself, by name: nothing of them was compared.
    pub left_out: Vec<String>,
}

impl Follower {
    /// Compares a followed database with its primary, at a position that the primary chooses now and this copy reaches. Where
    /// they differ, the database is DIVERGED. `from_files`: both sides read their datafiles instead of trusting what was
    /// kept when they were written. Ends with an error after `patience`, and with the session.
    pub async fn verify(
        &self,
        database: &str,
        from_files: bool,
        patience: Duration,
    ) -> Result<VerifiedDatabase, Refused> {
        let history = self.verifiable(database)?;
        let gone = || {
            Refused::new(format!("there is no connection to the primary of database {database:?}"))
                .hint("system.followed shows why; try again when there is one")
        };
        let link = self.shared.session.lock().clone().ok_or_else(gone)?;
        let trying = async {
            for _ in 1..TRIES {
                match Verifying::begin(&self.shared, link.clone(), history, from_files).run(from_files).await {
                    Err(Failed::Passed(_)) => {}
                    outcome => return outcome,
                }
            }
            Verifying::begin(&self.shared, link, history, from_files).run(from_files).await
        };
        match tokio::time::timeout(patience, trying).await {
            Ok(Ok(verified)) => Ok(verified),
            Ok(Err(Failed::Passed(reason) | Failed::Other(reason))) => {
                Err(Refused::new(format!("database {database:?} was not verified: {reason}")))
            }
            Err(_) => Err(Refused::new(format!("database {database:?} was not verified within {patience:?}"))
                .hint("give it longer with timeout => <milliseconds>")),
        }
    }

    /// A database that goes on by itself, and so will reach the primary's position.
    fn verifiable(&self, database: &str) -> Result<HistoryId, Refused> {
        let face = self.face(database)?;
        let shown = self.shown(&face);
        match shown
            .filter(|shown| shown.state != ReplicationState::Enabled && shown.state != ReplicationState::Diverged)
        {
            None => Ok(face.history),
            Some(shown) => Err(Refused::new(format!(
                "database {database:?} is {}: {}",
                shown.state.name(),
                shown.reason.unwrap_or_default()
            ))
            .hint(shown.remedy.unwrap_or_else(|| "try again when it is followed".to_owned()))),
        }
    }
}

/// Why there is nothing to tell.
enum Failed {
    /// The point is not remembered here.
    Passed(String),
    Other(String),
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

/// One verification. Dropping it ends it on both sides.
struct Verifying {
    shared: Arc<Shared>,
    link: Link,
    history: HistoryId,
    answers: mpsc::UnboundedReceiver<VerifyAnswer>,
    feed: Option<FeedNumber>,
    point: Option<PointId>,
}

impl Verifying {
    fn begin(shared: &Arc<Shared>, link: Link, history: HistoryId, from_files: bool) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        link.say(Event::BeginVerify { history, from_files, answers: sender });
        Self { shared: shared.clone(), link, history, answers, feed: None, point: None }
    }

    async fn run(mut self, from_files: bool) -> Result<VerifiedDatabase, Failed> {
        let (mut json, mut point) = (None, None);
        while point.is_none() {
            match self.answer().await? {
                VerifyAnswer::Point(id, position) => point = Some((id, position)),
                VerifyAnswer::Digests(bytes) => json = Some(bytes),
                VerifyAnswer::Begun(_) | VerifyAnswer::Failed(_) => {}
            }
        }
        let Some((id, position)) = point else { return Err("the primary chose no digest point".to_owned().into()) };
        self.point = Some(id);
        let engine = self.shared.engine.clone();
        let version = engine.await_point(id, position).await.map_err(|error| match error {
            EngineError::Conflict(reason) => Failed::Passed(reason),
            error => Failed::Other(error.to_string()),
        })?;
        // Held by this from here on.
        engine.forget_point(self.history, id);
        if version.position != position {
            return Err(format!("this copy is at {} where the primary is at {position}", version.position).into());
        }
        let here = engine.database_digests(&version, from_files).await.map_err(|error| error.to_string())?;
        let json = match json {
            Some(json) => json,
            None => loop {
                if let VerifyAnswer::Digests(bytes) = self.answer().await? {
                    break bytes;
                }
            },
        };
        let there: DatabaseDigests = tokio::task::spawn_blocking(move || serde_json::from_slice(&json))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("the primary's digests do not parse: {error}"))?;
        let verified = compare(&version, &here, &there)?;
        let now = engine.clock().now();
        let found = verified.partitions.iter().filter_map(|compared| compared.to_difference(position.seq, now));
        let noted = engine.note_differences(self.history, found.collect(), from_files).await;
        noted.map_err(|error| format!("what was found could not be kept: {error}"))?;
        Ok(verified)
    }

    async fn answer(&mut self) -> Result<VerifyAnswer, String> {
        match self.answers.recv().await {
            Some(VerifyAnswer::Failed(reason)) => Err(format!("the primary says: {reason}")),
            Some(VerifyAnswer::Begun(feed)) => {
                self.feed = Some(feed);
                Ok(VerifyAnswer::Begun(feed))
            }
            Some(answer) => Ok(answer),
            None => Err("the connection to the primary ended; try again when there is one".to_owned()),
        }
    }
}

impl Drop for Verifying {
    fn drop(&mut self) {
        // Perhaps its number is still on the way.
        while let Ok(answer) = self.answers.try_recv() {
            if let VerifyAnswer::Begun(feed) = answer {
                self.feed = Some(feed);
            }
        }
        if let Some(feed) = self.feed {
            self.link.say(Event::EndVerify { feed });
        }
        if let Some(point) = self.point {
            self.shared.engine.forget_point(self.history, point);
        }
    }
}

fn compare(
    version: &DatabaseVersion,
    here: &DatabaseDigests,
    there: &DatabaseDigests,
) -> Result<VerifiedDatabase, String> {
    let partitions = compare_digests(version, here, there).map_err(|error| error.to_string())?;
    let tables = here.tables.iter().chain(&there.tables);
    let left_out: BTreeSet<_> = tables.filter(|table| table.left_out).map(|table| table.name.clone()).collect();
    let left_out = left_out.into_iter().collect();
    Ok(VerifiedDatabase { position: here.position, partitions, left_out })
}
