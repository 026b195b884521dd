//! `interval * number`, `number * interval`, `interval / number`.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{ArrayRef, AsArray, IntervalMonthDayNanoArray},
        datatypes::{DataType, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit},
        error::ArrowError,
    },
    common::{DFSchema, Result},
    logical_expr::{
        ColumnarValue, Expr, ExprSchemable, ScalarUDF, Volatility, cast, create_udf, lit,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    sql::sqlparser::ast::BinaryOperator,
};

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const DAYS_OF_MONTH: f64 = 30.0;
const NANOS_OF_DAY: f64 = 86_400e9;

/// Plans the operators as calls of [`multiply`].
#[derive(Debug)]
pub(super) struct IntervalPlanner;

impl ExprPlanner for IntervalPlanner {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if !matches!(raw.op, BinaryOperator::Multiply | BinaryOperator::Divide) {
            return Ok(PlannerResult::Original(raw));
        }
        // Types that cannot be told yet (parameters) are left to the planner.
        let (Ok(left), Ok(right)) = (raw.left.get_type(schema), raw.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(raw));
        };
        let is_interval = |data_type: &DataType| matches!(data_type, DataType::Interval(_));
        let call = |interval: Expr, number: Expr| {
            PlannerResult::Planned(multiply().call(vec![cast(interval, INTERVAL), number]))
        };
        Ok(match raw.op {
            BinaryOperator::Multiply if is_interval(&left) && right.is_numeric() => {
                call(raw.left, cast(raw.right, DataType::Float64))
            }
            BinaryOperator::Multiply if left.is_numeric() && is_interval(&right) => {
                call(raw.right, cast(raw.left, DataType::Float64))
            }
            BinaryOperator::Divide if is_interval(&left) && right.is_numeric() => {
                call(raw.left, lit(1.0) / cast(raw.right, DataType::Float64))
            }
            _ => PlannerResult::Original(raw),
        })
    }
}

/// `interval_multiply(interval, number)`.
pub(super) fn multiply() -> ScalarUDF {
    let function = Arc::new(|arguments: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let intervals = arrays[0].as_primitive::<IntervalMonthDayNanoType>();
        let numbers = arrays[1].as_primitive::<Float64Type>();
        let products = intervals.iter().zip(numbers).map(|pair| match pair {
            (Some(interval), Some(number)) => scaled(interval, number).map(Some),
            _ => Ok(None),
        });
        let products: ArrayRef = Arc::new(products.collect::<Result<IntervalMonthDayNanoArray, ArrowError>>()?);
        Ok(ColumnarValue::Array(products))
    });
    create_udf("interval_multiply", vec![INTERVAL, DataType::Float64], INTERVAL, Volatility::Immutable, function)
}

/// As PostgreSQL does it: fractions of months become days of a thirtieth, fractions of days become time.
fn scaled(interval: IntervalMonthDayNano, number: f64) -> Result<IntervalMonthDayNano, ArrowError> {
    let overflow = || ArrowError::ArithmeticOverflow("interval out of range".to_owned());
    let months = f64::from(interval.months) * number;
    let days = f64::from(interval.days) * number;
    let whole_days = days.trunc() + (months.fract() * DAYS_OF_MONTH).trunc();
    let fraction = days.fract() + (months.fract() * DAYS_OF_MONTH).fract();
    let nanos = interval.nanoseconds as f64 * number + fraction * NANOS_OF_DAY;
    let whole = |value: f64, most: f64| if value.abs() <= most { Ok(value) } else { Err(overflow()) };
    Ok(IntervalMonthDayNano {
        months: whole(months.trunc(), f64::from(i32::MAX))? as i32,
        days: whole(whole_days, f64::from(i32::MAX))? as i32,
        nanoseconds: whole(nanos.round(), 9.2e18)? as i64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_flow_down() {
        let interval = |months, days, nanoseconds| IntervalMonthDayNano { months, days, nanoseconds };
        assert_eq!(scaled(interval(0, 0, 60_000_000_000), 242.0).unwrap(), interval(0, 0, 14_520_000_000_000));
        assert_eq!(scaled(interval(1, 1, 0), 1.5).unwrap(), interval(1, 16, 43_200_000_000_000));
        assert_eq!(scaled(interval(0, 3, 0), -1.0).unwrap(), interval(0, -3, 0));
        assert!(scaled(interval(i32::MAX, 0, 0), 2.0).is_err());
        assert!(scaled(interval(1, 0, 0), f64::NAN).is_err());
    }
}
