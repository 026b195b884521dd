//! Tasks that somebody asked to leave out before their records have come: facts of the system history, so that a start does
//! not forget them.

use std::{collections::BTreeMap, sync::Arc};

use tailrace_wal::{HistoryId, Seq};

use crate::{Engine, Result, SystemFact};

impl Engine {
    /// Tasks of a followed history that are to be skipped when they come, each with the reason. What lies at or before its
    /// position is over.
    pub fn asked_skips(&self, history: HistoryId) -> BTreeMap<Seq, String> {
        let here = self.database(history).map(|database| database.version().position.seq);
        let asked = self.system.lock().asked_skips(history);
        asked.into_iter().filter(|(seq, _)| Some(*seq) > here).collect()
    }

    /// Keeps which tasks are to be skipped, in place of what was kept before; empty: none. Durable on return.
    pub async fn ask_skips(self: &Arc<Self>, history: HistoryId, tasks: BTreeMap<Seq, String>) -> Result<()> {
        let tasks: Vec<_> = tasks.into_iter().collect();
        if self.system.lock().asked_skips(history) == tasks {
            return Ok(());
        }
        let engine = self.clone();
        let fact = SystemFact::AskedSkips { history, tasks };
        self.to_the_end(async move { engine.record_facts(vec![fact]).await }).await
    }
}
