//! When a job is due: a cron expression in a time zone, between two dates.
//!
//! Daylight saving: a job with one minute and one hour (`30 2 * * *`) is due once a day. Where the clock skips that time it is
//! due at the first moment behind the gap, where the clock shows it twice, at the first of both. Any other job goes by what
//! the clock shows: times that are skipped do not come, those that come twice are due twice.

use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};
use tailrace_engine::JobDefinition;
use tailrace_wal::CommitTime;

use crate::{Result, SqlError};

/// Fields of a cron expression, in their order.
const FIELDS: [(&str, &str); 5] = [
    ("minute", "0-59"),
    ("hour", "0-23"),
    ("day of the month", "1-31, L, or a day with W"),
    ("month", "1-12 or JAN-DEC"),
    ("day of the week", "0-7 or SUN-SAT, with #n or L"),
];
const NICKNAMES: [&str; 6] = ["@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@annually"];

/// When a job is due.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    cron: Cron,
    zone: Tz,
    from: Option<CommitTime>,
    until: Option<CommitTime>,
}

impl Schedule {
    /// Of a job that is kept already.
    pub(crate) fn of(definition: &JobDefinition) -> Result<Self> {
        let JobDefinition { cron, time_zone, from, until, .. } = definition;
        Ok(Self { cron: read_cron(cron)?, zone: read_zone(time_zone)?, from: *from, until: *until })
    }

    /// The first due time behind `after`; `None`: there is none any more.
    pub(crate) fn next(&self, after: CommitTime) -> Option<CommitTime> {
        // Microseconds count from there: a due time at `from` itself is one.
        let after = self.from.map_or(after, |from| after.max(CommitTime(from.0.saturating_sub(1))));
        let mut start = moment(self.zone, after)?;
        let mut due = self.cron.find_next_occurrence(&start, false).ok()?;
        // Seconds are what expressions know; nothing is due twice for what is below.
        while due.timestamp_micros() <= after.0 {
            start = start.checked_add_signed(TimeDelta::seconds(1))?;
            due = self.cron.find_next_occurrence(&start, false).ok()?;
        }
        let due = CommitTime(due.timestamp_micros());
        self.until.is_none_or(|until| due < until).then_some(due)
    }

    /// A moment as the clocks of the job's zone show it.
    pub(crate) fn shown(&self, time: CommitTime) -> String {
        shown(self.zone, time)
    }
}

/// Reads a cron expression of five fields; `22023` names the field that is wrong.
pub(crate) fn read_cron(text: &str) -> Result<Cron> {
    let wrong = |what: String| SqlError::new("22023", format!("cron expression {text:?}: {what}"));
    let fields: Vec<&str> = text.split_whitespace().collect();
    if let [nickname] = fields[..]
        && nickname.starts_with('@')
    {
        return match NICKNAMES.iter().any(|known| known.eq_ignore_ascii_case(nickname)) {
            true => parse(nickname).map_err(|error| wrong(reason(&error))),
            false => Err(wrong("it is not known by that name".to_owned()).hint(NICKNAMES.join(", "))),
        };
    }
    let hint = "minute hour day-of-month month day-of-week, such as '30 22 * * *': daily at 22:30";
    if fields.len() != FIELDS.len() {
        let seconds = if fields.len() > FIELDS.len() { ", and no seconds or years" } else { "" };
        return Err(wrong(format!("it has {} fields, a cron expression has 5{seconds}", fields.len())).hint(hint));
    }
    for (index, field) in fields.iter().enumerate() {
        let mut alone = ["*"; FIELDS.len()];
        alone[index] = field;
        if let Err(error) = parse(&alone.join(" ")) {
            let (name, allowed) = FIELDS[index];
            let what = format!("field {}, the {name}, is {field:?}: {}", index + 1, reason(&error));
            return Err(wrong(what).hint(format!("{name}: * or {allowed}; lists a,b, ranges a-b and steps */n")));
        }
    }
    parse(text).map_err(|error| wrong(reason(&error)).hint(hint))
}

/// Reads the IANA name of a time zone.
pub(crate) fn read_zone(name: &str) -> Result<Tz> {
    name.parse().map_err(|_| {
        SqlError::new("22023", format!("time zone {name:?} is not known"))
            .did_you_mean(name, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()))
    })
}

