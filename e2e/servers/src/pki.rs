//! The test cluster's own authority: certificates for servers and for people.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// An authority that lives as long as a test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    pub(crate) fn create(name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("no key can be made")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        valid(&mut params);
        let certificate = params.self_signed(&key).context("the authority can't sign itself")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// For a server that is reached at these addresses and names.
    pub(crate) fn server(&self, name: &str, addresses: &[IpAddr], names: &[&str]) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name, &[]);
        params.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into().context("no DNS name")?));
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// For a user of these groups, as Kubernetes reads names and organisations.
    pub(crate) fn user(&self, name: &str, groups: &[&str]) -> Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Pair> {
        let key = KeyPair::generate().context("no key can be made")?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        valid(&mut params);
        let certificate =
            params.signed_by(&key, &self.issuer).context("a certificate can't be signed")?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

/// A key alone, as service accounts' tokens are signed with.
pub(crate) fn signing_key() -> Result<Pair> {
    let key = KeyPair::generate().context("no key can be made")?;
    Ok(Pair { certificate: key.public_key_pem(), key: key.serialize_pem() })
}

fn named(name: &str, groups: &[&str]) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    for group in groups {
        full.push(DnType::OrganizationName, *group);
    }
    full
}

fn valid(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(2);
}
