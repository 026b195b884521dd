//! Messages to clients, written into a buffer.

use bytes::BufMut;

use super::types::WireColumn;
use crate::{Notice, SqlError};

/// How much is at stake: an error ends the statement, a fatal one the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
}

/// A message: its type, and its body with the length before it.
pub(crate) fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = i32::try_from(out.len() - start).unwrap_or(i32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// A string and its zero byte. Zero bytes within it would end it early and are left out.
fn text(out: &mut Vec<u8>, text: &str) {
    if text.as_bytes().contains(&0) {
        out.extend(text.bytes().filter(|byte| *byte != 0));
    } else {
        out.put_slice(text.as_bytes());
    }
    out.put_u8(0);
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
}

pub(crate) fn authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.put_i32(0));
}

pub(crate) fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

pub(crate) fn backend_key_data(out: &mut Vec<u8>, pid: i32, secret: i32) {
    message(out, b'K', |out| {
        out.put_i32(pid);
        out.put_i32(secret);
    });
}

/// The newest minor version served is 0; `options` are protocol options that are not known here.
pub(crate) fn negotiate_protocol_version(out: &mut Vec<u8>, options: &[String]) {
    message(out, b'v', |out| {
        out.put_i32(3 << 16);
        out.put_i32(i32::try_from(options.len()).unwrap_or(i32::MAX));
        options.iter().for_each(|option| text(out, option));
    });
}

/// `status`: `I`, `T` or `E`.
pub(crate) fn ready_for_query(out: &mut Vec<u8>, status: char) {
    message(out, b'Z', |out| out.put_u8(u8::try_from(status).unwrap_or(b'I')));
}

pub(crate) fn error_response(out: &mut Vec<u8>, severity: Severity, error: &SqlError) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    message(out, b'E', |out| {
        fields(out, severity, &error.sqlstate, &error.message, |out| {
            if let Some(detail) = &error.detail {
                out.put_u8(b'D');
                text(out, detail);
            }
            if let Some(hint) = &error.hint {
                out.put_u8(b'H');
                text(out, hint);
            }
            if let Some(position) = error.position {
                out.put_u8(b'P');
                text(out, &position.to_string());
            }
        });
    });
}

/// A notice or a warning; clients show both by default.
pub(crate) fn notice_response(out: &mut Vec<u8>, notice: &Notice) {
    let (severity, sqlstate) = if notice.is_warning { ("WARNING", "01000") } else { ("NOTICE", "00000") };
    message(out, b'N', |out| fields(out, severity, sqlstate, &notice.text, |_| {}));
}

fn fields(out: &mut Vec<u8>, severity: &str, sqlstate: &str, message: &str, more: impl FnOnce(&mut Vec<u8>)) {
    for (field, value) in [(b'S', severity), (b'V', severity), (b'C', sqlstate), (b'M', message)] {
        out.put_u8(field);
        text(out, value);
    }
    more(out);
    out.put_u8(0);
}

pub(crate) fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| text(out, tag));
}

pub(crate) fn row_description(out: &mut Vec<u8>, columns: &[WireColumn]) {
    message(out, b'T', |out| {
        count(out, columns.len());
        for column in columns {
            text(out, &column.name);
            out.put_i32(0); // table
            out.put_i16(0); // column of it
            out.put_u32(column.oid);
            out.put_i16(column.size);
            out.put_i32(column.modifier);
            out.put_i16(column.format.code());
        }
    });
}

pub(crate) fn parameter_description(out: &mut Vec<u8>, types: &[u32]) {
    message(out, b't', |out| {
        count(out, types.len());
        types.iter().for_each(|oid| out.put_u32(*oid));
    });
}

/// Messages without a body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bare {
    ParseComplete,
    BindComplete,
    CloseComplete,
    NoData,
    EmptyQueryResponse,
    PortalSuspended,
}

pub(crate) fn bare(out: &mut Vec<u8>, bare: Bare) {
    let tag = match bare {
        Bare::ParseComplete => b'1',
        Bare::BindComplete => b'2',
        Bare::CloseComplete => b'3',
        Bare::NoData => b'n',
        Bare::EmptyQueryResponse => b'I',
        Bare::PortalSuspended => b's',
    };
    message(out, tag, |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_all_its_fields() {
        let mut out = Vec::new();
        let error = SqlError { position: Some(7), ..SqlError::new("42P01", "no\0pe").detail("d").hint("h") };
        error_response(&mut out, Severity::Error, &error);
        assert_eq!(&out[..], b"E\0\0\0\x29SERROR\0VERROR\0C42P01\0Mnope\0Dd\0Hh\0P7\0\0");
    }

    #[test]
    fn lengths_include_themselves() {
        let mut out = Vec::new();
        ready_for_query(&mut out, 'T');
        bare(&mut out, Bare::NoData);
        assert_eq!(&out[..], b"Z\0\0\0\x05Tn\0\0\0\x04");
    }
}
