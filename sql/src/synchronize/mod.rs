//! Online synchronization: a table here is made equal to a table of another cluster, partition by partition.
//!
//! Both sides compute digests of their partitions; what agrees is left alone. Of every other partition the rows are read there
//! and put in the place of the rows here with one transaction ([`partition`]): readers, replicas and a crash see the old
//! partition or the new one. What was done needs no notes: a partition that is finished has equal digests, so a run that
//! was interrupted goes on where it stopped when it is started again, and one more run moves nothing.
//!
//! [`Source`] is the other side, asked in SQL; [`shape`] compares the two tables, [`predicate`] checks `where`, [`plan`]
//! decides, [`progress`] is what `system.synchronizations` shows.

mod local;
mod partition;
mod plan;
mod predicate;
mod progress;
mod report;
mod shape;
mod source;

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tailrace_engine::{Table, TableId};

use self::{local::Local, partition::Mover, plan::Item, predicate::Predicate, shape::Shape};
pub(crate) use report::schema as report_schema;
pub use {
    progress::Synchronizations,
    report::{Action, Report, ReportedPartition},
    source::Source,
};

use crate::{
    Result, Session, SqlError,
    feed::table_name,
    statement::{ddl::create_database, name},
};

/// Most partitions at a time.
const PARALLEL_MAX: usize = 64;

/// What is to be made equal.
#[derive(Debug, Clone)]
pub struct Request {
    /// The table, here and there, as SQL writes it: `market.bars`.
    pub table: String,
    /// Rows that count, as a condition over the table's columns; `None`: all.
    pub predicate: Option<String>,
    /// A transaction per partition; otherwise one for all of them.
    pub by_partition: bool,
    /// Partitions at a time.
    pub parallel: usize,
    /// Whether partitions that are not there lose their rows here.
    pub delete_extra: bool,
    /// Whether a table that is not here is made, and its database.
    pub create: bool,
    /// Only says what it would do.
    pub dry_run: bool,
}

impl Request {
    /// Everything of a table, with what is not said at its default.
    pub fn new(table: &str) -> Self {
        let table = table.to_owned();
        Self {
            table,
            predicate: None,
            by_partition: true,
            parallel: 4,
            delete_extra: true,
            create: false,
            dry_run: false,
        }
    }
}

/// Makes a table here equal to the table of that name there. May be dropped at any time: partitions that are finished stay so,
/// the others are as they were.
///
/// # Errors
/// What is wrong, before anything is changed, where that can be known; otherwise what went wrong with which partition, and
/// how far it had come.
pub async fn synchronize(session: &Session, source: &dyn Source, request: Request) -> Result<Report> {
    if !(1..=PARALLEL_MAX).contains(&request.parallel) {
        let what = format!("argument \"parallel\" of synchronize is {}, not 1 to {PARALLEL_MAX}", request.parallel);
        return Err(SqlError::new("22023", what));
    }
    let known = &session.instance().remotes.synchronizations;
    let entry = known.begin(source.name(), &request, session.instance().engine.clock());
    let result = Box::pin(run(session, source, &request, &entry)).await;
    entry.end(result.as_ref().map(|_| ()));
    result
}

async fn run(session: &Session, source: &dyn Source, request: &Request, progress: &progress::Entry) -> Result<Report> {
    let local = Local::new(session);
    let name = table_name(&request.table)?;
    let database = name.database(session.current_database().as_deref())?;
    let there = Shape::of(source, &database, &name.table).await?;
    // A database that cannot be written says so before anything is read.
    let mut version = local.engine.version();
    if version.database(&database).is_none() {
        if !request.create {
            return Err(name::no_database(&version, &database)
                .hint(format!("CREATE DATABASE {database} first, or create => true")));
        }
        // Nothing is made for a table that cannot be.
        there.definition(&name.table)?;
        if !request.dry_run {
            create_database(session, &database, true).await?;
            version = local.engine.version();
        }
    }
    if version.database(&database).is_some() {
        local.engine.begin(&database)?;
    }
    let mut report = Report::default();
    if version.database(&database).is_none_or(|found| found.table(&name.table).is_none()) {
        if !request.create {
            return Err(SqlError::new("42P01", format!("table \"{database}.{}\" does not exist here", name.table))
                .hint("CREATE TABLE as it is there, or create => true"));
        }
        let definition = there.definition(&name.table)?;
        match request.dry_run {
            true => report.made = Some(Table::create(TableId(1), definition)?),
            false => drop(local.engine.create_table(&database, definition).await?),
        }
    }
    let here = match report.made {
        None => Shape::of(&local, &database, &name.table).await?,
        Some(_) => there.clone(),
    };
    here.check_equal(&there, source.name())?;
    let predicate = match &request.predicate {
        Some(text) => Some(Predicate::check(session, &here, text)?),
        None => None,
    };
    let mover = Mover { source, local: &local, database, shape: here, table: name.table.clone(), predicate };
    progress.state("COMPARING");
    let ours = match report.made {
        None => mover.digests(&local).await?,
        Some(_) => plan::Digests::default(),
    };
    let theirs = mover.digests(source).await?;
    let items = plan::plan(ours, theirs, request.delete_extra);
    progress.planned(&items);
    if request.dry_run {
        progress.foretold();
        report.partitions.extend(items.iter().map(|item| match item.action.is_quiet() {
            true => ReportedPartition::left_alone(item),
            false => ReportedPartition::to_do(item),
        }));
        return Ok(report);
    }
    let (quiet, moving): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|item| item.action.is_quiet());
    report.partitions.extend(quiet.iter().map(ReportedPartition::left_alone));
    let done = if request.by_partition {
        each(&mover, &moving, request.parallel, progress, &mut report).await
    } else {
        mover.move_all(&moving, progress).await.map(|moved| report.partitions.extend(moved))
    };
    report.partitions.sort_by(|one, other| one.key.cmp(&other.key));
    done.map_err(|error| interrupted(error, &report, moving.len()))?;
    Ok(report)
}

/// A transaction for each.
async fn each(
    mover: &Mover<'_>,
    items: &[Item],
    parallel: usize,
    progress: &progress::Entry,
    report: &mut Report,
) -> Result<()> {
    let all: Vec<BoxFuture<'_, _>> = items.iter().map(|item| mover.move_one(item, progress).boxed()).collect();
    let mut moving = stream::iter(all).buffer_unordered(parallel);
    // Those that are under way when one fails are ended: each is whole or as it was.
    while let Some(moved) = moving.next().await {
        report.partitions.push(moved?);
    }
    Ok(())
}

/// What went wrong, and what had been done.
fn interrupted(error: SqlError, report: &Report, wanted: usize) -> SqlError {
    let done = report.partitions.iter().filter(|partition| !partition.action.is_quiet()).count();
    let so_far = format!(
        "{done} of {wanted} partitions that differed are equal now, the others are as they were; run it again to go on"
    );
    let detail = match &error.detail {
        Some(detail) => format!("{detail}; {so_far}"),
        None => so_far,
    };
    error.detail(detail)
}

/// A name as SQL writes it, whatever is in it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as SQL writes it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
