//! What a restore has to do, decided before anything is done.

use std::sync::Arc;

use tailrace_wal::Seq;

use super::{RestoreMode, RestoreRequest, RestoreScope, RestoreTarget};
use crate::{
    ColumnDefinition, DatabaseVersion, Engine, EngineError, PartitionKey, Result, Role, SeenPartition, Table,
    TableDefinition, TableVersion, Version,
    backup::{
        PartitionChoice,
        manifest::{BackupDatabase, BackupManifest, BackupPartition, BackupTable},
        progress::BackupTask,
    },
    check_name,
};

/// Conflicts that are named one by one.
const CONFLICTS_SHOWN: usize = 100;

/// All steps, in order.
pub(super) struct Plan<'a> {
    pub(super) steps: Vec<Step<'a>>,
}

/// One change that readers see at once.
pub(super) enum Step<'a> {
    /// A whole database that is not here.
    Install {
        database: &'a BackupDatabase,
        name: String,
    },
    /// A database for tables that follow.
    CreateDatabase(String),
    Table(TableStep<'a>),
}

/// A table.
pub(super) struct TableStep<'a> {
    pub(super) database: String,
    pub(super) table: String,
    /// It is not here.
    pub(super) create: Option<TableDefinition>,
    pub(super) partitions: Vec<PartitionStep<'a>>,
    pub(super) skipped: u64,
}

/// A partition.
pub(super) struct PartitionStep<'a> {
    pub(super) source: &'a BackupPartition,
    pub(super) action: Action,
}

/// What happens with a partition.
pub(super) enum Action {
    /// It is not here.
    Add,
    /// It is as it was seen, and gives way.
    Replace(SeenPartition),
    /// Rows that it lacks are added.
    Merge,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// [`EngineError::Invalid`] with everything that stands against it.
    pub(super) async fn make(
        engine: &Arc<Engine>,
        manifest: &'a BackupManifest,
        request: &RestoreRequest,
    ) -> Result<Self> {
        let version = engine.version();
        let mut planner = Planner { engine, request, version, steps: Vec::new(), conflicts: Vec::new() };
        planner.plan(manifest).await?;
        match planner.conflicts.len() {
            0 => Ok(Self { steps: planner.steps }),
            count => {
                planner.conflicts.truncate(CONFLICTS_SHOWN);
                let more = count.saturating_sub(CONFLICTS_SHOWN);
                if more > 0 {
                    planner.conflicts.push(format!("and {more} more"));
                }
                Err(EngineError::Invalid(format!(
                    "backup {} was not restored, nothing was changed: {}",
                    manifest.id,
                    planner.conflicts.join("; ")
                )))
            }
        }
    }

    pub(super) fn skipped_partitions(&self) -> u64 {
        let skipped = self.steps.iter().map(|step| match step {
            Step::Table(table) => table.skipped,
            _ => 0,
        });
        skipped.sum()
    }

    /// Tells the task how much there is to do.
    pub(super) fn expect(&self, task: &BackupTask) {
        let mut expect = |partition: &BackupPartition| {
            for file in &partition.files {
                task.expect(1, file.bytes, file.rows);
            }
        };
        for step in &self.steps {
            match step {
                Step::Install { database, .. } => {
                    database.tables.iter().flat_map(|table| &table.partitions).for_each(&mut expect);
                }
                Step::CreateDatabase(_) => {}
                Step::Table(table) => table.partitions.iter().map(|step| step.source).for_each(&mut expect),
            }
        }
    }

