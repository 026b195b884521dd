//! Nodes with certificates of one authority, and Flight servers on loopback.

use std::{net::SocketAddr, sync::Arc};

use arrow_flight::{flight_service_client::FlightServiceClient, sql::client::FlightSqlServiceClient};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tailrace_replicator::TlsConfig;
use tailrace_sql::{FlightServer, Remotes};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::node::Node;

/// An authority, and a folder with what it signed.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key of `tailrace://replica/<name>`, for loopback.
    pub(crate) fn issue(&self, name: &str) -> TlsConfig {
        self.issue_with(name, Some(&format!("tailrace://replica/{name}")))
    }

    /// The same under any name, or none.
    pub(crate) fn issue_with(&self, file: &str, uri: Option<&str>) -> TlsConfig {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into().unwrap()),
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        ];
        params.subject_alt_names.extend(uri.map(|uri| SanType::URI(uri.try_into().unwrap())));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let path = |suffix: &str| self.folder.path().join(format!("{file}.{suffix}"));
        std::fs::write(path("crt"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        TlsConfig { ca: self.folder.path().join("ca.crt"), certificate: path("crt"), key: path("key") }
    }

    /// A node of that name, with database `market`, serving Flight.
    pub(crate) async fn node(&self, name: &str) -> Served {
        let tls = self.issue(name);
        let node = Node::with(|config| config.tls = Some(tls)).await;
        node.client(None).tag("CREATE DATABASE market").await;
        let flight = FlightServer::start(node.factory.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
        Served { node, flight }
    }

    /// Two nodes; the first knows the second as `siteb`.
    pub(crate) async fn two(&self) -> (Served, Served) {
        let (a, b) = (self.node("sitea").await, self.node("siteb").await);
        let sql = format!("CALL create_remote_cluster('siteb', '{}')", b.address());
        assert_eq!(a.node.client(None).tag(&sql).await, "CALL");
        (a, b)
    }
}

/// A node and its Flight server.
pub(crate) struct Served {
    pub(crate) node: Node,
    pub(crate) flight: FlightServer,
}

impl Served {
    pub(crate) fn address(&self) -> SocketAddr {
        self.flight.local_addr()
    }

    pub(crate) fn remotes(&self) -> &Arc<Remotes> {
        &self.node.instance.remotes
    }

    /// A Flight SQL client that shows a certificate.
    pub(crate) async fn client(&self, tls: &TlsConfig) -> FlightSqlServiceClient<Channel> {
        FlightSqlServiceClient::new_from_inner(FlightServiceClient::new(
            self.channel(Some(tls), &tls.ca).await.unwrap(),
        ))
    }

    /// A connection as another implementation makes it.
    pub(crate) async fn channel(
        &self,
        shown: Option<&TlsConfig>,
        ca: &std::path::Path,
    ) -> Result<Channel, tonic::transport::Error> {
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca))).domain_name("localhost");
        if let Some(shown) = shown {
            tls = tls.identity(Identity::from_pem(read(&shown.certificate), read(&shown.key)));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }
}
