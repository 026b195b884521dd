//! `partition_digests('market.bars')`: a digest per partition, of the whole table or of selected rows and columns.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::{Schema, SchemaRef},
    catalog::{Session, TableProvider, default_table_source::provider_as_source},
    common::{DFSchema, Result as DataFusionResult, TableReference},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{
        Expr, LogicalPlanBuilder, TableType, ident,
        planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning},
    },
    physical_plan::{ExecutionPlan, execute_stream, stream::RecordBatchStreamAdapter, streaming::StreamingTableExec},
    prelude::SessionContext,
    sql::sqlparser::{
        ast::{FunctionArg, ObjectName, TableFactor},
        dialect::PostgreSqlDialect,
        parser::Parser,
        tokenizer::Token,
    },
};
use futures::TryStreamExt as _;
use tailrace_engine::{Digest, PartitionKey, PartitionScheme, RowHasher, TableVersion};
use tailrace_wal::Seq;

use super::arguments::text_arguments;
use crate::{
    Instance, Result, SqlError,
    feed::table_name,
    provider::{PinnedVersion, Table},
    session::NO_DATABASE,
    statement::name,
    system::{
        computed::{self, Columns, Kind, Rows},
        table::partition_name,
    },
};

const NAME: &str = "partition_digests";
const SIGNATURE: &str = "partition_digests(table text, [where text], [columns text])";
const ARGUMENTS: [&str; 3] = ["table", "where", "columns"];

const COLUMNS: Columns = &[
    ("partition", Kind::Text),
    // In hexadecimal digits: what `partition_rows` takes.
    ("partition_key", Kind::Text),
    ("rows", Kind::Int),
    // 32 hexadecimal digits each.
    ("values_digest", Kind::Text),
    ("identity_digest", Kind::Text),
    // Of the database: what the digests are of.
    ("seq", Kind::Int),
];

/// Adds the function to the planning template.
pub(super) fn register(context: &SessionContext, instance: &Arc<Instance>) -> DataFusionResult<()> {
    context.register_relation_planner(Arc::new(Planner { instance: instance.clone() }))
}

