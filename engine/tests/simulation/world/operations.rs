//! What the clients of the primary do, and what an answer, or none, says of the oracle.

use super::*;

impl World {
    pub(super) async fn create_database(&mut self) {
        if self.known().live().len() >= 3 {
            return;
        }
        let known = self.known();
        let name = if known.live().iter().all(|live| known.histories[*live].name != "market") {
            "market".to_owned()
        } else {
            self.names += 1;
            format!("side{}", self.names)
        };
        let history = {
            let mut oracle = self.oracle.lock().unwrap();
            let history =
                crate::oracle::History { name: name.clone(), id: None, commits: Vec::new(), replicated: false };
            oracle.histories.push(history);
            oracle.histories.len() - 1
        };
        self.expect(history, Change::Begin, None);
        let outcome = match self.primary.engine().create_database(&name).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
        if self.known().pending.is_none() {
            self.create_table(history).await;
        }
    }

    pub(super) async fn drop_database(&mut self, history: usize) {
        let name = self.known().histories[history].name.clone();
        self.expect(history, Change::End, None);
        let outcome = match self.primary.engine().drop_database(&name).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
    }

    pub(super) async fn create_table(&mut self, history: usize) {
        let model = self.known().histories[history].clone();
        if model.commits.is_empty() || model.tables().len() >= 4 {
            return;
        }
        let table = ["bars", "ticks", "quotes", "notes"]
            .into_iter()
            .find(|name| !model.tables().iter().any(|table| table == name))
            .unwrap()
            .to_owned();
        self.expect(history, Change::CreateTable(table.clone()), None);
        let outcome = match self.primary.engine().create_table(&model.name, bars(&table)).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
    }

    pub(super) async fn drop_table(&mut self, history: usize) {
        let model = self.known().histories[history].clone();
        let Some(table) = self.any_table(history) else { return };
        self.expect(history, Change::DropTable(table.clone()), None);
        let outcome = match self.primary.engine().drop_table(&model.name, &table).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
    }

    pub(super) fn any_table(&mut self, history: usize) -> Option<String> {
        let tables = self.known().histories[history].tables();
        (!tables.is_empty()).then(|| tables[self.random.random_range(0..tables.len())].clone())
    }

    /// Adds rows to a transaction, and to what is known of it.
    pub(super) async fn fill(
        &mut self,
        transaction: &mut Transaction,
        into: &mut Work,
        table: &str,
        wide: bool,
    ) -> Result<(), EngineError> {
        let count = self.random.random_range(1..if wide { 12 } else { 20 });
        let days = self.random.random_range(1..=DAYS);
        let first = (self.next_row / (BLOCK * DAYS) + 1) * BLOCK * DAYS + (days - 1) * BLOCK;
        let ids = first..first + count;
        self.next_row = ids.end;
        assert_eq!(days_of(first), days);
        let batch = if wide { wide_rows(ids.clone(), days) } else { rows(ids.clone(), days) };
        let note =
            |id: i64| if wide { Some(format!("{id:0500}")) } else { (id % 5 != 0).then(|| format!("note {id}")) };
        transaction.append(table, batch).await?;
        into.rows.entry(table.to_owned()).or_default().extend(ids.map(|id| (id, note(id))));
        Ok(())
    }

    pub(super) async fn insert(&mut self, history: usize) {
        let Some(table) = self.any_table(history) else { return self.create_table(history).await };
        let name = self.known().histories[history].name.clone();
        let transaction = self.primary.engine().begin(&name).unwrap();
        let mut open = Open { transaction, history, work: Work::default(), seen: Vec::new() };
        if self.random.random_bool(0.2) && self.drop_partitions(&mut open, &table).await.is_err() {
            let _ = open.transaction.abort().await;
            return;
        }
        for _ in 0..self.random.random_range(if open.work.drops.is_empty() { 1..4 } else { 0..3 }) {
            let table = if self.random.random_bool(0.3) { self.any_table(history).unwrap() } else { table.clone() };
            let wide = self.random.random_bool(0.15);
            if self.fill(&mut open.transaction, &mut open.work, &table, wide).await.is_err() {
                let _ = open.transaction.abort().await;
                return;
            }
        }
        self.commit(open).await;
    }

    /// Takes away some days of a table: whatever is there at the commit, or what is there now.
    pub(super) async fn drop_partitions(&mut self, open: &mut Open, table: &str) -> Result<(), EngineError> {
        let model = self.known().histories[open.history].clone();
        for day in 0..DAYS {
            if !self.random.random_bool(0.4) {
                continue;
            }
            let key = partition_of(day);
            if self.random.random_bool(0.5) {
                open.transaction.drop_partition(table, key).await?;
            } else {
                let version = self.primary.engine().version();
                let Some(database) = version.database(&model.name) else { return Ok(()) };
                let Some(found) = database.table(table) else { return Ok(()) };
                let seen = database.seen_partition(found, &key);
                open.transaction.replace_partition(table, seen).await?;
                open.seen.push((table.to_owned(), day, rows_on(&model, table, day)));
            }
            open.work.drops.insert((table.to_owned(), day));
        }
        Ok(())
    }

