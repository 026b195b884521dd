//! CSV files: one thread cuts the file into blocks at line ends, others parse them, in order they come out.

use std::{os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use datafusion::{
    arrow::{
        array::RecordBatch,
        csv::ReaderBuilder,
        datatypes::{DataType, Field, Schema},
        error::ArrowError,
    },
    sql::sqlparser::ast::CopyOption,
};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;

use super::{BATCH_ROWS, Batches, Source, blocking};
use crate::{
    Result, SqlError,
    statement::{
        cast::{Target, text_error},
        types::type_name,
    },
};

/// Bytes of a block.
const BLOCK: usize = 4 << 20;
/// Longest record.
const LONGEST_RECORD: usize = 64 << 20;

/// How a CSV file is written.
#[derive(Debug, Clone)]
pub(crate) struct CsvFormat {
    delimiter: u8,
    quote: u8,
    escape: Option<u8>,
    header: bool,
}

impl CsvFormat {
    pub(super) fn new(delimiter: u8) -> Self {
        Self { delimiter, quote: b'"', escape: None, header: false }
    }

    /// With the options of a statement.
    pub(super) fn with(mut self, options: &[CopyOption]) -> Result<Self> {
        let byte = |what: &str, character: char| {
            u8::try_from(character)
                .ok()
                .filter(|byte| byte.is_ascii() && !matches!(byte, b'\n' | b'\r'))
                .ok_or_else(|| SqlError::new("22023", format!("{what} must be one ASCII character, not {character:?}")))
        };
        for option in options {
            match option {
                CopyOption::Header(header) => self.header = *header,
                CopyOption::Delimiter(character) => self.delimiter = byte("DELIMITER", *character)?,
                CopyOption::Quote(character) => self.quote = byte("QUOTE", *character)?,
                CopyOption::Escape(character) => {
                    self.escape = Some(byte("ESCAPE", *character)?).filter(|escape| *escape != self.quote);
                }
                CopyOption::Null(text) if text.is_empty() => {}
                CopyOption::Encoding(name)
                    if name.eq_ignore_ascii_case("utf8") || name.eq_ignore_ascii_case("utf-8") => {}
                CopyOption::Freeze(false) => {}
                other => return Err(SqlError::unsupported(format!("option {other} of COPY from CSV"))),
            }
        }
        Ok(self)
    }
}

/// Begins to read. With a header and no column list, columns are matched by their names; otherwise by position.
pub(super) fn read(
    source: Source,
    mut target: Target,
    columns: &[String],
    format: CsvFormat,
    threads: usize,
) -> Result<Batches> {
    let mut blocks = Blocks::new(source, &format);
    let mut first_record = 1;
    if format.header {
        first_record = 2;
        if let Some(names) = blocks.take_record(&format)? {
            if columns.is_empty() {
                target = by_header(&target, &names)?;
            } else if names.len() != target.width() {
                return Err(SqlError::new(
                    "22P04",
                    format!("the file has {} columns, the statement names {}", names.len(), target.width()),
                ));
            }
        }
    }
    let parse = Arc::new(Parse { schema: csv_schema(&target), target, format });

    let (sender, receiver) = mpsc::channel::<Result<Bytes>>(1);
    tokio::task::spawn_blocking(move || {
        while let Some(block) = blocks.next().transpose() {
            // Fails only when the statement ended.
            if sender.blocking_send(block).is_err() {
                return;
            }
        }
    });
    let blocks = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let parsed = blocks
        .map(move |block| {
            let parse = parse.clone();
            async move {
                let block = block?;
                blocking(move || Ok(parse.block(&block))).await
            }
        })
        .buffered(threads.max(1));
    // Only here is it known how many records came before a block.
    let numbered = parsed.scan(first_record, |record, parsed| {
        let first = *record;
        let batches = match parsed {
            Ok(Ok(batches)) => {
                *record += batches.iter().map(RecordBatch::num_rows).sum::<usize>();
                batches.into_iter().map(Ok).collect()
            }
            Ok(Err(failed)) => vec![Err(failed.at_record(first))],
            Err(error) => vec![Err(error)],
        };
        futures::future::ready(Some(stream::iter(batches)))
    });
    Ok(numbered.flatten().boxed())
}

/// Parses blocks of whole records.
struct Parse {
    schema: Arc<Schema>,
    target: Target,
    format: CsvFormat,
}

/// Why a block could not be parsed, and at which of its records.
struct Failed {
    error: Box<SqlError>,
    /// 0-based in its block.
    record: Option<usize>,
}

impl Failed {
    fn at_record(self, first: usize) -> SqlError {
        match self.record {
            Some(record) => self.error.detail(format!("record {}", first + record)),
            None => self.error.detail(format!("in the records from {first} on")),
        }
    }
}

impl Parse {
    fn block(&self, block: &[u8]) -> Result<Vec<RecordBatch>, Failed> {
        let mut builder = ReaderBuilder::new(self.schema.clone())
            .with_batch_size(BATCH_ROWS)
            .with_delimiter(self.format.delimiter)
            .with_quote(self.format.quote);
        if let Some(escape) = self.format.escape {
            builder = builder.with_escape(escape);
        }
        let reader = builder.build_buffered(block).map_err(|error| self.failed(error))?;
        reader
            .map(|batch| {
                let batch = batch.map_err(|error| self.failed(error))?;
                self.target.cast(&batch).map_err(|error| Failed { error: Box::new(error), record: None })
            })
            .collect()
    }

    fn failed(&self, error: ArrowError) -> Failed {
        let text = match &error {
            ArrowError::ParseError(text) | ArrowError::CsvError(text) => text.clone(),
            other => other.to_string(),
        };
        match parse_failure(&text) {
            Some((value, column, line)) if let Some(field) = self.target.field(column) => {
                let mut error = text_error(value, field);
                if value == field.name() {
                    error = error.hint("the first line looks like a header: add (HEADER true)");
                }
                Failed { error: Box::new(error), record: Some(line) }
            }
            _ => Failed {
                error: Box::new(SqlError::new("22P04", format!("the file is not readable as CSV: {text}"))),
                record: None,
            },
        }
    }
}

/// Value, 0-based column and 0-based record of `Error while parsing value 'x' as type 'Int32' for column 1 at line 3. …`
/// or `Error parsing column 1 at line 3: … 'x' …`.
fn parse_failure(text: &str) -> Option<(&str, usize, usize)> {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    if let Some(rest) = text.strip_prefix("Error while parsing value '") {
        let (value, rest) = rest.split_once("' as type '")?;
        let (_, rest) = rest.split_once("' for column ")?;
        let (column, line) = rest.split_once(" at line ")?;
        return Some((value, column.parse().ok()?, number(line)?));
    }
    let (column, rest) = text.strip_prefix("Error parsing column ")?.split_once(" at line ")?;
    let (_, value) = rest.split_once('\'')?;
    let (value, _) = value.split_once("':").or_else(|| value.rsplit_once('\''))?;
    Some((value, column.parse().ok()?, number(rest)?))
}

/// The file's columns as the parser reads them: types that only the casts understand come as text.
fn csv_schema(target: &Target) -> Arc<Schema> {
    let fields = (0..target.width()).filter_map(|position| target.field(position)).map(|field| {
        let data_type = match field.data_type() {
            DataType::Binary | DataType::Boolean => DataType::Utf8,
            other => other.clone(),
        };
        Field::new(field.name(), data_type, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The target with columns in the order of a header.
fn by_header(target: &Target, names: &[String]) -> Result<Target> {
    let fields = target.schema.fields();
    let columns = names.iter().map(|name| {
        let found = fields.iter().find(|field| field.name().eq_ignore_ascii_case(name));
        found.map(|field| field.name().clone()).ok_or_else(|| {
            SqlError::new("42703", format!("table {:?} has no column {name:?}, the file's header has", target.table))
                .did_you_mean(name, fields.iter().map(|field| field.name().as_str()))
        })
    });
    let columns: Vec<_> = columns.collect::<Result<_>>()?;
    if let Some(field) = fields.iter().find(|field| !columns.contains(field.name())) {
        return Err(SqlError::new("42703", format!("the file's header has no column {:?}", field.name()))
            .detail(format!("it is {} in the table", type_name(field.data_type())))
            .hint("name the columns to fill: COPY t (a, b) FROM …"));
    }
    Target::new(target.table.clone(), target.schema.clone(), &columns)
}

/// Cuts a file into blocks of whole records.
struct Blocks {
    source: Source,
    position: u64,
    /// Read and not yet given out; begins with a record.
    rest: Vec<u8>,
    quote: u8,
    escape: Option<u8>,
}

impl Blocks {
    fn new(source: Source, format: &CsvFormat) -> Self {
        Self { source, position: 0, rest: Vec::new(), quote: format.quote, escape: format.escape }
    }

    /// The next block; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let more = self.fill(BLOCK)?;
            if self.rest.is_empty() {
                return Ok(None);
            }
            let end = if more { self.last_record_end() } else { Some(self.rest.len()) };
            if let Some(end) = end {
                let rest = self.rest.split_off(end);
                return Ok(Some(std::mem::replace(&mut self.rest, rest).into()));
            }
            self.check_length()?;
        }
    }

    /// Takes the first record off and splits it; `None` for an empty file.
    fn take_record(&mut self, format: &CsvFormat) -> Result<Option<Vec<String>>> {
        loop {
            let more = self.fill(BLOCK)?;
            if self.position <= BLOCK as u64 && self.rest.starts_with(b"\xEF\xBB\xBF") {
                self.rest.drain(..3);
            }
            if self.rest.is_empty() {
                return Ok(None);
            }
            let end = match self.ends().next() {
                Some(end) => end,
                None if !more => self.rest.len(),
                None => {
                    self.check_length()?;
                    continue;
                }
            };
            let record: Vec<u8> = self.rest.drain(..end).collect();
            let text = std::str::from_utf8(&record).map_err(|_| SqlError::new("22021", "the header is not UTF-8"))?;
            return Ok(Some(split(text.trim_end_matches(['\r', '\n']), format)));
        }
    }

    /// Reads more; `false` at the end of the file.
    fn fill(&mut self, bytes: usize) -> Result<bool> {
        let start = self.rest.len();
        let left = usize::try_from(self.source.length - self.position).unwrap_or(usize::MAX);
        self.rest.resize(start + bytes.min(left), 0);
        self.source
            .file
            .read_exact_at(&mut self.rest[start..], self.position)
            .map_err(|error| SqlError::new("58030", format!("{} cannot be read: {error}", self.source.name)))?;
        self.position += (self.rest.len() - start) as u64;
        Ok(self.position < self.source.length)
    }

    fn last_record_end(&self) -> Option<usize> {
        if !self.rest.contains(&self.quote) {
            return self.rest.iter().rposition(|byte| *byte == b'\n').map(|index| index + 1);
        }
        self.ends().last()
    }

    /// Where records end: after line ends outside quotes.
    fn ends(&self) -> impl Iterator<Item = usize> + '_ {
        let (mut quoted, mut escaped) = (false, false);
        self.rest.iter().enumerate().filter_map(move |(index, byte)| {
            if escaped {
                escaped = false;
            } else if quoted && Some(*byte) == self.escape {
                escaped = true;
            } else if *byte == self.quote {
                quoted = !quoted;
            } else if *byte == b'\n' && !quoted {
                return Some(index + 1);
            }
            None
        })
    }

    fn check_length(&self) -> Result<()> {
        if self.rest.len() <= LONGEST_RECORD {
            return Ok(());
        }
        Err(SqlError::new("54000", format!("a record is longer than {} MiB", LONGEST_RECORD >> 20))
            .hint("is a quote missing, or is QUOTE another character?"))
    }
}

/// Fields of a header.
fn split(record: &str, format: &CsvFormat) -> Vec<String> {
    let (delimiter, quote) = (char::from(format.delimiter), char::from(format.quote));
    let mut names = vec![String::new()];
    let mut quoted = false;
    for character in record.chars() {
        if character == quote {
            quoted = !quoted;
        } else if character == delimiter && !quoted {
            names.push(String::new());
        } else if let Some(name) = names.last_mut() {
            name.push(character);
        }
    }
    names.iter().map(|name| name.trim().to_owned()).collect()
}
