//! Arguments of a call, matched with a procedure's parameters by position or by name.

use datafusion::{arrow::datatypes::DataType, common::ScalarValue};

use super::Argument;
use crate::{Result, SqlError};

/// Type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Bool,
    /// 64-bit integer.
    Int,
}

/// A parameter of a procedure; it must be given unless it is optional.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) of: Type,
    pub(super) optional: bool,
}

impl Parameter {
    /// One that must be given.
    pub(super) const fn required(name: &'static str, of: Type) -> Self {
        Self { name, of, optional: false }
    }

    /// One that may be left out.
    pub(super) const fn optional(name: &'static str, of: Type) -> Self {
        Self { name, of, optional: true }
    }
}

/// Values of all parameters, in their order, of their types; NULL where an optional one was left out.
#[derive(Debug)]
pub(super) struct Arguments(Vec<ScalarValue>);

impl Arguments {
    /// Matches what was given: `42883` for a wrong number or name, `22023` for a wrong type or NULL.
    pub(super) fn check(procedure: &str, parameters: &[Parameter], given: Vec<Argument>) -> Result<Self> {
        let signature = || format!("its signature is {}", signature(procedure, parameters));
        let wrong = |what: String| SqlError::new("42883", what).hint(signature());
        if given.len() > parameters.len() {
            return Err(wrong(format!("{procedure} takes {} arguments, not {}", parameters.len(), given.len())));
        }
        let mut values = vec![None; parameters.len()];
        let mut named = false;
        for (position, argument) in given.into_iter().enumerate() {
            let index = match &argument.name {
                None if named => {
                    return Err(
                        SqlError::new("42601", "an argument without a name follows one with a name").hint(signature())
                    );
                }
                None => position,
                Some(name) => {
                    named = true;
                    let index = parameters.iter().position(|parameter| parameter.name == name);
                    index.ok_or_else(|| wrong(format!("{procedure} has no argument {name:?}")))?
                }
            };
            let parameter = parameters[index];
            if values[index].is_some() {
                return Err(wrong(format!("argument {:?} of {procedure} is given twice", parameter.name)));
            }
            values[index] =
                Some(convert(procedure, parameter, &argument.value).map_err(|error| error.hint(signature()))?);
        }
        let mut checked = Vec::with_capacity(values.len());
        for (value, parameter) in values.into_iter().zip(parameters) {
            let value = value.or_else(|| parameter.optional.then_some(ScalarValue::Null));
            checked.push(value.ok_or_else(|| wrong(format!("{procedure} needs argument {:?}", parameter.name)))?);
        }
        Ok(Self(checked))
    }

    /// The text argument at a position.
    pub(super) fn text(&self, index: usize) -> Result<&str> {
        match self.0.get(index) {
            Some(ScalarValue::Utf8(Some(text))) => Ok(text),
            _ => Err(SqlError::internal(format!("argument {index} is not text"))),
        }
    }

    /// The optional text argument at a position.
    pub(super) fn optional_text(&self, index: usize) -> Result<Option<&str>> {
        match self.0.get(index) {
            Some(ScalarValue::Null) => Ok(None),
            _ => self.text(index).map(Some),
        }
    }

    /// The integer argument at a position.
    pub(super) fn int(&self, index: usize) -> Result<i64> {
        match self.0.get(index) {
            Some(ScalarValue::Int64(Some(int))) => Ok(*int),
            _ => Err(SqlError::internal(format!("argument {index} is not an integer"))),
        }
    }

    /// The optional integer argument at a position.
    pub(super) fn optional_int(&self, index: usize) -> Result<Option<i64>> {
        match self.0.get(index) {
            Some(ScalarValue::Null) => Ok(None),
            _ => self.int(index).map(Some),
        }
    }

    /// The optional boolean argument at a position.
    pub(super) fn optional_bool(&self, index: usize) -> Result<Option<bool>> {
        match self.0.get(index) {
            Some(ScalarValue::Null) => Ok(None),
            _ => self.bool(index).map(Some),
        }
    }

    /// The boolean argument at a position.
    pub(super) fn bool(&self, index: usize) -> Result<bool> {
        match self.0.get(index) {
            Some(ScalarValue::Boolean(Some(bool))) => Ok(*bool),
            _ => Err(SqlError::internal(format!("argument {index} is not boolean"))),
        }
    }
}