/// The beginning of a day, or a moment, in a zone: `2026-01-01`, `2026-01-01 22:30`, `2026-01-01 22:30:00`.
pub(crate) fn read_from(argument: &str, text: &str, zone: Tz) -> Result<CommitTime> {
    match read_time(argument, text)? {
        (date, None) => day_begin(date, zone),
        (date, Some(time)) => first_moment(date.and_time(time), zone),
    }
    .ok_or_else(|| out_of_range(argument, text))
}

/// Behind the end of a day, or behind a moment.
pub(crate) fn read_until(argument: &str, text: &str, zone: Tz) -> Result<CommitTime> {
    match read_time(argument, text)? {
        (date, None) => date.checked_add_days(Days::new(1)).and_then(|next| day_begin(next, zone)),
        (date, Some(time)) => first_moment(date.and_time(time), zone).map(|time| CommitTime(time.0 + 1)),
    }
    .ok_or_else(|| out_of_range(argument, text))
}

/// A moment as the clocks of a zone show it.
pub(super) fn shown(zone: Tz, time: CommitTime) -> String {
    moment(zone, time).map_or_else(|| time.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S %Z").to_string())
}

fn parse(text: &str) -> Result<Cron, CronError> {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(text)
}

fn reason(error: &CronError) -> String {
    match error {
        CronError::InvalidPattern(text) | CronError::IllegalCharacters(text) | CronError::ComponentError(text) => {
            text.trim_end_matches('.').to_owned()
        }
        error => error.to_string(),
    }
}

fn moment(zone: Tz, time: CommitTime) -> Option<DateTime<Tz>> {
    Some(DateTime::from_timestamp_micros(time.0)?.with_timezone(&zone))
}

fn read_time(argument: &str, text: &str) -> Result<(NaiveDate, Option<NaiveTime>)> {
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok((date, None));
    }
    let formats = ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"];
    let time = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    time.map(|time| (time.date(), Some(time.time()))).ok_or_else(|| {
        SqlError::new("22007", format!("{argument} => {text:?} is not a date or time"))
            .hint("write it as '2026-01-01' or '2026-01-01 22:30', in the job's time zone")
    })
}

fn out_of_range(argument: &str, text: &str) -> SqlError {
    SqlError::new("22008", format!("{argument} => {text:?} is out of range"))
}

fn day_begin(date: NaiveDate, zone: Tz) -> Option<CommitTime> {
    first_moment(date.and_time(NaiveTime::MIN), zone)
}

