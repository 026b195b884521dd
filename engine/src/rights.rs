//! Rights: which user may do what in which database here. They are facts of this cluster and go to no other. For now they
//! are asked for where records of a primary are applied under a user's name.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tailrace_wal::{HistoryHeader, Payload, RecordKind};

use crate::{Applier, Engine, EngineError, Operation, OperationCode, Result, SystemFact, check_name};

/// What a user may do in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Change rows.
    Write,
    /// Create, change and drop tables and the database itself.
    Ddl,
}

/// A right that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GrantedRight {
    /// Who.
    pub user: String,
    /// Where, by name: the database need not exist yet.
    pub database: String,
    /// What.
    pub right: Right,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Write, Self::Ddl];

    /// `write` or `ddl`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Ddl => "ddl",
        }
    }

    /// The right of a name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name().eq_ignore_ascii_case(name))
    }
}

impl Engine {
    /// Gives a user a right in a database, or takes it away, in the system history; durable on return.
    pub async fn set_right(self: &Arc<Self>, granted: GrantedRight, has: bool) -> Result<()> {
        check_name("user", &granted.user)?;
        check_name("database", &granted.database)?;
        let engine = self.clone();
        self.to_the_end(async move {
            let GrantedRight { user, database, right } = granted;
            if engine.has_right(&user, &database, right) != has {
                engine.record_facts(vec![SystemFact::Right { user, database, right, granted: has }]).await?;
                engine.databases_changed();
            }
            Ok(())
        })
        .await
    }

    /// All rights, by user and database.
    pub fn rights(&self) -> Vec<GrantedRight> {
        self.system.lock().rights.iter().cloned().collect()
    }

    /// Whether a user has a right in a database.
    pub fn has_right(&self, user: &str, database: &str, right: Right) -> bool {
        let asked = GrantedRight { user: user.to_owned(), database: database.to_owned(), right };
        self.system.lock().rights.contains(&asked)
    }

    /// [`EngineError::NotPermitted`] names the first right that a user lacks.
    pub fn check_rights(&self, user: &str, database: &str, rights: &[Right]) -> Result<()> {
        match rights.iter().find(|right| !self.has_right(user, database, **right)) {
            None => Ok(()),
            Some(right) => {
                Err(EngineError::NotPermitted { user: user.to_owned(), database: database.to_owned(), right: *right })
            }
        }
    }
}

impl Applier {
    /// Whether a user may apply a record here. Of a large transaction the commit decides: it has a seq.
    pub fn check_rights(&self, user: &str, header: &HistoryHeader, payload: &Payload) -> Result<()> {
        if header.kind != RecordKind::Commit {
            return Ok(());
        }
        let parts = &payload.directory.parts;
        let is_rows = |operation: u16| OperationCode(operation).is_of_rows();
        let changes_nothing = |operation: u16| operation == Operation::DigestPoint.code();
        let ddl = parts.iter().any(|part| !is_rows(part.operation) && !changes_nothing(part.operation));
        let write = header.fragment.0 > 0 || parts.iter().any(|part| is_rows(part.operation));
        let needed = [write.then_some(Right::Write), ddl.then_some(Right::Ddl)];
        let needed: Vec<Right> = needed.into_iter().flatten().collect();
        self.engine().check_rights(user, self.name(), &needed)
    }
}
