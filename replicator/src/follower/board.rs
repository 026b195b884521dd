//! Tasks of one followed database: what waits, what runs, what was done, and how long it took.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use tailrace_engine::{DeadLetter, GroupFold, Operation, OperationCode, TASKS_KEPT, TableId, TaskInfo};
use tailrace_wal::{CommitTime, Directory, Epoch, HistoryHeader, RecordKind, Seq, TransactionNumber};

use crate::{ReplicaTask, TaskState};

/// Finished tasks whose times are kept, for figures over a window.
const SAMPLES_MAX: usize = 100_000;
/// Transactions whose fragments' directories are remembered, to describe their task before it is applied.
const OPEN_MAX: usize = 1_024;

/// Whose tasks these are.
#[derive(Debug, Clone)]
pub(crate) struct Whose {
    pub(crate) database: String,
    pub(crate) source: String,
    pub(crate) queue: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    whose: Whose,
    /// Transactions up to here were applied before this process began.
    base: Seq,
    unfinished: VecDeque<Unfinished>,
    finished: VecDeque<ReplicaTask>,
    samples: VecDeque<Sample>,
    open: HashMap<(Epoch, TransactionNumber), Vec<Directory>>,
    groups: GroupFold,
    total: Totals,
}

#[derive(Debug)]
struct Unfinished {
    task: ReplicaTask,
    arrived: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    cost: Duration,
    group: Seq,
}

/// Figures of finished tasks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub(crate) finished: u64,
    pub(crate) cost: Duration,
    pub(crate) max_cost: Duration,
    pub(crate) groups: u64,
    last_group: Option<Seq>,
}

impl Totals {
    fn add(&mut self, cost: Duration, group: Seq) {
        self.finished += 1;
        self.cost += cost;
        self.max_cost = self.max_cost.max(cost);
        if self.last_group.replace(group) != Some(group) {
            self.groups += 1;
        }
    }
}

impl Board {
    pub(crate) fn new(whose: Whose, base: Seq) -> Self {
        Self {
            whose,
            base,
            unfinished: VecDeque::new(),
            finished: VecDeque::new(),
            samples: VecDeque::new(),
            open: HashMap::new(),
            groups: GroupFold::default(),
            total: Totals::default(),
        }
    }

    /// A record arrived. `name` finds a table's name as it is now.
    pub(crate) fn arrived(
        &mut self,
        header: &HistoryHeader,
        directory: &Directory,
        now: CommitTime,
        monotonic: Duration,
        name: impl Fn(TableId) -> Option<String>,
    ) {
        let key = (header.epoch, header.transaction);
        match header.kind {
            RecordKind::Fragment if self.open.len() < OPEN_MAX || self.open.contains_key(&key) => {
                self.open.entry(key).or_default().push(directory.clone());
            }
            RecordKind::Fragment => {}
            RecordKind::Abort => drop(self.open.remove(&key)),
            RecordKind::Commit => {
                let fragments = self.open.remove(&key).unwrap_or_default();
                let directories: Vec<&Directory> = fragments.iter().chain([directory]).collect();
                let group = self.groups.next(header.seq, &directories);
                let task = describe(header, &directories, group, name);
                let task = self.entry(task, now, TaskState::Waiting);
                self.unfinished.push_back(Unfinished { task, arrived: monotonic });
            }
        }
    }

    /// A worker took the tasks up to `seq`.
    pub(crate) fn executing(&mut self, from: Seq, to: Seq, worker: u32) {
        let first = self.unfinished.partition_point(|entry| entry.task.task.seq < from);
        for entry in self.unfinished.iter_mut().skip(first).take_while(|entry| entry.task.task.seq <= to) {
            entry.task.state = TaskState::Executing;
            entry.task.worker = Some(worker);
        }
    }

    /// Transactions up to `seq` are applied; `tasks` describes them.
    pub(crate) fn applied(&mut self, tasks: Vec<TaskInfo>, to: Seq, now: CommitTime, monotonic: Duration) {
        let mut infos: BTreeMap<Seq, TaskInfo> = tasks.into_iter().map(|task| (task.seq, task)).collect();
        while self.unfinished.front().is_some_and(|entry| entry.task.task.seq <= to) {
            let Some(Unfinished { mut task, arrived }) = self.unfinished.pop_front() else { break };
            // Not among them: a duplicate, which was finished before.
            let Some(info) = infos.remove(&task.task.seq) else { continue };
            task.task = info;
            self.finish(task, now, monotonic, monotonic.saturating_sub(arrived));
        }
        // Their session ended while they were committed: when they came is forgotten.
        for info in infos.into_values() {
            let mut task = self.unwitnessed(info);
            task.finished = Some(now);
            self.keep(task);
        }
    }

    /// Says why a task that is done with was skipped.
    pub(crate) fn skipped(&mut self, seq: Seq, reason: &str) {
        let mut latest = self.finished.iter_mut().rev();
        if let Some(task) = latest.find(|task| task.task.seq == seq && task.state == TaskState::Skipped) {
            task.details = Some(reason.to_owned());
        }
    }

    /// Something that is no record was done: a repair, a drop.
    pub(crate) fn done(&mut self, info: TaskInfo, repair: bool, began: Duration, now: CommitTime, monotonic: Duration) {
        let mut task = self.entry(info, now, TaskState::Finished);
        task.repair = repair;
        self.finish(task, now, monotonic, monotonic.saturating_sub(began));
    }

