//! A role and a name, as certificates carry them.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::Fingerprint;

/// Suffix of every server name. `internal` is reserved for private use, so no public DNS answers for it.
const DOMAIN: &str = "tandem.internal";

/// A DNS label: what hosts, gateways and workloads are called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Not a DNS label.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a name: use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends")]
pub struct BadName(String);

impl Name {
    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let bytes = text.as_bytes();
        let edge = |c: Option<&u8>| c.is_some_and(|c| *c != b'-');
        if bytes.len() <= 63 && bytes.iter().all(|c| inner(*c)) && edge(bytes.first()) && edge(bytes.last()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// The control plane. Every operator of a cluster has this one identity.
    Operator,
    /// A person at the CLI, by name.
    Admin(Name),
    /// The agent of a host.
    Host(Name),
    /// A gateway.
    Gateway(Name),
    /// One workload on one host.
    Worker {
        /// The host that it runs on.
        host: Name,
        /// Its workload id on that host.
        workload: Name,
    },
}

impl Identity {
    /// Parses the parts that a join or certify request names.
    ///
    /// # Errors
    /// When `name` is not a DNS label.
    pub fn host(name: &str) -> Result<Self, BadName> {
        name.parse().map(Self::Host)
    }

    /// As [`Identity::host`].
    ///
    /// # Errors
    /// When `name` is not a DNS label.
    pub fn gateway(name: &str) -> Result<Self, BadName> {
        name.parse().map(Self::Gateway)
    }

    /// As [`Identity::host`].
    ///
    /// # Errors
    /// When `name` is not a DNS label.
    pub fn admin(name: &str) -> Result<Self, BadName> {
        name.parse().map(Self::Admin)
    }

    /// As [`Identity::host`], for a workload of that host.
    ///
    /// # Errors
    /// When either is not a DNS label.
    pub fn worker(host: &str, workload: &str) -> Result<Self, BadName> {
        Ok(Self::Worker { host: host.parse()?, workload: workload.parse()? })
    }

    /// The DNS name in the certificate, which clients demand of the server they dial.
    #[must_use]
    pub fn server_name(&self) -> String {
        match self {
            Self::Operator => format!("operator.{DOMAIN}"),
            Self::Admin(name) => format!("{name}.admin.{DOMAIN}"),
            Self::Host(name) => format!("{name}.host.{DOMAIN}"),
            Self::Gateway(name) => format!("{name}.gateway.{DOMAIN}"),
            Self::Worker { host, workload } => format!("{workload}.{host}.worker.{DOMAIN}"),
        }
    }

    /// The SAN URI in the certificate, which servers read to learn who calls.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Operator => "tandem://operator".to_owned(),
            Self::Admin(name) => format!("tandem://admin/{name}"),
            Self::Host(name) => format!("tandem://host/{name}"),
            Self::Gateway(name) => format!("tandem://gateway/{name}"),
            Self::Worker { host, workload } => format!("tandem://worker/{host}/{workload}"),
        }
    }

    /// Reads what [`Identity::uri`] writes.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("tandem://")?.split('/');
        let identity = match (parts.next()?, parts.next(), parts.next()) {
            ("operator", None, None) => Self::Operator,
            ("admin", Some(name), None) => Self::Admin(name.parse().ok()?),
            ("host", Some(name), None) => Self::Host(name.parse().ok()?),
            ("gateway", Some(name), None) => Self::Gateway(name.parse().ok()?),
            ("worker", Some(host), Some(workload)) => {
                Self::Worker { host: host.parse().ok()?, workload: workload.parse().ok()? }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(identity)
    }

    /// Reads the identity of a certificate whose chain was verified already.
    ///
    /// # Errors
    /// When it is no certificate, or carries no identity or more than one.
    pub fn of_certificate(der: &[u8]) -> Result<Self, NotIdentified> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotIdentified::NotACertificate)?;
        let names = certificate.subject_alternative_name().map_err(|_| NotIdentified::NotACertificate)?;
        let mut found =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) => Self::from_uri(uri),
                _ => None,
            });
        match (found.next(), found.next()) {
            (Some(identity), None) => Ok(identity),
            _ => Err(NotIdentified::NoIdentity),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Admin(name) => write!(f, "admin {name}"),
            Self::Host(name) => write!(f, "host {name}"),
            Self::Gateway(name) => write!(f, "gateway {name}"),
            Self::Worker { host, workload } => write!(f, "worker {workload} on {host}"),
        }
    }
}

