//! Effects: what a transaction does to its database, decoded from its parts.

use arrow_array::RecordBatch;
use tailrace_wal::{CommitTime, Directory, Lsn, PartEntry, Payload, Position, Seq};

use crate::{
    CreateDatabase, DatabaseVersion, DeadLetter, DigestPoint, EngineError, Operation, Ordinal, PartitionKey, PointId,
    Result, SchemaVersion, Table, TableId, TableVersion, check_name, decode_part, operation::decode_body,
};

/// One part, decoded.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// Rows of one partition.
    Append(Append),
    /// All earlier rows of a partition go.
    DropPartition(DropPartition),
    /// Rows of a table that is left out here. They are not decoded. A partition dropped there has none.
    LeftOut { table: TableId, schema_version: SchemaVersion, rows: u64 },
    /// The history begins.
    CreateDatabase(CreateDatabase),
    /// The history ends.
    DropDatabase,
    /// A table begins.
    CreateTable(Table),
    /// A table ends.
    DropTable(TableId),
    /// The database is to be remembered as it is here.
    DigestPoint(PointId),
}

/// Rows of one partition. The batch shares its buffers with what was logged.
#[derive(Debug, Clone)]
pub(crate) struct Append {
    pub(crate) table: TableId,
    pub(crate) schema_version: SchemaVersion,
    pub(crate) key: PartitionKey,
    pub(crate) first_ordinal: Ordinal,
    pub(crate) batch: RecordBatch,
}

/// A partition loses its rows.
#[derive(Debug, Clone)]
pub(crate) struct DropPartition {
    pub(crate) table: TableId,
    pub(crate) schema_version: SchemaVersion,
    pub(crate) key: PartitionKey,
}

/// A committed transaction, ready to be applied: on the live path, at replay and on a replica.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) lsn: Lsn,
    /// After it.
    pub(crate) position: Position,
    pub(crate) restart_seq: Seq,
    pub(crate) commit_time: CommitTime,
    /// In ordinal order, those of its fragments first.
    pub(crate) effects: Vec<Effect>,
    /// Of its fragments, then its own.
    pub(crate) directories: Vec<Directory>,
    /// Payload bytes, fragments included.
    pub(crate) bytes: u64,
    /// Its position counts, its effects do not: what was left out.
    pub(crate) skipped: Option<Box<DeadLetter>>,
}

impl Committed {
    /// Rows appended, those of tables that are left out among them.
    pub(crate) fn rows(&self) -> u64 {
        self.effects.iter().map(Effect::rows).sum()
    }
}

impl Committed {
    /// The digest point that it is, unless it was skipped.
    pub(crate) fn point(&self) -> Option<PointId> {
        let points = self.effects.iter().filter(|_| self.skipped.is_none());
        points.filter_map(|effect| if let Effect::DigestPoint(id) = effect { Some(*id) } else { None }).next()
    }
}

impl Effect {
    pub(crate) fn rows(&self) -> u64 {
        match self {
            Self::Append(append) => append.batch.num_rows() as u64,
            Self::LeftOut { rows, .. } => *rows,
            _ => 0,
        }
    }

    pub(crate) fn is_ddl(&self) -> bool {
        !matches!(self, Self::Append(_) | Self::DropPartition(_) | Self::LeftOut { .. })
    }
}

/// How far the bytes are to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This node's log: its hashes matched, and it was checked before it was written.
    Log,
    /// A peer: rows must belong to the partition that their part names, or pruning would lie.
    Peer,
}

/// Decodes a payload's parts against the tables of `catalog`.
pub(crate) fn decode_effects(catalog: &DatabaseVersion, payload: &Payload, origin: Origin) -> Result<Vec<Effect>> {
    let entries = payload.directory.parts.iter().enumerate();
    entries.map(|(index, entry)| decode_effect(catalog, entry, payload, index, origin)).collect()
}

