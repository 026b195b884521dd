//! DDL and switches: changes of catalog and facts.

use std::sync::Arc;

use tailrace_wal::{CommitTime, HistoryEnd, HistoryId, Part, Position, Seq};

use crate::{
    CreateDatabase, DatabaseVersion, Engine, EngineError, Operation, Receipt, ReplicationSwitches, Result, Role,
    SystemFact, Table, TableChoice, TableDefinition, TableId, check_name, commit::ended_fact, database::Database,
    effect::Effect, ids::unique, operation::encode_body, system::body_entry,
};

impl Engine {
    pub(crate) async fn create_database_here(self: Arc<Self>, name: String) -> Result<Receipt> {
        check_name("database", &name)?;
        let _names = self.names.lock().await;
        if self.versions.load().contains_key(&name) {
            return Err(EngineError::AlreadyExists { kind: "database", name });
        }
        let id = HistoryId(unique(&*self.clock));
        self.log.open_history(HistoryEnd { position: Position::start(id), commit_time: CommitTime::default() })?;
        // Nobody knows the database before its first record is applied.
        let database = Arc::new(Database::new(
            Arc::new(empty_version(id, name.clone(), Role::Primary)),
            self.log.status().appended,
        ));
        self.databases.write().insert(id, database.clone());
        let body = CreateDatabase { name };
        let committed = async {
            let admission = self.admit_ddl(&database, None, false).await?;
            let part = body_part(Operation::CreateDatabase, TableId(0), Some(&body))?;
            self.commit_ddl(&database, admission, part, Effect::CreateDatabase(body)).await
        }
        .await;
        if database.version().position.seq == Seq::ZERO {
            self.databases.write().remove(&id);
        }
        self.databases_changed();
        committed
    }

    pub(crate) async fn drop_database_here(self: Arc<Self>, name: String) -> Result<Receipt> {
        match self.drop_database_once(&name, false, false).await {
            Err(error) if error.is_full() => {
                // What a flush had written, or a failed one had taken, is free for what makes space.
                self.drop_database_once(&name, true, false).await
            }
            outcome => outcome,
        }
    }

    /// Drops a database that has no table.
    pub(crate) async fn drop_empty_database(self: &Arc<Self>, name: &str) -> Result<Receipt> {
        let (engine, name) = (self.clone(), name.to_owned());
        self.to_the_end(async move { engine.drop_database_once(&name, false, true).await }).await
    }

    async fn drop_database_once(&self, name: &str, alone: bool, only_empty: bool) -> Result<Receipt> {
        let _names = self.names.lock().await;
        let database = self.database_named(name)?;
        let _ddl = database.ddl.lock().await;
        if only_empty && database.version().tables().next().is_some() {
            return Err(EngineError::Conflict(format!("database {name:?} has tables")));
        }
        let admission = self.admit_end(&database, false, alone).await?;
        let part = body_part::<()>(Operation::DropDatabase, TableId(0), None)?;
        let receipt = self.commit_ddl(&database, admission, part, Effect::DropDatabase).await?;
        // A crash between the two leaves the fact to the next start.
        self.record_end(&database).await?;
        Ok(receipt)
    }

    pub(crate) async fn create_table_here(
        self: Arc<Self>,
        database: String,
        definition: TableDefinition,
    ) -> Result<Receipt> {
        let database = self.database_named(&database)?;
        let _ddl = database.ddl.lock().await;
        let admission = self.admit_ddl(&database, None, false).await?;
        let version = database.version();
        if version.table(&definition.name).is_some() {
            return Err(EngineError::AlreadyExists { kind: "table", name: definition.name });
        }
        let table = Table::create(version.next_table, definition)?;
        let part = body_part(Operation::CreateTable, table.id, Some(&table))?;
        self.commit_ddl(&database, admission, part, Effect::CreateTable(table)).await
    }

