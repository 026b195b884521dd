//! Tasks: committed transactions as replication shows them.

use std::collections::HashSet;

use tailrace_wal::{CommitTime, Directory, Seq};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{OperationCode, TableId};

/// Most finished tasks kept per database for the status functions; the count is that of the documented functions.
pub const TASKS_KEPT: usize = 10_000;

/// A committed transaction of a history. Its seq is its task id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    /// Task id.
    pub seq: Seq,
    /// Group: the seq of its first task. A task joins its database's current group unless its partitions intersect
    /// those already in it, or it is DDL.
    pub group: Seq,
    /// What it does (the first operation, where it has several).
    pub operation: OperationCode,
    /// When it committed on the primary.
    pub commit_time: CommitTime,
    /// Tables that it touches, by id and name at the time.
    pub tables: Vec<(TableId, String)>,
    /// Rows appended.
    pub rows: u64,
    /// Payload bytes, fragments included.
    pub bytes: u64,
    /// It was skipped on this node: its position counts, its changes do not.
    pub skipped: bool,
}

/// Most partitions in a group; a transaction that would go beyond begins the next one. It bounds the fold's memory.
const GROUP_PARTITIONS_MAX: usize = 1 << 16;

/// Decides groups: a fold over a history's transactions, the same on every node from the same start. Partitions are told
/// apart by a hash; two that share one merely part two groups.
#[derive(Debug, Default)]
pub struct GroupFold {
    current: Option<Group>,
}

#[derive(Debug)]
struct Group {
    first: Seq,
    partitions: HashSet<u64>,
}

impl GroupFold {
    /// The group of the next transaction, whose own and fragments' directories are given.
    pub fn next(&mut self, seq: Seq, directories: &[&Directory]) -> Seq {
        let parts = || directories.iter().flat_map(|directory| &directory.parts);
        if parts().any(|part| !OperationCode(part.operation).is_of_rows()) {
            // DDL is alone: what follows depends on it.
            self.current = None;
            return seq;
        }
        let partitions: HashSet<u64> =
            parts().map(|part| xxh3_64_with_seed(&part.partition, part.table.into())).collect();
        if let Some(group) = &mut self.current {
            let fits = group.partitions.len() + partitions.len() <= GROUP_PARTITIONS_MAX;
            if fits && group.partitions.is_disjoint(&partitions) {
                group.partitions.extend(partitions);
                return group.first;
            }
        }
        self.current = Some(Group { first: seq, partitions });
        seq
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tailrace_wal::{PartEntry, PartHash};

    use super::*;
    use crate::Operation;

    fn directory(operation: Operation, partitions: &[(u32, &'static str)]) -> Directory {
        let part = |(table, partition): &(u32, &'static str)| PartEntry {
            table: *table,
            schema_version: 1,
            operation: operation.code(),
            first_ordinal: 0,
            rows: 1,
            length: 0,
            hash: PartHash(0),
            partition: Bytes::from_static(partition.as_bytes()),
        };
        Directory { parts: partitions.iter().map(part).collect(), ..Directory::default() }
    }

    #[test]
    fn a_conflict_begins_a_group_and_ddl_is_alone() {
        let append = |partitions: &[(u32, &'static str)]| vec![directory(Operation::Append, partitions)];
        let transactions = [
            (vec![directory(Operation::CreateDatabase, &[(0, "")])], 1),
            (vec![directory(Operation::CreateTable, &[(1, "")])], 2),
            (append(&[(1, "a")]), 3),
            (append(&[(1, "b"), (1, "c")]), 3),
            // The same partition of another table is another partition.
            (append(&[(2, "a")]), 3),
            (append(&[(1, "d"), (1, "b")]), 6),
            (append(&[(1, "a")]), 6),
            // A conflict within a fragment counts.
            ([append(&[(1, "e")]), append(&[(1, "a")])].concat(), 8),
            (vec![directory(Operation::DropTable, &[(2, "")])], 9),
            (append(&[(1, "a")]), 10),
            (Vec::new(), 10),
            // A partition that is dropped is touched; the tables stay as they are.
            (vec![directory(Operation::DropPartition, &[(1, "b")])], 10),
            (vec![directory(Operation::DropPartition, &[(1, "a")])], 13),
        ];
        let mut fold = GroupFold::default();
        for ((directories, group), seq) in transactions.into_iter().zip(1..) {
            let directories: Vec<&Directory> = directories.iter().collect();
            assert_eq!(fold.next(Seq(seq), &directories), Seq(group), "transaction {seq}");
        }
    }
}