fn signature(procedure: &str, parameters: &[Parameter]) -> String {
    let parameters = parameters.iter().map(|parameter| {
        let of = match parameter.of {
            Type::Text => "text",
            Type::Bool => "boolean",
            Type::Int => "bigint",
        };
        let (open, close) = if parameter.optional { ("[", "]") } else { ("", "") };
        format!("{open}{} {of}{close}", parameter.name)
    });
    format!("{procedure}({})", parameters.collect::<Vec<_>>().join(", "))
}

fn convert(procedure: &str, parameter: Parameter, value: &ScalarValue) -> Result<ScalarValue> {
    let wrong = |why: &str| SqlError::new("22023", format!("argument {:?} of {procedure} is {why}", parameter.name));
    if value.is_null() {
        return Err(wrong("NULL"));
    }
    match (parameter.of, value.data_type()) {
        (Type::Text, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
            value.cast_to(&DataType::Utf8).map_err(|error| wrong(&error.strip_backtrace()))
        }
        (Type::Bool, DataType::Boolean) => Ok(value.clone()),
        // 'true', 'off', 1: as PostgreSQL reads booleans.
        (Type::Bool, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
            match value.to_string().to_ascii_lowercase().as_str() {
                "t" | "true" | "y" | "yes" | "on" | "1" => Ok(ScalarValue::Boolean(Some(true))),
                "f" | "false" | "n" | "no" | "off" | "0" => Ok(ScalarValue::Boolean(Some(false))),
                text => Err(wrong(&format!("{text:?}, which is no boolean"))),
            }
        }
        (Type::Int, given) if given.is_integer() => {
            value.cast_to(&DataType::Int64).map_err(|error| wrong(&error.strip_backtrace()))
        }
        (Type::Int, other) => Err(wrong(&format!("of type {other}, not integer"))),
        (Type::Text, other) => Err(wrong(&format!("of type {other}, not text"))),
        (Type::Bool, other) => Err(wrong(&format!("of type {other}, not boolean"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: &[Parameter] =
        &[Parameter::required("database", Type::Text), Parameter::required("enabled", Type::Bool)];

    #[test]
    fn optional_arguments_may_be_left_out() {
        const OPTIONAL: &[Parameter] =
            &[Parameter::required("feed", Type::Text), Parameter::optional("database", Type::Text)];
        let given = |given| Arguments::check("p", OPTIONAL, given);
        let both = given(vec![argument(None, "f"), argument(None, "d")]).unwrap();
        assert_eq!((both.text(0).unwrap(), both.optional_text(1).unwrap()), ("f", Some("d")));
        assert_eq!(given(vec![argument(None, "f")]).unwrap().optional_text(1).unwrap(), None);
        let error = given(vec![]).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("its signature is p(feed text, [database text])"));
    }

    fn argument(name: Option<&str>, value: impl Into<ScalarValue>) -> Argument {
        Argument { name: name.map(ToOwned::to_owned), value: value.into() }
    }

    fn check(given: Vec<Argument>) -> Result<(String, bool)> {
        let arguments = Arguments::check("p", PARAMETERS, given)?;
        Ok((arguments.text(0)?.to_owned(), arguments.bool(1)?))
    }

    #[test]
    fn by_position_and_by_name() {
        let expected = ("market".to_owned(), true);
        assert_eq!(check(vec![argument(None, "market"), argument(None, true)]).unwrap(), expected);
        assert_eq!(
            check(vec![argument(Some("enabled"), "on"), argument(Some("database"), "market")]).unwrap(),
            expected
        );
        assert_eq!(check(vec![argument(None, "market"), argument(Some("enabled"), true)]).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named_with_the_signature() {
        for (given, sqlstate) in [
            (vec![], "42883"),
            (vec![argument(None, "market")], "42883"),
            (vec![argument(None, "market"), argument(None, true), argument(None, 1)], "42883"),
            (vec![argument(Some("databse"), "market")], "42883"),
            (vec![argument(None, "market"), argument(Some("database"), "x")], "42883"),
            (vec![argument(Some("database"), "market"), argument(None, true)], "42601"),
            (vec![argument(None, 1), argument(None, true)], "22023"),
            (vec![argument(None, "market"), argument(None, "maybe")], "22023"),
            (vec![argument(None, ScalarValue::Null), argument(None, true)], "22023"),
        ] {
            let error = check(given.clone()).unwrap_err();
            assert_eq!(error.sqlstate, sqlstate, "{given:?}");
            assert_eq!(error.hint.as_deref(), Some("its signature is p(database text, enabled boolean)"));
        }
    }
}
