//! The effective settings as a flat list, for `system.settings`.

use figment::value::{Empty, Value};

use super::Settings;

/// `(key, value)` of every setting in force, keys as in the file with dots between levels. No secrets are among them:
/// keys are named by their files.
pub fn listing(settings: &Settings) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    // Serializing into figment's value model fails for map keys that are no strings only; there are none.
    if let Ok(value) = Value::serialize(settings) {
        flatten("", &value, &mut rows);
    }
    rows
}

fn flatten(key: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Dict(_, fields) => {
            for (name, field) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, field, rows);
            }
        }
        Value::Empty(_, Empty::None | Empty::Unit) => {}
        other => rows.push((key.to_owned(), text(other))),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        Value::Char(_, letter) => letter.to_string(),
        Value::Bool(_, switch) => switch.to_string(),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128(), number.to_f64()) {
            (Some(number), ..) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            (.., number) => number.map(|number| number.to_string()).unwrap_or_default(),
        },
        Value::Empty(..) => String::new(),
        Value::Array(_, items) => {
            let items: Vec<_> = items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(_, fields) => {
            let fields: Vec<_> = fields.iter().map(|(name, field)| format!("{name} = {}", text(field))).collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_in_force_is_listed_once_as_it_would_be_written() {
        let settings: Settings = serde_test_settings();
        let rows = listing(&settings);
        let find =
            |key: &str| rows.iter().filter(|(name, _)| name == key).map(|(_, value)| &**value).collect::<Vec<_>>();
        assert_eq!(find("node.name"), ["siteA"]);
        assert_eq!(find("wal.segment_bytes"), ["64MiB"]);
        assert_eq!(find("wal.persistence"), ["sync"]);
        assert_eq!(find("listen.pgwire"), ["127.0.0.1:5442"]);
        assert_eq!(find("replication.primary.max_replicas"), ["8"]);
        assert!(find("storage.url").is_empty());
    }

    fn serde_test_settings() -> Settings {
        use figment::{
            Figment,
            providers::{Format, Toml},
        };
        Figment::from(Toml::string("[node]\nname = \"siteA\"\n[replication.primary]\n")).extract().unwrap()
    }
}
