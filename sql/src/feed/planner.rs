//! `changes(…)` and `tail(…)` in FROM: arguments by position or by name, all constants.

use std::sync::Arc;

use datafusion::{
    common::{DFSchema, Result as DataFusionResult, ScalarValue},
    logical_expr::{Expr, planner::RelationPlannerContext},
    prelude::SessionContext,
    sql::sqlparser::{
        ast::{self, FunctionArg, FunctionArgExpr},
        dialect::PostgreSqlDialect,
        parser::Parser,
    },
};
use tailrace_engine::Engine;
use tailrace_wal::Seq;

use super::{Kind, provider::Feed};
use crate::{
    Result, SqlError,
    function::{named_table, register_relation},
    statement::name::{self, TableName},
};

/// Names of the arguments, in order.
const ARGUMENTS: [&str; 4] = ["table", "from_seq", "to_seq", "subscription"];

/// Adds both functions to the planning template.
pub(super) fn register(context: &SessionContext, engine: &Arc<Engine>) -> DataFusionResult<()> {
    for kind in [Kind::Changes, Kind::Tail] {
        let engine = engine.clone();
        register_relation(context, kind.name(), move |given, context| {
            Ok(Arc::new(feed(&engine, kind, given, context)?))
        })?;
    }
    Ok(())
}

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) kind: Kind,
    /// As written.
    pub(super) table: String,
    /// The first transaction that is wanted.
    pub(super) from: Option<Seq>,
    /// The last one.
    pub(super) upto: Option<Seq>,
    pub(super) subscription: Option<String>,
}

fn feed(
    engine: &Arc<Engine>,
    kind: Kind,
    given: Vec<FunctionArg>,
    context: &mut dyn RelationPlannerContext,
) -> Result<Feed> {
    let mut values = Vec::with_capacity(given.len());
    for argument in given {
        let (name, value) = match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => (None, value),
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => {
                (Some(name::identifier(&name)), value)
            }
            FunctionArg::ExprNamed { name: ast::Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => {
                (Some(name::identifier(&name)), value)
            }
            other => return Err(usage(kind, SqlError::syntax(format!("{other} is not an argument")))),
        };
        let value = context.sql_to_expr(value, &DFSchema::empty()).map_err(|error| match SqlError::from(error) {
            error if error.sqlstate == "42703" => {
                SqlError::new("42P10", format!("arguments of {} are constants", kind.name()))
                    .hint("put text into single quotes")
            }
            error => error,
        })?;
        values.push((name, constant(kind, &value)?));
    }
    let call = Call::check(kind, values)?;
    let (database, table) = named_table(engine, &call.table, context)?;
    Ok(Feed::new(engine.clone(), &database, &table, call))
}

impl Call {
    /// Matches what was given with the arguments.
    fn check(kind: Kind, given: Vec<(Option<String>, ScalarValue)>) -> Result<Self> {
        let wrong = |state, what: String| usage(kind, SqlError::new(state, what));
        let mut values: [Option<ScalarValue>; ARGUMENTS.len()] = Default::default();
        let mut named = false;
        for (position, (name, value)) in given.into_iter().enumerate() {
            let index = match &name {
                None if named => {
                    return Err(wrong("42601", "an argument without a name follows one with a name".to_owned()));
                }
                None => position,
                Some(name) => {
                    named = true;
                    let index = ARGUMENTS.iter().position(|argument| argument == name);
                    index.ok_or_else(|| wrong("42883", format!("{} has no argument {name:?}", kind.name())))?
                }
            };
            let Some(slot) = values.get_mut(index) else {
                return Err(wrong("42883", format!("{} takes at most {} arguments", kind.name(), ARGUMENTS.len())));
            };
            if slot.is_some() {
                return Err(wrong("42883", format!("argument {:?} is given twice", ARGUMENTS[index])));
            }
            // As if it were left out.
            if !value.is_null() {
                *slot = Some(value);
            }
        }
        let [table, from, upto, subscription] = values;
        let text = |name: &str, value: Option<ScalarValue>| match value {
            None => Ok(None),
            Some(ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text)) => Ok(text),
            Some(other) => Err(wrong("22023", format!("argument {name:?} is text, not {other}"))),
        };
        let seq = |name: &str, value: Option<ScalarValue>| match value {
            None => Ok(None),
            Some(value) if value.data_type().is_integer() => {
                match value.cast_to(&datafusion::arrow::datatypes::DataType::UInt64) {
                    Ok(ScalarValue::UInt64(Some(seq))) => Ok(Some(Seq(seq))),
                    _ => Err(wrong("22023", format!("argument {name:?} cannot be {value}: transactions count from 1"))),
                }
            }
            Some(other) => Err(wrong("22023", format!("argument {name:?} is an integer, not {other}"))),
        };
        let table = text("table", table)?;
        let table = table.ok_or_else(|| wrong("42883", format!("{} needs the name of a table", kind.name())))?;
        let (from, upto) = (seq("from_seq", from)?, seq("to_seq", upto)?);
        let subscription = text("subscription", subscription)?;
        if from.is_some() && subscription.is_some() {
            return Err(wrong(
                "42601",
                "from_seq and subscription exclude each other: a subscription begins behind what it has acknowledged"
                    .to_owned(),
            ));
        }
        Ok(Self { kind, table, from, upto, subscription })
    }
}

