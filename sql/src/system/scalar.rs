//! Scalar functions about the session and the server that clients call.

use std::any::Any;

use datafusion::{
    arrow::datatypes::DataType,
    common::{
        Result, ScalarValue,
        config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions},
    },
    error::DataFusionError,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
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

type Answer = fn(&ConfigOptions) -> ScalarValue;

const FUNCTIONS: &[(&str, DataType, Answer)] = &[
    ("version", DataType::Utf8, |_| text(version())),
    ("current_schema", DataType::Utf8, |options| ScalarValue::Utf8(database(options))),
    ("current_database", DataType::Utf8, |options| text(database(options).unwrap_or_else(|| CATALOG.to_owned()))),
    ("current_catalog", DataType::Utf8, |_| text(CATALOG.to_owned())),
    ("current_user", DataType::Utf8, |options| text(facts(options).user)),
    ("session_user", DataType::Utf8, |options| text(facts(options).user)),
    ("user", DataType::Utf8, |options| text(facts(options).user)),
    ("pg_backend_pid", DataType::Int32, |options| ScalarValue::Int32(Some(facts(options).pid))),
    ("pg_is_in_recovery", DataType::Boolean, |_| ScalarValue::Boolean(Some(false))),
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

/// Registers them, over what other libraries registered under these names.
pub(super) fn register(context: &SessionContext) {
    for (name, returns, answer) in FUNCTIONS {
        let signature = Signature::nullary(Volatility::Stable);
        let function = Function { name, returns: returns.clone(), signature, answer: *answer };
        context.register_udf(ScalarUDF::new_from_impl(function));
    }
}

/// A function without arguments whose answer stands in the session's configuration.
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
        Ok(ColumnarValue::Scalar((self.answer)(&args.config_options)))
    }
}
