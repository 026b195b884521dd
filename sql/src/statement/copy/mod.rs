//! COPY … FROM a file of this server.
//!
//! [`path`] decides which files may be read, [`parquet`] and [`csv`] turn one into batches of the table's schema on
//! blocking threads, and the statement appends them, in order, to one transaction as they come.

mod csv;
mod parquet;
mod path;

use std::{path::PathBuf, sync::Arc};

use datafusion::{
    arrow::array::RecordBatch,
    sql::sqlparser::ast::{CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource, CopyTarget, Ident},
};
use futures::{Stream, StreamExt};

use super::{
    cast::Target,
    guard::Guard,
    insert::write,
    name::{TableName, identifier},
};
use crate::{Outcome, Result, Session, SqlError};

pub(crate) use csv::CsvFormat;
pub(crate) use path::open as open_allowed;

/// Rows of a batch on its way from a file into the log.
const BATCH_ROWS: usize = 64 << 10;

/// A checked COPY … FROM.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) table: TableName,
    columns: Vec<String>,
    file: PathBuf,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Parquet,
    Csv(CsvFormat),
}

impl Copy {
    pub(super) fn check(
        source: CopySource,
        to: bool,
        target: CopyTarget,
        options: Vec<CopyOption>,
        legacy: Vec<CopyLegacyOption>,
    ) -> Result<Self> {
        if to {
            return Err(SqlError::unsupported("COPY TO").hint("SELECT the rows and write them where you are"));
        }
        let CopySource::Table { table_name, columns } = source else {
            return Err(SqlError::unsupported("COPY of a query"));
        };
        let file = match target {
            CopyTarget::File { filename } => PathBuf::from(filename),
            CopyTarget::Stdin => {
                return Err(SqlError::unsupported("COPY FROM STDIN")
                    .hint("INSERT many rows at once, or COPY from a file of the server"));
            }
            CopyTarget::Program { .. } => return Err(SqlError::unsupported("COPY FROM PROGRAM")),
            CopyTarget::Stdout => return Err(SqlError::syntax("COPY FROM STDOUT makes no sense")),
        };
        let mut options = modern(legacy)?.into_iter().chain(options).collect::<Vec<_>>();
        let format = options.iter().find_map(|option| match option {
            CopyOption::Format(name) => Some(identifier(name)),
            _ => None,
        });
        options.retain(|option| !matches!(option, CopyOption::Format(_)));
        let extension = file.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let format = match (format.as_deref(), extension.as_deref()) {
            (Some("parquet"), _) | (None, Some("parquet" | "pq")) => Format::Parquet,
            (Some("csv"), Some("tsv")) | (None, Some("tsv")) => Format::Csv(CsvFormat::new(b'\t').with(&options)?),
            (Some("csv"), _) | (None, Some("csv")) => Format::Csv(CsvFormat::new(b',').with(&options)?),
            (Some(other), _) => {
                return Err(SqlError::unsupported(format!("COPY with FORMAT {other}")).hint("formats: parquet, csv"));
            }
            (None, _) => {
                return Err(SqlError::new("22023", format!("the name of {} does not tell its format", file.display()))
                    .hint("add (FORMAT csv) or (FORMAT parquet)"));
            }
        };
        if matches!(format, Format::Parquet)
            && let Some(option) = options.first()
        {
            return Err(SqlError::unsupported(format!("option {option} of COPY from Parquet")));
        }
        let columns = columns.iter().map(identifier).collect();
        Ok(Self { table: TableName::parse(&table_name)?, columns, file, format })
    }
}

/// Runs a COPY.
pub(crate) async fn copy(session: &Session, copy: &Copy, guard: &mut Guard) -> Result<Outcome> {
    let (database, table) = session.resolve_table(&copy.table)?;
    let target = Target::new(copy.table.to_string(), table.schema.clone(), &copy.columns)?;
    let instance = session.instance();
    let threads = instance.threads();
    let path = copy.file.clone();
    let allow = instance.config.files_allow.clone();
    let file = blocking(move || path::open(&path, &allow)).await?;
    let name = file.name.clone();

    let name_file = |error: SqlError| match &error.detail {
        Some(detail) => SqlError { detail: Some(format!("{detail}, in {name}")), ..error },
        None => error.detail(format!("in {name}")),
    };
    let (rows, warning) = write(session, &database, guard, async |write| {
        let batches: Batches = match &copy.format {
            Format::Parquet => {
                let named = !copy.columns.is_empty();
                blocking(move || parquet::read(file, target, named, threads)).await.map_err(name_file)?
            }
            Format::Csv(format) => {
                let (format, columns) = (format.clone(), copy.columns.clone());
                blocking(move || csv::read(file, target, &columns, format, threads)).await.map_err(name_file)?
            }
        };
        let mut batches = batches;
        let mut rows = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(name_file)?;
            rows += batch.num_rows();
            write.append(&table.table.name, batch).await?;
        }
        Ok(rows)
    })
    .await?;
    Ok(Outcome::Done { tag: format!("COPY {rows}"), notices: warning.into_iter().collect() })
}

/// Batches of the table's schema, in the file's order.
type Batches = std::pin::Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

/// Runs work that reads files or computes on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SqlError::internal(error)),
    }
}

/// The options of PostgreSQL before 9.0, as today's.
fn modern(legacy: Vec<CopyLegacyOption>) -> Result<Vec<CopyOption>> {
    let mut options = Vec::new();
    for option in legacy {
        match option {
            CopyLegacyOption::Csv(parts) => {
                options.push(CopyOption::Format(Ident::new("csv")));
                for part in parts {
                    options.push(match part {
                        CopyLegacyCsvOption::Header => CopyOption::Header(true),
                        CopyLegacyCsvOption::Quote(quote) => CopyOption::Quote(quote),
                        CopyLegacyCsvOption::Escape(escape) => CopyOption::Escape(escape),
                        other => return Err(SqlError::unsupported(format!("option {other} of COPY"))),
                    });
                }
            }
            CopyLegacyOption::Parquet => options.push(CopyOption::Format(Ident::new("parquet"))),
            CopyLegacyOption::Header => options.push(CopyOption::Header(true)),
            CopyLegacyOption::Delimiter(delimiter) => options.push(CopyOption::Delimiter(delimiter)),
            CopyLegacyOption::Null(null) => options.push(CopyOption::Null(null)),
            other => return Err(SqlError::unsupported(format!("option {other} of COPY"))),
        }
    }
    Ok(options)
}

/// A file that may be read, open.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: Arc<std::fs::File>,
    /// As the statement named it.
    name: String,
    length: u64,
}
