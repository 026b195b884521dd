//! `partition_digests('market.bars')`: a digest per partition, of the whole table or of selected rows and columns.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{Schema, SchemaRef},
    },
    catalog::{Session, TableProvider, default_table_source::provider_as_source},
    common::{DFSchema, Result as DataFusionResult, TableReference},
    execution::TaskContext,
    logical_expr::{Expr, LogicalPlanBuilder, TableType, ident, planner::RelationPlannerContext},
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::SessionContext,
    sql::sqlparser::{ast::FunctionArg, dialect::PostgreSqlDialect, parser::Parser, tokenizer::Token},
};
use futures::TryStreamExt as _;
use tailrace_engine::{Digest, PartitionKey, PartitionScheme, RowHasher, TableVersion};
use tailrace_wal::Seq;

use super::arguments::text_arguments;
use crate::{
    Instance, Result, SqlError,
    function::{named_table, register_relation},
    provider::{Leaf, PinnedVersion, Table, external},
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
    let instance = instance.clone();
    register_relation(context, NAME, move |given, context| Ok(Arc::new(plan(&instance, given, context)?)))
}

fn plan(
    instance: &Arc<Instance>,
    given: Vec<FunctionArg>,
    context: &mut dyn RelationPlannerContext,
) -> Result<PartitionDigests> {
    let [table, predicate, columns] = text_arguments(NAME, SIGNATURE, ARGUMENTS, given, context)?;
    let needs = || SqlError::new("42883", format!("{NAME} needs the name of a table")).hint(usage());
    let (database, table) = named_table(&instance.engine, &table.ok_or_else(needs)?, context)?;
    let provider = Arc::new(Table::new(instance.engine.clone(), &database.name, &table));
    let chosen = match &columns {
        Some(columns) => Some(chosen(columns, &table)?),
        None => None,
    };
    let predicate = match &predicate {
        Some(text) => Some(condition(text, &provider, &table.table.name, context)?),
        None => None,
    };
    Ok(PartitionDigests {
        instance: instance.clone(),
        schema: computed::schema(COLUMNS),
        table: provider,
        columns: chosen,
        predicate,
    })
}

fn condition(text: &str, table: &Arc<Table>, name: &str, context: &mut dyn RelationPlannerContext) -> Result<Expr> {
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
        let of = match (&self.columns, &self.predicate) {
            (None, None) => Of::Kept,
            (columns, predicate) => self.selected(state, &table, columns.as_deref(), predicate.clone()).await?,
        };
        let work = Arc::new(Work { instance: self.instance.clone(), table, seq, of });
        let schema = self.schema.clone();
        Leaf::computed(NAME, &self.schema, projection, move |context| work.clone().batch(context, schema.clone()))
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
    ) -> DataFusionResult<Of> {
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
        let failed = |error: tailrace_engine::EngineError| external(error.into());
        let scheme = PartitionScheme::new(&narrow).map_err(failed)?;
        let schema = narrow.schema();
        let fields = schema.fields()[..hashed.len()].to_vec();
        let hasher = RowHasher::new(&Schema::new(fields)).map_err(failed)?;
        Ok(Of::Selected(Box::new(Selected { plan, scheme, schema, hasher, hashed: hashed.len() })))
    }
}

/// What is digested.
enum Of {
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

struct Work {
    instance: Arc<Instance>,
    table: Arc<TableVersion>,
    seq: Seq,
    of: Of,
}

impl Work {
    async fn batch(self: Arc<Self>, context: Arc<TaskContext>, schema: SchemaRef) -> DataFusionResult<RecordBatch> {
        let digests = match &self.of {
            Of::Kept => kept(&self.instance, &self.table).await?,
            Of::Selected(selected) => select(selected, context).await?,
        };
        let mut rows = Rows::new(COLUMNS);
        for (key, digest, identified) in digests {
            let name = partition_name(&self.table.scheme, &key).map_err(external)?;
            let identity = identified.then(|| digest.identity_hex());
            rows.push([
                name.into(),
                key.to_hex().into(),
                digest.rows.into(),
                digest.values_hex().into(),
                identity.into(),
                self.seq.into(),
            ]);
        }
        rows.batch(&schema)
    }
}

type PartitionDigest = (PartitionKey, Digest, bool);

async fn kept(instance: &Instance, table: &Arc<TableVersion>) -> DataFusionResult<Vec<PartitionDigest>> {
    let digests = instance.engine.partition_digests(table).await.map_err(|error| external(error.into()))?;
    Ok(digests.into_iter().map(|(key, digest)| (key, digest, true)).collect())
}

async fn select(selected: &Selected, context: Arc<TaskContext>) -> DataFusionResult<Vec<PartitionDigest>> {
    let Selected { plan, scheme, schema, hasher, hashed } = selected;
    let mut stream = execute_stream(plan.clone(), context)?;
    let mut digests: BTreeMap<PartitionKey, Digest> = BTreeMap::new();
    let hashed: Vec<usize> = (0..*hashed).collect();
    while let Some(batch) = stream.try_next().await? {
        // A scan may give other encodings of the table's types.
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(array, field)| Ok(datafusion::arrow::compute::cast(array, field.data_type())?));
        let columns = columns.collect::<DataFusionResult<Vec<_>>>()?;
        let batch = RecordBatch::try_new(schema.clone(), columns)?;
        for (key, rows) in scheme.split(&batch).map_err(|error| external(error.into()))? {
            let digest = hasher.values(&rows.project(&hashed)?).map_err(|error| external(error.into()))?;
            *digests.entry(key).or_default() += digest;
        }
    }
    Ok(digests.into_iter().map(|(key, digest)| (key, digest, false)).collect())
}