/// Plans the function; leaves everything else alone.
struct Planner {
    instance: Arc<Instance>,
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

impl RelationPlanner for Planner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> DataFusionResult<RelationPlanning> {
        let is_own = |name: &ObjectName| name::parts(name).is_ok_and(|parts| parts == [NAME]);
        let called = match &relation {
            TableFactor::Table { name, args: Some(args), alias, .. } if is_own(name) => {
                Some((args.args.clone(), alias.clone()))
            }
            TableFactor::Function { name, args, alias, .. } if is_own(name) => Some((args.clone(), alias.clone())),
            _ => None,
        };
        let Some((arguments, alias)) = called else { return Ok(RelationPlanning::Original(Box::new(relation))) };
        let digests = self.plan(arguments, context).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let source = provider_as_source(Arc::new(digests) as Arc<dyn TableProvider>);
        let plan = LogicalPlanBuilder::scan(TableReference::bare(NAME), source, None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

impl Planner {
    fn plan(&self, given: Vec<FunctionArg>, context: &mut dyn RelationPlannerContext) -> Result<PartitionDigests> {
        let [table, predicate, columns] = text_arguments(NAME, SIGNATURE, ARGUMENTS, given, context)?;
        let needs = || SqlError::new("42883", format!("{NAME} needs the name of a table")).hint(usage());
        let written = table.ok_or_else(needs)?;
        let current = context.context_provider().options().catalog.default_schema.clone();
        let name = table_name(&written)?;
        let database = name.database(Some(current.as_str()).filter(|current| *current != NO_DATABASE))?;
        let version = self.instance.engine.version();
        let found = version.database(&database).ok_or_else(|| name::no_database(&version, &database))?;
        let table = found.table(&name.table).ok_or_else(|| name::no_table(found, &name.to_string(), &name.table))?;
        let provider = Arc::new(Table::new(self.instance.engine.clone(), &database, table));
        let chosen = match &columns {
            Some(columns) => Some(chosen(columns, table)?),
            None => None,
        };
        let predicate = match &predicate {
            Some(text) => Some(self.predicate(text, &provider, &table.table.name, context)?),
            None => None,
        };
        Ok(PartitionDigests {
            instance: self.instance.clone(),
            schema: computed::schema(COLUMNS),
            table: provider,
            columns: chosen,
            predicate,
        })
    }

    fn predicate(
        &self,
        text: &str,
        table: &Arc<Table>,
        name: &str,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<Expr> {
        let wrong = |why: &dyn fmt::Display| {
            SqlError::new("42601", format!("{text:?} is not a predicate: {why}"))
                .hint("write what would follow WHERE, as text: 'price > 10'; quotes within it are doubled")
        };
        let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).map_err(|error| wrong(&error))?;
        let parsed = parser.parse_expr().map_err(|error| wrong(&error))?;
        let rest = parser.peek_token();
        if rest.token != Token::EOF {
            return Err(wrong(&format!("{rest} follows it")));
        }
        let schema = DFSchema::try_from_qualified_schema(TableReference::bare(name), &table.schema())?;
        Ok(context.sql_to_expr(parsed, &schema)?)
    }
}

/// Columns by name, as a list in SQL has them.
fn chosen(text: &str, table: &TableVersion) -> Result<Vec<usize>> {
    let wrong = || {
        SqlError::new("42602", format!("{text:?} is not a list of columns"))
            .hint("write names with commas; those with capitals or signs in double quotes: 'a, \"B c\"'")
    };
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).map_err(|_| wrong())?;
    let names = parser.parse_comma_separated(Parser::parse_identifier).map_err(|_| wrong())?;
    if parser.peek_token().token != Token::EOF {
        return Err(wrong());
    }
    let mut chosen = Vec::new();
    for written in names {
        let name = name::identifier(&written);
        let found = table.table.columns.iter().position(|column| column.name == name);
        let index = found.ok_or_else(|| {
            SqlError::new("42703", format!("table {:?} has no column {name:?}", table.table.name))
                .did_you_mean(&name, table.table.columns.iter().map(|column| column.name.as_str()))
        })?;
        if chosen.contains(&index) {
            return Err(SqlError::new("42701", format!("column {name:?} is named twice")));
        }
        chosen.push(index);
    }
    Ok(chosen)
}

fn usage() -> String {
    format!("its signature is {SIGNATURE}")
}

/// A call of the function.
struct PartitionDigests {
    instance: Arc<Instance>,
    schema: SchemaRef,
    table: Arc<Table>,
    /// Of the table, by index; `None`: all.
    columns: Option<Vec<usize>>,
    predicate: Option<Expr>,
}

impl fmt::Debug for PartitionDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(NAME).field("table", &self.table).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for PartitionDigests {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let table = self.table.pinned(state)?;
        let version = PinnedVersion::of(state.config(), &self.instance.engine);
        let seq = version.database(self.table.database()).map(|database| database.position.seq).unwrap_or_default();
        let work = match (&self.columns, &self.predicate) {
            (None, None) => Work::Kept,
            (columns, predicate) => self.selected(state, &table, columns.as_deref(), predicate.clone()).await?,
        };
        let digests = Digests { instance: self.instance.clone(), table, seq, work, schema: self.schema.clone() };
        let plan = StreamingTableExec::try_new(
            self.schema.clone(),
            vec![Arc::new(digests)],
            projection,
            Vec::new(),
            false,
            None,
        )?;
        Ok(Arc::new(plan))
    }
}

impl PartitionDigests {
    /// A plan of the rows and columns that are wanted: those hashed first, then those that name partitions.
    async fn selected(
        &self,
        state: &dyn Session,
        table: &Arc<TableVersion>,
        columns: Option<&[usize]>,
        predicate: Option<Expr>,
    ) -> DataFusionResult<Work> {
        let all: Vec<usize> = (0..table.table.columns.len()).collect();
        let hashed = columns.unwrap_or(&all);
        let keys = table
            .table
            .partition_by
            .iter()
            .filter_map(|(_, id)| table.table.columns.iter().position(|column| column.id == *id));
        let mut read = hashed.to_vec();
        for key in keys {
            if !read.contains(&key) {
                read.push(key);
            }
        }
        let source = provider_as_source(self.table.clone() as Arc<dyn TableProvider>);
        let mut plan = LogicalPlanBuilder::scan(TableReference::bare(table.table.name.as_str()), source, None)?;
        if let Some(predicate) = predicate {
            plan = plan.filter(predicate)?;
        }
        let named = |index: &usize| ident(table.table.columns[*index].name.clone());
        let plan = plan.project(read.iter().map(named).collect::<Vec<_>>())?.build()?;
        let plan = state.create_physical_plan(&plan).await?;
        // A partition's rows with only these columns: the scheme finds them by their ids.
        let mut narrow = (*table.table).clone();
        narrow.columns = read.iter().map(|index| table.table.columns[*index].clone()).collect();
        let failed = |error: tailrace_engine::EngineError| DataFusionError::External(Box::new(SqlError::from(error)));
        let scheme = PartitionScheme::new(&narrow).map_err(failed)?;
        let schema = narrow.schema();
        let fields = schema.fields()[..hashed.len()].to_vec();
        let hasher = RowHasher::new(&Schema::new(fields)).map_err(failed)?;
        Ok(Work::Selected(Box::new(Selected { plan, scheme, schema, hasher, hashed: hashed.len() })))
    }
}

enum Work {
    /// All rows: what is kept with the datafiles, and the rows in memory.
    Kept,
    Selected(Box<Selected>),
}

struct Selected {
    plan: Arc<dyn ExecutionPlan>,
    scheme: PartitionScheme,
    /// Of the plan's batches, with the types of the table.
    schema: SchemaRef,
    hasher: RowHasher,
    /// So many columns count; those after them only name partitions.
    hashed: usize,
}

struct Digests {
    instance: Arc<Instance>,
    table: Arc<TableVersion>,
    seq: Seq,
    work: Work,
    schema: SchemaRef,
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digests").field("table", &self.table.table.name).finish_non_exhaustive()
    }
}

