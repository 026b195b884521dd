//! `prune_backups(url, keep [, older_than] [, dry_run])`: old backups go, and the files that no other one needs.

use std::{sync::Arc, time::Duration};

use datafusion::{
    arrow::datatypes::{DataType, IntervalUnit},
    common::ScalarValue,
};
use tailrace_engine::PruneRequest;

use super::{
    arguments::{Arguments, Parameter, Type},
    place,
};
use crate::{Instance, Result, SqlError};

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("url", Type::Text),
    Parameter::required("keep", Type::Int),
    Parameter::optional("older_than", Type::Text),
    Parameter::optional("dry_run", Type::Bool),
];

const SECONDS_OF_DAY: u64 = 24 * 3600;

pub(super) async fn run(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let keep = arguments.int(1)?;
    let keep =
        usize::try_from(keep).map_err(|_| SqlError::new("22023", format!("keep => {keep}: it is at least 1")))?;
    let older_than = arguments.optional_text(2)?.map(span).transpose()?;
    let request = PruneRequest { keep, older_than, dry_run: arguments.optional_bool(3)?.unwrap_or_default() };
    let would = if request.dry_run { "would remove" } else { "removed" };
    let location = place::location(instance, arguments.text(0)?, true).await?;
    let report = instance.engine.prune_backups(&location, request).await?;
    let mut lines: Vec<String> = report.removed.iter().map(|id| format!("{would} backup {id}")).collect();
    lines.push(format!(
        "{would} {} backups and {} files of {} bytes; {} backups stay",
        report.removed.len(),
        report.files,
        report.bytes,
        report.kept
    ));
    Ok(lines)
}

/// A span in text, as an interval is written. A month has 30 days.
fn span(text: &str) -> Result<Duration> {
    let wrong = || SqlError::new("22007", format!("{text:?} is not a span such as '30 days'"));
    match ScalarValue::from(text).cast_to(&DataType::Interval(IntervalUnit::MonthDayNano)) {
        Ok(ScalarValue::IntervalMonthDayNano(Some(interval))) => {
            let days = i64::from(interval.months) * 30 + i64::from(interval.days);
            let days = u64::try_from(days).map_err(|_| wrong())?;
            let nanoseconds = u64::try_from(interval.nanoseconds).map_err(|_| wrong())?;
            Ok(Duration::from_secs(days * SECONDS_OF_DAY) + Duration::from_nanos(nanoseconds))
        }
        _ => Err(wrong()),
    }
}
