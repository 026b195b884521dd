//! The start of a connection: encryption requests, cancel requests, the start-up message.

use std::collections::BTreeMap;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frontend::{Body, violation};
use crate::{Result, SqlError};

/// Longest message before start-up is done, bytes; that of PostgreSQL.
const STARTUP_BYTES_MAX: usize = 10_000;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// What a new connection wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    /// A session.
    Session(StartupMessage),
    /// To cancel what another connection runs.
    Cancel { pid: i32, secret: i32 },
    /// Nothing: it went away.
    Gone,
}

/// Who connects, to what, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StartupMessage {
    /// Name given; not checked, there are no passwords yet.
    pub(crate) user: String,
    /// Database asked for.
    pub(crate) database: Option<String>,
    /// Settings for the session.
    pub(crate) settings: BTreeMap<String, String>,
    /// Protocol options that are not known here, to be said to the client, or a newer minor version.
    pub(crate) negotiate: Option<Vec<String>>,
}

/// Answers encryption requests with no, as there is no TLS here yet, and reads the start-up message. Bytes of later
/// messages stay in `buffer`.
pub(crate) async fn read_startup<S>(socket: &mut S, buffer: &mut BytesMut) -> Result<Startup>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A client asks at most once for each kind of encryption.
    for _ in 0..3 {
        let Some(mut body) = read_packet(socket, buffer).await? else {
            return Ok(Startup::Gone);
        };
        match body.u32()? {
            SSL_REQUEST | GSS_REQUEST => {
                if socket.write_all(b"N").await.is_err() {
                    return Ok(Startup::Gone);
                }
            }
            CANCEL_REQUEST => return Ok(Startup::Cancel { pid: body.i32()?, secret: body.i32()? }),
            version => return parse_startup(version, body).map(Startup::Session),
        }
    }
    Err(violation("encryption was asked for again after it was refused"))
}

/// A packet without a type: its length, then its body.
async fn read_packet<S: AsyncRead + Unpin>(socket: &mut S, buffer: &mut BytesMut) -> Result<Option<Body>> {
    let mut wanted = 4;
    loop {
        if buffer.len() >= 4 {
            let length = usize::try_from((&buffer[..4]).get_u32()).unwrap_or(usize::MAX);
            if !(8..=STARTUP_BYTES_MAX).contains(&length) {
                return Err(violation(format!("a first message of {length} bytes"))
                    .hint("speak PostgreSQL's protocol, version 3, to this port; it serves no other"));
            }
            wanted = length;
            if buffer.len() >= length {
                let mut packet = buffer.split_to(length).freeze();
                packet.advance(4);
                return Ok(Some(Body(packet)));
            }
        }
        buffer.reserve(wanted);
        match socket.read_buf(buffer).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

fn parse_startup(version: u32, mut body: Body) -> Result<StartupMessage> {
    let (major, minor) = (version >> 16, version & 0xffff);
    if major != 3 {
        return Err(SqlError::new("0A000", format!("protocol version {major}.{minor} is not supported"))
            .hint("use a client that speaks version 3"));
    }
    let mut message = StartupMessage::default();
    let (mut user, mut unknown) = (None, Vec::new());
    loop {
        let name = body.text("a start-up parameter")?;
        if name.is_empty() {
            break;
        }
        let value = body.text("a start-up parameter's value")?;
        match name.as_str() {
            "user" => user = Some(value),
            "database" => message.database = Some(value).filter(|database| !database.is_empty()),
            "replication" if matches!(value.as_str(), "false" | "off" | "no" | "0") => {}
            "replication" => {
                return Err(SqlError::unsupported("PostgreSQL's replication protocol")
                    .hint("replicas of this cluster connect to its replication address"));
            }
            "options" => command_line_options(&value, &mut message.settings)?,
            _ if name.starts_with("_pq_.") => unknown.push(name),
            _ => drop(message.settings.insert(name, value)),
        }
    }
    message.negotiate = (minor > 0 || !unknown.is_empty()).then_some(unknown);
    message.user = user
        .filter(|user| !user.is_empty())
        .ok_or_else(|| SqlError::new("28000", "no user name was given in the start-up message"))?;
    Ok(message)
}

/// Settings in the form of options of a command line: `-c name=value`, `--name=value`.
fn command_line_options(options: &str, settings: &mut BTreeMap<String, String>) -> Result<()> {
    let mut words = options.split_whitespace();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|rest| !rest.is_empty()))
        {
            Some(setting) => Some(setting),
            None if word == "-c" => words.next(),
            None => None,
        };
        match setting.and_then(|setting| setting.split_once('=')) {
            Some((name, value)) => drop(settings.insert(name.replace('-', "_"), value.to_owned())),
            None => {
                return Err(SqlError::unsupported(format!("option {word:?} of the connection"))
                    .hint("write settings as -c name=value"));
            }
        }
    }
    Ok(())
}