impl datafusion::physical_plan::streaming::PartitionStream for Digests {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (instance, table, seq) = (self.instance.clone(), self.table.clone(), self.seq);
        let rows = match &self.work {
            Work::Kept => futures::future::Either::Left(kept(instance, table.clone())),
            Work::Selected(selected) => {
                let stream = execute_stream(selected.plan.clone(), context);
                let (scheme, schema) = (selected.scheme.clone(), selected.schema.clone());
                let (hasher, hashed) = (selected.hasher.clone(), selected.hashed);
                futures::future::Either::Right(async move { select(stream?, scheme, schema, hasher, hashed).await })
            }
        };
        let schema = self.schema.clone();
        let batch = async move {
            let digests = rows.await?;
            let mut rows = Rows::new(COLUMNS);
            for (key, digest, identified) in digests {
                let name = partition_name(&table.scheme, &key).map_err(external)?;
                let identity = identified.then(|| digest.identity_hex());
                let key = key.to_hex();
                rows.push([
                    name.into(),
                    key.into(),
                    digest.rows.into(),
                    digest.values_hex().into(),
                    identity.into(),
                    seq.into(),
                ]);
            }
            rows.batch(&schema)
        };
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::once(batch)))
    }
}

type PartitionDigest = (PartitionKey, Digest, bool);

async fn kept(instance: Arc<Instance>, table: Arc<TableVersion>) -> DataFusionResult<Vec<PartitionDigest>> {
    let digests = instance.engine.partition_digests(&table).await.map_err(|error| external(error.into()))?;
    Ok(digests.into_iter().map(|(key, digest)| (key, digest, true)).collect())
}

async fn select(
    mut stream: SendableRecordBatchStream,
    scheme: PartitionScheme,
    schema: SchemaRef,
    hasher: RowHasher,
    hashed: usize,
) -> DataFusionResult<Vec<PartitionDigest>> {
    let mut digests: BTreeMap<PartitionKey, Digest> = BTreeMap::new();
    let hashed: Vec<usize> = (0..hashed).collect();
    while let Some(batch) = stream.try_next().await? {
        // A scan may give other encodings of the table's types.
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(array, field)| Ok(datafusion::arrow::compute::cast(array, field.data_type())?));
        let columns = columns.collect::<DataFusionResult<Vec<_>>>()?;
        let batch = datafusion::arrow::array::RecordBatch::try_new(schema.clone(), columns)?;
        for (key, rows) in scheme.split(&batch).map_err(|error| external(error.into()))? {
            let digest = hasher.values(&rows.project(&hashed)?).map_err(|error| external(error.into()))?;
            *digests.entry(key).or_default() += digest;
        }
    }
    Ok(digests.into_iter().map(|(key, digest)| (key, digest, false)).collect())
}

fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
