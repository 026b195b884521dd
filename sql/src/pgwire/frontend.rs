//! Messages from clients. Nothing here trusts a length or a count.

use bytes::{Buf, Bytes};

use crate::{Result, SqlError};

/// What a Describe or Close names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

/// Parse: a statement to prepare.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parse {
    /// Empty: the unnamed statement.
    pub(crate) name: String,
    /// One statement, or none.
    pub(crate) sql: String,
    /// Type OIDs of the first parameters; 0: to be inferred.
    pub(crate) parameter_types: Vec<u32>,
}

/// Bind: a prepared statement with values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    /// Empty: the unnamed portal.
    pub(crate) portal: String,
    /// Empty: the unnamed statement.
    pub(crate) statement: String,
    /// None: all text; one: for all; else one per parameter.
    pub(crate) parameter_formats: Vec<i16>,
    /// `None` is NULL.
    pub(crate) parameters: Vec<Option<Bytes>>,
    /// None: all text; one: for all; else one per column.
    pub(crate) result_formats: Vec<i16>,
}

/// A message after start-up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frontend {
    Query(String),
    Parse(Parse),
    Bind(Bind),
    Describe(Target, String),
    Execute {
        portal: String,
        max_rows: u32,
    },
    Close(Target, String),
    Flush,
    Sync,
    Terminate,
    /// Rest of a COPY that was refused.
    CopyData,
}

impl Frontend {
    /// Parses the body of a frame. `08P01`: the client broke the protocol and the connection cannot go on.
    pub(crate) fn parse(tag: u8, body: Bytes) -> Result<Self> {
        let mut body = Body(body);
        let message = match tag {
            b'Q' => Self::Query(body.text("query")?),
            b'P' => {
                let (name, sql) = (body.text("statement name")?, body.text("query")?);
                let count = body.count(4, "parameter types")?;
                let parameter_types = (0..count).map(|_| body.u32()).collect::<Result<_>>()?;
                Self::Parse(Parse { name, sql, parameter_types })
            }
            b'B' => {
                let (portal, statement) = (body.text("portal name")?, body.text("statement name")?);
                let parameter_formats = body.formats("parameter formats")?;
                let count = body.count(4, "parameters")?;
                let parameters = (0..count).map(|_| body.value()).collect::<Result<_>>()?;
                let result_formats = body.formats("result formats")?;
                Self::Bind(Bind { portal, statement, parameter_formats, parameters, result_formats })
            }
            b'D' => Self::Describe(body.target()?, body.text("name")?),
            b'C' => Self::Close(body.target()?, body.text("name")?),
            b'E' => {
                let portal = body.text("portal name")?;
                // Zero and negative counts mean no limit.
                let max_rows = u32::try_from(body.i32()?).unwrap_or(0);
                Self::Execute { portal, max_rows }
            }
            b'H' => Self::Flush,
            b'S' => Self::Sync,
            b'X' => Self::Terminate,
            b'd' | b'c' | b'f' => return Ok(Self::CopyData),
            b'F' => return Err(SqlError::unsupported("the function call message").hint("use SELECT function(…)")),
            tag => return Err(violation(format!("unknown message type {:?}", char::from(tag)))),
        };
        match body.0.len() {
            0 => Ok(message),
            left => Err(violation(format!("message {:?} has {left} bytes too many", char::from(tag)))),
        }
    }
}

/// `08P01`.
pub(crate) fn violation(what: impl std::fmt::Display) -> SqlError {
    SqlError::new("08P01", format!("protocol violation: {what}"))
}

/// Bytes of a message not read yet.
pub(crate) struct Body(pub(crate) Bytes);

