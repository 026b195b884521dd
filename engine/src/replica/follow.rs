//! A copy of a history begins here, and ends.

use std::sync::Arc;

use tailrace_wal::{CommitTime, HistoryEnd, HistoryId, Position};

use super::Applier;
use crate::{
    Engine, EngineError, Result, Role, SystemFact, check_name, commit::ended_fact, database::Database,
    ddl::empty_version,
};

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
    pub(super) async fn abort_held(&self, database: &Arc<Database>) {
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
        self.paused_repairs.forget(database.id);
        let files = std::mem::take(&mut database.applying.lock().changes.retired);
        self.retired.lock().push((database.id, files));
        database.held.lock().clear();
        self.databases_changed();
    }
}
