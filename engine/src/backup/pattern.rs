//! Patterns of partitions.

/// Which partitions: matched against a partition's values as its folders show them, `2023-01-08`, joined by `/` where
/// there are several fields, and against the same with the fields' names, `datetime_day=2023-01-08`. `%` stands for any
/// text, `?` for any one character; everything else for itself. NULL is the text `NULL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPattern(String);

impl PartitionPattern {
    /// From its text.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a partition with these values, as [`crate::PartitionScheme::describe`] gives them, is meant.
    pub fn matches(&self, values: &[(String, Option<String>)]) -> bool {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
        let bare: Vec<String> = values.iter().map(|(_, of)| value(of)).collect();
        let named: Vec<String> = values.iter().map(|(name, of)| format!("{name}={}", value(of))).collect();
        self.fits(&bare.join("/")) || self.fits(&named.join("/"))
    }

    /// Greedy, with one place to go back to: linear in text times pattern at worst.
    fn fits(&self, text: &str) -> bool {
        let (pattern, text): (Vec<char>, Vec<char>) = (self.0.chars().collect(), text.chars().collect());
        let (mut at, mut of) = (0, 0);
        let mut star = None;
        while of < text.len() {
            match pattern.get(at) {
                Some('%') => {
                    star = Some((at, of));
                    at += 1;
                }
                Some(expected) if *expected == '?' || *expected == text[of] => {
                    at += 1;
                    of += 1;
                }
                _ => match star {
                    Some((before, from)) => {
                        star = Some((before, from + 1));
                        (at, of) = (before + 1, from + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|rest| *rest == '%')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_stand_for_text_and_characters() {
        let day = |text: &str| vec![("datetime_day".to_owned(), Some(text.to_owned()))];
        for (pattern, text, fits) in [
            ("2023-01-0?", "2023-01-08", true),
            ("2023-01-0?", "2023-01-10", false),
            ("2023-%", "2023-12-31", true),
            ("2023%", "2024-01-01", false),
            ("%", "", true),
            ("?", "", false),
            ("%-01-%8", "2023-01-08", true),
            ("%-01-%8", "2023-01-09", false),
            ("datetime_day=2023-01-08", "2023-01-08", true),
            ("%a%b%c", "xaybzc", true),
            ("%a%b%c", "xaybz", false),
        ] {
            assert_eq!(PartitionPattern::new(pattern).matches(&day(text)), fits, "{pattern} {text}");
        }
        let two = [("v".to_owned(), None), ("w".to_owned(), Some("é".to_owned()))];
        assert!(PartitionPattern::new("NULL/?").matches(&two));
        assert!(PartitionPattern::new("v=NULL/w=%").matches(&two));
        assert!(!PartitionPattern::new("NULL").matches(&two));
    }
}