impl Body {
    /// A string up to its zero byte. `22021` when it is not UTF-8.
    pub(crate) fn text(&mut self, what: &str) -> Result<String> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(|| violation(format!("{what} has no end")))?;
        let bytes = self.0.split_to(end);
        self.0.advance(1);
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => {
                Err(SqlError::new("22021", format!("{what} is not valid UTF-8"))
                    .hint("set the client's encoding to UTF8"))
            }
        }
    }

    fn need(&self, bytes: usize) -> Result<()> {
        if self.0.remaining() < bytes { Err(violation("the message is too short")) } else { Ok(()) }
    }

    pub(crate) fn i32(&mut self) -> Result<i32> {
        self.need(4)?;
        Ok(self.0.get_i32())
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    /// A count of things of at least `size` bytes each, which must fit into what is left.
    fn count(&mut self, size: usize, what: &str) -> Result<usize> {
        self.need(2)?;
        let count = usize::from(self.0.get_u16());
        if count * size > self.0.remaining() {
            return Err(violation(format!("{count} {what} do not fit into the message")));
        }
        Ok(count)
    }

    fn formats(&mut self, what: &str) -> Result<Vec<i16>> {
        let count = self.count(2, what)?;
        let formats: Vec<i16> = (0..count).map(|_| self.0.get_i16()).collect();
        match formats.iter().find(|format| !matches!(format, 0 | 1)) {
            None => Ok(formats),
            Some(format) => Err(violation(format!("unknown format code {format}"))),
        }
    }

    fn value(&mut self) -> Result<Option<Bytes>> {
        let length = self.i32()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| violation("a parameter has a negative length"))?;
        self.need(length)?;
        Ok(Some(self.0.split_to(length)))
    }

    fn target(&mut self) -> Result<Target> {
        self.need(1)?;
        match self.0.get_u8() {
            b'S' => Ok(Target::Statement),
            b'P' => Ok(Target::Portal),
            other => Err(violation(format!("{:?} names neither a statement nor a portal", char::from(other)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind() -> Vec<u8> {
        let mut body = b"p\0s\0".to_vec();
        body.extend([0, 1, 0, 1, 0, 2, 0, 0, 0, 3]);
        body.extend(b"abc");
        body.extend((-1i32).to_be_bytes());
        body.extend([0, 1, 0, 0]);
        body
    }

    #[test]
    fn a_bind_is_read_whole() {
        let Ok(Frontend::Bind(bind)) = Frontend::parse(b'B', bind().into()) else { panic!("not a bind") };
        assert_eq!((bind.portal.as_str(), bind.statement.as_str()), ("p", "s"));
        assert_eq!(bind.parameter_formats, [1]);
        assert_eq!(bind.parameters, [Some(Bytes::from_static(b"abc")), None]);
        assert_eq!(bind.result_formats, [0]);
    }

    #[test]
    fn a_bind_cut_anywhere_is_an_error_and_never_a_panic() {
        let whole = bind();
        for end in 0..whole.len() {
            let error = Frontend::parse(b'B', Bytes::copy_from_slice(&whole[..end])).unwrap_err();
            assert_eq!(error.sqlstate, "08P01", "cut at {end}");
        }
    }

    #[test]
    fn every_single_byte_change_parses_or_is_refused() {
        let messages: [(u8, Vec<u8>); 4] = [
            (b'B', bind()),
            (b'P', b"s\0SELECT $1\0\0\x01\0\0\0\x17".to_vec()),
            (b'E', b"p\0\0\0\0\x05".to_vec()),
            (b'D', b"Sname\0".to_vec()),
        ];
        for (tag, whole) in messages {
            assert!(Frontend::parse(tag, Bytes::copy_from_slice(&whole)).is_ok());
            for index in 0..whole.len() {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut changed = whole.clone();
                    changed[index] = value;
                    if let Err(error) = Frontend::parse(tag, changed.into()) {
                        assert!(matches!(&*error.sqlstate, "08P01" | "22021"), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_utf8_is_named() {
        assert_eq!(Frontend::parse(b'Q', Bytes::from_static(b"\xff\0")).unwrap_err().sqlstate, "22021");
    }

    #[test]
    fn huge_counts_are_refused_before_anything_is_allocated() {
        let body = Bytes::from_static(b"\0SELECT 1\0\xff\xff");
        assert_eq!(Frontend::parse(b'P', body).unwrap_err().sqlstate, "08P01");
    }
}
