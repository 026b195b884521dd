//! A replica whose operator changes his mind about its tables: what he chose outlives every end, and a table has all of its
//! rows or says that it has none.

use rand::Rng as _;
use tailrace_engine::{DatabaseVersion, EngineError, TableChoice};
use tailrace_wal::{LogError, simulation::Failure};

use super::World;
use crate::oracle::Contents;

impl World {
    /// What is known to be chosen.
    fn chosen(&self) -> TableChoice {
        let known = self.choice.iter().find(|(history, _)| Some(*history) == self.following);
        known.map(|(_, choice)| choice.clone()).unwrap_or_default()
    }

    /// Another choice, perhaps on a disk that fails.
    pub(super) async fn choose(&mut self) {
        let Some(history) = self.following else { return };
        let replica = self.replica.engine();
        if replica.history(history).is_none_or(|info| info.ended) {
            return;
        }
        let choice = match self.random.random_range(0..4) {
            0 => TableChoice::all(),
            _ => {
                let names = ["bars", "ticks", "quotes", "notes"].into_iter().filter(|_| self.random.random_bool(0.6));
                TableChoice::only(names)
            }
        };
        if self.plan.faults && self.random.random_bool(0.4) {
            let after = self.random.random_range(0..40);
            match self.random.random_range(0..3) {
                0 => self.replica.disk.fail_call(after, Failure::Broken),
                1 => self.replica.disk.fail_call(after, Failure::Full),
                _ => self.replica.disk.fail_from(after, Failure::Broken),
            }
        }
        let chosen = replica.choose_tables(history, choice.clone()).await;
        let fired = self.replica.disk.fired().is_some();
        self.replica.disk.heal();
        match chosen {
            Ok(()) => {
                self.done.choices += 1;
                self.choice = Some((history, choice));
            }
            Err(EngineError::Full { .. } | EngineError::Log(LogError::Full { .. })) => {}
            // Whether it was chosen is for the start to say.
            Err(_) => self.unsure_choice = Some(choice),
        }
        drop(replica);
        if fired || self.unsure_choice.is_some() {
            let end = self.any_end();
            self.restart_replica(end).await;
        }
        self.check_replica().await;
    }

    /// After a start: what was not known to be chosen is, or is not.
    pub(super) fn choice_recovered(&mut self) {
        let Some(unsure) = self.unsure_choice.take() else { return };
        let version = self.replica.engine().version();
        if let Some(database) = version.database("market").filter(|database| Some(database.id) == self.following)
            && *database.choice() == unsure
        {
            self.choice = Some((database.id, unsure));
        }
    }

    /// What the replica shows, of all that it would if everything were chosen.
    pub(super) fn as_chosen(&self, database: &DatabaseVersion, mut whole: Contents) -> Contents {
        let choice = self.chosen();
        assert_eq!(*database.choice(), choice, "what was chosen");
        for table in database.tables() {
            let name = &table.table.name;
            assert!(choice.selects(name) || table.is_left_out(), "{name} is not chosen and not left out");
            assert_eq!(
                database.awaited_tables().contains(&name.as_str()),
                choice.selects(name) && table.is_left_out(),
                "{name}"
            );
            if table.is_left_out() {
                assert!(self.plan.chooses);
                whole.entry(name.clone()).or_default().clear();
            }
        }
        whole
    }
}
