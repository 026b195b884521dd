//! SET, RESET, SHOW: a session's settings.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    name::{self, RESERVED, identifier},
    synchronous::{self, SynchronousCommit},
};
use crate::{Outcome, Result, Session, SqlError};
use datafusion::{
    arrow::{
        array::{ArrayRef, RecordBatch, StringArray},
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    physical_plan::stream::RecordBatchStreamAdapter,
    sql::sqlparser::ast::{self, ContextModifier, Expr, Value, ValueWithSpan},
};

/// The PostgreSQL version whose protocol and catalogs are spoken.
pub(crate) const SERVER_VERSION: &str = "16.6";

/// A checked SET or RESET.
#[derive(Debug)]
pub(crate) enum Set {
    /// `SET name TO value`; `None`: its default.
    One {
        /// Name, in lower case.
        name: String,
        /// Value.
        value: Option<String>,
        /// For this transaction only.
        local: bool,
    },
    /// `USE database`.
    Database(String),
    /// `RESET name`.
    Reset(String),
    /// `RESET ALL`.
    ResetAll,
}

/// A session's settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    session: BTreeMap<&'static str, String>,
    /// `SET LOCAL`, until the transaction ends.
    local: BTreeMap<&'static str, String>,
}

/// A setting that clients may ask for.
struct Known {
    name: &'static str,
    default: &'static str,
    accept: Accept,
}

/// What a setting may be set to.
enum Accept {
    /// Any text.
    Any,
    /// One of these; the first is what the server does, the others mean the same to it.
    Of(&'static [&'static str]),
    /// A whole number.
    Number,
    /// A time: milliseconds, or a number with a unit.
    Time,
    /// Nothing.
    Fixed,
    /// Text that a check of its own looks at.
    Own,
}

const SETTINGS: &[Known] = &[
    Known { name: "application_name", default: "", accept: Accept::Any },
    Known { name: "bytea_output", default: "hex", accept: Accept::Of(&["hex"]) },
    Known { name: "check_function_bodies", default: "on", accept: Accept::Any },
    Known { name: "client_encoding", default: "UTF8", accept: Accept::Of(&["UTF8", "UTF-8", "UNICODE"]) },
    Known { name: "client_min_messages", default: "notice", accept: Accept::Any },
    Known { name: "datestyle", default: "ISO, MDY", accept: Accept::Own },
    Known { name: "default_transaction_isolation", default: "read committed", accept: Accept::Any },
    Known { name: "default_transaction_read_only", default: "off", accept: Accept::Of(&["off", "false", "0", "no"]) },
    Known { name: "extra_float_digits", default: "1", accept: Accept::Number },
    Known { name: "idle_in_transaction_session_timeout", default: "0", accept: Accept::Time },
    Known { name: "in_hot_standby", default: "off", accept: Accept::Fixed },
    Known { name: "integer_datetimes", default: "on", accept: Accept::Fixed },
    Known { name: "intervalstyle", default: "postgres", accept: Accept::Of(&["postgres"]) },
    Known { name: "is_superuser", default: "on", accept: Accept::Fixed },
    Known { name: "jit", default: "off", accept: Accept::Any },
    Known { name: "lc_collate", default: "C", accept: Accept::Fixed },
    Known { name: "lc_ctype", default: "C", accept: Accept::Fixed },
    Known { name: "lock_timeout", default: "0", accept: Accept::Time },
    Known { name: "max_identifier_length", default: "63", accept: Accept::Fixed },
    Known { name: "max_index_keys", default: "32", accept: Accept::Fixed },
    Known { name: "row_security", default: "on", accept: Accept::Any },
    Known { name: "search_path", default: "", accept: Accept::Own },
    Known { name: "server_encoding", default: "UTF8", accept: Accept::Fixed },
    Known { name: "server_version", default: SERVER_VERSION, accept: Accept::Fixed },
    Known { name: "server_version_num", default: "160006", accept: Accept::Fixed },
    Known { name: "session_authorization", default: "", accept: Accept::Own },
    Known { name: "standard_conforming_strings", default: "on", accept: Accept::Of(&["on", "true", "1", "yes"]) },
    Known { name: "statement_timeout", default: "0", accept: Accept::Time },
    Known { name: "synchronous_commit", default: "on", accept: Accept::Own },
    Known { name: "synchronous_replicas", default: "1", accept: Accept::Own },
    Known { name: "synchronous_timeout", default: synchronous::TIMEOUT, accept: Accept::Time },
    Known { name: "timezone", default: "UTC", accept: Accept::Own },
    Known { name: "transaction_isolation", default: "read committed", accept: Accept::Own },
    Known { name: "transaction_read_only", default: "off", accept: Accept::Of(&["off", "false", "0", "no"]) },
];

