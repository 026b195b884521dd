//! INSERT: rows from literals without a query plan ([`super::values`]), from any other query by running it.

use datafusion::{
    arrow::{array::RecordBatch, datatypes::DataType},
    common::ScalarValue,
    sql::sqlparser::ast::{self, SetExpr, TableObject},
};
use futures::TryStreamExt;
use tailrace_engine::TableVersion;

use super::{
    cast::Target,
    guard::Guard,
    name::{self, TableName},
    query,
    transaction::Write,
    values,
};
use crate::{Notice, Outcome, Result, Session, SqlError};

/// A checked INSERT.
#[derive(Debug)]
pub(crate) struct Insert {
    /// Where.
    pub(crate) table: TableName,
    /// Columns, if named.
    columns: Vec<String>,
    /// Rows of literals and parameters.
    literals: Option<values::Literals>,
    /// The rows as a query; absent where `literals` say it all.
    source: Option<Box<ast::Statement>>,
}

impl Insert {
    pub(super) fn check(insert: ast::Insert) -> Result<Self> {
        let TableObject::TableName(table) = &insert.table else {
            return Err(SqlError::unsupported("INSERT into anything but a table"));
        };
        let table = TableName::parse(table)?;
        let refused = [
            (insert.on.is_some(), "ON CONFLICT"),
            (insert.returning.is_some(), "RETURNING"),
            (insert.or.is_some() || insert.replace_into, "INSERT OR REPLACE"),
            (insert.overwrite, "INSERT OVERWRITE"),
            (insert.partitioned.is_some() || !insert.after_columns.is_empty(), "PARTITION in INSERT"),
            (!insert.assignments.is_empty(), "INSERT … SET"),
            (insert.ignore, "INSERT IGNORE"),
            (insert.table_alias.is_some(), "an alias in INSERT"),
        ];
        if let Some((_, what)) = refused.iter().find(|(there, _)| *there) {
            return Err(SqlError::unsupported(what));
        }
        let columns = insert.columns.iter().map(|column| name::single(column, "column")).collect::<Result<_>>()?;
        let Some(source) = insert.source else {
            return Err(SqlError::unsupported("INSERT … DEFAULT VALUES").hint("columns have no defaults"));
        };
        let literals = match source.body.as_ref() {
            SetExpr::Values(rows) if is_plain(&source) => values::Literals::read(rows)?,
            _ => None,
        };
        let source = literals.is_none().then(|| Box::new(ast::Statement::Query(source)));
        Ok(Self { table, columns, literals, source })
    }

    /// Types of `$1` to `$count`.
    pub(crate) async fn parameter_types(
        &self,
        session: &Session,
        sql: &str,
        count: usize,
    ) -> Result<Vec<Option<DataType>>> {
        let (_, table) = self.resolve(session)?;
        let target = self.target(&table)?;
        match (&self.literals, &self.source) {
            (Some(literals), _) => literals.parameter_types(&target, count),
            (None, Some(source)) => {
                query::parameter_types(&query::plan(&session.planning_state(), source, sql).await?, count)
            }
            (None, None) => Ok(vec![None; count]),
        }
    }

    fn resolve(&self, session: &Session) -> Result<(String, std::sync::Arc<TableVersion>)> {
        session.resolve_table(&self.table)
    }

    fn target(&self, table: &TableVersion) -> Result<Target> {
        Target::new(self.table.to_string(), table.schema.clone(), &self.columns)
    }
}

/// Runs an INSERT.
pub(crate) async fn insert(
    session: &Session,
    insert: &Insert,
    sql: &str,
    parameters: &[ScalarValue],
    count: usize,
    guard: &mut Guard,
) -> Result<Outcome> {
    let (database, table) = insert.resolve(session)?;
    let target = insert.target(&table)?;
    let name = &table.table.name;
    let (rows, warning) = match (&insert.literals, &insert.source) {
        (Some(literals), _) => {
            let batch = literals.batch(&target, parameters)?;
            write(session, &database, guard, async |write| {
                let rows = batch.num_rows();
                write.append(name, batch).await?;
                Ok(rows)
            })
            .await?
        }
        (None, Some(source)) => {
            write(session, &database, guard, async |write| {
                let state = session.planning_state();
                let plan = query::plan(&state, source, sql).await?;
                let plan = query::with_parameters(plan, parameters, count)?;
                let types: Vec<_> = plan.schema().fields().iter().map(|field| field.data_type().clone()).collect();
                target.check_types(&types)?;
                let physical =
                    state.create_physical_plan(&plan).await.map_err(|error| SqlError::planning(error, sql))?;
                let mut rows = 0;
                let mut gathered = Gather::default();
                let mut batches = session.run_plan(physical, &state)?;
                while let Some(batch) = batches.try_next().await? {
                    rows += batch.num_rows();
                    if let Some(batch) = gathered.add(target.cast(&batch)?)? {
                        write.append(name, batch).await?;
                    }
                }
                if let Some(batch) = gathered.finish()? {
                    write.append(name, batch).await?;
                }
                Ok(rows)
            })
            .await?
        }
        (None, None) => return Err(SqlError::internal("INSERT without rows")),
    };
    Ok(Outcome::Done { tag: format!("INSERT 0 {rows}"), notices: warning.into_iter().collect() })
}

/// Runs `work` with a writer: the open transaction's, or one that is committed when the work is done. The guard may end
/// the work, never the commit. The warning is that of [`Write::commit`].
pub(crate) async fn write<T>(
    session: &Session,
    database: &str,
    guard: &mut Guard,
    work: impl AsyncFnOnce(&mut Write) -> Result<T>,
) -> Result<(T, Option<Notice>)> {
    let engine = &session.instance().engine;
    let mut open = session.open_transaction().lock().await;
    if let Some(open) = open.as_mut() {
        let write = open.write(engine, database)?;
        return Ok((guard.run(work(write)).await?, None));
    }
    drop(open);
    let mut write = Write::begin(engine, database)?;
    let result = guard.run(work(&mut write)).await?;
    let warning = write.commit(session, guard).await?;
    Ok((result, warning))
}

/// Gathers small batches into larger ones: each append is a part of the log.
#[derive(Default)]
pub(crate) struct Gather {
    batches: Vec<RecordBatch>,
    rows: usize,
}

impl Gather {
    /// Rows at which a batch is passed on.
    const ROWS: usize = 64 << 10;

    /// Adds a batch; returns one that is large enough.
    pub(crate) fn add(&mut self, batch: RecordBatch) -> Result<Option<RecordBatch>> {
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        self.rows += batch.num_rows();
        self.batches.push(batch);
        if self.rows >= Self::ROWS { self.finish() } else { Ok(None) }
    }

    /// What is left.
    pub(crate) fn finish(&mut self) -> Result<Option<RecordBatch>> {
        self.rows = 0;
        let batches = std::mem::take(&mut self.batches);
        Ok(match &batches[..] {
            [] => None,
            [batch] => Some(batch.clone()),
            [first, ..] => Some(datafusion::arrow::compute::concat_batches(first.schema_ref(), &batches)?),
        })
    }
}

/// VALUES without ORDER BY, LIMIT and the like.
fn is_plain(query: &ast::Query) -> bool {
    query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty()
}
