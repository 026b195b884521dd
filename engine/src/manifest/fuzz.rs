//! Hostile manifests: what [`crate::simulation::fuzz`] offers.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tailrace_wal::{
    Clock, Disk, Lsn, Persistence,
    simulation::{SimulatedClock, SimulatedDisk, fuzz},
};

use super::{CHECKPOINT, EDIT, Edit, FlushEdit, Folding, Manifest, ManifestFacts, ManifestState, encode};
use crate::{
    ColumnDefinition, Engine, EngineConfig, EngineSeams, Role, TableDefinition, TableVersion, simulation::Simulation,
    space::Space,
};

/// Larger inputs find nothing that smaller ones do not.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Documents, one per line: `1` or `2` (edit or checkpoint), a space, JSON. What is accepted is the same after it was
/// written and read once more.
pub fn manifest(input: &[u8]) {
    let Some(documents) = documents_of(input) else { return };
    fold(&documents);
}

/// One checkpoint.
pub fn checkpoint(input: &[u8]) {
    if input.len() <= INPUT_BYTES_MAX {
        fold(&[(CHECKPOINT, input)]);
    }
}

/// A segment of a manifest's log: read beside a node, and by a node that goes on with it.
pub fn manifest_log(input: &[u8]) {
    let mut input = input.to_vec();
    // The log of a manifest belongs to no node.
    if let Some(node) = input.get_mut(1 + 16..1 + 32) {
        node.fill(0);
    }
    let Some(file) = fuzz::segment_file(&input) else { return };
    let world = World::new();
    let dir = world.config.data_dir.join("manifest");
    fuzz::write_segment(&*world.disk, &dir, &file);
    let facts = ManifestFacts::read(&world.disk, &dir);
    run(async {
        let (manifest, state) = match (world.manifest().await, &facts) {
            (Ok(opened), _) => opened,
            (Err(error), Ok(_)) => unreachable!("sound for whoever reads beside the node, and a start says: {error}"),
            (Err(_), Err(_)) => return,
        };
        if let Ok(facts) = &facts {
            assert_eq!((facts.node, facts.flushed), (state.node, state.flushed));
            assert!(facts.databases.keys().eq(state.histories.keys()));
        }
        let appended = manifest.append(Edit::Pins(Vec::new())).await;
        assert!(appended.is_ok(), "nothing can be appended to what was opened: {appended:?}");
        assert!(manifest.close().await.is_ok());
        drop(manifest);
        // Reading beside a node checks more than a start does: what it found damaged stays so.
        if facts.is_ok() {
            let edited = ManifestFacts::read(&world.disk, &dir);
            assert!(edited.is_ok(), "it cannot be read after an edit: {edited:?}");
        }
        let again = world.manifest().await;
        assert!(again.is_ok_and(|(_, again)| again.flushed == state.flushed && again.pins.is_empty()));
    });
}

/// A node that starts on a manifest with these documents (as for [`manifest`]) and an empty log, is looked at, changed,
/// and started again.
pub fn node(input: &[u8]) {
    let Some(documents) = documents_of(input) else { return };
    if !fold(&documents) {
        return;
    }
    let world = World::new();
    run(async {
        world.write(&documents).await;
        let Ok((engine, _)) = Engine::open(world.config.clone(), world.seams()).await else { return };
        look_at(&engine).await;
        change(&engine).await;
        let closed = engine.flush().await.is_ok() && engine.shutdown().await.is_ok();
        let before: Vec<_> = engine.version().databases().map(|held| (held.name.clone(), held.position)).collect();
        drop(engine);
        let again = Engine::open(world.config.clone(), world.seams()).await;
        match again {
            Ok((engine, _)) if closed => {
                let after: Vec<_> =
                    engine.version().databases().map(|held| (held.name.clone(), held.position)).collect();
                assert_eq!(before, after, "a second start finds something else");
                look_at(&engine).await;
                let _ = engine.shutdown().await;
            }
            Ok(_) => {}
            Err(error) => assert!(!closed, "a node that was shut down does not start: {error}"),
        }
    });
}

fn documents_of(input: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    if input.len() > INPUT_BYTES_MAX {
        return None;
    }
    let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let documents = lines.map(|line| match line.split_at_checked(2) {
        Some((b"1 ", body)) => (EDIT, body),
        Some((b"2 ", body)) => (CHECKPOINT, body),
        _ => (0, line),
    });
    Some(documents.collect())
}

