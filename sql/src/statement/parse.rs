//! Text to checked statements.

use std::{ops::ControlFlow, sync::Arc};

use datafusion::sql::sqlparser::{
    ast::{
        self, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectType, Reset, Statement as Ast, Value,
        ValueWithSpan, visit_expressions,
    },
    dialect::PostgreSqlDialect,
    parser,
};
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;

use super::{
    Kind, Statement, copy::Copy, ddl, drop_partition::DropPartition, heading::keep_names, insert::Insert, name,
    name::TableName, refuse::refuse, settings,
};
use crate::{Result, SqlError, error::syntax_error, system::rewrite_catalog_query};

/// Longest statement string, bytes.
const LONGEST: usize = 64 << 20;

/// Parses statements. One serves all sessions.
#[derive(Debug)]
pub(crate) struct Parser {
    compatibility: PostgresCompatibilityParser,
}

impl Parser {
    pub(crate) fn new() -> Self {
        Self { compatibility: PostgresCompatibilityParser::new() }
    }

    /// The statements of a string. An error in any of them refuses the whole string.
    pub(crate) fn parse(&self, sql: &str) -> Result<Vec<Statement>> {
        if sql.len() > LONGEST {
            return Err(SqlError::new("54000", format!("the statement is longer than {} MiB", LONGEST >> 20)));
        }
        let mut statements = parser::Parser::parse_sql(&PostgreSqlDialect {}, sql)
            .or_else(|error| self.compatibility.parse(sql).map_err(|_| error))
            .map_err(|error| syntax_error(&error, sql))?;
        let lower = mentions(sql);
        if lower.contains("pg_")
            && let Ok(compatible) = self.compatibility.parse(sql)
        {
            statements = compatible;
        }
        let sql: Arc<str> = sql.into();
        statements
            .into_iter()
            .map(|statement| {
                let parameters = if sql.contains('$') { parameters(&statement)? } else { 0 };
                let kind = self.classify(statement, &lower)?;
                Ok(Statement::new(sql.clone(), kind, parameters))
            })
            .collect()
    }

    /// The allowlist.
    fn classify(&self, statement: Ast, mentions: &str) -> Result<Kind> {
        Ok(match statement {
            Ast::Query(_) | Ast::ShowTables { .. } => Kind::Query(Box::new(self.compatible(statement, mentions))),
            Ast::Explain { analyze, verbose, statement, format, options, .. } => {
                self.explain(*statement, analyze, verbose, format.is_some(), options.unwrap_or_default(), mentions)?
            }
            Ast::Insert(insert) => Kind::Insert(Insert::check(insert)?),
            Ast::Copy { source, to, target, options, legacy_options, .. } => {
                Kind::Copy(Copy::check(source, to, target, options, legacy_options)?)
            }
            Ast::CreateDatabase { ref db_name, if_not_exists, .. } => {
                let plain = format!("CREATE DATABASE {}{db_name}", if if_not_exists { "IF NOT EXISTS " } else { "" });
                if statement.to_string() != plain {
                    return Err(SqlError::unsupported("an option of CREATE DATABASE").hint("CREATE DATABASE name"));
                }
                Kind::CreateDatabase { name: name::single(db_name, "database")?, if_not_exists }
            }
            Ast::CreateTable(create) => ddl::check_create_table(create)?,
            Ast::AlterTable(alter) => DropPartition::check(alter)?,
            Ast::Drop { object_type, if_exists, names, restrict, purge, temporary, .. }
                if matches!(object_type, ObjectType::Table | ObjectType::Database) && !purge && !temporary =>
            {
                if object_type == ObjectType::Table {
                    let names = names.iter().map(TableName::parse).collect::<Result<_>>()?;
                    Kind::DropTable { names, if_exists }
                } else {
                    let names = names.iter().map(|name| name::single(name, "database")).collect::<Result<_>>()?;
                    Kind::DropDatabase { names, if_exists, restrict }
                }
            }
            Ast::Call(function) => call(function)?,
            Ast::Set(set) => Kind::Set(settings::Set::check(set)?),
            Ast::Use(ast::Use::Object(name) | ast::Use::Database(name) | ast::Use::Schema(name)) => {
                Kind::Set(settings::Set::database(name::single(&name, "database")?))
            }
            Ast::Reset(reset) => Kind::Set(match reset.reset {
                Reset::ALL => settings::Set::reset_all(),
                Reset::ConfigurationParameter(name) => settings::Set::reset(name.to_string()),
            }),
            Ast::ShowVariable { variable } => show(&variable),
            Ast::StartTransaction { statements, .. } if statements.is_empty() => Kind::Begin,
            Ast::Commit { chain: false, .. } => Kind::Commit,
            Ast::Rollback { chain: false, savepoint: None } => Kind::Rollback,
            Ast::Discard { object_type: ast::DiscardObject::ALL } => Kind::Discard("DISCARD ALL"),
            Ast::Deallocate { .. } => Kind::Discard("DEALLOCATE"),
            other => return Err(refuse(&other)),
        })
    }