/// Database and name of a table in text, as SQL reads them: lower case unless in double quotes. For settings that name
/// tables.
///
/// # Errors
/// In words, with the hint, where the text is not the name of a table with its database.
pub fn parse_table_name(text: &str) -> Result<(String, String), String> {
    let wrong = "write \"database.table\"; names with capitals or signs in double quotes: '\"My Db\".bars'";
    let name = table_name(text).map_err(|_| format!("{text:?} is not the name of a table: {wrong}"))?;
    match name.database {
        Some(database) => Ok((database, name.table)),
        None => Err(format!("{text:?} does not name its database: {wrong}")),
    }
}

/// The name of a table in text, as SQL reads it.
pub(crate) fn table_name(text: &str) -> Result<TableName> {
    let wrong = || {
        SqlError::new("42602", format!("{text:?} is not the name of a table"))
            .hint("write 'database.table'; names with capitals or signs in double quotes: '\"My Db\".bars'")
    };
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).map_err(|_| wrong())?;
    let name = parser.parse_object_name(false).map_err(|_| wrong())?;
    if parser.peek_token().token != datafusion::sql::sqlparser::tokenizer::Token::EOF {
        return Err(wrong());
    }
    // A string is a name to the parser.
    if name.0.iter().any(|part| part.as_ident().is_some_and(|ident| ident.quote_style == Some('\''))) {
        return Err(wrong());
    }
    TableName::parse(&name)
}

fn constant(kind: Kind, value: &Expr) -> Result<ScalarValue> {
    match value {
        Expr::Literal(value, _) => Ok(value.clone()),
        Expr::Cast(cast) => constant(kind, &cast.expr),
        Expr::Negative(value) => Ok(constant(kind, value)?.arithmetic_negate()?),
        Expr::Placeholder(_) => Err(usage(
            kind,
            SqlError::unsupported(format!("a parameter as an argument of {}", kind.name()))
                .detail("What is read has to be known when the statement is prepared. WHERE _seq >= $1 takes one."),
        )),
        other => Err(usage(kind, SqlError::new("42P10", format!("{other} is not a constant")))),
    }
}

fn usage(kind: Kind, error: SqlError) -> SqlError {
    error.hint(format!(
        "its signature is {}(table text, [from_seq bigint], [to_seq bigint], [subscription text])",
        kind.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: Vec<(Option<&str>, ScalarValue)>) -> Result<Call> {
        Call::check(Kind::Tail, given.into_iter().map(|(name, value)| (name.map(str::to_owned), value)).collect())
    }

    #[test]
    fn arguments_by_position_and_by_name() {
        let table = || (None, ScalarValue::from("market.bars"));
        let call = check(vec![table(), (None, 5i64.into()), (None, 9i32.into())]).unwrap();
        assert_eq!((call.from, call.upto), (Some(Seq(5)), Some(Seq(9))));
        let call = check(vec![table(), (Some("subscription"), "s".into()), (Some("to_seq"), 9i64.into())]).unwrap();
        assert_eq!((call.from, call.upto, call.subscription.as_deref()), (None, Some(Seq(9)), Some("s")));
        let call = check(vec![table(), (Some("from_seq"), ScalarValue::Null)]).unwrap();
        assert_eq!(call.from, None);
        for (given, sqlstate) in [
            (vec![], "42883"),
            (vec![table(), (Some("from"), 5i64.into())], "42883"),
            (vec![table(), (None, 5i64.into()), (Some("from_seq"), 5i64.into())], "42883"),
            (vec![(Some("table"), "t".into()), (None, 5i64.into())], "42601"),
            (vec![table(), (None, ScalarValue::from(-1i64))], "22023"),
            (vec![table(), (None, "x".into())], "22023"),
            (vec![(None, 5i64.into())], "22023"),
            (vec![table(), (None, 5i64.into()), (Some("subscription"), "s".into())], "42601"),
        ] {
            let error = check(given.clone()).unwrap_err();
            assert_eq!(error.sqlstate, sqlstate, "{given:?}");
            assert!(error.hint.unwrap().starts_with("its signature is tail("));
        }
    }

    #[test]
    fn table_names_are_read_as_sql_reads_them() {
        assert_eq!(parse_table_name("Market.\"My Bars\"").unwrap(), ("market".to_owned(), "My Bars".to_owned()));
        assert!(parse_table_name("bars").unwrap_err().contains("does not name its database"));
        let name = table_name("Market.\"My Bars\"").unwrap();
        assert_eq!((name.database.as_deref(), name.table.as_str()), (Some("market"), "My Bars"));
        for wrong in ["", "a b", "a; DROP TABLE b", "a.b.c.d", "'a'", "a.*", "*"] {
            assert!(table_name(wrong).is_err(), "{wrong}");
            assert!(parse_table_name(wrong).unwrap_err().contains("database.table"), "{wrong}");
        }
    }
}
