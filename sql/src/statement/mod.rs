//! Statements: what a client may say, and what each does.
//!
//! [`parse`] turns text into checked [`Kind`]s: an allowlist, everything else is refused by name. Each kind runs in a
//! file of its own: [`query`] (its columns' names: [`heading`]), [`insert`] (literal rows in [`values`], without a query plan), [`copy`], [`ddl`], [`drop_partition`],
//! [`settings`], [`transaction`] (with [`synchronous`], who must have it), [`call`]. Rows on their way into a table pass [`cast`].
//! [`condition`] is what procedures take as `where`.

pub(crate) mod call;
pub(crate) mod cast;
pub(crate) mod condition;
pub(crate) mod copy;
pub(crate) mod ddl;
pub(crate) mod drop_partition;
pub(crate) mod guard;
pub(crate) mod heading;
pub(crate) mod insert;
pub(crate) mod name;
mod parse;
pub(crate) mod query;
mod refuse;
pub(crate) mod settings;
pub(crate) mod synchronous;
pub(crate) mod transaction;
pub(crate) mod types;
pub(crate) mod values;

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use tailrace_engine::TableDefinition;

use self::name::TableName;

pub(crate) use parse::Parser;

/// A parsed and checked statement. Cloning it is an `Arc`.
#[derive(Debug, Clone)]
pub struct Statement(Arc<Parsed>);

/// What a [`Statement`] holds.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The whole string it came in, for positions in errors.
    pub(crate) sql: Arc<str>,
    /// What it says.
    pub(crate) kind: Kind,
    /// Largest `$n`.
    pub(crate) parameters: usize,
}

/// The statements there are.
#[derive(Debug)]
pub(crate) enum Kind {
    /// SELECT, VALUES, WITH.
    Query(Box<ast::Statement>),
    /// EXPLAIN of a query.
    Explain {
        /// The query.
        query: Box<ast::Statement>,
        /// Run it and show figures.
        analyze: bool,
        /// More of everything.
        verbose: bool,
    },
    /// INSERT.
    Insert(insert::Insert),
    /// COPY … FROM.
    Copy(copy::Copy),
    /// ALTER TABLE … DROP PARTITION.
    DropPartition(drop_partition::DropPartition),
    /// CREATE DATABASE.
    CreateDatabase {
        /// Name.
        name: String,
        /// No error when it is there.
        if_not_exists: bool,
    },
    /// DROP DATABASE.
    DropDatabase {
        /// Names.
        names: Vec<String>,
        /// No error when it is not there.
        if_exists: bool,
        /// Refuse when it has tables.
        restrict: bool,
    },
    /// CREATE TABLE.
    CreateTable {
        /// Where; unresolved.
        name: TableName,
        /// What; `definition.name` is the table's.
        definition: TableDefinition,
        /// No error when it is there.
        if_not_exists: bool,
    },
    /// DROP TABLE.
    DropTable {
        /// Names.
        names: Vec<TableName>,
        /// No error when it is not there.
        if_exists: bool,
    },
    /// CALL.
    Call {
        /// Procedure.
        name: String,
        /// Name and expression of each argument.
        arguments: Vec<(Option<String>, ast::Expr)>,
    },
    /// SET and RESET.
    Set(settings::Set),
    /// SHOW of a setting.
    Show(String),
    /// SHOW ALL.
    ShowAll,
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END.
    Commit,
    /// ROLLBACK, ABORT.
    Rollback,
    /// DISCARD ALL, and DEALLOCATE of what the protocol's own prepared statements hold.
    Discard(&'static str),
}

impl Statement {
    pub(crate) fn new(sql: Arc<str>, kind: Kind, parameters: usize) -> Self {
        Self(Arc::new(Parsed { sql, kind, parameters }))
    }

    pub(crate) fn parsed(&self) -> &Parsed {
        &self.0
    }

    /// First word of the command tag: the whole tag of a statement that returns rows is this and, for SELECT, a count.
    pub fn tag(&self) -> &'static str {
        match &self.0.kind {
            Kind::Query(_) => "SELECT",
            Kind::Explain { .. } => "EXPLAIN",
            Kind::Insert(_) => "INSERT",
            Kind::Copy(_) => "COPY",
            Kind::DropPartition(_) => "ALTER TABLE",
            Kind::CreateDatabase { .. } => "CREATE DATABASE",
            Kind::DropDatabase { .. } => "DROP DATABASE",
            Kind::CreateTable { .. } => "CREATE TABLE",
            Kind::DropTable { .. } => "DROP TABLE",
            Kind::Call { .. } => "CALL",
            Kind::Set(set) => set.tag(),
            Kind::Show(_) | Kind::ShowAll => "SHOW",
            Kind::Begin => "BEGIN",
            Kind::Commit => "COMMIT",
            Kind::Rollback => "ROLLBACK",
            Kind::Discard(tag) => tag,
        }
    }
}