impl Set {
    pub(super) fn check(set: ast::Set) -> Result<Self> {
        Ok(match set {
            ast::Set::SingleAssignment { scope, hivevar: false, variable, values } => {
                let name = variable.to_string().to_lowercase();
                let local = matches!(scope, Some(ContextModifier::Local));
                let texts = values.iter().map(text).collect::<Result<Vec<_>>>()?;
                let default = matches!(&values[..], [Expr::Identifier(word)] if identifier(word) == "default");
                Self::One { name, value: (!default).then(|| texts.join(", ")), local }
            }
            ast::Set::SetTimeZone { local, value } => {
                let value = text(&value)?;
                let default = matches!(value.to_lowercase().as_str(), "default" | "local");
                Self::One { name: "timezone".to_owned(), value: (!default).then_some(value), local }
            }
            ast::Set::SetNames { charset_name, .. } => {
                Self::One { name: "client_encoding".to_owned(), value: Some(charset_name.value), local: false }
            }
            ast::Set::SetTransaction { modes, snapshot: None, session } => {
                let mut value = None;
                for mode in modes {
                    match mode {
                        ast::TransactionMode::IsolationLevel(level) => value = Some(level.to_string().to_lowercase()),
                        ast::TransactionMode::AccessMode(ast::TransactionAccessMode::ReadWrite) => {}
                        other => return Err(SqlError::unsupported(format!("transaction mode {other}"))),
                    }
                }
                let name = if session { "default_transaction_isolation" } else { "transaction_isolation" };
                Self::One { name: name.to_owned(), value, local: !session }
            }
            other => {
                let words = other.to_string();
                let words = words.split([' ', '=']).take(2).collect::<Vec<_>>().join(" ");
                return Err(SqlError::unsupported(words));
            }
        })
    }

    pub(super) fn database(name: String) -> Self {
        Self::Database(name)
    }

    pub(super) fn reset(name: String) -> Self {
        Self::Reset(name.to_lowercase())
    }

    pub(super) fn reset_all() -> Self {
        Self::ResetAll
    }

    pub(super) fn tag(&self) -> &'static str {
        match self {
            Self::One { .. } => "SET",
            Self::Database(_) => "USE",
            Self::Reset(_) | Self::ResetAll => "RESET",
        }
    }
}

impl Settings {
    /// A setting's value; `None` for one that does not exist.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let known = known(name)?;
        let value = self.local.get(known.name).or_else(|| self.session.get(known.name));
        Some(value.map_or(known.default, String::as_str))
    }

    /// Checks and sets; `None`: back to the default. Returns a notice for the client.
    pub(crate) fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<Option<String>> {
        let known = known(name).ok_or_else(|| unknown(name))?;
        let notice = match value {
            Some(value) => {
                let (value, notice) = check(known, value)?;
                if local {
                    self.local.insert(known.name, value)
                } else {
                    self.session.insert(known.name, value)
                };
                notice
            }
            None => {
                self.local.remove(known.name);
                self.session.remove(known.name);
                None
            }
        };
        if !local {
            self.local.remove(known.name);
        }
        Ok(notice)
    }

    /// Everything back to its default, except who and where one is.
    pub(crate) fn reset_all(&mut self) {
        self.local.clear();
        self.session.retain(|name, _| matches!(*name, "session_authorization"));
    }

    /// A transaction ended: what was set for it alone is gone.
    pub(crate) fn end_transaction(&mut self) {
        self.local.clear();
    }

    /// `statement_timeout`; `None`: not set.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        let value = self.local.get("statement_timeout").or_else(|| self.session.get("statement_timeout"))?;
        milliseconds(value)
    }

    /// `synchronous_commit`, `synchronous_replicas`, `synchronous_timeout`.
    pub(crate) fn synchronous_commit(&self) -> SynchronousCommit {
        let value = self.local.get("synchronous_commit").or_else(|| self.session.get("synchronous_commit"));
        let replicas = self.get("synchronous_replicas").and_then(|value| value.parse().ok()).unwrap_or(1);
        let timeout = self.get("synchronous_timeout").and_then(milliseconds).unwrap_or_default();
        SynchronousCommit::of(value.map(String::as_str), replicas, timeout)
    }

    /// All, with their values.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        SETTINGS.iter().map(|known| (known.name, self.get(known.name).unwrap_or_default().to_owned()))
    }
}