    /// A repair began: it is shown as long as it lasts.
    pub(crate) fn repairing(&mut self, seq: Seq, now: CommitTime, monotonic: Duration) {
        self.clear();
        let mut task = self.entry(special(seq, Operation::Append, now), now, TaskState::Executing);
        task.repair = true;
        self.unfinished.push_back(Unfinished { task, arrived: monotonic });
    }

    /// The oldest task failed.
    pub(crate) fn failed(&mut self, details: &str) {
        for entry in &mut self.unfinished {
            entry.task.state = TaskState::Waiting;
            entry.task.details = None;
        }
        if let Some(entry) = self.unfinished.front_mut() {
            entry.task.state = TaskState::Failed;
            entry.task.details = Some(details.to_owned());
        }
    }

    /// What was received and not applied is gone: it will be sent again.
    pub(crate) fn clear(&mut self) {
        self.unfinished.clear();
        self.open.clear();
    }

    /// As [`Self::clear`], but the failed task stays in sight.
    pub(crate) fn clear_waiting(&mut self) {
        self.unfinished.retain(|entry| entry.task.state == TaskState::Failed);
        self.open.clear();
    }

    /// Finished here since start, oldest first.
    pub(crate) fn finished(&self) -> impl Iterator<Item = &ReplicaTask> {
        self.finished.iter()
    }

    /// Oldest first.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = &ReplicaTask> {
        self.unfinished.iter().map(|entry| &entry.task)
    }

    /// Those of the engine's tasks that were finished before this process began. Tasks that were skipped and are not
    /// settled are shown whether the engine still lists them or not.
    pub(crate) fn earlier<'a>(
        &self,
        tasks: Vec<TaskInfo>,
        skipped: impl Iterator<Item = &'a DeadLetter>,
    ) -> Vec<ReplicaTask> {
        let listed = tasks.into_iter().filter(|info| info.seq <= self.base);
        let mut earlier: BTreeMap<Seq, ReplicaTask> = listed.map(|info| (info.seq, self.unwitnessed(info))).collect();
        for letter in skipped.filter(|letter| letter.seq <= self.base) {
            let task = earlier.entry(letter.seq).or_insert_with(|| self.unwitnessed(left_out(letter)));
            (task.state, task.details) = (TaskState::Skipped, Some(letter.reason.clone()));
        }
        earlier.into_values().collect()
    }

    /// A task with nothing known of its way here.
    fn unwitnessed(&self, info: TaskInfo) -> ReplicaTask {
        let state = if info.skipped { TaskState::Skipped } else { TaskState::Finished };
        let mut task = self.entry(info, CommitTime(0), state);
        task.received = None;
        task
    }

    /// Figures since `since`; `None`: since start.
    pub(crate) fn totals(&self, since: Option<Duration>) -> Totals {
        let Some(since) = since else { return self.total.clone() };
        let mut totals = Totals::default();
        let mut groups = HashSet::new();
        for sample in self.samples.iter().rev().take_while(|sample| sample.at >= since) {
            totals.add(sample.cost, sample.group);
            groups.insert(sample.group);
        }
        totals.groups = groups.len() as u64;
        totals
    }

    fn finish(&mut self, mut task: ReplicaTask, now: CommitTime, monotonic: Duration, cost: Duration) {
        task.state = if task.task.skipped { TaskState::Skipped } else { TaskState::Finished };
        task.finished = Some(now);
        task.details = None;
        self.total.add(cost, task.task.group);
        self.samples.push_back(Sample { at: monotonic, cost, group: task.task.group });
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.keep(task);
    }

    fn keep(&mut self, task: ReplicaTask) {
        self.finished.push_back(task);
        if self.finished.len() > TASKS_KEPT {
            self.finished.pop_front();
        }
    }

    fn entry(&self, task: TaskInfo, received: CommitTime, state: TaskState) -> ReplicaTask {
        ReplicaTask {
            task,
            database: self.whose.database.clone(),
            source: self.whose.source.clone(),
            queue: self.whose.queue,
            worker: None,
            received: Some(received),
            finished: None,
            state,
            details: None,
            repair: false,
        }
    }
}

/// A task that is no record of the history.
pub(crate) fn special(seq: Seq, operation: Operation, commit_time: CommitTime) -> TaskInfo {
    let operation = operation.into();
    TaskInfo { seq, group: seq, operation, commit_time, tables: Vec::new(), rows: 0, bytes: 0, skipped: false }
}

/// A task as its dead letter describes it.
fn left_out(letter: &DeadLetter) -> TaskInfo {
    TaskInfo {
        seq: letter.seq,
        group: letter.seq,
        operation: OperationCode(letter.operation),
        commit_time: letter.commit_time,
        tables: letter.tables.clone(),
        rows: letter.rows,
        bytes: letter.bytes,
        skipped: true,
    }
}

fn describe(
    header: &HistoryHeader,
    directories: &[&Directory],
    group: Seq,
    name: impl Fn(TableId) -> Option<String>,
) -> TaskInfo {
    let parts = || directories.iter().flat_map(|directory| &directory.parts);
    let mut tables: Vec<(TableId, String)> = Vec::new();
    for part in parts().filter(|part| part.table != 0) {
        let id = TableId(part.table);
        if !tables.iter().any(|(known, _)| *known == id) {
            tables.push((id, name(id).unwrap_or_default()));
        }
    }
    TaskInfo {
        seq: header.seq,
        group,
        operation: parts().next().map_or(Operation::Append.into(), |part| OperationCode(part.operation)),
        commit_time: header.commit_time,
        tables,
        rows: parts().map(|part| u64::from(part.rows)).sum(),
        bytes: parts().map(|part| u64::from(part.length)).sum(),
        skipped: false,
    }
}
