//! `schedule_job(name, cron, statement, …)`, `run_job(name [, wait])`, `pause_job(name)`, `resume_job(name)`,
//! `delete_job(name)`.

use std::{sync::Arc, time::Duration};

use datafusion::arrow::{
    array::{ArrayRef, Float64Array, Int64Array, StringArray},
    compute::kernels::cast_utils::parse_interval_month_day_nano,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use tailrace_engine::{CatchUp, JobDefinition, JobRun};

use super::arguments::{Arguments, Parameter, Type};
use crate::{
    Outcome, Result, Session, SqlError,
    job::{
        no_job,
        schedule::{Schedule, read_cron, read_from, read_until, read_zone},
    },
    statement::settings::rows,
};

/// Name of the procedure that answers with a row.
pub(super) const RUN_JOB: &str = "run_job";

pub(super) const SCHEDULE: &[Parameter] = &[
    Parameter::required("name", Type::Text),
    Parameter::required("cron", Type::Text),
    Parameter::required("statement", Type::Text),
    Parameter::optional("time_zone", Type::Text),
    Parameter::optional("from", Type::Text),
    Parameter::optional("until", Type::Text),
    Parameter::optional("catch_up", Type::Text),
    Parameter::optional("timeout", Type::Text),
    Parameter::optional("retries", Type::Int),
    Parameter::optional("retry_delay", Type::Text),
    Parameter::optional("max_runs_kept", Type::Int),
    Parameter::optional("replace", Type::Bool),
];
pub(super) const RUN: &[Parameter] =
    &[Parameter::required("name", Type::Text), Parameter::optional("wait", Type::Bool)];
pub(super) const NAME: &[Parameter] = &[Parameter::required("name", Type::Text)];

const RETRY_DELAY: Duration = Duration::from_secs(60);
const RUNS_KEPT: u32 = 100;

/// What can be wrong is found now, not when the job is due.
pub(super) async fn schedule(session: &Session, arguments: &Arguments) -> Result<Vec<String>> {
    let (name, cron, statement) = (arguments.text(0)?, arguments.text(1)?, arguments.text(2)?);
    read_cron(cron)?;
    session.check_job(statement).map_err(|error| SqlError {
        message: format!("statement of job {name:?}: {}", error.message),
        position: None,
        ..error
    })?;
    let zone = read_zone(arguments.optional_text(3)?.unwrap_or("UTC"))?;
    let from = arguments.optional_text(4)?.map(|text| read_from("from", text, zone)).transpose()?;
    let until = arguments.optional_text(5)?.map(|text| read_until("until", text, zone)).transpose()?;
    let count = |index, what: &str, default: u32| match arguments.optional_int(index)? {
        None => Ok(default),
        Some(count) => {
            u32::try_from(count).map_err(|_| SqlError::new("22023", format!("{what} => {count} is out of range")))
        }
    };
    let definition = JobDefinition {
        name: name.to_owned(),
        cron: cron.to_owned(),
        time_zone: zone.name().to_owned(),
        from,
        until,
        statement: statement.to_owned(),
        user: session.user().to_owned(),
        database: session.current_database(),
        catch_up: catch_up(arguments.optional_text(6)?)?,
        timeout_ms: duration("timeout", arguments.optional_text(7)?)?.map(millis),
        retries: count(8, "retries", 0)?,
        retry_delay_ms: millis(duration("retry_delay", arguments.optional_text(9)?)?.unwrap_or(RETRY_DELAY)),
        runs_kept: count(10, "max_runs_kept", RUNS_KEPT)?,
    };
    let replace = arguments.optional_bool(11)?.unwrap_or(false);
    let instance = session.instance();
    let schedule = Schedule::of(&definition)?;
    let Some(next) = schedule.next(instance.engine.clock().now()) else {
        return Err(SqlError::new("22023", format!("job {name:?} would never run: {cron:?} has no due time left"))
            .hint("look at day, month, from and until"));
    };
    instance.engine.schedule_job(definition, replace).await.map_err(|error| match SqlError::from(error) {
        error if error.sqlstate == "42710" => error.hint("replace => true changes it and keeps its runs"),
        error => error,
    })?;
    instance.jobs.look();
    Ok(vec![format!("job {name:?} runs next at {}", schedule.shown(next))])
}

/// Runs it now, paused or not, and answers with what it came to, or at once with `wait => false`.
pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<Outcome> {
    let asked = session.instance().jobs.ask(arguments.text(0)?, session.user()).await?;
    let run = match arguments.optional_bool(1)?.unwrap_or(true) {
        true => asked.ended().await?,
        false => asked.forget(),
    };
    let JobRun { job, run: number, outcome, rows: count, micros, message, .. } = run;
    let int = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![job])),
        Arc::new(Int64Array::from(vec![int(number.0)])),
        Arc::new(StringArray::from(vec![outcome.name()])),
        Arc::new(Float64Array::from(vec![micros.map(|micros| Duration::from_micros(micros).as_secs_f64())])),
        Arc::new(Int64Array::from(vec![int(count)])),
        Arc::new(StringArray::from(vec![message])),
    ];
    rows(run_columns(), columns)
}

