//! Partition transforms, named as Iceberg names them.

use arrow_schema::{DataType, TimeUnit};
use serde::{Deserialize, Serialize};

use crate::{EngineError, Result};

/// How a column's value becomes a partition value. Timestamps with a zone are instants: their days and hours are those
/// of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transform {
    /// The value itself.
    Identity,
    /// Years since 1970.
    Year,
    /// Months since 1970-01.
    Month,
    /// Days since 1970-01-01.
    Day,
    /// Hours since 1970-01-01 00:00.
    Hour,
}

impl Transform {
    /// As written in statements and paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Year => "year",
            Self::Month => "month",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    /// Whether values of this column can be partitioned like this.
    pub(crate) fn check(self, column: &str, data_type: &DataType) -> Result<()> {
        let fits = match self {
            // Equal floats can have different bits, and NaN equals nothing.
            Self::Identity => !data_type.is_floating(),
            Self::Year | Self::Month | Self::Day => matches!(data_type, DataType::Date32 | DataType::Timestamp(..)),
            Self::Hour => matches!(data_type, DataType::Timestamp(..)),
        };
        if fits {
            return Ok(());
        }
        let wanted = match self {
            Self::Identity => "a type other than a float",
            Self::Hour => "a timestamp",
            _ => "a date or a timestamp",
        };
        let name = self.name();
        Err(EngineError::Invalid(format!(
            "PARTITION BY {name}({column}): {name} needs {wanted}, and {column:?} is {data_type}"
        )))
    }

    /// The partition value of an integer, date or timestamp in the column's unit.
    #[inline]
    pub(super) fn apply(self, per_day: i64, value: i64) -> i64 {
        match self {
            Self::Identity => value,
            Self::Year => year_and_month(value.div_euclid(per_day)).0 - 1970,
            Self::Month => {
                let (year, month) = year_and_month(value.div_euclid(per_day));
                (year - 1970) * 12 + month - 1
            }
            Self::Day => value.div_euclid(per_day),
            Self::Hour => value.div_euclid(per_day / 24),
        }
    }

    /// Smallest and largest value, in the column's unit, whose partition value is this, clamped to what the unit holds.
    pub(super) fn invert(self, per_day: i64, value: i64) -> (i64, i64) {
        let start = |value: i64| -> i128 {
            let per_day = i128::from(per_day);
            match self {
                Self::Identity => i128::from(value),
                Self::Year => first_day(i128::from(value) + 1970, 1) * per_day,
                Self::Month => {
                    let year = i128::from(value).div_euclid(12) + 1970;
                    first_day(year, i128::from(value).rem_euclid(12) + 1) * per_day
                }
                Self::Day => i128::from(value) * per_day,
                Self::Hour => i128::from(value) * (per_day / 24),
            }
        };
        let clamp = |value: i128| value.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        if self == Self::Identity {
            return (value, value);
        }
        (clamp(start(value)), clamp(start(value.saturating_add(1)) - 1))
    }
}

/// Units of the column in a day; 1 for types that are not times.
pub(super) fn units_per_day(data_type: &DataType) -> i64 {
    match data_type {
        DataType::Timestamp(TimeUnit::Second, _) => 86_400,
        DataType::Timestamp(TimeUnit::Millisecond, _) => 86_400_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 86_400_000_000,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => 86_400_000_000_000,
        _ => 1,
    }
}

/// Year, month and day of a day number in the proleptic Gregorian calendar: `civil_from_days` of Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms".
pub(super) fn civil(days: i64) -> (i64, i64, i64) {
    // 719468 days from 0000-03-01 to 1970-01-01; saturation is beyond any date that a column can hold in days.
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn year_and_month(days: i64) -> (i64, i64) {
    let (year, month, _) = civil(days);
    (year, month)
}

/// Day number of a month's first day: `days_from_civil` of the same source.
fn first_day(year: i128, month: i128) -> i128 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, Duration, NaiveDate};

    use super::*;

    #[test]
    fn calendar_agrees_with_chrono() {
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        for days in (-800_000..800_000).step_by(17) {
            let date = epoch + Duration::days(days);
            let (year, month, day) = (i64::from(date.year()), i64::from(date.month()), i64::from(date.day()));
            assert_eq!(civil(days), (year, month, day));
            let first = date.with_day(1).unwrap().signed_duration_since(epoch).num_days();
            assert_eq!(first_day(year.into(), month.into()), i128::from(first));
        }
    }

    #[test]
    fn values_lie_within_the_bounds_of_their_partition() {
        for per_day in [1, 86_400, 86_400_000, 86_400_000_000_000] {
            for transform in [Transform::Year, Transform::Month, Transform::Day, Transform::Hour] {
                if transform == Transform::Hour && per_day == 1 {
                    continue;
                }
                for value in [i64::MIN, -1_000_000_007, -86_400, -1, 0, 1, 86_399, 1_673_136_000, i64::MAX] {
                    if per_day == 1 && i32::try_from(value).is_err() {
                        continue;
                    }
                    let key = transform.apply(per_day, value);
                    let (min, max) = transform.invert(per_day, key);
                    assert!(min <= value && value <= max, "{transform:?} {per_day} {value}: {min} {max}");
                    assert!(min == i64::MIN || transform.apply(per_day, min - 1) == key - 1);
                    assert!(max == i64::MAX || transform.apply(per_day, max + 1) == key + 1);
                }
            }
        }
    }
}
