//! Functions over `pg_catalog` that clients call and whose answer is the same for every object here: nothing is hidden,
//! nothing has a comment, there are no functions, indexes, views or triggers in SQL.

use datafusion::{
    arrow::datatypes::DataType,
    common::{Result, ScalarValue},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
    prelude::SessionContext,
};

const VISIBLE: [&str; 9] = [
    "pg_collation_is_visible",
    "pg_conversion_is_visible",
    "pg_function_is_visible",
    "pg_opclass_is_visible",
    "pg_operator_is_visible",
    "pg_opfamily_is_visible",
    "pg_ts_config_is_visible",
    "pg_ts_dict_is_visible",
    "pg_type_is_visible",
];

const UNKNOWN_TEXT: [&str; 12] = [
    "col_description",
    "obj_description",
    "pg_get_function_arguments",
    "pg_get_function_identity_arguments",
    "pg_get_function_result",
    "pg_get_indexdef",
    "pg_get_ruledef",
    "pg_get_triggerdef",
    "pg_get_viewdef",
    "pg_size_pretty",
    "pg_tablespace_location",
    "shobj_description",
];

const UNKNOWN_SIZE: [&str; 3] = ["pg_database_size", "pg_indexes_size", "pg_table_size"];

/// Registers them.
pub(super) fn register(context: &SessionContext) {
    let answers = [
        (&VISIBLE[..], ScalarValue::Boolean(Some(true))),
        (&UNKNOWN_TEXT[..], ScalarValue::Utf8(None)),
        (&UNKNOWN_SIZE[..], ScalarValue::Int64(None)),
    ];
    for (names, answer) in answers {
        for name in names {
            let signature = Signature::one_of(
                vec![
                    datafusion::logical_expr::TypeSignature::VariadicAny,
                    datafusion::logical_expr::TypeSignature::Nullary,
                ],
                Volatility::Stable,
            );
            let function = Constant { name, signature, answer: answer.clone() };
            context.register_udf(ScalarUDF::new_from_impl(function));
        }
    }
}

/// A function with the same answer to everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    signature: Signature,
    answer: ScalarValue,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.answer.data_type())
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.answer.clone()))
    }
}