/// Whether a value of `client_encoding` is served: everything here is UTF-8. `SQL_ASCII` means bytes as they are.
pub(crate) fn check_encoding(encoding: &str) -> Result<()> {
    let plain: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    match plain.to_ascii_uppercase().as_str() {
        "UTF8" | "UNICODE" | "SQLASCII" => Ok(()),
        _ => Err(SqlError::new("0A000", format!("client_encoding {encoding:?} is not supported"))
            .hint("set the client's encoding to UTF8")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn packet(version: u32, body: &[u8]) -> Vec<u8> {
        let mut packet = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        packet.put_u32(version);
        packet.extend(body);
        packet
    }

    async fn start(bytes: &[u8]) -> (Result<Startup>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(1 << 16);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let startup = read_startup(&mut server, &mut BytesMut::new()).await;
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        (startup, answer)
    }

    #[tokio::test]
    async fn encryption_is_refused_and_the_session_follows() {
        let mut bytes = packet(SSL_REQUEST, b"");
        bytes.extend(packet(GSS_REQUEST, b""));
        bytes.extend(packet(3 << 16, b"user\0ann\0database\0market\0application_name\0psql\0\0"));
        let (startup, answer) = start(&bytes).await;
        assert_eq!(answer, b"NN");
        let Ok(Startup::Session(message)) = startup else { panic!("no session") };
        assert_eq!((message.user.as_str(), message.database.as_deref()), ("ann", Some("market")));
        assert_eq!(message.settings["application_name"], "psql");
        assert_eq!(message.negotiate, None);
    }

    #[tokio::test]
    async fn newer_minor_versions_and_unknown_options_are_negotiated() {
        let (startup, _) = start(&packet((3 << 16) | 2, b"user\0ann\0_pq_.x\x001\0\0")).await;
        let Ok(Startup::Session(message)) = startup else { panic!("no session") };
        assert_eq!(message.negotiate, Some(vec!["_pq_.x".to_owned()]));
    }

    #[tokio::test]
    async fn garbage_is_refused() {
        for (garbage, sqlstate) in [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01"),
            (packet(3 << 16, b"user\0ann"), "08P01"),
            (packet(3 << 16, b"\0"), "28000"),
            (packet(2 << 16, b"\0"), "0A000"),
            (packet(3 << 16, b"user\0ann\0replication\0database\0\0"), "0A000"),
            (packet(CANCEL_REQUEST, b"\0\0"), "08P01"),
            (packet(SSL_REQUEST, b"").repeat(4), "08P01"),
            (vec![0, 0, 0, 1], "08P01"),
        ] {
            assert_eq!(start(&garbage).await.0.unwrap_err().sqlstate, sqlstate, "{garbage:?}");
        }
        assert_eq!(start(b"\0\0").await.0.unwrap(), Startup::Gone);
    }

    #[test]
    fn options_are_settings() {
        let mut settings = BTreeMap::new();
        command_line_options("-c synchronous_commit=off --statement-timeout=5s -cjit=off", &mut settings).unwrap();
        let expected = [("jit", "off"), ("statement_timeout", "5s"), ("synchronous_commit", "off")];
        assert_eq!(settings, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert!(command_line_options("-d 5", &mut settings).is_err());
    }

    #[test]
    fn encodings_other_than_utf8_are_named() {
        assert!(check_encoding("utf-8").is_ok() && check_encoding("SQL_ASCII").is_ok());
        assert!(check_encoding("LATIN1").unwrap_err().message.contains("LATIN1"));
    }
}
