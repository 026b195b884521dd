//! Arguments of table functions in FROM, by position or by name: constants of text.

use datafusion::{
    common::{DFSchema, ScalarValue},
    logical_expr::{Expr, planner::RelationPlannerContext},
    sql::sqlparser::ast::{self, FunctionArg, FunctionArgExpr},
};

use crate::{Result, SqlError, statement::name};

/// The values of the arguments named `names`, in that order; `None` where one was left out or is NULL. Every error says the
/// function's signature.
pub(super) fn text_arguments<const N: usize>(
    function: &str,
    signature: &str,
    names: [&str; N],
    given: Vec<FunctionArg>,
    context: &mut dyn RelationPlannerContext,
) -> Result<[Option<String>; N]> {
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
            other => return Err(usage(signature, SqlError::syntax(format!("{other} is not an argument")))),
        };
        let value = context.sql_to_expr(value, &DFSchema::empty()).map_err(|error| match SqlError::from(error) {
            error if error.sqlstate == "42703" => {
                SqlError::new("42P10", format!("arguments of {function} are constants"))
                    .hint("put text into single quotes")
            }
            error => error,
        })?;
        values.push((name, text(function, &value).map_err(|error| usage(signature, error))?));
    }
    place(function, names, values).map_err(|error| usage(signature, error))
}

/// Puts each value where it belongs.
fn place<const N: usize>(
    function: &str,
    names: [&str; N],
    given: Vec<(Option<String>, Option<String>)>,
) -> Result<[Option<String>; N]> {
    let mut values: [Option<Option<String>>; N] = std::array::from_fn(|_| None);
    let mut named = false;
    for (position, (name, value)) in given.into_iter().enumerate() {
        let index = match &name {
            None if named => {
                return Err(SqlError::new("42601", "an argument without a name follows one with a name"));
            }
            None => position,
            Some(name) => {
                named = true;
                let index = names.iter().position(|known| known == name);
                index.ok_or_else(|| SqlError::new("42883", format!("{function} has no argument {name:?}")))?
            }
        };
        let slot = values.get_mut(index);
        let slot = slot.ok_or_else(|| SqlError::new("42883", format!("{function} takes at most {N} arguments")))?;
        if slot.is_some() {
            return Err(SqlError::new("42883", format!("argument {:?} is given twice", names[index])));
        }
        *slot = Some(value);
    }
    Ok(values.map(Option::flatten))
}

fn text(function: &str, value: &Expr) -> Result<Option<String>> {
    match value {
        Expr::Literal(ScalarValue::Null, _) => Ok(None),
        Expr::Literal(ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text), _) => {
            Ok(text.clone())
        }
        Expr::Cast(cast) => text(function, &cast.expr),
        Expr::Literal(other, _) => {
            Err(SqlError::new("22023", format!("an argument of {function} is text, not {other}")))
        }
        other => Err(SqlError::new("42P10", format!("{other} is not a constant"))),
    }
}

fn usage(signature: &str, error: SqlError) -> SqlError {
    error.hint(format!("its signature is {signature}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_by_position_and_by_name() {
        let place = |given: Vec<(Option<&str>, &str)>| {
            let given = given.into_iter().map(|(name, value)| (name.map(str::to_owned), Some(value.to_owned())));
            place("f", ["table", "where"], given.collect())
        };
        let both = [Some("t".to_owned()), Some("p".to_owned())];
        assert_eq!(place(vec![(None, "t"), (None, "p")]).unwrap(), both);
        assert_eq!(place(vec![(None, "t"), (Some("where"), "p")]).unwrap(), both);
        assert_eq!(place(vec![(Some("where"), "p"), (Some("table"), "t")]).unwrap(), both);
        assert_eq!(place(vec![]).unwrap(), [None, None]);
        for (given, sqlstate) in [
            (vec![(None, "t"), (None, "p"), (None, "q")], "42883"),
            (vec![(None, "t"), (Some("table"), "t")], "42883"),
            (vec![(Some("wher"), "p")], "42883"),
            (vec![(Some("table"), "t"), (None, "p")], "42601"),
        ] {
            assert_eq!(place(given.clone()).unwrap_err().sqlstate, sqlstate, "{given:?}");
        }
    }
}
