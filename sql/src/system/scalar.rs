//! Scalar functions about the session and the server that clients call.

use std::{any::Any, sync::Arc};

use datafusion::{
    arrow::datatypes::{DataType, Field},
    common::{
        Result, ScalarValue,
        config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions},
    },
    error::DataFusionError,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility},
    prelude::SessionContext,
};

use crate::{provider::CATALOG, session::NO_DATABASE, statement::settings::SERVER_VERSION};

/// Who is connected, for functions: a session puts it into the extensions of its configuration's options.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientFacts {
    /// User name.
    pub(crate) user: String,
    /// Process number of the connection, as cancel requests name it; 0 without a connection.
    pub(crate) pid: i32,
}

impl ConfigExtension for ClientFacts {
    const PREFIX: &'static str = "client";
}

impl ExtensionOptions for ClientFacts {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(DataFusionError::Configuration(format!("client.{key} cannot be set")))
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}

/// What `version()` says. Clients look for the word PostgreSQL and a number after it.
pub(crate) fn version() -> String {
    format!("PostgreSQL {SERVER_VERSION} (Tailrace {})", env!("CARGO_PKG_VERSION"))
}

type Answer = fn(&[ColumnarValue], &ConfigOptions) -> Result<ScalarValue>;

const FUNCTIONS: &[(&str, DataType, Answer)] = &[
    ("version", DataType::Utf8, |_, _| Ok(text(version()))),
    ("current_schema", DataType::Utf8, |_, options| Ok(ScalarValue::Utf8(database(options)))),
    ("current_database", DataType::Utf8, |_, options| {
        Ok(text(database(options).unwrap_or_else(|| CATALOG.to_owned())))
    }),
    ("current_catalog", DataType::Utf8, |_, _| Ok(text(CATALOG.to_owned()))),
    ("current_user", DataType::Utf8, |_, options| Ok(text(facts(options).user))),
    ("session_user", DataType::Utf8, |_, options| Ok(text(facts(options).user))),
    ("user", DataType::Utf8, |_, options| Ok(text(facts(options).user))),
    ("pg_backend_pid", DataType::Int32, |_, options| Ok(ScalarValue::Int32(Some(facts(options).pid)))),
    ("pg_is_in_recovery", DataType::Boolean, |_, _| Ok(ScalarValue::Boolean(Some(false)))),
];

fn text(text: String) -> ScalarValue {
    ScalarValue::Utf8(Some(text))
}

fn database(options: &ConfigOptions) -> Option<String> {
    Some(options.catalog.default_schema.clone()).filter(|schema| schema != NO_DATABASE)
}

fn facts(options: &ConfigOptions) -> ClientFacts {
    options.extensions.get::<ClientFacts>().cloned().unwrap_or_default()
}

/// `current_schemas(implicit)`: where names are looked up, and with `true` where also without being asked.
fn current_schemas(arguments: &[ColumnarValue], options: &ConfigOptions) -> Result<ScalarValue> {
    let implicit = matches!(arguments, [ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))]);
    let also = if implicit { &["information_schema", "pg_catalog"][..] } else { &[] };
    let names = database(options).into_iter().chain(also.iter().map(|name| (*name).to_owned()));
    let names: Vec<ScalarValue> = names.map(text).collect();
    Ok(ScalarValue::List(ScalarValue::new_list_nullable(&names, &DataType::Utf8)))
}

/// `current_setting(name)`, for what never changes; SHOW knows the rest.
fn current_setting(arguments: &[ColumnarValue], _options: &ConfigOptions) -> Result<ScalarValue> {
    let [ColumnarValue::Scalar(ScalarValue::Utf8(Some(name))), ..] = arguments else {
        return Err(DataFusionError::Plan("function current_setting takes a constant name".to_owned()));
    };
    let value = match name.to_ascii_lowercase().as_str() {
        "server_version" => SERVER_VERSION.to_owned(),
        "server_version_num" => server_version_number(),
        "server_encoding" | "client_encoding" => "UTF8".to_owned(),
        "integer_datetimes" | "standard_conforming_strings" => "on".to_owned(),
        "timezone" => "UTC".to_owned(),
        "max_identifier_length" => "63".to_owned(),
        _ => {
            return Err(DataFusionError::NotImplemented(format!(
                "current_setting('{name}') is not supported; SHOW {name}"
            )));
        }
    };
    Ok(text(value))
}

/// `16.6` as PostgreSQL numbers it: 160006.
fn server_version_number() -> String {
    let (major, minor) = SERVER_VERSION.split_once('.').unwrap_or((SERVER_VERSION, "0"));
    format!("{major}{minor:0>4}")
}

/// Registers them, over what other libraries registered under these names.
pub(super) fn register(context: &SessionContext) {
    let texts = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
    let one_of = |signatures| Signature::one_of(signatures, Volatility::Stable);
    context.register_udf(ScalarUDF::new_from_impl(Function {
        name: "current_schemas",
        returns: texts,
        signature: one_of(vec![TypeSignature::Exact(vec![DataType::Boolean])]),
        answer: current_schemas,
    }));
    context.register_udf(ScalarUDF::new_from_impl(Function {
        name: "current_setting",
        returns: DataType::Utf8,
        signature: one_of(vec![
            TypeSignature::Exact(vec![DataType::Utf8]),
            TypeSignature::Exact(vec![DataType::Utf8, DataType::Boolean]),
        ]),
        answer: current_setting,
    }));
    for (name, returns, answer) in FUNCTIONS {
        let signature = Signature::nullary(Volatility::Stable);
        let function = Function { name, returns: returns.clone(), signature, answer: *answer };
        context.register_udf(ScalarUDF::new_from_impl(function));
    }
}

/// A function whose answer stands in the session's configuration.
#[derive(Debug, Clone)]
struct Function {
    name: &'static str,
    returns: DataType,
    signature: Signature,
    answer: Answer,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl std::hash::Hash for Function {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar((self.answer)(&args.args, &args.config_options)?))
    }
}