/// Folds documents. Whether all were accepted, and a start would be too.
fn fold(documents: &[(u16, &[u8])]) -> bool {
    let mut folding = Folding::new("manifest".into());
    for ((operation, body), number) in documents.iter().zip(1..) {
        if folding.transaction(*operation, body, Lsn(number)).is_err() {
            return false;
        }
        if let Some(inner) = &folding.inner {
            let Ok(text) = encode(&inner.state) else { unreachable!("a fold is written") };
            let again = serde_json::from_slice::<ManifestState>(&text).map(|state| encode(&state));
            match again {
                Ok(Ok(again)) => assert_eq!(text, again, "a checkpoint is another after it was read"),
                other => unreachable!("a checkpoint that was written cannot be read: {other:?}"),
            }
        }
    }
    let Ok(Some(inner)) = folding.finish() else { return false };
    for table in inner.state.histories.values().flat_map(|history| history.tables.values()) {
        let built = TableVersion::empty(table.table.clone());
        assert!(built.is_ok(), "a table that was checked: {built:?}");
    }
    true
}

/// A disk and a clock in memory.
struct World {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    config: EngineConfig,
}

impl World {
    fn new() -> Self {
        let mut config = EngineConfig::new(Path::new("/node"));
        config.wal.segment_bytes = 16 << 10;
        config.wal.sync_interval = Duration::from_secs(3600);
        config.flush_age = Duration::from_secs(3600);
        config.simulation = Simulation { planted: None, by_hand: true, small_manifest: true };
        Self { disk: SimulatedDisk::new(0).shared(), clock: Arc::new(SimulatedClock::new(0)), config }
    }

    fn seams(&self) -> EngineSeams {
        EngineSeams { disk: self.disk.clone(), clock: self.clock.clone() }
    }

    async fn manifest(&self) -> crate::Result<(Manifest, ManifestState)> {
        let space = Arc::new(Space::open(&self.config, self.disk.clone(), self.clock.clone()));
        Manifest::open(&self.config, self.disk.clone(), self.clock.clone(), space).await
    }

    /// Makes a manifest of these documents.
    async fn write(&self, documents: &[(u16, &[u8])]) {
        let Ok((manifest, _)) = self.manifest().await else { unreachable!("a new manifest") };
        // The log is empty, and a start on less than was flushed is refused.
        let rewind = FlushEdit { flushed: Lsn::ZERO, replay_from: Lsn(1), histories: Vec::new(), ended: Vec::new() };
        let rewind = encode(&Edit::Flush(rewind)).unwrap_or_default();
        let documents = documents.iter().map(|(operation, body)| (*operation, Bytes::copy_from_slice(body)));
        for (operation, body) in documents.chain([(EDIT, rewind)]) {
            let written = manifest.write(operation, body, Persistence::Sync).await;
            assert!(written.is_ok(), "a disk in memory: {written:?}");
        }
        assert!(manifest.close().await.is_ok());
    }
}

async fn look_at(engine: &Arc<Engine>) {
    let version = engine.version();
    for database in version.databases() {
        for table in database.tables() {
            let rows: u64 = table.partitions().map(|(_, partition)| partition.rows()).sum();
            assert_eq!(rows, table.rows());
            for (key, partition) in table.partitions() {
                assert!(table.scheme.describe(key).is_ok() && table.scheme.bounds(key).is_ok(), "a key of this table");
                assert!(partition.datafiles.iter().all(|file| file.path().object_path().is_ok()));
            }
        }
        let _ = engine.tasks(database.id, tailrace_wal::Seq::ZERO);
    }
    for history in engine.histories() {
        let _ = engine.repair_source(history.id).await;
    }
    let _ = engine.log().pins();
    engine.work_by_hand().await;
}

async fn change(engine: &Arc<Engine>) {
    let _ = engine.create_database("fuzz").await;
    let version = engine.version();
    for database in version.databases().filter(|database| database.role == Role::Primary) {
        let column = ColumnDefinition { name: "id".into(), data_type: arrow_schema::DataType::Int64, nullable: false };
        let (partition_by, order_by) = (Vec::new(), Vec::new());
        let definition = TableDefinition { name: "fuzz".into(), columns: vec![column], partition_by, order_by };
        let _ = engine.create_table(&database.name, definition).await;
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => unreachable!("no runtime: {error}"),
        };
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
