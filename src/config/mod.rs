//! Settings of a node: the file, then the environment (`TAILRACE_` + path, `__` between levels), then flags.

mod address;
mod archive_url;
mod check;
mod explain;
mod listing;
mod quantity;
mod sections;
mod storage_url;
mod table_name;

use std::path::Path;

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
    value::Value,
};

pub use address::ListenAddress;
pub use archive_url::ArchiveUrl;
pub(crate) use check::{is_name, name_message};
pub use listing::listing;
pub use quantity::{Size, Span};
pub(crate) use sections::is_bucket;
pub use sections::{
    Compression, EngineSettings, FilesSettings, GrantSettings, JobSettings, ListenSettings, NodeSettings, NotYet,
    PrimarySettings, QuerySettings, ReplicaSettings, ReplicationSettings, Settings, StorageSettings, TlsSettings,
    WalPersistence, WalSettings,
};
pub use storage_url::StorageUrl;
pub use table_name::TableName;

use crate::{Error, Result};

/// Prefix of environment variables: `TAILRACE_WAL__PERSISTENCE=async`.
pub const ENVIRONMENT_PREFIX: &str = "TAILRACE_";

/// Reads, merges and checks the settings. Relative paths come back joined to the file's folder, whatever source they
/// came from. `flags` are `(key, value)`, e.g. `("listen.pgwire", "127.0.0.1:0")`.
///
/// # Errors
/// [`Error::Configuration`]: an unknown key (with the nearest known one), a value that is not allowed (with what is),
/// each with the source it came from.
pub fn load(file: &Path, flags: &[(String, String)]) -> Result<Settings> {
    let folder = match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => Path::new(".").to_owned(),
    };
    let text = std::fs::read_to_string(file).map_err(|error| {
        Error::Configuration(format!("{}: {error}; `tailrace init DIR` makes a settings file", file.display()))
    })?;
    let folder = std::path::absolute(folder).map_err(Error::io("resolve", file))?;

    let mut figment = Figment::new().merge(Toml::string(&text)).merge(Env::prefixed(ENVIRONMENT_PREFIX).split("__"));
    for (key, value) in flags {
        // Like the environment: `8` is a number, `true` a switch, `["a"]` a list, anything else text.
        let value = value.parse::<Value>().unwrap_or_else(|never| match never {});
        figment = figment.merge(Serialized::default(key, value));
    }
    let sources = explain::Sources { figment: &figment, file, text: &text };
    let mut settings: Settings =
        figment.extract().map_err(|errors| Error::Configuration(sources.explain_all(errors)))?;
    settings.resolve(&folder);
    check::check(&settings, &sources)?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, flags: &[(&str, &str)]) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tailrace.toml");
        std::fs::write(&file, text).unwrap();
        let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        load(&file, &flags)
    }

    fn refusal(text: &str, flags: &[(&str, &str)]) -> String {
        match load_text(text, flags) {
            Err(Error::Configuration(message)) => message,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    const NODE: &str = "[node]\nname = \"siteA\"\n";

    #[test]
    fn defaults_are_the_documented_ones() {
        let settings = load_text(NODE, &[]).unwrap();
        assert_eq!(settings.listen.pgwire.0.to_string(), "127.0.0.1:5442");
        assert_eq!(settings.wal.persistence, WalPersistence::Sync);
        assert_eq!(settings.wal.segment_bytes, Size(64 << 20));
        assert!(settings.node.data_dir.is_absolute() && settings.node.data_dir.ends_with("data"));
        assert!(settings.replication.primary.is_none() && settings.replication.replica.is_none());
    }

    #[test]
    fn units_and_relative_paths_are_read() {
        let settings = load_text(
            &format!(
                "{NODE}[wal]\nsegment_bytes = \"1MiB\"\nsync_interval = \"50ms\"\n[files]\nallow = [\"in\", \"/srv\"]\n"
            ),
            &[],
        )
        .unwrap();
        assert_eq!(settings.wal.segment_bytes, Size(1 << 20));
        assert_eq!(settings.wal.sync_interval.0, std::time::Duration::from_millis(50));
        assert!(settings.files.allow[0].is_absolute() && settings.files.allow[0].ends_with("in"));
        assert_eq!(settings.files.allow[1], Path::new("/srv"));
    }

    #[test]
    fn replicas_have_rates_and_forms_of_their_own() {
        let tls = "[tls]\nca = \"ca\"\ncertificate = \"c\"\nkey = \"k\"\n[replication.primary]\n";
        let with = |text: &str| format!("{NODE}{tls}{text}");
        let settings = load_text(
            &with(
                "rate_limit = \"20 MB\"\nreplicas = [{ name = \"b\", compression = \"zstd\", rate_limit = \"1 MiB\" }]\n",
            ),
            &[],
        );
        let primary = settings.unwrap().replication.primary.unwrap();
        assert_eq!((primary.compression, primary.rate_limit), (Compression::Auto, Some(Size(20_000_000))));
        let grant = &primary.replicas.unwrap()[0];
        assert_eq!((grant.compression, grant.rate_limit), (Some(Compression::Zstd), Some(Size(1 << 20))));

        let message = refusal(&with("compression = \"lz4\"\n"), &[]);
        assert!(message.contains("\"auto\", \"none\", \"zstd\""), "{message}");
        let message = refusal(&with("rate_limit = \"1kB\"\n"), &[]);
        assert!(message.contains("`replication.primary.rate_limit`") && message.contains("64KiB"), "{message}");
        let message = refusal(&with("replicas = [{ name = \"b\", rate_limit = 0 }]\n"), &[]);
        assert!(message.contains("rate_limit") && message.contains("\"b\""), "{message}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let settings = load_text(
            &format!("{NODE}[listen]\npgwire = \"127.0.0.1:1\"\n"),
            &[("listen.pgwire", "127.0.0.1:2"), ("wal.persistence", "async")],
        )
        .unwrap();
        assert_eq!(settings.listen.pgwire.0.port(), 2);
        assert_eq!(settings.wal.persistence, WalPersistence::Async);
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_one() {
        let message = refusal(&format!("{NODE}[wal]\n# sizes\nsegment_byte = 5\n"), &[]);
        assert!(message.contains("tailrace.toml:5"), "{message}");
        assert!(message.contains("`wal.segment_byte`"), "{message}");
        assert!(message.contains("did you mean `segment_bytes`"), "{message}");
    }

    #[test]
    fn an_unknown_section_is_refused_too() {
        let message = refusal(&format!("{NODE}[replication.primery]\nmax_replicas = 1\n"), &[]);
        assert!(message.contains("`replication.primery`") && message.contains("`primary`"), "{message}");
    }

    #[test]
    fn an_unknown_flag_says_that_it_is_one() {
        let message = refusal(NODE, &[("listen.pgwyre", "127.0.0.1:2")]);
        assert!(message.contains("--set") && message.contains("did you mean `pgwire`"), "{message}");
    }

    #[test]
    fn a_wrong_value_says_what_is_allowed() {
        for (text, allowed) in [
            ("[wal]\npersistence = \"fsync\"\n", "\"sync\""),
            ("[wal]\nsync_interval = 5\n", "\"200ms\""),
            ("[wal]\nsegment_bytes = \"many\"\n", "\"64MiB\""),
            ("[wal]\nsegment_bytes = \"1KiB\"\n", "64KiB"),
            ("[listen]\npgwire = \"5442\"\n", "\"127.0.0.1:5442\""),
            ("[engine]\nversions_kept = 3\n", "not supported yet"),
            ("[storage]\nurl = \"s3://bucket\"\n", "file:///"),
            ("[query]\nthreads = 5000\n", "at most 1024"),
            ("[jobs]\nmax_running = 0\n", "at least 1"),
            ("[replication.primary]\n", "[tls]"),
            ("[listen]\nreplication = \":0\"\n", "[replication.primary]"),
            (
                "[replication.replica]\nprimary_addresses = [\"a:1\"]\ntables = [\"bars\"]\n",
                "does not name its database",
            ),
            ("[replication.replica]\nprimary_addresses = [\"a:1\"]\ntables = [\"market.*\"]\n", "database.table"),
        ] {
            let message = refusal(&format!("{NODE}{text}"), &[]);
            assert!(message.contains(allowed), "{text}: {message}");
            assert!(message.contains("tailrace.toml"), "{text}: {message}");
        }
    }

    #[test]
    fn all_wrong_names_are_refused() {
        for name in ["", "a b", "a/b", "ä", "-x"] {
            let message = refusal(&format!("[node]\nname = {name:?}\n"), &[]);
            assert!(message.contains("node.name"), "{message}");
        }
    }

    #[test]
    fn a_missing_name_is_named() {
        let message = refusal("[wal]\n", &[]);
        assert!(message.contains("node"), "{message}");
    }
}
