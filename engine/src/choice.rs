//! Which tables of a followed database have rows here.
//!
//! The log takes every record whole: a history has no holes, and whoever follows this copy gets all of it. What is chosen
//! is what is applied. A table that is left out is known with its columns and holds nothing, and whoever reads it is
//! told so. It stays left out until it ends or a repair brings its rows, whatever is chosen meanwhile: those that came
//! in between were not applied.

use std::{collections::BTreeSet, sync::Arc};

use tailrace_wal::HistoryId;

use crate::{
    DatabaseVersion, Engine, EngineError, Result, Role, SystemFact, TableId, TableVersion,
    apply::{Changes, datafiles},
};

/// The setting that chooses, for messages.
const SETTING: &str = "[replication.replica] tables";

/// Which tables of a followed database have rows here, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableChoice(Option<Arc<BTreeSet<String>>>);

impl TableChoice {
    /// All of them, whatever comes.
    pub fn all() -> Self {
        Self(None)
    }

    /// These alone. They need not exist yet.
    pub fn only<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self(Some(Arc::new(names.into_iter().map(Into::into).collect())))
    }

    /// The names, unless all are chosen.
    pub fn names(&self) -> Option<&BTreeSet<String>> {
        self.0.as_deref()
    }

    /// Whether a table of this name has rows here.
    pub fn selects(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(name))
    }
}

impl DatabaseVersion {
    /// Which tables are to have rows here.
    pub fn choice(&self) -> &TableChoice {
        &self.choice
    }

    /// Tables that are chosen and have no rows here yet, by name: only a repair brings them.
    pub fn awaited_tables(&self) -> Vec<&str> {
        let awaited = self.tables().filter(|table| table.left_out && self.choice.selects(&table.table.name));
        let mut names: Vec<&str> = awaited.map(|table| table.table.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Names that are chosen and that no table here has.
    pub fn unknown_tables(&self) -> Vec<&str> {
        let names = self.choice.names().into_iter().flatten();
        names.map(String::as_str).filter(|name| self.table(name).is_none()).collect()
    }

    /// Why a table of this database has no rows here, and what brings them; `None`: it has them.
    pub fn why_left_out(&self, table: &TableVersion) -> Option<LeftOut> {
        if !table.left_out {
            return None;
        }
        let (database, name) = (&self.name, &table.table.name);
        Some(if self.choice.selects(name) {
            LeftOut {
                reason: format!(
                    "{SETTING} has named it only since its rows were left out, and no repair has brought them yet"
                ),
                remedy: format!("CALL repair_database('{database}')"),
            }
        } else {
            LeftOut {
                reason: format!("{SETTING} names tables of database {database:?}, and not this one"),
                remedy: format!("add \"{database}.{name}\" to {SETTING} and start this node again"),
            }
        })
    }

    /// An error that names the tables that are left out, if there are any.
    pub(crate) fn check_whole(&self) -> Result<()> {
        let mut names: Vec<&str> =
            self.tables().filter(|table| table.left_out).map(|table| table.table.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        names.sort_unstable();
        let primary = match &self.role {
            Role::Replica { primary } => primary.as_str(),
            Role::Primary => "",
        };
        Err(EngineError::Invalid(format!(
            "database {:?} is limited to some of its tables here ({SETTING}; left out: {}) and serves no repair; its \
             primary, {primary:?}, does",
            self.name,
            names.join(", ")
        )))
    }
}

/// Why a table has no rows here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The setting, or what has not happened yet.
    pub reason: String,
    /// What brings its rows.
    pub remedy: String,
}

impl TableVersion {
    /// Whether its rows are left out here: it is known and holds nothing.
    pub fn is_left_out(&self) -> bool {
        self.left_out
    }
}

impl Engine {
    /// Chooses the tables of a followed database that have rows here ([`Engine::follow`] comes first), in the system
    /// history. Tables that are not chosen any more lose their rows at once; those that are chosen anew have none before a
    /// repair ([`DatabaseVersion::awaited_tables`]). Durable on return.
    pub async fn choose_tables(self: &Arc<Self>, history: HistoryId, choice: TableChoice) -> Result<()> {
        let engine = self.clone();
        self.to_the_end(async move { engine.choose_tables_here(history, choice).await }).await
    }

    async fn choose_tables_here(self: Arc<Self>, history: HistoryId, choice: TableChoice) -> Result<()> {
        let unknown = || EngineError::NotFound { kind: "history", name: history.to_string() };
        let database = self.database(history).ok_or_else(unknown)?;
        {
            // Nothing of this database is appended, applied or replaced meanwhile.
            let _following = database.following.lock().await;
            let _latch = database.latch.write().await;
            let version = database.version();
            if version.role == Role::Primary {
                let name = &version.name;
                return Err(EngineError::Invalid(format!(
                    "database {name:?} is written here: all of its tables are here"
                )));
            }
            if version.choice == choice || database.applying.lock().ended {
                return Ok(());
            }
            let tables = choice.names().cloned();
            tracing::info!(database = version.name, ?tables, "tables that have rows here");
            self.record_facts(vec![SystemFact::ChosenTables { history, tables }]).await?;
            // A crash, or a flush, between the two leaves it to the next start.
            database.alter(
                |version, changes| choose(version, changes, choice),
                |version, ended| self.publish(version, ended),
            );
        }
        self.databases_changed();
        if database.applying.lock().changes.moved
            && let Err(error) = self.flush_all().await
        {
            tracing::warn!(%error, "the files of tables that are left out now go with the next flush");
        }
        Ok(())
    }
}

/// From here on, `choice` decides about new tables; those that are here and not chosen are left out.
pub(crate) fn choose(version: &mut DatabaseVersion, changes: &mut Changes, choice: TableChoice) {
    version.choice = choice;
    let gone: Vec<TableId> = version
        .tables()
        .filter(|table| !table.left_out && !version.choice.selects(&table.table.name))
        .map(|table| table.table.id)
        .collect();
    for id in gone {
        let Some(table) = version.tables.get(&id) else { continue };
        changes.retired.extend(datafiles(table));
        changes.forget(id);
        changes.moved = true;
        let empty = rpds::RedBlackTreeMapSync::new_sync();
        let table = TableVersion { left_out: true, partitions: empty, ..TableVersion::clone(table) };
        version.tables.insert_mut(id, Arc::new(table));
    }
}
