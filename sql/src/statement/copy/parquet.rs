//! Parquet files: columns are decoded in parallel, each thread a share of them, and put together batch by batch.

use std::{
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;
use datafusion::{
    arrow::array::{ArrayRef, RecordBatch},
    parquet::{
        arrow::{
            ProjectionMask,
            arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        },
        errors::{ParquetError, Result as ParquetResult},
        file::reader::{ChunkReader, Length},
    },
};
use futures::StreamExt;
use tokio::sync::mpsc;

use super::{BATCH_ROWS, Batches, Source};
use crate::{
    Result, SqlError,
    error::nearest,
    statement::cast::{Target, cast_column},
};

/// Batches that each thread may be ahead.
const AHEAD: usize = 2;

/// Begins to read. Columns are matched by name, without regard to case: those that the statement named, or else the
/// file's and the table's have to be the same ones.
pub(super) fn read(source: Source, target: Target, named: bool, threads: usize) -> Result<Batches> {
    let file = PositionedFile(source);
    let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(damaged)?;
    let roots = match_columns(&metadata, &target, named)?;
    let shares = share(&metadata, &roots, threads);

    // For each given column of the target: which share holds it, and where in it.
    let mut places = vec![(0, 0); roots.len()];
    let mut receivers = Vec::new();
    for (number, share) in shares.into_iter().enumerate() {
        // A reader gives its columns in the file's order.
        let mut share = share;
        share.sort_by_key(|given| roots[*given]);
        for (place, given) in share.iter().enumerate() {
            places[*given] = (number, place);
        }
        let (sender, receiver) = mpsc::channel(AHEAD);
        receivers.push(receiver);
        let (file, metadata, target) = (file.clone(), metadata.clone(), target.clone());
        let share_roots: Vec<usize> = share.iter().map(|given| roots[*given]).collect();
        tokio::task::spawn_blocking(move || {
            let result = decode(file, metadata, &target, &share, &share_roots, &sender);
            if let Err(error) = result {
                // Nobody listens any more when the statement ended: then nobody needs the error either.
                let _ = sender.blocking_send(Err(error));
            }
        });
    }
    let state = (receivers, target, places);
    Ok(futures::stream::unfold(state, |(mut receivers, target, places)| async move {
        let mut shares = Vec::with_capacity(receivers.len());
        for receiver in &mut receivers {
            match receiver.recv().await {
                Some(Ok(share)) => shares.push(share),
                Some(Err(error)) => return Some((Err(error), (Vec::new(), target, places))),
                None => return None,
            }
        }
        let first: &Vec<ArrayRef> = shares.first()?;
        let rows = first.first().map_or(0, |column| column.len());
        let columns: Vec<ArrayRef> = places.iter().map(|(share, place)| shares[*share][*place].clone()).collect();
        let batch = match columns.iter().all(|column| column.len() == rows) {
            true => target.assemble(&columns, rows),
            false => Err(SqlError::new("22P04", "the file's columns are not equally long")),
        };
        Some((batch, (receivers, target, places)))
    })
    .fuse()
    .boxed())
}

/// Decodes and casts a share of the columns and sends it batch by batch.
fn decode(
    file: PositionedFile,
    metadata: ArrowReaderMetadata,
    target: &Target,
    share: &[usize],
    roots: &[usize],
    sender: &mpsc::Sender<Result<Vec<ArrayRef>>>,
) -> Result<()> {
    let mask = ProjectionMask::roots(metadata.parquet_schema(), roots.iter().copied());
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(damaged)?;
    for batch in reader {
        let batch: RecordBatch = batch.map_err(|error| damaged(ParquetError::from(error)))?;
        let columns = batch.columns().iter().zip(share).map(|(column, given)| {
            let field = target.field(*given).ok_or_else(|| SqlError::internal("a column without a place"))?;
            cast_column(column, field)
        });
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        if sender.blocking_send(Ok(columns)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// For each given column of the target, the file's column.
fn match_columns(metadata: &ArrowReaderMetadata, target: &Target, named: bool) -> Result<Vec<usize>> {
    let fields = metadata.schema().fields();
    let names: Vec<String> = fields.iter().map(|field| field.name().to_lowercase()).collect();
    let mut roots = Vec::with_capacity(target.width());
    for position in 0..target.width() {
        let field = target.field(position).ok_or_else(|| SqlError::internal("a column without a place"))?;
        let wanted = field.name().to_lowercase();
        let mut found = names.iter().enumerate().filter(|(_, name)| **name == wanted).map(|(index, _)| index);
        let Some(root) = found.next() else {
            let error = SqlError::new("42703", format!("the file has no column {:?}", field.name()));
            return Err(match nearest(&wanted, names.iter().map(String::as_str)) {
                Some(near) => {
                    error.hint(format!("it has {near:?}; rename it, or name the columns to take: COPY t (a, b) FROM …"))
                }
                None => error.hint("name the columns to take: COPY t (a, b) FROM …"),
            });
        };
        if found.next().is_some() {
            return Err(SqlError::new("42702", format!("the file has more than one column {:?}", field.name())));
        }
        roots.push(root);
    }
    if !named && let Some((_, extra)) = fields.iter().enumerate().find(|(index, _)| !roots.contains(index)) {
        return Err(SqlError::new(
            "42703",
            format!("table {:?} has no column {:?}, the file has", target.table, extra.name()),
        )
        .hint("name the columns to take: COPY t (a, b) FROM …"));
    }
    let types: Vec<_> = roots.iter().map(|root| fields[*root].data_type().clone()).collect();
    target.check_types(&types)?;
    Ok(roots)
}

/// Divides the columns among threads so that each has about as many bytes to decode.
fn share(metadata: &ArrowReaderMetadata, roots: &[usize], threads: usize) -> Vec<Vec<usize>> {
    let schema = metadata.parquet_schema();
    let mut weights = vec![0_u64; metadata.schema().fields().len()];
    for group in metadata.metadata().row_groups() {
        for (leaf, column) in group.columns().iter().enumerate() {
            if let Some(weight) = weights.get_mut(schema.get_column_root_idx(leaf)) {
                *weight += u64::try_from(column.uncompressed_size()).unwrap_or(0);
            }
        }
    }
    let mut order: Vec<usize> = (0..roots.len()).collect();
    order.sort_by_key(|given| std::cmp::Reverse(weights[roots[*given]]));
    let mut shares = vec![(0_u64, Vec::new()); threads.clamp(1, roots.len().max(1))];
    for given in order {
        if let Some((weight, share)) = shares.iter_mut().min_by_key(|(weight, _)| *weight) {
            *weight += weights[roots[given]].max(1);
            share.push(given);
        }
    }
    shares.into_iter().map(|(_, share)| share).filter(|share| !share.is_empty()).collect()
}

fn damaged(error: ParquetError) -> SqlError {
    SqlError::new("22P04", format!("the file is not readable as Parquet: {error}"))
}

/// A file that several threads read, each where it wants to. (Clones of an open file share one position.)
#[derive(Clone)]
struct PositionedFile(Source);

impl Length for PositionedFile {
    fn len(&self) -> u64 {
        self.0.length
    }
}

impl ChunkReader for PositionedFile {
    type T = io::BufReader<PositionedRead>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(io::BufReader::new(PositionedRead { file: self.0.file.clone(), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = u64::try_from(length).ok().and_then(|length| start.checked_add(length));
        if end.is_none_or(|end| end > self.0.length) {
            return Err(ParquetError::EOF("the file ends before its metadata says".to_owned()));
        }
        let mut bytes = vec![0; length];
        self.0.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

struct PositionedRead {
    file: Arc<std::fs::File>,
    position: u64,
}

impl Read for PositionedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