    /// Rewrites what PostgreSQL's own clients ask of its catalogs; statements that ask for none of that stay as they
    /// are, with their positions.
    fn compatible(&self, statement: Ast, mentions: &str) -> Ast {
        const SIGNS: [&str; 10] = [
            "pg_",
            "current_",
            "session_user",
            "::reg",
            "version",
            "any",
            "collate",
            "information_schema",
            "array",
            "'{",
        ];
        if !SIGNS.iter().any(|sign| mentions.contains(sign)) {
            return statement;
        }
        let before = statement.clone();
        let mut statement = self.compatibility.rewrite(statement);
        keep_names(&before, &mut statement);
        if mentions.contains("pg_") {
            rewrite_catalog_query(&mut statement);
        }
        statement
    }

    fn explain(
        &self,
        statement: Ast,
        mut analyze: bool,
        mut verbose: bool,
        format: bool,
        options: Vec<ast::UtilityOption>,
        mentions: &str,
    ) -> Result<Kind> {
        if format {
            return Err(SqlError::unsupported("EXPLAIN in a format other than text"));
        }
        for option in options {
            let on = option.arg.as_ref().is_none_or(|arg| {
                !matches!(arg.to_string().trim_matches('\'').to_lowercase().as_str(), "false" | "off" | "0")
            });
            match name::identifier(&option.name).as_str() {
                "analyze" => analyze = on,
                "verbose" => verbose = on,
                // Figures are always those that were measured; leaving some out is no error.
                "costs" | "timing" | "buffers" | "summary" | "settings" | "wal" | "memory" => {}
                other => return Err(SqlError::unsupported(format!("option {other} of EXPLAIN"))),
            }
        }
        match statement {
            Ast::Query(_) => {
                Ok(Kind::Explain { query: Box::new(self.compatible(statement, mentions)), analyze, verbose })
            }
            other => {
                let name = refuse(&other).message;
                let name = name.trim_end_matches(" is not supported");
                Err(SqlError::unsupported(format!("EXPLAIN of {name}")).hint("queries can be explained"))
            }
        }
    }
}

/// The text in lower case, as far as it can matter: literal rows by the megabyte ask no catalogs.
fn mentions(sql: &str) -> String {
    const HEAD: usize = 64 << 10;
    let end = (0..=HEAD.min(sql.len())).rev().find(|end| sql.is_char_boundary(*end)).unwrap_or(0);
    sql[..end].to_ascii_lowercase()
}

/// Largest `$n`; other placeholders are refused.
fn parameters(statement: &Ast) -> Result<usize> {
    let mut largest = 0;
    let found = visit_expressions(statement, |expr| {
        if let ast::Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) = expr {
            match placeholder(name) {
                Ok(number) => largest = largest.max(number),
                Err(error) => return ControlFlow::Break(error),
            }
        }
        ControlFlow::Continue(())
    });
    match found {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(largest),
    }
}

/// The number of `$n`.
pub(super) fn placeholder(name: &str) -> Result<usize> {
    match name.strip_prefix('$').and_then(|number| number.parse().ok()) {
        Some(number @ 1..=65_535) => Ok(number),
        _ => Err(SqlError::new("42P02", format!("there is no parameter {name}")).hint("parameters are $1 to $65535")),
    }
}

fn call(function: ast::Function) -> Result<Kind> {
    let plain = function.filter.is_none() && function.over.is_none() && function.within_group.is_empty();
    let list = match function.args {
        FunctionArguments::None => Vec::new(),
        FunctionArguments::List(list) if plain && list.clauses.is_empty() && list.duplicate_treatment.is_none() => {
            list.args
        }
        _ => return Err(SqlError::syntax("CALL takes a list of values: CALL name(value, name => value)")),
    };
    let arguments = list
        .into_iter()
        .map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Ok((None, value)),
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => {
                Ok((Some(name::identifier(&name)), value))
            }
            FunctionArg::ExprNamed { name: ast::Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => {
                Ok((Some(name::identifier(&name)), value))
            }
            other => Err(SqlError::syntax(format!("{other} is not an argument of a procedure"))),
        })
        .collect::<Result<_>>()?;
    let mut parts = name::parts(&function.name)?;
    let name = match parts.pop() {
        Some(name) if parts.is_empty() || parts == ["system"] => name,
        _ => return Err(SqlError::new("42883", format!("procedure {} does not exist", function.name))),
    };
    Ok(Kind::Call { name, arguments })
}

fn show(variable: &[ast::Ident]) -> Kind {
    let words: Vec<String> = variable.iter().map(|word| word.value.to_lowercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Kind::Show(match words[..] {
        ["all"] => return Kind::ShowAll,
        ["time", "zone"] => "timezone".to_owned(),
        ["transaction", "isolation", "level"] => "transaction_isolation".to_owned(),
        ["session", "authorization"] => "session_authorization".to_owned(),
        _ => words.join("."),
    })
}
