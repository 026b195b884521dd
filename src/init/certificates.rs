//! Certificates: ECDSA P-256, an authority and what it signs.

use std::path::Path;

use chrono::{DateTime, Datelike, Months, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use tailrace_wal::Clock;

use crate::{Error, Result};

/// Years that certificates are valid. Long, because nothing renews them yet.
const VALID_YEARS: u32 = 10;

/// Who signs.
pub(super) struct Authority {
    /// PEM.
    pub(super) certificate: String,
    /// PEM of its key, when it was generated here.
    pub(super) key_pem: Option<String>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(super) struct Issued {
    /// PEM.
    pub(super) certificate: String,
    /// PEM.
    pub(super) key: String,
}

impl Authority {
    /// A fresh one.
    pub(super) fn generate(node: &str, clock: &dyn Clock) -> Result<Self> {
        let mut params = params(&format!("Tailrace development CA of {node}"), clock)?;
        // It signs nodes, no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let key_pem = Some(key.serialize_pem());
        Ok(Self { certificate, key_pem, issuer: Issuer::new(params, key) })
    }

    /// The one whose `ca.crt` and `ca.key` lie in `dir`.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|error| {
                Error::Configuration(format!(
                    "--ca: {}: {error}; the folder must hold ca.crt and ca.key",
                    path.display()
                ))
            })
        };
        let certificate = read("ca.crt")?;
        let wrong = |what: &str, error: rcgen::Error| {
            Error::Configuration(format!("--ca: {} in {}: {error}", what, dir.display()))
        };
        let key = KeyPair::from_pem(&read("ca.key")?).map_err(|error| wrong("ca.key", error))?;
        check_authority(&certificate, &key.subject_public_key_info())
            .map_err(|reason| Error::Configuration(format!("--ca: {}: {reason}", dir.display())))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| wrong("ca.crt", error))?;
        Ok(Self { certificate, key_pem: None, issuer })
    }

    /// A node's certificate: reachable under loopback names and `hosts`, entitled to follow as `name`.
    pub(super) fn issue(&self, name: &str, hosts: &[String], clock: &dyn Clock) -> Result<Issued> {
        let mut params = params(name, clock)?;
        let text = |text: &str| text.to_owned().try_into().map_err(failed);
        params.subject_alt_names = vec![
            SanType::DnsName(text("localhost")?),
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
            SanType::URI(text(&format!("tailrace://replica/{name}"))?),
        ];
        for host in hosts {
            params.subject_alt_names.push(match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(text(host)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

fn params(common_name: &str, clock: &dyn Clock) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = DateTime::<Utc>::from_timestamp_micros(clock.now().0)
        .ok_or_else(|| Error::Certificates("this machine's clock is out of range".to_owned()))?;
    // From yesterday, so that a peer whose clock is behind accepts it.
    let from = now.date_naive().pred_opt().unwrap_or(now.date_naive());
    let until = from.checked_add_months(Months::new(12 * VALID_YEARS)).unwrap_or(from);
    // Months and days fit a byte.
    params.not_before = date_time_ymd(from.year(), from.month() as u8, from.day() as u8);
    params.not_after = date_time_ymd(until.year(), until.month() as u8, until.day() as u8);
    Ok(params)
}

/// What rcgen does not check: that the certificate may sign others, and that the key is its key.
fn check_authority(certificate: &str, public_key: &[u8]) -> Result<(), String> {
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|error| format!("ca.crt: {error}"))?;
    let parsed = pem.parse_x509().map_err(|error| format!("ca.crt: {error}"))?;
    if !parsed.is_ca() {
        return Err("ca.crt is not the certificate of an authority (CA:TRUE)".to_owned());
    }
    if parsed.public_key().raw != public_key {
        return Err("ca.key does not belong to ca.crt".to_owned());
    }
    Ok(())
}

fn failed(error: rcgen::Error) -> Error {
    Error::Certificates(error.to_string())
}
