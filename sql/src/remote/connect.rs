//! A connection to one address of a cluster: TCP, mutual TLS 1.3, HTTP/2.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tailrace_engine::RemoteCluster;
use tailrace_replicator::TlsConfig;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tonic::{
    codegen::Service,
    transport::{Channel, Endpoint, Uri},
};

use super::Certificates;
use crate::{Result, SqlError, flight::ALPN};

/// How long an address may take to answer: TCP, TLS and HTTP/2 together.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a silent cluster is thought to be there; then it is asked, and has as long again to answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What is on its way to this node at most: per result, and per connection.
const RESULT_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Whether addresses and files of a declaration can be used.
pub(super) fn check(cluster: &RemoteCluster, certificates: &Certificates) -> Result<()> {
    if cluster.addresses.is_empty() {
        return Err(wrong_address(""));
    }
    cluster.addresses.iter().try_for_each(|address| split(address).map(|_| ()))?;
    tls(cluster, certificates).map(|_| ())
}

/// Connects to one address. The error is in words, without the address.
pub(super) async fn connect(
    address: &str,
    cluster: &RemoteCluster,
    certificates: &Certificates,
) -> Result<Channel, String> {
    let text = |error: SqlError| error.message;
    let (host, _) = split(address).map_err(text)?;
    let host = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let tls = {
        let (cluster, certificates) = (cluster.clone(), certificates.clone());
        let read = tokio::task::spawn_blocking(move || tls(&cluster, &certificates));
        read.await.map_err(|error| error.to_string())?.map_err(text)?
    };
    let connector = Connector { address: address.to_owned(), host, tls: TlsConnector::from(Arc::new(tls)) };
    // The scheme is that of the connector's input: what it makes of it is TLS.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let origin: Uri = format!("https://{address}").parse().map_err(|_| "it is no address".to_owned())?;
    let endpoint = endpoint
        .origin(origin)
        .initial_stream_window_size(RESULT_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(SILENCE_MAX)
        .keep_alive_timeout(SILENCE_MAX)
        .keep_alive_while_idle(true);
    match tokio::time::timeout(CONNECT_TIME_MAX, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(innermost(&error)),
        Err(_) => Err(format!("no answer within {CONNECT_TIME_MAX:?}")),
    }
}

/// The cause of an error that says little itself.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Makes connections to one address.
#[derive(Clone)]
struct Connector {
    address: String,
    host: ServerName<'static>,
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, host, tls } = self.clone();
        Box::pin(async move {
            // Also when the channel makes the connection anew by itself.
            let connecting = async {
                let socket = TcpStream::connect(&address).await?;
                socket.set_nodelay(true)?;
                tls.connect(host, socket).await
            };
            let connected = tokio::time::timeout(CONNECT_TIME_MAX, connecting).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        })
    }
}

/// Host and port of an address; brackets around IPv6 are taken away.
fn split(address: &str) -> Result<(&str, u16)> {
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong_address(address))?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong_address(address))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(inner) => inner,
        None if host.contains(':') => return Err(wrong_address(address)),
        None => host,
    };
    if ServerName::try_from(host).is_err() {
        return Err(wrong_address(address));
    }
    Ok((host, port))
}

fn wrong_address(address: &str) -> SqlError {
    SqlError::new("22023", format!("{address:?} is not an address of a cluster"))
        .hint("write host:port, several with commas between them, such as 'b1.example.org:50051,b2.example.org:50051'")
}

fn tls(cluster: &RemoteCluster, certificates: &Certificates) -> Result<ClientConfig> {
    let own = |of: fn(&TlsConfig) -> &PathBuf| certificates.own.as_ref().map(|own| of(own).clone());
    let missing = || {
        SqlError::new("22023", "this node has no certificates of its own")
            .hint("give ca, certificate and key, or add the section [tls] to the settings")
    };
    let file = |named: &Option<String>, own: Option<PathBuf>| match named {
        Some(path) => allowed(Path::new(path), &certificates.allow),
        None => own.ok_or_else(missing),
    };
    if cluster.certificate.is_some() != cluster.key.is_some() {
        return Err(SqlError::new("22023", "certificate and key belong together").hint("give both, or neither"));
    }
    let config = TlsConfig {
        ca: file(&cluster.ca, own(|own| &own.ca))?,
        certificate: file(&cluster.certificate, own(|own| &own.certificate))?,
        key: file(&cluster.key, own(|own| &own.key))?,
    };
    tailrace_replicator::client_tls(&config, ALPN).map_err(|error| SqlError::new("22023", error.to_string()))
}

/// The file of a path, links resolved, if it lies under one of the folders. One outside is refused the same way whether it
/// exists or not.
fn allowed(path: &Path, allow: &[PathBuf]) -> Result<PathBuf> {
    let refused = || {
        SqlError::new("42501", format!("{} may not be read", path.display()))
            .hint("certificates of remote clusters lie in a folder of [files] allow")
    };
    let is_under = |path: &Path| allow.iter().any(|folder| path.starts_with(folder));
    let real = path.canonicalize().ok().filter(|real| path.is_absolute() && is_under(real)).ok_or_else(refused)?;
    match real.is_file() {
        true => Ok(real),
        false => Err(SqlError::new("42809", format!("{} is not a regular file", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(split("b.example.org:50051").unwrap(), ("b.example.org", 50051));
        assert_eq!(split("127.0.0.1:1").unwrap(), ("127.0.0.1", 1));
        assert_eq!(split("[::1]:50051").unwrap(), ("::1", 50051));
        for wrong in ["", "b", "b:", ":50051", "b:0", "b:70000", "::1:50051", "[::1:50051", "a b:1", "a/b:1"] {
            assert_eq!(split(wrong).unwrap_err().sqlstate, "22023", "{wrong}");
        }
    }

    #[test]
    fn only_files_under_the_allowed_folders_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (open, shut) = (root.join("open"), root.join("shut"));
        for folder in [&open, &shut] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("a.crt"), "").unwrap();
        }
        std::os::unix::fs::symlink(shut.join("a.crt"), open.join("link.crt")).unwrap();
        let allow = [open.clone()];
        allowed(&open.join("a.crt"), &allow).unwrap();
        let state = |path: PathBuf| allowed(&path, &allow).unwrap_err().sqlstate.into_owned();
        for refused in ["shut/a.crt", "shut/missing.crt", "open/link.crt", "open/../shut/a.crt", "open/missing.crt"] {
            assert_eq!(state(root.join(refused)), "42501", "{refused}");
        }
        assert_eq!(state(open), "42809");
        assert_eq!(state("a.crt".into()), "42501");
    }
}