    pub(crate) async fn drop_table_here(self: Arc<Self>, database: String, table: String) -> Result<Receipt> {
        match self.drop_table_once(&database, &table, false).await {
            Err(error) if error.is_full() => self.drop_table_once(&database, &table, true).await,
            outcome => outcome,
        }
    }

    async fn drop_table_once(&self, database: &str, table: &str, alone: bool) -> Result<Receipt> {
        let database = self.database_named(database)?;
        let _ddl = database.ddl.lock().await;
        let find = || {
            let found = database.version().table(table).map(|found| found.table.id);
            found.ok_or_else(|| EngineError::NotFound { kind: "table", name: table.to_owned() })
        };
        Database::check_writable(&database.version())?;
        let id = find()?;
        let admission = self.admit_ddl(&database, Some(id), alone).await?;
        let part = body_part::<()>(Operation::DropTable, id, None)?;
        self.commit_ddl(&database, admission, part, Effect::DropTable(id)).await
    }

    pub(crate) async fn switch_database(self: Arc<Self>, name: String, on: bool) -> Result<()> {
        let _names = self.names.lock().await;
        let database = self.database_named(&name)?;
        if database.version().replicated == on {
            return Ok(());
        }
        self.record_facts(vec![SystemFact::DatabaseReplication { history: database.id, on }]).await?;
        database.alter(|version, _| version.replicated = on, |version, ended| self.publish(version, ended));
        self.databases_changed();
        Ok(())
    }

    pub(crate) async fn switch_cluster(self: Arc<Self>, switches: ReplicationSwitches) -> Result<()> {
        let now = self.replication_switches();
        let mut facts = Vec::new();
        if now.primary != switches.primary {
            facts.push(SystemFact::PrimaryReplication { on: switches.primary });
        }
        if now.replica != switches.replica {
            facts.push(SystemFact::ReplicaReplication { on: switches.replica });
        }
        if !facts.is_empty() {
            self.record_facts(facts).await?;
            self.databases_changed();
        }
        Ok(())
    }

    /// Puts the end of a database into the system history. Its `DatabaseVersion` is at its end.
    /// Where there is no space for that, it is tried again; a start finds the end by its record.
    pub(crate) async fn record_end(&self, database: &Arc<Database>) -> Result<()> {
        self.unrecorded_ends.lock().push(ended_fact(&database.version()));
        let recorded = self.record_ends().await;
        self.databases_changed();
        recorded
    }

    /// Puts ends that are known and not in the system history there.
    pub(crate) async fn record_ends(&self) -> Result<()> {
        let missing = std::mem::take(&mut *self.unrecorded_ends.lock());
        if missing.is_empty() {
            return Ok(());
        }
        match self.record_facts(missing.clone()).await {
            Err(error) if error.is_full() => {
                tracing::warn!(%error, "the end of a database is not among the cluster's facts yet; it is tried again");
                self.unrecorded_ends.lock().extend(missing);
                Ok(())
            }
            recorded => recorded,
        }
    }
}

/// A database before its first record.
pub(crate) fn empty_version(id: HistoryId, name: String, role: Role) -> DatabaseVersion {
    DatabaseVersion {
        id,
        name,
        role,
        replicated: false,
        stopped: None,
        position: Position::start(id),
        restart_seq: Seq::ZERO,
        commit_time: CommitTime::default(),
        epochs: Vec::new(),
        skipped: Arc::default(),
        differences: Arc::default(),
        choice: TableChoice::all(),
        tables: rpds::HashTrieMapSync::new_sync(),
        names: rpds::HashTrieMapSync::new_sync(),
        next_table: TableId(1),
    }
}

/// A part that carries a body or nothing.
pub(crate) fn body_part<T: serde::Serialize>(operation: Operation, table: TableId, body: Option<&T>) -> Result<Part> {
    let pieces = match body {
        None => Vec::new(),
        Some(body) => {
            vec![encode_body(body)?.into()]
        }
    };
    Ok(Part::new(body_entry(operation, table), pieces)?)
}