    /// A line per step.
    pub(super) fn describe(&self) -> Vec<String> {
        let lines = self.steps.iter().map(|step| match step {
            Step::Install { database, name } => format!(
                "database {name}: install with {} tables at seq {} of the backup's history",
                database.tables.len(),
                database.position.seq
            ),
            Step::CreateDatabase(name) => format!("database {name}: create"),
            Step::Table(step) => {
                let count = |wanted: fn(&Action) -> bool| {
                    step.partitions.iter().filter(|partition| wanted(&partition.action)).count()
                };
                format!(
                    "table {}.{}: {}add {}, replace {}, merge {}, leave {} equal partitions",
                    step.database,
                    step.table,
                    if step.create.is_some() { "create, " } else { "" },
                    count(|action| matches!(action, Action::Add)),
                    count(|action| matches!(action, Action::Replace(_))),
                    count(|action| matches!(action, Action::Merge)),
                    step.skipped
                )
            }
        });
        lines.collect()
    }
}

struct Planner<'a, 'b> {
    engine: &'b Arc<Engine>,
    request: &'b RestoreRequest,
    version: Version,
    steps: Vec<Step<'a>>,
    conflicts: Vec<String>,
}

impl<'a> Planner<'a, '_> {
    async fn plan(&mut self, manifest: &'a BackupManifest) -> Result<()> {
        let wanted = match &self.request.what {
            RestoreScope::Everything => None,
            RestoreScope::Database(database) | RestoreScope::Table { database, .. } => Some(database.as_str()),
        };
        let databases: Vec<&BackupDatabase> =
            manifest.databases.iter().filter(|database| wanted.is_none_or(|name| database.name == name)).collect();
        if let (Some(name), []) = (wanted, &databases[..]) {
            let held: Vec<&str> = manifest.databases.iter().map(|database| database.name.as_str()).collect();
            return Err(EngineError::Invalid(format!(
                "backup {} does not hold database {name:?}; it holds {}",
                manifest.id,
                held.join(", ")
            )));
        }
        if self.request.until.is_some() {
            return self.point_in_time(&databases);
        }
        match (&self.request.what, &self.request.into) {
            (_, None)
            | (RestoreScope::Database(_), Some(RestoreTarget::Database(_)))
            | (RestoreScope::Table { .. }, Some(RestoreTarget::Table { .. })) => {}
            (RestoreScope::Everything, Some(_)) => {
                return Err(EngineError::Invalid(
                    "`into` needs `database` or `table`: one thing gets a name".to_owned(),
                ));
            }
            (RestoreScope::Database(_), Some(_)) => {
                return Err(EngineError::Invalid("a database is restored into a database: into => 'name'".to_owned()));
            }
            (RestoreScope::Table { .. }, Some(_)) => {
                return Err(EngineError::Invalid(
                    "a table is restored into a table: into => 'database.table'".to_owned(),
                ));
            }
        }
        for database in databases {
            self.database(manifest, database).await?;
        }
        Ok(())
    }

    fn point_in_time(&mut self, databases: &[&'a BackupDatabase]) -> Result<()> {
        let (RestoreScope::Database(_), [database]) = (&self.request.what, databases) else {
            return Err(EngineError::Invalid(
                "a point in time is that of one database: name it, database => 'market', and where it is to be restored, \
                 into => 'market_then'"
                    .to_owned(),
            ));
        };
        let database = *database;
        let name = self.database_name(database);
        if !database.is_whole {
            self.conflicts.push(format!(
                "the backup holds a part of database {:?}; a point in time needs a backup of all of it",
                database.name
            ));
        }
        if self.version.database(&name).is_some() {
            self.conflicts.push(format!("database {name:?} is here already; name another one: into => '…'"));
        }
        check_name("database", &name)?;
        self.steps.push(Step::Install { database, name });
        Ok(())
    }

    /// Under which name a database is restored.
    fn database_name(&self, database: &BackupDatabase) -> String {
        match &self.request.into {
            Some(RestoreTarget::Database(name)) => name.clone(),
            Some(RestoreTarget::Table { database, .. }) => database.clone(),
            None => database.name.clone(),
        }
    }

    async fn database(&mut self, manifest: &BackupManifest, source: &'a BackupDatabase) -> Result<()> {
        let name = self.database_name(source);
        check_name("database", &name)?;
        let here = self.version.database(&name).cloned();
        let is_all = !matches!(self.request.what, RestoreScope::Table { .. });
        match &here {
            None if !self.request.create => {
                self.conflicts.push(format!("database {name:?} is not here; create => true makes it"));
                return Ok(());
            }
            // A new history begins with its rows where it can: it does not get them through the log.
            None if is_all && source.is_whole && source.position.seq > Seq::ZERO => {
                self.steps.push(Step::Install { database: source, name });
                return Ok(());
            }
            None => self.steps.push(Step::CreateDatabase(name.clone())),
            Some(here) => {
                if let Role::Replica { primary } = &here.role {
                    self.conflicts.push(format!(
                        "database {name:?} is a replica here and read-only; restore it at its primary, {primary:?}, or \
                         under another name"
                    ));
                    return Ok(());
                }
                if let Some(reason) = &here.stopped {
                    self.conflicts.push(format!("database {name:?} is stopped: {reason}"));
                    return Ok(());
                }
            }
        }
        let wanted = match &self.request.what {
            RestoreScope::Table { table, .. } => Some(table.as_str()),
            _ => None,
        };
        let tables: Vec<&BackupTable> =
            source.tables.iter().filter(|table| wanted.is_none_or(|wanted| table.table.name == wanted)).collect();
        if let (Some(wanted), []) = (wanted, &tables[..]) {
            return Err(EngineError::Invalid(format!(
                "backup {} does not hold table {wanted:?} of database {:?}",
                manifest.id, source.name
            )));
        }
        for table in tables {
            self.table(&name, here.as_deref(), table).await?;
        }
        Ok(())
    }

    async fn table(&mut self, database: &str, here: Option<&DatabaseVersion>, source: &'a BackupTable) -> Result<()> {
        let name = match &self.request.into {
            Some(RestoreTarget::Table { table, .. }) => table.clone(),
            _ => source.table.name.clone(),
        };
        check_name("table", &name)?;
        let target = here.and_then(|here| here.table(&name)).cloned();
        let mut create = None;
        match &target {
            Some(target) => {
                let wrong = mismatches(source, target);
                if !wrong.is_empty() {
                    self.conflicts.push(format!("table {database}.{name} is another table: {}", wrong.join(", ")));
                    return Ok(());
                }
            }
            None if !self.request.create => {
                self.conflicts.push(format!("table {database}.{name} is not here; create => true makes it"));
                return Ok(());
            }
            None => create = Some(definition(&source.table, &name)?),
        }
        let mut step = TableStep {
            database: database.to_owned(),
            table: name.clone(),
            create,
            partitions: Vec::new(),
            skipped: 0,
        };
        let choices: &[PartitionChoice] = match &self.request.what {
            RestoreScope::Table { partitions, .. } => partitions,
            _ => &[],
        };
        let mut wanted: Vec<&BackupPartition> = source.partitions.iter().collect();
        for choice in choices {
            let keys: Vec<PartitionKey> = wanted.iter().map(|partition| partition.key.clone()).collect();
            let mut chosen = choice.choose(&source.table, &keys)?.into_iter();
            wanted.retain(|_| chosen.next().unwrap_or_default());
        }
        if let ([_, ..], []) = (choices, &wanted[..]) {
            let choices: Vec<String> = choices.iter().map(ToString::to_string).collect();
            self.conflicts.push(format!(
                "no partition of table {} in the backup {}",
                source.table.name,
                choices.join(" and ")
            ));
        }
        for partition in wanted {
            match self.partition(here, target.as_ref(), partition, database, &name).await? {
                Some(action) => step.partitions.push(PartitionStep { source: partition, action }),
                None => step.skipped += 1,
            }
        }
        self.steps.push(Step::Table(step));
        Ok(())
    }

    /// `None`: it is equal already.
    async fn partition(
        &mut self,
        here: Option<&DatabaseVersion>,
        target: Option<&Arc<TableVersion>>,
        source: &BackupPartition,
        database: &str,
        table: &str,
    ) -> Result<Option<Action>> {
        let (Some(here), Some(target)) = (here, target) else { return Ok(Some(Action::Add)) };
        if target.scheme.describe(&source.key).is_err() {
            // Where its rows will lie is not known before they are read.
            if target.rows() > 0 && self.request.mode != RestoreMode::Merge {
                self.conflicts.push(format!(
                    "the backup does not hold the columns that table {database}.{table} is partitioned by, and the table \
                     has rows"
                ));
            }
            return Ok(Some(if target.rows() == 0 { Action::Add } else { Action::Merge }));
        }
        let Some(partition) = target.partition(&source.key).filter(|partition| partition.rows() > 0) else {
            return Ok(Some(Action::Add));
        };
        if partition.rows() == source.rows
            && self.engine.partition_digest(target, partition).await?.same_values(&source.digest)
        {
            return Ok(None);
        }
        Ok(Some(match self.request.mode {
            RestoreMode::Replace => Action::Replace(here.seen_partition(target, &source.key)),
            RestoreMode::Merge => Action::Merge,
            RestoreMode::Fail => {
                let rows = partition.rows();
                self.conflicts.push(format!(
                    "partition {} of {database}.{table} is here with {rows} rows and differs from the backup, which has \
                     {}; mode => 'replace' or 'merge' says what is to be done",
                    source.name, source.rows
                ));
                Action::Add
            }
        }))
    }
}

