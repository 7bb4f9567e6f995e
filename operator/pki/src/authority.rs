//! The cluster's own certificate authority. Keys of others never come here: it signs requests.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::hex_of_serial;
use crate::{Credentials, Fingerprint, Identity};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long certificates of hosts, workers and gateways live: a cluster without its control plane serves as long as
/// what is left of them, at least 60 days, since they are renewed at a third.
pub const HOST_LIFETIME: Duration = DAY.saturating_mul(90);
/// How long the operator's own and the first admin's certificates live.
pub const OPERATOR_LIFETIME: Duration = DAY.saturating_mul(365);
const CA_LIFETIME: Duration = DAY.saturating_mul(3650);
/// Certificates are valid from an hour before they are made: clocks of hosts may be that far apart.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// More addresses than any host has; a bound on what a request can make us sign.
const MAX_ADDRESSES: usize = 32;

/// Why nothing was signed.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A request that is no PKCS#10, or whose signature is wrong.
    #[error("the certificate request can't be read or its signature is wrong")]
    BadRequest(#[source] rcgen::Error),
    /// An address that is neither IP nor DNS name.
    #[error("`{0}` is neither an IP address nor a DNS name")]
    BadAddress(String),
    /// Too many addresses.
    #[error("a certificate may name at most {MAX_ADDRESSES} addresses, not {0}")]
    TooManyAddresses(usize),
    /// The authority's own key or certificate is unreadable.
    #[error("the authority's key or certificate can't be read")]
    BadAuthority(#[source] rcgen::Error),
    /// Key generation or signing failed.
    #[error("signing failed")]
    Signing(#[source] rcgen::Error),
    /// A time that certificates can't express.
    #[error("the clock is out of range for certificates")]
    Clock,
}

/// A certificate made from a request.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate alone.
    pub certificate_pem: String,
    /// The authority's certificate, to trust and to append to the chain.
    pub ca_pem: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
    /// Its serial number in hexadecimal, by which it is revoked.
    pub serial: String,
    /// Who has signed it.
    pub issuer: Fingerprint,
}

/// A private key with the request that has it certified.
pub struct KeyAndRequest {
    /// Stays with whoever made it.
    pub key_pem: String,
    /// Goes to the authority.
    pub csr_pem: String,
}

impl KeyAndRequest {
    /// A fresh P-256 key. The request carries no names: the authority decides them.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Signing)?;
        let request =
            CertificateParams::default().serialize_request(&key).map_err(AuthorityError::Signing)?;
        let csr_pem = request.pem().map_err(AuthorityError::Signing)?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem })
    }
}

/// Signs certificates for the cluster.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    key_pem: String,
    fingerprint: Fingerprint,
    subject: String,
    not_after: i64,
}

impl CertificateAuthority {
    /// A new authority with a P-256 key, valid for ten years. No other has its name.
    ///
    /// # Errors
    /// When the system has no randomness or its clock is out of range.
    pub fn create(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Signing)?;
        let number: [u8; 8] = rand::random();
        let mut params = signer(&format!("Tandem cluster authority {}", hex::encode(number)));
        (params.not_before, params.not_after) = validity(now, CA_LIFETIME)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Signing)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// The authority that was saved as these two.
    ///
    /// # Errors
    /// When either can't be read.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key_pem).map_err(AuthorityError::BadAuthority)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(AuthorityError::BadAuthority)?;
        let unreadable = || AuthorityError::BadAuthority(rcgen::Error::CouldNotParseCertificate);
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| unreadable())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| unreadable())?;
        let subject = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            issuer,
            subject: subject.ok_or_else(unreadable)?.to_owned(),
            not_after: certificate.validity().not_after.timestamp(),
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            fingerprint: Fingerprint::of(&der),
        })
    }

    /// To be saved, and given to everybody.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// To be saved where nobody else reads.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What join tokens carry.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its name, for people.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// When it ends, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// This authority's name and key, certified by another one. Who shows it beside a certificate that this authority has signed is
    /// believed by those, too, that trust the other one alone.
    ///
    /// # Errors
    /// When the clock is out of range, or signing fails.
    pub fn vouched_for_by(
        &self,
        other: &Self,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<String, AuthorityError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(AuthorityError::BadAuthority)?;
        let mut params = signer(&self.subject);
        params.use_authority_key_identifier_extension = true;
        let serial: [u8; 16] = rand::random();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        (params.not_before, params.not_after) = validity(now, lifetime)?;
        Ok(params.signed_by(&key, &other.issuer).map_err(AuthorityError::Signing)?.pem())
    }

    /// Signs a request for this identity. Only the key is taken from the request; names are ours.
    ///
    /// `addresses` are IP addresses and DNS names to be added beside the identity's own server name.
    ///
    /// # Errors
    /// When the request or an address is unusable.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        addresses: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let mut request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(AuthorityError::BadRequest)?;
        let serial: [u8; 16] = rand::random();
        request.params = leaf(identity, addresses, now, lifetime, &serial)?;
        let not_after = request.params.not_after.unix_timestamp();
        let certificate = request.signed_by(&self.issuer).map_err(AuthorityError::Signing)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            ca_pem: self.certificate_pem.clone(),
            not_after,
            serial: hex_of_serial(&serial),
            issuer: self.fingerprint,
        })
    }

    /// Key and certificate in one go, for identities that live where the authority does.
    ///
    /// # Errors
    /// As [`CertificateAuthority::sign`].
    pub fn credentials(
        &self,
        identity: &Identity,
        addresses: &[String],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Credentials, AuthorityError> {
        let own = KeyAndRequest::generate()?;
        let issued = self.sign(&own.csr_pem, identity, addresses, now, lifetime)?;
        Ok(Credentials::new(issued.certificate_pem, own.key_pem, issued.ca_pem))
    }
}