    pub(super) async fn commit(&mut self, open: Open) {
        let Open { transaction, history, work, seen } = open;
        let durability = if self.random.random_bool(0.5) { Durability::Durable } else { Durability::Written };
        let key = self.random.random_bool(0.2).then(|| {
            self.next_key += 1;
            Bytes::from(format!("key {}", self.next_key))
        });
        let any = !work.rows.is_empty() || !work.drops.is_empty();
        let drops = !work.drops.is_empty();
        let model = self.known().histories[history].clone();
        let changed = seen.iter().any(|(table, day, rows)| rows_on(&model, table, *day) != *rows);
        if any {
            self.expect(history, Change::Rows(work), key.clone());
        }
        let options = CommitOptions { durability: Some(durability), idempotency_key: key };
        let outcome = match transaction.commit(options).await {
            Ok(receipt) => {
                assert!(!changed, "a partition that somebody else had changed was replaced");
                self.done.drops += u64::from(drops);
                Outcome::Done(receipt, durability)
            }
            Err(error) => {
                self.done.conflicts += u64::from(changed && matches!(error, EngineError::Conflict(_)));
                Outcome::Failed(error)
            }
        };
        if any {
            self.settle_call(outcome).await;
        }
    }

    pub(super) async fn begin_large(&mut self, history: usize) {
        if self.open.len() >= 2 {
            return self.go_on().await;
        }
        let Some(table) = self.any_table(history) else { return };
        let name = self.known().histories[history].name.clone();
        let transaction = self.primary.engine().begin(&name).unwrap();
        let mut open = Open { transaction, history, work: Work::default(), seen: Vec::new() };
        if self.random.random_bool(0.3) && self.drop_partitions(&mut open, &table).await.is_err() {
            let _ = open.transaction.abort().await;
            return;
        }
        for _ in 0..self.random.random_range(1..4) {
            if self.fill(&mut open.transaction, &mut open.work, &table, true).await.is_err() {
                let _ = open.transaction.abort().await;
                return;
            }
        }
        self.open.push(open);
    }

    pub(super) async fn go_on(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.open.len());
        let mut open = self.open.swap_remove(index);
        match self.random.random_range(0..5) {
            0 => drop(open.transaction.abort().await),
            1 | 2 => {
                let tables: Vec<String> = open.work.rows.keys().cloned().collect();
                let table = tables[self.random.random_range(0..tables.len())].clone();
                match self.fill(&mut open.transaction, &mut open.work, &table, true).await {
                    Ok(()) => self.open.push(open),
                    Err(_) => drop(open.transaction.abort().await),
                }
            }
            _ => self.commit(open).await,
        }
    }

    /// A client that did not hear the answer asks again.
    pub(super) async fn retry_key(&mut self, history: usize) {
        let model = self.known().histories[history].clone();
        let keyed: Vec<&Commit> = model.commits.iter().filter(|commit| commit.key.is_some()).collect();
        if keyed.is_empty() {
            return;
        }
        let commit = keyed[self.random.random_range(0..keyed.len())];
        let Some(table) = self.any_table(history) else { return };
        let mut transaction = self.primary.engine().begin(&model.name).unwrap();
        if self.fill(&mut transaction, &mut Work::default(), &table, false).await.is_err() {
            return;
        }
        let options = CommitOptions { durability: Some(Durability::Durable), idempotency_key: commit.key.clone() };
        match transaction.commit(options).await {
            Ok(receipt) => {
                assert_eq!(receipt.position, commit.position, "a key was applied twice");
                self.oracle.lock().unwrap().acknowledge(receipt.lsn);
            }
            Err(error) => {
                assert!(is_dead(&error) || matches!(error, EngineError::Log(_) | EngineError::Full { .. }), "{error}")
            }
        }
    }

    pub(super) async fn flush(&mut self) {
        let flushed = self.primary.engine().flush().await;
        match flushed {
            Ok(_) => {}
            Err(EngineError::Log(LogError::Poisoned { .. } | LogError::Closed)) => {
                // Its background goes on for a while.
                self.calm();
                self.primary.engine().work_by_hand().await;
                let end = if self.random.random_bool(0.5) { End::Kill } else { End::PowerLoss };
                self.restart(end).await;
            }
            Err(error) => assert!(
                matches!(
                    error,
                    EngineError::Log(LogError::Full { .. }) | EngineError::Storage { .. } | EngineError::Full { .. }
                ),
                "{error}"
            ),
        }
    }

    pub(super) async fn sync(&mut self) {
        if let Ok(durable) = self.primary.engine().log().sync().await {
            self.oracle.lock().unwrap().acknowledge(durable);
        }
    }

    pub(super) async fn switch(&mut self, history: usize) {
        let (name, on) = {
            let mut oracle = self.oracle.lock().unwrap();
            let on = !oracle.histories[history].replicated;
            oracle.switching = Some((history, on));
            (oracle.histories[history].name.clone(), on)
        };
        match self.primary.engine().set_database_replication(&name, on).await {
            Ok(()) => {
                let mut oracle = self.oracle.lock().unwrap();
                oracle.histories[history].replicated = on;
                oracle.switching = None;
            }
            Err(error) if is_dead(&error) => {}
            Err(_) => self.oracle.lock().unwrap().switching = None,
        }
    }

    /// Open transactions end with their client.
    pub(super) async fn abandon(&mut self) {
        for open in std::mem::take(&mut self.open) {
            let _ = open.transaction.abort().await;
        }
    }
}
