//! What the groups share: an engine in a temporary folder and the tutorial's rows.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::DataType;
use tailrace_engine::{
    ColumnDefinition, CommitOptions, Durability, Engine, EngineConfig, EngineSeams, TableDefinition,
    partition::Transform,
};
use tailrace_wal::{SystemClock, SystemDisk};

/// Rows of the tutorial: 5,000 securities, 242 minutes.
pub(crate) const ROWS: usize = 1_210_000;

/// An engine in a temporary folder.
pub(crate) struct Bed {
    pub(crate) engine: Arc<Engine>,
    _dir: tempfile::TempDir,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let (engine, _) = Engine::open(EngineConfig::new(dir.path()), seams).await.unwrap();
        Self { engine, _dir: dir }
    }

    /// `market.bars`, empty.
    pub(crate) async fn with_table() -> Self {
        let bed = Self::new().await;
        bed.engine.create_database("market").await.unwrap();
        bed.engine.create_table("market", bars_definition()).await.unwrap();
        bed
    }

    /// One transaction.
    pub(crate) async fn load(&self, batches: &[RecordBatch], durability: Durability) {
        let mut transaction = self.engine.begin("market").unwrap();
        for batch in batches {
            transaction.append("bars", batch.clone()).await.unwrap();
        }
        let options = CommitOptions { durability: Some(durability), ..CommitOptions::default() };
        transaction.commit(options).await.unwrap();
    }
}

/// The tutorial's rows, the same for every run.
pub(crate) fn bars() -> Vec<RecordBatch> {
    tailrace::demo::generator::batches(ROWS as u64).collect::<Result<_, _>>().unwrap()
}

/// The tutorial's table.
pub(crate) fn bars_definition() -> TableDefinition {
    let schema = tailrace::demo::generator::schema();
    let columns = schema.fields().iter().map(|field| ColumnDefinition {
        name: field.name().clone(),
        data_type: field.data_type().clone(),
        nullable: field.is_nullable(),
    });
    let columns: Vec<_> = columns.collect();
    assert!(matches!(columns[1].data_type, DataType::Timestamp(..)));
    TableDefinition {
        name: "bars".into(),
        columns,
        partition_by: vec![(Transform::Day, "datetime".into())],
        order_by: vec!["security_id".into(), "datetime".into()],
    }
}
