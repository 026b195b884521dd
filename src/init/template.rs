//! The settings file that `init` writes.

/// Every setting with its default; what is off by default is commented out.
pub(super) fn settings(name: &str) -> String {
    format!(
        r#"# Settings of this Tailrace node. Relative paths are relative to this file. Environment variables override it
# (TAILRACE_WAL__PERSISTENCE=async), flags override both (--set wal.persistence=async).

[node]
name = "{name}"                     # as other clusters see this one
data_dir = "data"                   # log, manifest, datafiles

[listen]                            # port 0 picks a free one; `serve` prints each address
pgwire = "127.0.0.1:5442"           # PostgreSQL clients; loopback only, as there are no passwords yet
# flight = ":50051"                 # Arrow Flight SQL clients and other clusters, by certificate; needs [tls]
# replication = ":7443"             # replicas of this cluster (UDP); needs [replication.primary]

[tls]                               # between clusters, both sides
ca = "tls/ca.crt"
certificate = "tls/node.crt"
key = "tls/node.key"

[storage]
# url = "file:///mnt/large/store"   # datafiles elsewhere than in data_dir/store

[files]
# allow = ["/srv/import"]           # folders from which COPY … FROM may read, and certificates of remote clusters

[wal]
# dir = "wal"                       # a disk of its own keeps commits quick while flushes write
# segment_bytes = "64MiB"           # larger: fewer files, coarser truncation
# persistence = "sync"              # "async": acknowledged before it is on disk; a crash loses a suffix
# sync_interval = "200ms"           # how long that suffix is at most …
# async_max_bytes = "64MiB"         # … and how large
# pin_max_bytes = "16GiB"           # log kept for a replica that is away; beyond it the replica repairs itself
# pin_max_age = "7days"
# reserve_bytes = "64MiB"           # given back when the disk is full, so that the node can checkpoint; 0: none
# archive = "file:///mnt/archive"   # or "s3://bucket/prefix" (AWS_… environment): every transaction, away from this disk
# archive_interval = "5min"         # how far the archive may be behind

[engine]
# memtable_bytes = "256MiB"         # flush when this much is in memory (a replica: and as much of open transactions) …
# flush_age = "60s"                 # … or this old
# cache_bytes = "1GiB"              # recently written partitions, kept in memory after their flush
# transaction_max_bytes = "16GiB"    # of one transaction; a replica needs what its primary has
# transaction_max_age = "10min"     # how long a large open transaction may be idle

[query]
# memory_bytes = "1GiB"
# threads = 0                       # of queries alone; 0: as many as cores
# statement_timeout = "5min"

[jobs]
# max_running = 4                   # at once; what is due beyond waits for its turn

# Uncomment to let replicas follow this cluster:
# [replication.primary]
# max_replicas = 8
# replicas = [{{ name = "siteB", databases = ["market"] }}]   # default: whoever the CA signed, whatever is replicated
# compression = "auto"              # "auto": zstd as long as it carries more over a replica's link; "none", "zstd"
# rate_limit = "20MB"               # per second and replica; default: no limit. Both may stand in an entry of `replicas`, too
# cache_bytes = "64MiB"             # changes kept for several replicas at the same place
# send_bytes = "64MiB"              # what may be on its way to one replica

# Uncomment to follow another cluster:
# [replication.replica]
# primary_addresses = ["primary.example.org:7443"]
# databases = ["market"]            # default: all that are replicated
# tables = ["market.bars"]          # of a database named here, these tables alone have rows; default: all tables
# apply_workers = 2                 # default: as many as cores
# receive_bytes = "48MiB"           # what is on its way from the primary and waits to be applied
# apply_user = "replicator"         # applies as this user, with the rights it has here; default: everything is allowed
# task_failures_max = 30            # failures of a task after which its database is STOPPED …
# backoff_min = "100ms"             # … with pauses between them that double, with jitter …
# backoff_max = "10s"               # … up to this
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A commented setting that no longer exists would mislead; so all of them are switched on and loaded.
    #[test]
    fn every_commented_setting_is_one() {
        let text: String = settings("siteA")
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") || rest.starts_with('[') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tailrace.toml");
        std::fs::write(&file, &text).unwrap();
        let loaded = crate::config::load(&file, &[]).unwrap();
        assert!(loaded.replication.primary.unwrap().replicas.unwrap()[0].databases.is_some());
        assert_eq!(loaded.replication.replica.unwrap().apply_workers, 2);
        assert!(text.matches(" = ").count() > 25, "the template was not uncommented");
    }

    #[test]
    fn the_defaults_shown_are_the_defaults() {
        let plain = crate::config::listing(&parse("[node]\nname = \"siteA\"\n"));
        let shown = settings("siteA");
        for (key, value) in plain.iter().filter(|(key, _)| key.starts_with("wal.") || key.starts_with("engine.")) {
            let name = key.rsplit('.').next().unwrap();
            let line =
                shown.lines().find(|line| line.starts_with(&format!("# {name} = "))).unwrap_or_else(|| panic!("{key}"));
            let humane = value.replace("1m", "60s").replace("10m", "10min");
            assert!(line.contains(value) || line.contains(&humane), "{key} = {value}: {line}");
        }
    }

    fn parse(text: &str) -> crate::config::Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tailrace.toml");
        std::fs::write(&file, text).unwrap();
        crate::config::load(&file, &[]).unwrap()
    }
}
