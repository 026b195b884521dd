//! What the types cannot say: ranges, and settings that need each other.

use super::{Settings, Size, explain::Sources};
use crate::{Error, Result};

/// A chunk at this rate takes half a minute; slower, a replica would look as if it were gone.
const RATE_LIMIT_MIN: Size = Size(64 << 10);

/// Beyond, threads wait for each other.
const THREADS_MAX: usize = 1024;

pub(super) fn check(settings: &Settings, sources: &Sources<'_>) -> Result<()> {
    let refuse =
        |key: &str, message: String| Err(Error::Configuration(format!("{}: `{key}` {message}", sources.place(key))));
    if !is_name(&settings.node.name) {
        return refuse("node.name", name_message(&settings.node.name));
    }

    let wal = &settings.wal;
    let sizes = [
        ("wal.segment_bytes", wal.segment_bytes, 64 << 10, 4 << 30),
        ("wal.async_max_bytes", wal.async_max_bytes, 1, u64::MAX),
        ("wal.pin_max_bytes", wal.pin_max_bytes, 1, u64::MAX),
        ("engine.memtable_bytes", settings.engine.memtable_bytes, 1 << 20, u64::MAX),
        ("engine.transaction_max_bytes", settings.engine.transaction_max_bytes, 1 << 20, u64::MAX),
        ("query.memory_bytes", settings.query.memory_bytes, 16 << 20, u64::MAX),
    ];
    for (key, size, least, most) in sizes {
        if size.0 < least {
            return refuse(key, format!("= {size}: at least {} is needed", Size(least)));
        }
        if size.0 > most {
            return refuse(key, format!("= {size}: at most {} is allowed", Size(most)));
        }
    }
    let spans = [
        ("wal.sync_interval", wal.sync_interval),
        ("wal.pin_max_age", wal.pin_max_age),
        ("wal.archive_interval", wal.archive_interval),
        ("engine.flush_age", settings.engine.flush_age),
        ("engine.transaction_max_age", settings.engine.transaction_max_age),
    ];
    for (key, span) in spans {
        if span.0.is_zero() {
            return refuse(key, "must be longer than zero".to_owned());
        }
    }

    if settings.query.threads > THREADS_MAX {
        return refuse("query.threads", format!("= {}: at most {THREADS_MAX} are allowed", settings.query.threads));
    }

    if settings.jobs.max_running == 0 {
        return refuse("jobs.max_running", "must be at least 1".to_owned());
    }

    let replication = &settings.replication;
    let replicates = [
        ("replication.primary", replication.primary.is_some()),
        ("replication.replica", replication.replica.is_some()),
    ];
    for (key, present) in replicates {
        if present && settings.tls.is_none() {
            return refuse(
                key,
                "needs [tls] with `ca`, `certificate` and `key`; `tailrace init` makes certificates".to_owned(),
            );
        }
    }
    if settings.listen.flight.is_some() && settings.tls.is_none() {
        return refuse(
            "listen.flight",
            "needs [tls] with `ca`, `certificate` and `key`; `tailrace init` makes certificates".to_owned(),
        );
    }
    if settings.listen.replication.is_some() && replication.primary.is_none() {
        return refuse("listen.replication", "is for primaries: add [replication.primary], or remove it".to_owned());
    }
    if let Some(primary) = &replication.primary {
        if primary.max_replicas == 0 {
            return refuse("replication.primary.max_replicas", "must be at least 1".to_owned());
        }
        let sizes = [
            ("replication.primary.rate_limit", primary.rate_limit.unwrap_or(RATE_LIMIT_MIN), RATE_LIMIT_MIN),
            ("replication.primary.send_bytes", primary.send_bytes, Size(1 << 20)),
        ];
        for (key, size, least) in sizes {
            if size < least {
                return refuse(key, format!("= {size}: at least {least} is needed"));
            }
        }
        for grant in primary.replicas.iter().flatten() {
            if !is_name(&grant.name) {
                return refuse("replication.primary.replicas", name_message(&grant.name));
            }
            if let Some(rate) = grant.rate_limit.filter(|rate| *rate < RATE_LIMIT_MIN) {
                return refuse(
                    "replication.primary.replicas",
                    format!("has rate_limit = {rate} for {:?}: at least {RATE_LIMIT_MIN} is needed", grant.name),
                );
            }
        }
    }
    if let Some(replica) = &replication.replica {
        if let Some(name) = &replica.name
            && !is_name(name)
        {
            return refuse("replication.replica.name", name_message(name));
        }
        if replica.primary_addresses.is_empty() {
            return refuse("replication.replica.primary_addresses", "needs at least one \"host:port\"".to_owned());
        }
        for address in &replica.primary_addresses {
            let port =
                address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                return refuse(
                    "replication.replica.primary_addresses",
                    format!("has {address:?}: write \"host:port\", e.g. \"primary.example.org:7443\""),
                );
            }
        }
        for table in replica.tables.iter().flatten() {
            if replica.databases.as_ref().is_some_and(|databases| !databases.contains(&table.database)) {
                return refuse(
                    "replication.replica.tables",
                    format!("has \"{table}\", but `databases` leaves {:?} out", table.database),
                );
            }
        }
        if replica.apply_workers == 0 {
            return refuse("replication.replica.apply_workers", "must be at least 1".to_owned());
        }
        // Beyond it, the connection's own window would hold up control messages.
        let (least, most) = (Size(4 << 20), Size(48 << 20));
        if replica.receive_bytes < least || replica.receive_bytes > most {
            return refuse(
                "replication.replica.receive_bytes",
                format!("= {}: from {least} to {most} are allowed", replica.receive_bytes),
            );
        }
        if replica.task_failures_max == 0 {
            return refuse("replication.replica.task_failures_max", "must be at least 1".to_owned());
        }
        if replica.backoff_min.0.is_zero() || replica.backoff_min.0 > replica.backoff_max.0 {
            return refuse(
                "replication.replica.backoff_min",
                format!(
                    "= {}: it must be longer than zero and at most `backoff_max`, {}",
                    replica.backoff_min, replica.backoff_max
                ),
            );
        }
        if let Some(user) = &replica.apply_user
            && !is_name(user)
        {
            return refuse("replication.replica.apply_user", name_message(user));
        }
    }
    Ok(())
}

/// Whether a text can name a node: it stands in certificates, addresses and messages.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=63).contains(&text.len()) && text.chars().all(allowed) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// What [`is_name`] wants.
pub(crate) fn name_message(text: &str) -> String {
    format!(
        "= {text:?}: a name has 1 to 63 ASCII letters, digits, `-`, `_` and `.`, and begins with a letter or a digit"
    )
}
