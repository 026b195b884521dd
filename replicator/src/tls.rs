//! Certificates: both sides prove themselves to each other before anything else is said.

use std::{path::Path, sync::Arc};

use quinn::{
    ClientConfig, ServerConfig,
    crypto::{
        CryptoError, HmacKey,
        rustls::{QuicClientConfig, QuicServerConfig},
    },
};
use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::{
        CryptoProvider, ring,
        tls13::{Hkdf, OkmBlock},
    },
    server::WebPkiClientVerifier,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::{ReplicationError, Result, TlsConfig, session::NAME_BYTES_MAX, wire::ALPN};

/// What a replica's certificate states before its name.
const IDENTITY_PREFIX: &str = "tailrace://replica/";

/// The primary's side.
pub(crate) fn server_config(config: &TlsConfig) -> Result<ServerConfig> {
    let tls = server_tls(config, ALPN)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| wrong(&config.certificate, &error))?;
    Ok(ServerConfig::with_crypto(Arc::new(crypto)))
}

/// The replica's side. The primary's certificate must be for the host in its address.
pub(crate) fn client_config(config: &TlsConfig) -> Result<ClientConfig> {
    let tls = client_tls(config, ALPN)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| wrong(&config.certificate, &error))?;
    Ok(ClientConfig::new(Arc::new(crypto)))
}

/// TLS 1.3 for whoever accepts connections from other clusters: peers show a certificate that the authority signed, and
/// prove it anew on every connection; nothing is taken before. `alpn`: the one protocol that is spoken.
///
/// # Errors
/// [`ReplicationError::Configuration`] names the file that is wrong.
pub fn server_tls(config: &TlsConfig, alpn: &[u8]) -> Result<rustls::ServerConfig> {
    let Material { roots, chain, key } = Material::read(config)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| wrong(&config.ca, &error))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(&config.certificate, &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&config.certificate, &error))?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    // Every connection proves itself anew.
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

/// TLS 1.3 for whoever connects to another cluster. The other side's certificate must be for the host that is asked for.
///
/// # Errors
/// [`ReplicationError::Configuration`] names the file that is wrong.
pub fn client_tls(config: &TlsConfig, alpn: &[u8]) -> Result<rustls::ClientConfig> {
    let Material { roots, chain, key } = Material::read(config)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(&config.certificate, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| wrong(&config.certificate, &error))?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// A secret of this node that is the same after every start of it: made from its private key, of which it tells nothing.
/// `purpose` keeps secrets apart.
pub(crate) fn lasting_secret(config: &TlsConfig, purpose: &str) -> Result<LastingSecret> {
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| wrong(&config.key, &error))?;
    let rustls::SupportedCipherSuite::Tls13(suite) = ring::cipher_suite::TLS13_AES_128_GCM_SHA256 else {
        return Err(wrong(&config.key, &"there is no SHA-256"));
    };
    let hkdf = suite.hkdf_provider;
    let expander = hkdf.extract_from_secret(Some(b"tailrace-replication"), key.secret_der());
    Ok(LastingSecret { hkdf, key: expander.expand_block(&[purpose.as_bytes()]) })
}

/// See [`lasting_secret`]. As a key it makes HMAC-SHA256.
pub(crate) struct LastingSecret {
    hkdf: &'static dyn Hkdf,
    key: OkmBlock,
}

impl LastingSecret {
    /// A number that follows from it.
    pub(crate) fn number(&self) -> u64 {
        let mut bytes = [0; SHA256_LEN];
        self.sign(b"number", &mut bytes);
        bytes.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }
}

const SHA256_LEN: usize = 32;

impl HmacKey for LastingSecret {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let tag = self.hkdf.hmac_sign(&self.key, data);
        signature_out.copy_from_slice(tag.as_ref());
    }

    fn signature_len(&self) -> usize {
        SHA256_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut expected = [0; SHA256_LEN];
        self.sign(data, &mut expected);
        // All bytes are looked at, whatever they are: the time tells nothing.
        let differs = expected.iter().zip(signature).fold(0, |differs, (one, other)| differs | (one ^ other));
        if signature.len() == SHA256_LEN && differs == 0 { Ok(()) } else { Err(CryptoError) }
    }
}

/// The name in this node's own certificate.
pub(crate) fn own_name(config: &TlsConfig) -> Result<String> {
    let chain = read_chain(&config.certificate)?;
    replica_name(&chain).map_err(|reason| {
        ReplicationError::Configuration(format!(
            "{}: {reason}; make a certificate with `tailrace init --name NAME --ca DIR`",
            config.certificate.display()
        ))
    })
}

/// The name that a checked certificate chain states: who the peer is. An error says what is wrong with the certificate.
pub fn replica_name(chain: &[CertificateDer<'_>]) -> Result<String, String> {
    let leaf = chain.first().ok_or("the peer sent no certificate")?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf)
        .map_err(|error| format!("its certificate does not parse: {error}"))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| format!("its certificate's names do not parse: {error}"))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut found = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(IDENTITY_PREFIX),
        _ => None,
    });
    let name = found.next().ok_or_else(|| format!("its certificate has no name {IDENTITY_PREFIX}<name>"))?;
    if found.next().is_some() {
        return Err(format!("its certificate has several names {IDENTITY_PREFIX}<name>"));
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('/') {
        return Err(format!("its certificate names a replica {name:?}"));
    }
    Ok(name.to_owned())
}

struct Material {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Material {
    fn read(config: &TlsConfig) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in read_chain(&config.ca)? {
            roots.add(certificate).map_err(|error| wrong(&config.ca, &error))?;
        }
        let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| wrong(&config.key, &error))?;
        Ok(Self { roots, chain: read_chain(&config.certificate)?, key })
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| wrong(path, &error))?;
    if chain.is_empty() {
        return Err(wrong(path, &"it holds no certificate"));
    }
    Ok(chain)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn wrong(path: &Path, reason: &dyn std::fmt::Display) -> ReplicationError {
    ReplicationError::Configuration(format!("{}: {reason}; see section [tls] of the settings", path.display()))
}