/// SET, RESET, USE.
pub(crate) fn set(session: &Session, set: &Set) -> Result<Outcome> {
    let notice = match set {
        Set::One { name, value, local } if name == "search_path" && !local => {
            session.use_database(&databases(value.as_deref().unwrap_or_default()))?;
            session.settings(|settings| settings.set(name, value.as_deref(), false))?
        }
        Set::One { name, .. } if name == "search_path" => {
            return Err(SqlError::unsupported("SET LOCAL search_path").hint("SET search_path holds for the session"));
        }
        Set::One { name, value, local } => {
            if *local && session.transaction_status() == 'I' {
                session.settings(|settings| settings.clone().set(name, value.as_deref(), true))?;
                let text = "SET LOCAL can only be used in a transaction: it has no effect";
                return Ok(Outcome::noted("SET", text.to_owned()));
            }
            session.settings(|settings| settings.set(name, value.as_deref(), *local))?
        }
        Set::Database(name) => {
            let version = session.instance().engine.version();
            if version.database(name).is_none() && !RESERVED.contains(&name.as_str()) {
                return Err(name::no_database(&version, name));
            }
            session.use_database(std::slice::from_ref(name))?;
            session.settings(|settings| settings.set("search_path", Some(name), false))?
        }
        Set::Reset(name) => {
            if name == "search_path" {
                session.use_database(&[])?;
            }
            session.settings(|settings| settings.set(name, None, false))?
        }
        Set::ResetAll => {
            session.settings(Settings::reset_all);
            session.use_database(&[])?;
            None
        }
    };
    Ok(Outcome::Done { tag: set.tag().to_owned(), notices: notice.into_iter().map(Into::into).collect() })
}

/// The schema of SHOW's rows.
pub(crate) fn show_schema(name: &str) -> Result<SchemaRef> {
    let known = known(name).ok_or_else(|| unknown(name))?;
    let title = match known.name {
        "timezone" => "TimeZone",
        "datestyle" => "DateStyle",
        "intervalstyle" => "IntervalStyle",
        name => name,
    };
    Ok(Arc::new(Schema::new(vec![Field::new(title, DataType::Utf8, false)])))
}

/// The schema of SHOW ALL's rows.
pub(crate) fn show_all_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, false), Field::new("setting", DataType::Utf8, false)]))
}

/// SHOW.
pub(crate) fn show(session: &Session, name: &str) -> Result<Outcome> {
    let schema = show_schema(name)?;
    let value = session.setting(name).unwrap_or_default();
    rows(schema, vec![Arc::new(StringArray::from(vec![value]))])
}

/// SHOW ALL.
pub(crate) fn show_all(session: &Session) -> Result<Outcome> {
    let (names, values): (Vec<_>, Vec<_>) =
        session.settings(|settings| settings.all().collect::<Vec<_>>()).into_iter().unzip();
    rows(show_all_schema(), vec![Arc::new(StringArray::from(names)), Arc::new(StringArray::from(values))])
}

/// Rows that are there already.
pub(crate) fn rows(schema: SchemaRef, columns: Vec<ArrayRef>) -> Result<Outcome> {
    let batch = RecordBatch::try_new(schema.clone(), columns)?;
    let stream = futures::stream::iter([Ok(batch)]);
    Ok(Outcome::Rows(Box::pin(RecordBatchStreamAdapter::new(schema, stream))))
}

fn known(name: &str) -> Option<&'static Known> {
    SETTINGS.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

fn unknown(name: &str) -> SqlError {
    SqlError::new("42704", format!("there is no setting {name:?}"))
        .did_you_mean(name, SETTINGS.iter().map(|known| known.name))
}

/// A value as text.
fn text(expr: &Expr) -> Result<String> {
    Ok(match expr {
        Expr::Identifier(word) => word.value.clone(),
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => text.clone(),
        other => other.to_string(),
    })
}

/// The value to keep, and a notice.
fn check(known: &Known, value: &str) -> Result<(String, Option<String>)> {
    let wrong = |hint: String| Err(SqlError::new("22023", format!("{} cannot be {value:?}", known.name)).hint(hint));
    match &known.accept {
        Accept::Any => Ok((value.to_owned(), None)),
        Accept::Fixed => Err(SqlError::new("55P02", format!("{} cannot be changed", known.name))),
        Accept::Of(values) => match values.iter().any(|allowed| allowed.eq_ignore_ascii_case(value)) {
            true => Ok((values[0].to_owned(), None)),
            false => wrong(format!("only {:?} is supported", values[0])),
        },
        Accept::Number => match value.parse::<i64>() {
            Ok(_) => Ok((value.to_owned(), None)),
            Err(_) => wrong("a whole number is wanted".to_owned()),
        },
        Accept::Time => match milliseconds(value) {
            Some(_) => Ok((value.to_owned(), None)),
            None => wrong("milliseconds, or a number with ms, s, min, h or d".to_owned()),
        },
        Accept::Own => own_check(known.name, value),
    }
}