/// The first moment at which the clocks of a zone show that time, or a later one where they skip it.
fn first_moment(mut local: NaiveDateTime, zone: Tz) -> Option<CommitTime> {
    // The longest gap of all zones is a day: Samoa, 2011.
    for _ in 0..=25 * 60 {
        if let Some(time) = zone.from_local_datetime(&local).earliest() {
            return Some(CommitTime(time.timestamp_micros()));
        }
        local = local.checked_add_signed(TimeDelta::minutes(1))?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> CommitTime {
        let time = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
        CommitTime(time.and_utc().timestamp_micros())
    }

    fn schedule(cron: &str, zone: &str) -> Schedule {
        Schedule { cron: read_cron(cron).unwrap(), zone: read_zone(zone).unwrap(), from: None, until: None }
    }

    /// The next due times, as UTC shows them.
    fn due(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
        let mut after = utc(after);
        let mut times = Vec::new();
        while let Some(next) = schedule.next(after).filter(|_| times.len() < count) {
            assert!(next > after);
            times.push(shown(Tz::UTC, next).trim_end_matches(" UTC").to_owned());
            after = next;
        }
        times
    }

    #[test]
    fn the_tutorials_daily_job() {
        let mut daily = schedule("30 22 * * *", "UTC");
        daily.from = Some(read_from("from", "2019-01-01", Tz::UTC).unwrap());
        daily.until = Some(read_until("until", "2030-12-31", Tz::UTC).unwrap());
        assert_eq!(due(&daily, "2018-06-01 00:00:00", 1), ["2019-01-01 22:30:00"]);
        assert_eq!(due(&daily, "2026-01-08 22:29:59", 2), ["2026-01-08 22:30:00", "2026-01-09 22:30:00"]);
        assert_eq!(due(&daily, "2026-01-08 22:30:00", 1), ["2026-01-09 22:30:00"]);
        assert_eq!(due(&daily, "2030-12-30 23:00:00", 9), ["2030-12-31 22:30:00"], "the last day is one of them");
        // Between two microseconds of that second.
        let within = CommitTime(utc("2026-01-08 22:30:00").0 + 700_000);
        assert_eq!(daily.next(within), Some(utc("2026-01-09 22:30:00")));
        assert_eq!(daily.next(CommitTime(utc("2026-01-08 22:30:00").0 - 1)), Some(utc("2026-01-08 22:30:00")));
    }

    #[test]
    fn a_time_that_the_clock_skips_or_shows_twice() {
        // Berlin skips 02:00 to 03:00 on 2026-03-29 and has it twice on 2026-10-25.
        let fixed = schedule("30 2 * * *", "Europe/Berlin");
        let spring = ["2026-03-28 01:30:00", "2026-03-29 01:00:00", "2026-03-30 00:30:00"];
        assert_eq!(due(&fixed, "2026-03-28 00:00:00", 3), spring, "at the first moment behind the gap");
        let autumn = ["2026-10-24 00:30:00", "2026-10-25 00:30:00", "2026-10-26 01:30:00"];
        assert_eq!(due(&fixed, "2026-10-24 00:00:00", 3), autumn, "once");

        let often = schedule("*/30 2 * * *", "Europe/Berlin");
        let spring = ["2026-03-28 01:30:00", "2026-03-30 00:00:00"];
        assert_eq!(due(&often, "2026-03-28 01:00:00", 2), spring, "it does not come");
        let autumn = ["00:00", "00:30", "01:00", "01:30"].map(|time| format!("2026-10-25 {time}:00"));
        assert_eq!(due(&often, "2026-10-24 12:00:00", 4), autumn, "both times");
        let hourly = schedule("0 * * * *", "Europe/Berlin");
        let hours = ["23:00", "00:00", "01:00", "02:00"];
        let found = due(&hourly, "2026-10-24 22:00:00", 4);
        assert!(found.iter().zip(hours).all(|(found, hour)| found.contains(hour)), "{found:?}: no hour is left out");
    }

    #[test]
    fn a_day_begins_where_the_clock_shows_its_first_moment() {
        let beirut = read_zone("Asia/Beirut").unwrap();
        // Midnight of 2022-03-27 was skipped there.
        assert_eq!(read_from("from", "2022-03-27", beirut).unwrap(), utc("2022-03-26 22:00:00"));
        let berlin = read_zone("Europe/Berlin").unwrap();
        assert_eq!(read_from("from", "2026-01-01 22:30", berlin).unwrap(), utc("2026-01-01 21:30:00"));
        assert_eq!(read_until("until", "2026-01-01 22:30", berlin).unwrap().0, utc("2026-01-01 21:30:00").0 + 1);
        for wrong in ["yesterday", "2026-13-01", "2026-01-01 25:00", ""] {
            assert_eq!(read_from("from", wrong, berlin).unwrap_err().sqlstate, "22007", "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_field() {
        for (cron, words) in [
            ("61 22 * * *", "field 1, the minute, is \"61\""),
            ("30 24 * * *", "field 2, the hour"),
            ("30 22 0 * *", "field 3, the day of the month"),
            ("30 22 * 13 *", "field 4, the month"),
            ("30 22 * * 8", "field 5, the day of the week"),
            ("x 22 * * *", "field 1"),
            ("5-1 22 * * *", "field 1"),
            ("30 22 * *", "it has 4 fields"),
            ("0 30 22 * * *", "it has 6 fields, a cron expression has 5, and no seconds"),
            ("", "it has 0 fields"),
            ("@reboot", "not known"),
        ] {
            let error = read_cron(cron).unwrap_err();
            assert!(error.sqlstate == "22023" && error.message.contains(words), "{cron}: {error:?}");
        }
        for good in ["@daily", "0 0 L * *", "0 9-17/2 * * MON-FRI", "0 0 * JAN,jul SUN", "0 0 * * 5#L", "15 3 1W * *"] {
            read_cron(good).unwrap();
        }
        let error = read_zone("Europe/Berln").unwrap_err();
        assert!(error.hint.unwrap().contains("Europe/Berlin"));
    }

    #[test]
    fn what_never_comes_has_no_next() {
        assert_eq!(due(&schedule("0 0 30 2 *", "UTC"), "2026-01-01 00:00:00", 1), [""; 0]);
        assert_eq!(due(&schedule("0 0 29 2 *", "UTC"), "2026-01-01 00:00:00", 1), ["2028-02-29 00:00:00"]);
    }
}