/// Of an authority, without its dates.
fn signer(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(
    identity: &Identity,
    addresses: &[String],
    now: SystemTime,
    lifetime: Duration,
    serial: &[u8],
) -> Result<CertificateParams, AuthorityError> {
    if addresses.len() > MAX_ADDRESSES {
        return Err(AuthorityError::TooManyAddresses(addresses.len()));
    }
    let bad = |text: &str| AuthorityError::BadAddress(text.chars().take(80).collect());
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.server_name());
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let own = identity.server_name();
    params.subject_alt_names.push(SanType::DnsName(own.as_str().try_into().map_err(|_| bad(&own))?));
    let uri = identity.uri();
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(|_| bad(&uri))?));
    for address in addresses {
        params.subject_alt_names.push(match address.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) if foreign_dns_name(address) => {
                SanType::DnsName(address.as_str().try_into().map_err(|_| bad(address))?)
            }
            Err(_) => return Err(bad(address)),
        });
    }
    (params.not_before, params.not_after) = validity(now, lifetime)?;
    Ok(params)
}

/// A DNS name that isn't one of ours: nobody gets `operator.tandem.internal` by asking for it as an address.
fn foreign_dns_name(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    let lower = text.to_ascii_lowercase();
    text.len() <= 253
        && text.split('.').all(label)
        && lower != "tandem.internal"
        && !lower.ends_with(".tandem.internal")
}

fn validity(now: SystemTime, lifetime: Duration) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
    let start = now.checked_sub(CLOCK_SKEW).ok_or(AuthorityError::Clock)?;
    let end = now.checked_add(lifetime).ok_or(AuthorityError::Clock)?;
    Ok((start.into(), end.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_cannot_claim_a_name_of_the_cluster() {
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        let own = KeyAndRequest::generate().unwrap();
        let host = Identity::host("mac-a").unwrap();
        for address in
            ["operator.tandem.internal", "x.OPERATOR.Tandem.Internal", "tandem.internal", "a b", "", "a..b"]
        {
            let result =
                authority.sign(&own.csr_pem, &host, &[address.to_owned()], SystemTime::now(), HOST_LIFETIME);
            assert!(matches!(result, Err(AuthorityError::BadAddress(_))), "{address}");
        }
    }

    #[test]
    fn identity_and_end_are_what_was_asked_for() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let authority = CertificateAuthority::create(now).unwrap();
        let reloaded = CertificateAuthority::load(authority.certificate_pem(), authority.key_pem()).unwrap();
        assert_eq!(reloaded.fingerprint(), authority.fingerprint());
        let own = KeyAndRequest::generate().unwrap();
        let worker = Identity::worker("mac-a", "kimi-1").unwrap();
        let addresses = ["192.168.7.3".to_owned(), "mac-a.lan".to_owned()];
        let issued = reloaded.sign(&own.csr_pem, &worker, &addresses, now, HOST_LIFETIME).unwrap();
        assert_eq!(issued.not_after, 2_000_000_000 + 90 * 24 * 3600);
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        assert_eq!(Identity::of_certificate(&der).unwrap(), worker);
        assert_eq!(crate::serial_of_certificate(&der).unwrap(), issued.serial);
    }

    #[test]
    fn garbage_requests_are_refused() {
        let authority = CertificateAuthority::create(SystemTime::now()).unwrap();
        let host = Identity::host("mac-a").unwrap();
        let result = authority.sign("-----BEGIN X-----", &host, &[], SystemTime::now(), HOST_LIFETIME);
        assert!(matches!(result, Err(AuthorityError::BadRequest(_))));
    }
}