/// Why rows of a backup cannot be rows of a table.
fn mismatches(source: &BackupTable, target: &TableVersion) -> Vec<String> {
    let mut wrong = Vec::new();
    let find = |table: &Table, name: &str| table.columns.iter().position(|column| column.name == name);
    for column in &source.table.columns {
        match find(&target.table, &column.name).map(|index| &target.table.columns[index]) {
            None => wrong.push(format!("it has no column {:?}", column.name)),
            Some(here) if here.data_type != column.data_type => wrong.push(format!(
                "column {:?} is {} there and {} in the backup",
                column.name, here.data_type, column.data_type
            )),
            Some(here) if column.nullable && !here.nullable => {
                wrong.push(format!("column {:?} is NOT NULL there and may be NULL in the backup", column.name));
            }
            Some(_) => {}
        }
    }
    for column in &target.table.columns {
        if find(&source.table, &column.name).is_none() && (source.selected.is_none() || !column.nullable) {
            wrong.push(format!("the backup has no column {:?}", column.name));
        }
    }
    let fields = |table: &Table| -> Vec<String> {
        let fields = table.partition_by.iter().map(|(transform, id)| {
            let column = table.column(*id).map_or("", |column| column.name.as_str());
            format!("{}({column})", transform.name())
        });
        fields.collect()
    };
    if source.selected.is_none() && fields(&source.table) != fields(&target.table) {
        wrong.push("it is partitioned by other values".to_owned());
    }
    wrong
}

/// A table as a statement would ask for it.
pub(super) fn definition(table: &Table, name: &str) -> Result<TableDefinition> {
    let named = |id: &crate::ColumnId| {
        let column = table.column(*id).map(|column| column.name.clone());
        column.ok_or_else(|| EngineError::NotFound { kind: "column", name: format!("#{id}") })
    };
    let columns = table.columns.iter().map(|column| ColumnDefinition {
        name: column.name.clone(),
        data_type: column.data_type.clone(),
        nullable: column.nullable,
    });
    let partition_by = table.partition_by.iter().map(|(transform, id)| Ok((*transform, named(id)?)));
    Ok(TableDefinition {
        name: name.to_owned(),
        columns: columns.collect(),
        partition_by: partition_by.collect::<Result<_>>()?,
        order_by: table.order_by.iter().map(named).collect::<Result<_>>()?,
    })
}