/// A caller without a usable identity.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotIdentified {
    /// TLS without a client certificate.
    #[error("this call needs a client certificate: join the cluster first")]
    NoCertificate,
    /// Bytes that are no X.509.
    #[error("the client certificate can't be read")]
    NotACertificate,
    /// A certificate of something else.
    #[error("the client certificate names no Tandem identity")]
    NoIdentity,
}

impl From<NotIdentified> for Status {
    fn from(error: NotIdentified) -> Self {
        Self::unauthenticated(error.to_string())
    }
}

/// The identity of the peer that made this request, from the certificate that TLS verified.
///
/// # Errors
/// When the peer showed no certificate, or one without an identity.
pub fn peer_identity<T>(request: &Request<T>) -> Result<Identity, NotIdentified> {
    let certificates = request.peer_certs().ok_or(NotIdentified::NoCertificate)?;
    Identity::of_certificate(certificates.first().ok_or(NotIdentified::NoCertificate)?)
}

/// The serial number of the certificate that the peer of this request showed, as [`crate::Issued::serial`] writes it:
/// what lists of revoked certificates are searched for.
///
/// # Errors
/// As [`peer_identity`].
pub fn peer_serial<T>(request: &Request<T>) -> Result<String, NotIdentified> {
    let certificates = request.peer_certs().ok_or(NotIdentified::NoCertificate)?;
    serial_of_certificate(certificates.first().ok_or(NotIdentified::NoCertificate)?)
}

/// As [`peer_serial`], of a certificate in DER.
///
/// # Errors
/// When it is no certificate.
pub fn serial_of_certificate(der: &[u8]) -> Result<String, NotIdentified> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotIdentified::NotACertificate)?;
    Ok(hex_of_serial(certificate.raw_serial()))
}

/// A certificate that a peer has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// As [`peer_serial`].
    pub serial: String,
    /// Who has signed it, if it is one of the authorities that were asked about.
    pub issuer: Option<Fingerprint>,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

/// What the peer of this request has shown, signed by one of these authorities (PEM).
///
/// # Errors
/// As [`peer_identity`].
pub fn peer_certificate<T>(request: &Request<T>, authorities: &str) -> Result<Shown, NotIdentified> {
    let certificates = request.peer_certs().ok_or(NotIdentified::NoCertificate)?;
    let der = certificates.first().ok_or(NotIdentified::NoCertificate)?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotIdentified::NotACertificate)?;
    Ok(Shown {
        serial: hex_of_serial(certificate.raw_serial()),
        issuer: issuer_among(der, authorities)?,
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// The one of these authorities whose name a certificate gives as its signer's: no two have one name.
pub(crate) fn issuer_among(der: &[u8], authorities: &str) -> Result<Option<Fingerprint>, NotIdentified> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotIdentified::NotACertificate)?;
    let is_signer = |authority: &CertificateDer<'_>| {
        let parsed = X509Certificate::from_der(authority);
        parsed.is_ok_and(|(_, authority)| authority.subject().as_raw() == certificate.issuer().as_raw())
    };
    let signer = CertificateDer::pem_slice_iter(authorities.as_bytes()).flatten().find(is_signer);
    Ok(signer.map(|authority| Fingerprint::of(&authority)))
}

/// DER writes integers with or without a zero in front, by their highest bit; a serial number is the same either way.
pub(crate) fn hex_of_serial(bytes: &[u8]) -> String {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    hex::encode(&bytes[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "mac-a", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uris_round_trip_and_nothing_else_parses() {
        let all = [
            Identity::Operator,
            Identity::admin("ada").unwrap(),
            Identity::host("mac-a").unwrap(),
            Identity::gateway("edge").unwrap(),
            Identity::worker("mac-a", "kimi-1").unwrap(),
        ];
        for identity in all {
            assert_eq!(Identity::from_uri(&identity.uri()), Some(identity));
        }
        for bad in [
            "tandem://host",
            "tandem://host/a/b",
            "tandem://host/A",
            "https://host/a",
            "tandem://worker/a/b/c",
        ] {
            assert_eq!(Identity::from_uri(bad), None, "{bad}");
        }
    }
}