fn decode_effect(
    catalog: &DatabaseVersion,
    entry: &PartEntry,
    payload: &Payload,
    index: usize,
    origin: Origin,
) -> Result<Effect> {
    let operation = Operation::from_code(entry.operation).ok_or_else(|| {
        EngineError::Unsupported(format!(
            "operation {} of a record is not known to this version, upgrade this node first; until then it",
            entry.operation
        ))
    })?;
    let bytes = || payload.part_bytes(index);
    Ok(match operation {
        Operation::Append => decode_append(catalog, entry, payload, index, origin)?,
        Operation::DropPartition => decode_drop(catalog, entry)?,
        Operation::CreateDatabase => {
            let database: CreateDatabase = decode_body(operation, &bytes())?;
            check_name("database", &database.name)?;
            Effect::CreateDatabase(database)
        }
        Operation::DropDatabase => Effect::DropDatabase,
        Operation::CreateTable => {
            let table: Table = decode_body(operation, &bytes())?;
            table.check()?;
            Effect::CreateTable(table)
        }
        Operation::DropTable => Effect::DropTable(TableId(entry.table)),
        Operation::DigestPoint => Effect::DigestPoint(decode_body::<DigestPoint>(operation, &bytes())?.id),
        Operation::System => return Err(invalid("a system fact stands in the history of a database")),
    })
}

/// The table of a part about rows, as it has to be there.
fn table_of<'a>(catalog: &'a DatabaseVersion, entry: &PartEntry) -> Result<&'a TableVersion> {
    let id = TableId(entry.table);
    let table = catalog.table_by_id(id);
    let table = table.ok_or_else(|| invalid(&format!("rows for a table: {}", catalog.missing_table(id))))?;
    let schema_version = SchemaVersion(entry.schema_version);
    if table.table.schema_version != schema_version {
        return Err(invalid(&format!(
            "rows for table {:?} have schema version {schema_version}, the table has {} at that point",
            table.table.name, table.table.schema_version
        )));
    }
    Ok(table)
}

fn decode_drop(catalog: &DatabaseVersion, entry: &PartEntry) -> Result<Effect> {
    let table = table_of(catalog, entry)?;
    let (id, schema_version) = (table.table.id, table.table.schema_version);
    if entry.rows > 0 || entry.length > 0 {
        return Err(invalid("a part that drops a partition carries something"));
    }
    if table.left_out {
        return Ok(Effect::LeftOut { table: id, schema_version, rows: 0 });
    }
    let key = PartitionKey(entry.partition.clone());
    table.scheme.describe(&key)?;
    Ok(Effect::DropPartition(DropPartition { table: id, schema_version, key }))
}

fn decode_append(
    catalog: &DatabaseVersion,
    entry: &PartEntry,
    payload: &Payload,
    index: usize,
    origin: Origin,
) -> Result<Effect> {
    let table = table_of(catalog, entry)?;
    let (id, schema_version) = (table.table.id, table.table.schema_version);
    if table.left_out {
        return Ok(Effect::LeftOut { table: id, schema_version, rows: entry.rows.into() });
    }
    let batch = decode_part(payload.part_bytes(index), &table.schema, entry.rows)?;
    let key = PartitionKey(entry.partition.clone());
    if origin == Origin::Peer {
        let split = table.scheme.split(&batch)?;
        if split.len() > 1 || split.first().is_some_and(|(found, _)| *found != key) {
            return Err(invalid(&format!(
                "rows for table {:?} do not belong to the partition that their part names",
                table.table.name
            )));
        }
    }
    Ok(Effect::Append(Append { table: id, schema_version, key, first_ordinal: Ordinal(entry.first_ordinal), batch }))
}

/// Ordinals must run through the parts, or identities would collide.
pub(crate) fn check_ordinals<'a>(directories: impl Iterator<Item = &'a Directory>) -> Result<()> {
    let mut next = 0u64;
    for entry in directories.flat_map(|directory| &directory.parts) {
        if entry.first_ordinal != next {
            return Err(invalid(&format!("a part's rows start at ordinal {}, expected {next}", entry.first_ordinal)));
        }
        next = next.checked_add(u64::from(entry.rows)).ok_or_else(|| invalid("too many rows"))?;
    }
    Ok(())
}

pub(crate) fn invalid(reason: &str) -> EngineError {
    EngineError::Log(tailrace_wal::LogError::Invalid { reason: reason.to_owned() })
}
