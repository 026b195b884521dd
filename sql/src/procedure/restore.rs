//! `restore(url, …)`: what a backup holds, or a point in time behind it.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::ScalarValue,
};
use tailrace_engine::{
    Identities, PartitionChoice, PartitionPattern, PointInTime, RestoreMode, RestorePoint, RestoreReport,
    RestoreRequest, RestoreScope, RestoreTarget,
};
use tailrace_wal::{CommitTime, Seq};
use tokio_util::sync::CancellationToken;

use super::{
    arguments::{Arguments, Parameter, Type},
    backup::{parallel, table_of},
    partition_condition, place,
};
use crate::{Result, Session, SqlError};

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("url", Type::Text),
    Parameter::optional("backup", Type::Text),
    Parameter::optional("database", Type::Text),
    Parameter::optional("table", Type::Text),
    Parameter::optional("partitions", Type::Text),
    Parameter::optional("into", Type::Text),
    Parameter::optional("create", Type::Bool),
    Parameter::optional("mode", Type::Text),
    Parameter::optional("dry_run", Type::Bool),
    Parameter::optional("parallel", Type::Int),
    Parameter::optional("key", Type::Text),
    Parameter::optional("to_seq", Type::Int),
    Parameter::optional("to_time", Type::Text),
    Parameter::optional("archive", Type::Text),
    Parameter::optional("where", Type::Text),
];

pub(super) async fn run(session: &Session, arguments: &Arguments, stop: &CancellationToken) -> Result<Vec<String>> {
    let instance = session.instance();
    let (database, table, partitions, into) = (
        arguments.optional_text(2)?,
        arguments.optional_text(3)?,
        arguments.optional_text(4)?,
        arguments.optional_text(5)?,
    );
    let pattern = partitions.map(|pattern| PartitionChoice::Pattern(PartitionPattern::new(pattern)));
    let condition = arguments.optional_text(14)?;
    let condition = condition.map(|text| PartitionChoice::Condition(partition_condition::condition(session, text)));
    let partitions: Vec<PartitionChoice> = pattern.into_iter().chain(condition).collect();
    let what = match (database, table, partitions) {
        (None, None, none) if none.is_empty() => RestoreScope::Everything,
        (Some(database), None, none) if none.is_empty() => RestoreScope::Database(database.to_owned()),
        (database, Some(table), partitions) => {
            let (database, table) = table_of(session, database, table)?;
            RestoreScope::Table { database, table, partitions }
        }
        (_, None, _) => {
            return Err(SqlError::new("22023", "partitions and where are about a table").hint("table => 'market.bars'"));
        }
    };
    let into = match (into, &what) {
        (None, _) => None,
        (Some(into), RestoreScope::Table { .. }) => {
            let (database, table) = table_of(session, None, into)?;
            Some(RestoreTarget::Table { database, table })
        }
        (Some(into), _) => Some(RestoreTarget::Database(into.to_owned())),
    };
    let mode = match arguments.optional_text(7)? {
        None | Some("fail") => RestoreMode::Fail,
        Some("replace") => RestoreMode::Replace,
        Some("merge") => RestoreMode::Merge,
        Some(other) => {
            return Err(SqlError::new("22023", format!("mode => {other:?}: it is 'fail', 'replace' or 'merge'")));
        }
    };
    let identities = match arguments.optional_text(10)? {
        None => None,
        Some(path) => Some(Identities::parse(&place::key_file(instance, path).await?)?),
    };
    let until = match (arguments.optional_int(11)?, arguments.optional_text(12)?) {
        (None, None) => None,
        (Some(seq), None) => Some(RestorePoint::Seq(Seq(u64::try_from(seq)
            .map_err(|_| SqlError::new("22023", format!("to_seq => {seq}: transactions count from 1")))?))),
        (None, Some(time)) => Some(RestorePoint::Time(moment(time)?)),
        (Some(_), Some(_)) => return Err(SqlError::new("22023", "to_seq and to_time exclude each other")),
    };
    let archive = match arguments.optional_text(13)? {
        None => None,
        Some(url) => Some(place::allowed_url(instance, url).await?),
    };
    if archive.is_some() && until.is_none() {
        return Err(SqlError::new("22023", "an archive is read up to a point").hint("to_seq => n or to_time => '…'"));
    }
    let request = RestoreRequest {
        backup: arguments.optional_text(1)?.map(str::parse).transpose()?,
        what,
        into,
        // A point in time is always a new database.
        create: arguments.optional_bool(6)?.unwrap_or_default() || until.is_some(),
        mode,
        dry_run: arguments.optional_bool(8)?.unwrap_or_default(),
        parallel: parallel(arguments.optional_int(9)?)?,
        identities,
        until: until.map(|target| PointInTime { target, archive }),
        cancel: stop.clone(),
    };
    let dry_run = request.dry_run;
    let location = place::location(instance, arguments.text(0)?, false).await?;
    let report = instance.engine.restore(&location, request).await?;
    Ok(describe(report, dry_run))
}

/// A moment in text, in UTC where it says nothing else.
fn moment(text: &str) -> Result<CommitTime> {
    let wrong = || SqlError::new("22007", format!("{text:?} is not a moment such as 2023-01-08 22:30:00"));
    let of = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    match ScalarValue::from(text).cast_to(&of) {
        Ok(ScalarValue::TimestampMicrosecond(Some(micros), _)) => Ok(CommitTime(micros)),
        _ => Err(wrong()),
    }
}

fn describe(report: RestoreReport, dry_run: bool) -> Vec<String> {
    let mut lines = report.steps;
    lines.extend(report.installed.iter().map(|(name, position)| format!("database {name} is at {position}")));
    lines.push(match dry_run {
        true => format!("backup {}: nothing was changed, this was a dry run", report.backup),
        false => format!(
            "backup {}: restored {} partitions with {} rows from {} bytes, {} partitions were equal, in {:.3} s",
            report.backup,
            report.partitions,
            report.rows,
            report.bytes,
            report.skipped_partitions,
            report.elapsed.as_secs_f64()
        ),
    });
    lines
}