fn own_check(name: &str, value: &str) -> Result<(String, Option<String>)> {
    let lower = value.to_lowercase();
    match name {
        "synchronous_commit" => {
            let parsed = synchronous::parse(value).map(|value| (value.to_owned(), None));
            parsed.ok_or_else(|| {
                SqlError::new("22023", format!("synchronous_commit cannot be {value:?}"))
                    .hint(format!("use one of {}", synchronous::VALUES.join(", ")))
            })
        }
        "synchronous_replicas" => match value.parse::<u32>() {
            Ok(1..) => Ok((value.to_owned(), None)),
            _ => Err(SqlError::new("22023", format!("synchronous_replicas cannot be {value:?}"))
                .hint("how many replicas to wait for, 1 or more")),
        },
        "datestyle" => match lower.split(',').map(str::trim).any(|part| part == "iso") {
            true => Ok(("ISO, MDY".to_owned(), None)),
            false => {
                Err(SqlError::new("22023", format!("datestyle cannot be {value:?}")).hint("only ISO is supported"))
            }
        },
        "timezone" => {
            let utc = ["utc", "gmt", "z", "etc/utc", "0", "+00", "+00:00", "zulu", "uct", "universal"];
            let notice = (!utc.contains(&lower.as_str()))
                .then(|| "times with a zone are read and shown in UTC, whatever TimeZone says".to_owned());
            Ok((value.to_owned(), notice))
        }
        "transaction_isolation" => match lower.as_str() {
            "read uncommitted" | "read committed" => Ok((lower, None)),
            _ => Err(SqlError::unsupported(format!("isolation level {lower}"))
                .hint("each statement reads the newest committed version: read committed")),
        },
        // `search_path` was resolved by the caller.
        "search_path" => Ok((value.to_owned(), None)),
        other => Err(SqlError::unsupported(format!("SET {other}"))),
    }
}

/// The names of a `search_path`.
pub(crate) fn databases(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(|name| name.trim())
        .map(|name| match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            Some(quoted) => quoted.to_owned(),
            None => name.to_lowercase(),
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// `1500`, `1.5s`, `2 min`.
fn milliseconds(value: &str) -> Option<Duration> {
    let value = value.trim();
    let split = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (number, unit) = value.split_at(split);
    let scale = match unit.trim() {
        "" | "ms" => 1.0,
        "us" => 0.001,
        "s" => 1e3,
        "min" => 60e3,
        "h" => 3600e3,
        "d" => 86_400e3,
        _ => return None,
    };
    let millis = number.parse::<f64>().ok()? * scale;
    (millis < 1e12).then(|| Duration::from_micros((millis * 1e3) as u64))
}

#[cfg(test)]
mod tests {
    use tailrace_engine::Durability;

    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(milliseconds("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(milliseconds("2 min"), Some(Duration::from_secs(120)));
        assert_eq!(milliseconds("0"), Some(Duration::ZERO));
        assert_eq!(milliseconds("soon"), None);
        assert_eq!(milliseconds("-1"), None);
    }

    #[test]
    fn local_settings_end_with_the_transaction() {
        let mut settings = Settings::default();
        settings.set("synchronous_commit", Some("off"), true).unwrap();
        assert_eq!(settings.synchronous_commit().here, Some(Durability::Written));
        settings.end_transaction();
        assert_eq!(settings.synchronous_commit().here, None);
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_nearest() {
        let mut settings = Settings::default();
        let error = settings.set("statement_timout", Some("1"), false).unwrap_err();
        assert_eq!(error.sqlstate, "42704");
        assert!(error.hint.unwrap().contains("statement_timeout"));
        assert_eq!(settings.set("synchronous_commit", Some("remote"), false).unwrap_err().sqlstate, "22023");
        assert_eq!(settings.set("synchronous_replicas", Some("0"), false).unwrap_err().sqlstate, "22023");
        assert_eq!(settings.set("client_encoding", Some("LATIN1"), false).unwrap_err().sqlstate, "22023");
        assert_eq!(settings.set("server_version", Some("9"), false).unwrap_err().sqlstate, "55P02");
    }
}
