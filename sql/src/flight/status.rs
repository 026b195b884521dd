//! SQL errors as gRPC statuses, and back.

use serde::{Deserialize, Serialize};
use tonic::{
    Code, Status,
    metadata::{BinaryMetadataValue, MetadataMap},
};

use crate::SqlError;

/// Metadata key of the whole error, as JSON: what other Tailrace nodes read.
const WHOLE: &str = "tailrace-error-bin";

/// Longest text in a status, bytes: peers take headers up to 16 KiB.
const TEXT_BYTES_MAX: usize = 1 << 10;

/// A [`SqlError`] on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Whole {
    sqlstate: String,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// The status that a client gets: SQLSTATE, message, detail and hint stand in its text, for people, and in its metadata,
/// for other nodes.
pub(crate) fn to_status(error: &SqlError) -> Status {
    let whole = Whole {
        sqlstate: error.sqlstate.clone().into_owned(),
        message: cut(&error.message),
        detail: error.detail.as_deref().map(cut),
        hint: error.hint.as_deref().map(cut),
    };
    let mut text = format!("{}: {}", whole.sqlstate, whole.message);
    for (title, more) in [("DETAIL", &whole.detail), ("HINT", &whole.hint)] {
        if let Some(more) = more {
            text.push_str(&format!("\n{title}: {more}"));
        }
    }
    let mut metadata = MetadataMap::new();
    if let Ok(json) = serde_json::to_vec(&whole) {
        metadata.insert_bin(WHOLE, BinaryMetadataValue::from_bytes(&json));
    }
    Status::with_metadata(code(&error.sqlstate), text, metadata)
}

/// The error that another Tailrace node sent; `None` when the status comes from elsewhere, such as a broken connection.
pub(crate) fn from_status(status: &Status) -> Option<SqlError> {
    let bytes = status.metadata().get_bin(WHOLE)?.to_bytes().ok()?;
    let whole: Whole = serde_json::from_slice(&bytes).ok()?;
    let is_state = whole.sqlstate.len() == 5 && whole.sqlstate.chars().all(|c| c.is_ascii_alphanumeric());
    is_state.then(|| SqlError {
        sqlstate: whole.sqlstate.into(),
        message: whole.message,
        detail: whole.detail,
        hint: whole.hint,
        position: None,
    })
}

fn code(sqlstate: &str) -> Code {
    match sqlstate {
        "57014" => Code::Cancelled,
        "42501" => Code::PermissionDenied,
        "57P01" => Code::Unavailable,
        "42P01" | "3F000" | "42703" | "42704" | "26000" | "58P01" => Code::NotFound,
        "42P04" | "42P07" | "42710" | "23505" => Code::AlreadyExists,
        state => match &state[..2.min(state.len())] {
            "0A" => Code::Unimplemented,
            "28" => Code::Unauthenticated,
            "53" | "54" => Code::ResourceExhausted,
            "40" => Code::Aborted,
            "25" | "55" => Code::FailedPrecondition,
            "58" | "XX" => Code::Internal,
            _ => Code::InvalidArgument,
        },
    }
}

fn cut(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let more = if end < text.len() { " …" } else { "" };
    format!("{}{more}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_as_it_was() {
        let error = SqlError::new("42P01", "table \"märket.bars\" does not exist").detail("none").hint("look");
        let status = to_status(&error);
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().starts_with("42P01: table") && status.message().ends_with("HINT: look"));
        assert_eq!(from_status(&status), Some(error));
        assert_eq!(from_status(&Status::unavailable("gone")), None);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let error = SqlError::new("22000", "ä".repeat(TEXT_BYTES_MAX));
        let message = from_status(&to_status(&error)).unwrap().message;
        assert!(message.ends_with("ä …") && message.len() <= TEXT_BYTES_MAX + 4, "{}", message.len());
    }
}
