//! Rows in datafiles.

use std::sync::Arc;

use chrono::DateTime;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::Session,
    common::{Result, Statistics, stats::Precision},
    datasource::{
        listing::PartitionedFile,
        object_store::ObjectStoreUrl,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::CachedParquetFileReaderFactory},
        source::DataSourceExec,
    },
    execution::runtime_env::RuntimeEnv,
    physical_plan::ExecutionPlan,
};
use object_store::{ObjectMeta, path::Path};
use tailrace_engine::{Datafile, Engine, TableVersion};

use super::statistics::of_datafile;

/// Where the engine's object store is known to DataFusion.
const STORE: &str = "tailrace://store/";
/// Files up to which a scan's column statistics are merged: beyond, planning would cost more than they save.
const MERGED_FILES: usize = 1024;

/// Makes the engine's store known.
pub(crate) fn register_store(runtime: &RuntimeEnv, engine: &Engine) -> Result<()> {
    let url = ObjectStoreUrl::parse(STORE)?;
    runtime.register_object_store(url.as_ref(), engine.store().clone());
    Ok(())
}

/// Scans datafiles. The hidden columns are in the files, not in the schema, so that nobody sees them.
pub(super) fn scan(
    state: &dyn Session,
    schema: &SchemaRef,
    table: &TableVersion,
    datafiles: &[Arc<Datafile>],
    projection: Option<&Vec<usize>>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let url = ObjectStoreUrl::parse(STORE)?;
    let runtime = state.runtime_env();
    let store = runtime.object_store(&url)?;
    let readers = CachedParquetFileReaderFactory::new(store, runtime.cache_manager.get_file_metadata_cache());
    let source = ParquetSource::new(schema.clone())
        .with_table_parquet_options(state.table_options().parquet.clone())
        .with_pushdown_filters(true)
        .with_reorder_filters(true)
        .with_parquet_file_reader_factory(Arc::new(readers));

    let mut files = Vec::with_capacity(datafiles.len());
    let mut statistics = Vec::with_capacity(datafiles.len());
    for datafile in datafiles {
        let of_file = Arc::new(of_datafile(&table.table, schema, datafile)?);
        let file = PartitionedFile::new_from_meta(ObjectMeta {
            location: Path::parse(&datafile.path().0).map_err(object_store::Error::from)?,
            // Datafiles never change, so that cached footers stay right.
            last_modified: DateTime::UNIX_EPOCH,
            size: datafile.meta.bytes,
            e_tag: None,
            version: None,
        });
        files.push(file.with_statistics(of_file.clone()));
        statistics.push(of_file);
    }
    let groups = groups(files, state.config().target_partitions());
    let config = FileScanConfigBuilder::new(url, Arc::new(source))
        .with_file_groups(groups)
        .with_statistics(merged(&statistics, schema)?)
        .with_projection_indices(projection.cloned())?
        .with_limit(limit)
        .build();
    Ok(DataSourceExec::from_data_source(config))
}

/// Exact as far as the files' own are.
fn merged(statistics: &[Arc<Statistics>], schema: &SchemaRef) -> Result<Statistics> {
    if statistics.len() <= MERGED_FILES {
        return Statistics::try_merge_iter(statistics.iter().map(AsRef::as_ref), schema);
    }
    let rows = statistics.iter().filter_map(|file| file.num_rows.get_value()).sum::<usize>();
    Ok(Statistics::new_unknown(schema).with_num_rows(Precision::Exact(rows)))
}

/// Divides files among threads by their size; one large file is divided later, by its row groups.
fn groups(mut files: Vec<PartitionedFile>, most: usize) -> Vec<FileGroup> {
    files.sort_by_key(|file| std::cmp::Reverse(file.object_meta.size));
    let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); most.clamp(1, files.len().max(1))];
    for file in files {
        if let Some((bytes, group)) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            *bytes += file.object_meta.size;
            group.push(file);
        }
    }
    groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect()
}
