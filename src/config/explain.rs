//! Errors in settings, in words that lead to the place.

use std::path::Path;

use figment::{
    Error as FigmentError, Figment, Metadata,
    error::{Actual, Kind},
};

/// Where the settings came from.
pub(super) struct Sources<'a> {
    pub(super) figment: &'a Figment,
    pub(super) file: &'a Path,
    pub(super) text: &'a str,
}

impl Sources<'_> {
    /// One line per error.
    pub(super) fn explain_all(&self, errors: FigmentError) -> String {
        errors.into_iter().map(|error| self.explain(&error)).collect::<Vec<_>>().join("\n")
    }

    /// Where a key was set: `tailrace.toml:12: `, the variable, the flag; the file where it was not set at all.
    pub(super) fn place(&self, key: &str) -> String {
        let path: Vec<_> = key.split('.').map(str::to_owned).collect();
        self.place_of(self.figment.find_metadata(key), &path)
    }

    fn explain(&self, error: &FigmentError) -> String {
        let key = error.path.join(".");
        let place = self.place_of(error.metadata.as_ref(), &error.path);
        match &error.kind {
            Kind::UnknownField(name, known) => {
                // The path of an unknown field ends in its own name.
                let section = match error.path.split_last() {
                    Some((_, parents)) if !parents.is_empty() => format!("[{}]", parents.join(".")),
                    _ => "the settings".to_owned(),
                };
                let help = match nearest(name, known) {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => String::new(),
                };
                format!("{place}: unknown key `{key}`; {help} {section} has {}", list(known)).replace("; [", ". [")
            }
            Kind::MissingField(name) => {
                let path = if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
                format!("{}: `{path}` is missing; it has no default", self.file.display())
            }
            Kind::UnknownVariant(value, known) => {
                let known: Vec<_> = known.iter().map(|known| format!("\"{known}\"")).collect();
                format!("{place}: `{key}` = \"{value}\": allowed are {}", known.join(", "))
            }
            Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
                format!("{place}: `{key}` = {}: expected {expected}", shown(actual))
            }
            Kind::Message(message) if key.is_empty() => format!("{}: {message}", self.file.display()),
            Kind::Message(message) => format!("{place}: `{key}`: {message}"),
            other => format!("{place}: `{key}`: {other}"),
        }
    }

    fn place_of(&self, metadata: Option<&Metadata>, path: &[String]) -> String {
        let file = self.file.display();
        match metadata {
            Some(metadata) if metadata.name.contains("environment") => {
                format!("environment variable {}{}", super::ENVIRONMENT_PREFIX, path.join("__").to_uppercase())
            }
            Some(metadata) if !metadata.name.contains("TOML") => format!("--set {}", path.join(".")),
            _ => match line_of(self.text, path) {
                Some(line) => format!("{file}:{line}"),
                None => file.to_string(),
            },
        }
    }
}

/// The line on which a key stands, found by section header and key; `None` for spellings that this does not see.
fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let wanted = path.join(".");
    let mut section = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_start_matches('[').split(']').next().unwrap_or_default().replace(' ', "");
            if section == wanted || section.starts_with(&format!("{wanted}.")) {
                return Some(index + 1);
            }
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim();
            let key = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            if key == wanted {
                return Some(index + 1);
            }
        }
    }
    None
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), *known))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

fn list(known: &[&str]) -> String {
    known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ")
}

fn shown(actual: &Actual) -> String {
    match actual {
        Actual::Str(text) => format!("{text:?}"),
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_section_and_key() {
        let text = "top = 1\n[a]\nkey = 1\n[a.b]\nkey = 2\n[[list]]\nname = 3\n";
        let line = |path: &str| line_of(text, &path.split('.').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(line("top"), Some(1));
        assert_eq!(line("a.key"), Some(3));
        assert_eq!(line("a.b"), Some(4));
        assert_eq!(line("a.b.key"), Some(5));
        assert_eq!(line("a.c"), None);
    }
}