/// Columns of what [`run`] answers.
pub(super) fn run_columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("job", DataType::Utf8, false),
        Field::new("run", DataType::Int64, false),
        Field::new("outcome", DataType::Utf8, false),
        Field::new("seconds", DataType::Float64, true),
        Field::new("rows", DataType::Int64, false),
        Field::new("message", DataType::Utf8, false),
    ]))
}

pub(super) async fn pause(session: &Session, arguments: &Arguments, paused: bool) -> Result<Vec<String>> {
    let (instance, name) = (session.instance(), arguments.text(0)?);
    known(session, name)?;
    let changed = instance.engine.pause_job(name, session.user(), paused).await?;
    instance.jobs.look();
    let as_before = if paused { "is paused already" } else { "is not paused" };
    Ok(if changed { Vec::new() } else { vec![format!("job {name:?} {as_before}")] })
}

pub(super) async fn delete(session: &Session, arguments: &Arguments) -> Result<Vec<String>> {
    let (instance, name) = (session.instance(), arguments.text(0)?);
    known(session, name)?;
    instance.engine.delete_job(name).await?;
    let was_running = instance.jobs.deleted(name);
    instance.jobs.look();
    Ok(if was_running { vec![format!("the run of job {name:?} that was under way is cancelled")] } else { Vec::new() })
}

fn known(session: &Session, name: &str) -> Result<()> {
    let engine = &session.instance().engine;
    engine.job(name).map(|_| ()).ok_or_else(|| no_job(engine, name))
}

fn catch_up(text: Option<&str>) -> Result<CatchUp> {
    match text.map(str::to_lowercase).as_deref() {
        None | Some("skip") => Ok(CatchUp::Skip),
        Some("once") => Ok(CatchUp::Once),
        Some("all") => Ok(CatchUp::All),
        Some(other) => Err(SqlError::new("22023", format!("catch_up => {other:?} is not known"))
            .hint("'skip': missed runs are recorded; 'once': one stands for all; 'all': each is made up for")),
    }
}

/// A positive span of time, such as `90 s`, `10 min`, `2 h 30 min`, `1 day`.
fn duration(argument: &str, text: Option<&str>) -> Result<Option<Duration>> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || {
        SqlError::new("22007", format!("{argument} => {text:?} is not a span of time"))
            .hint("write it as '500 ms', '90 s', '10 min', '2 h', '1 day'")
    };
    if !text.contains(|c: char| c.is_alphabetic()) {
        return Err(wrong());
    }
    let interval = parse_interval_month_day_nano(text).map_err(|_| wrong())?;
    let days = u64::try_from(interval.days).map_err(|_| wrong())?;
    let nanos = u64::try_from(interval.nanoseconds).map_err(|_| wrong())?;
    let span = Duration::from_secs(days * 86_400) + Duration::from_nanos(nanos);
    if interval.months != 0 || span < Duration::from_millis(1) {
        return Err(wrong());
    }
    Ok(Some(span))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        for (text, millis) in [
            ("2 h", 7_200_000),
            ("1 min", 60_000),
            ("500 ms", 500),
            ("90s", 90_000),
            ("1 day", 86_400_000),
            ("1 h 30 min", 5_400_000),
        ] {
            assert_eq!(duration("timeout", Some(text)).unwrap().unwrap().as_millis(), millis, "{text}");
        }
        for text in ["2", "", "-1 h", "1 month", "soon", "0 s"] {
            assert_eq!(duration("timeout", Some(text)).unwrap_err().sqlstate, "22007", "{text}");
        }
    }
}
