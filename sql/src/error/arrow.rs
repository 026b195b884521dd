//! Errors of Arrow's kernels: casts and arithmetic.

use datafusion::arrow::error::ArrowError;

use crate::SqlError;

impl From<ArrowError> for SqlError {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::DivideByZero => Self::new("22012", "division by zero"),
            ArrowError::ArithmeticOverflow(text) => Self::new("22003", lower_first(&text)),
            ArrowError::CastError(text) => Self::new(cast_state(&text), lower_first(&text)),
            ArrowError::ParseError(text) => Self::new("22P02", lower_first(&text)),
            ArrowError::ComputeError(text) => Self::new("22000", lower_first(&text)),
            ArrowError::InvalidArgumentError(text) if text.contains("precision") || text.contains("range") => {
                Self::new("22003", lower_first(&text))
            }
            ArrowError::InvalidArgumentError(text) => Self::new("22023", lower_first(&text)),
            ArrowError::NotYetImplemented(text) => Self::unsupported(text),
            ArrowError::MemoryError(text) => Self::new("53200", text),
            ArrowError::IoError(text, source) => Self::new("58030", format!("{text}: {source}")),
            ArrowError::CsvError(text) => Self::new("22P04", lower_first(&text)),
            ArrowError::ExternalError(source) => match source.downcast::<Self>() {
                Ok(error) => *error,
                Err(source) => Self::new("XX000", source.to_string()),
            },
            other => Self::new("XX000", other.to_string()),
        }
    }
}

/// Out of range, or not of the type at all.
fn cast_state(text: &str) -> &'static str {
    let out_of_range = ["Can't cast value", "Overflow", "overflow", "too large", "out of range", "would be lost"];
    if out_of_range.iter().any(|part| text.contains(part)) { "22003" } else { "22P02" }
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}
