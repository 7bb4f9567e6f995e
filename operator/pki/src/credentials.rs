//! Key, certificate and trusted authority of one process: on disk, and as TLS settings.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring::default_provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TlsIdentity, ServerTlsConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::issuer_among;
use crate::{Fingerprint, Identity, NotIdentified};

const CERTIFICATE: &str = "certificate.pem";
/// Where the next certificate lies until it takes the place of the one before, which is after the key has.
const NEXT_CERTIFICATE: &str = "certificate.new";
const KEY: &str = "key.pem";
const CA: &str = "ca.pem";
/// Serial numbers, one a line.
const REVOKED: &str = "revoked";
/// How often key and certificate are read until they belong together: each try but the last takes another replacement to fail.
const TRIES: usize = 5;
/// A handshake that takes longer than this is somebody holding a socket open.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a process needs to be known to others and to know them.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its own certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The authorities that it trusts.
    pub ca_pem: String,
    /// Serial numbers of certificates that it does not trust, whoever signed them.
    pub revoked: BTreeSet<String>,
}

/// Credentials that can't be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// A file that can't be read or written.
    #[error("{path} can't be read or written")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate that can't be read.
    #[error("the certificate can't be read: join again, or restore {CERTIFICATE} from a backup")]
    Unreadable,
    /// A key and a certificate of two different pairs.
    #[error(
        "{KEY} and {CERTIFICATE} in {dir} do not belong together: join again, or restore both from a backup"
    )]
    Mismatch {
        /// Where they are.
        dir: PathBuf,
    },
    /// A certificate of something else.
    #[error("the certificate is not one of a Tandem process")]
    NotIdentified(#[from] NotIdentified),
}

/// Whether a server lets callers in without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// For workers: only members of the cluster get through the handshake.
    Required,
    /// For the operator: who joins has none yet; every other call checks the caller's identity.
    Optional,
}

impl Credentials {
    /// Of a process that was told of no revoked certificates yet.
    #[must_use]
    pub fn new(certificate_pem: String, key_pem: String, ca_pem: String) -> Self {
        Self { certificate_pem, key_pem, ca_pem, revoked: BTreeSet::new() }
    }

    /// Reads what [`Credentials::save`] has written in `dir`, also while it writes, and after it died in the middle: always a key
    /// and a certificate that belong together.
    ///
    /// # Errors
    /// When a file is missing or unreadable, or no certificate fits the key.
    pub fn load(dir: &Path) -> Result<Self, CredentialsError> {
        let (certificate_pem, key_pem) = pair(dir)?;
        let own = Self::new(certificate_pem, key_pem, read(dir, CA)?);
        let revoked = read_if_there(dir, REVOKED)?.unwrap_or_default();
        Ok(Self { revoked: revoked.lines().map(str::to_owned).collect(), ..own })
    }

    /// Whether `dir` holds credentials, so that a first start can be told from a later one.
    #[must_use]
    pub fn exist(dir: &Path) -> bool {
        [CERTIFICATE, KEY, CA].iter().all(|name| dir.join(name).is_file())
    }

    /// Writes certificate, key, authorities and revoked serial numbers, readable by their owner only, each replaced as a whole.
    /// Key and certificate lie beside those of before until both are on the disk; [`Credentials::load`] knows what is between.
    ///
    /// # Errors
    /// When the folder or a file can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        self.save_trust(dir)?;
        write(dir, &[(CERTIFICATE, &self.certificate_pem), (KEY, &self.key_pem)])
    }

    /// Writes only whom to trust: the certificate that is there stays, whoever it is of.
    ///
    /// # Errors
    /// When the folder or a file can't be written.
    pub fn save_trust(&self, dir: &Path) -> Result<(), CredentialsError> {
        let revoked: String = self.revoked.iter().map(|serial| format!("{serial}\n")).collect();
        write(dir, &[(CA, &self.ca_pem), (REVOKED, &revoked)])
    }

    /// The same process, with newer word on whom to trust.
    #[must_use]
    pub fn trusting(&self, ca_pem: &str, revoked: impl IntoIterator<Item = String>) -> Self {
        // An operator of an older release tells no authorities.
        let ca_pem = if ca_pem.is_empty() { self.ca_pem.clone() } else { ca_pem.to_owned() };
        Self { ca_pem, revoked: revoked.into_iter().collect(), ..self.clone() }
    }

    /// Fingerprints of the authorities that it trusts.
    #[must_use]
    pub fn authorities(&self) -> Vec<Fingerprint> {
        let authorities = CertificateDer::pem_slice_iter(self.ca_pem.as_bytes());
        authorities.flatten().map(|authority| Fingerprint::of(&authority)).collect()
    }

    /// The one of these authorities (PEM) that has signed the certificate; none when it was another.
    ///
    /// # Errors
    /// When the certificate can't be read.
    pub fn issuer(&self, authorities: &str) -> Result<Option<Fingerprint>, CredentialsError> {
        Ok(issuer_among(&self.der()?, authorities)?)
    }

    /// Whom these credentials speak for.
    ///
    /// # Errors
    /// When the certificate names nobody.
    pub fn identity(&self) -> Result<Identity, CredentialsError> {
        Ok(Identity::of_certificate(&self.der()?)?)
    }

    /// When the certificate starts and ends.
    ///
    /// # Errors
    /// When the certificate can't be read.
    pub fn validity(&self) -> Result<(SystemTime, SystemTime), CredentialsError> {
        let der = self.der()?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| CredentialsError::Unreadable)?;
        let at = |seconds: i64| {
            u64::try_from(seconds)
                .ok()
                .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)))
                .ok_or(CredentialsError::Unreadable)
        };
        let validity = certificate.validity();
        Ok((at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?))
    }

    /// Whether a third of the certificate's life has passed.
    ///
    /// # Errors
    /// When the certificate can't be read.
    pub fn wants_renewal(&self, now: SystemTime) -> Result<bool, CredentialsError> {
        let (start, end) = self.validity()?;
        let life = end.duration_since(start).unwrap_or_default();
        Ok(start.checked_add(life / 3).is_none_or(|renewal| now >= renewal))
    }

    /// For a client that dials `server`: shows our certificate, demands that server's name.
    #[must_use]
    pub fn client_tls(&self, server: &Identity) -> ClientTlsConfig {
        self.client_tls_for(&server.server_name())
    }

    /// As [`Credentials::client_tls`], for a server name that came over the wire.
    #[must_use]
    pub fn client_tls_for(&self, server_name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(TlsIdentity::from_pem(&self.certificate_pem, &self.key_pem))
            .domain_name(server_name)
            .timeout(HANDSHAKE)
    }

    /// For a server whose credentials stay as they are; [`crate::incoming`] is for those whose don't. The chain it shows includes
    /// the authority, so that a joining client can pin it.
    #[must_use]
    pub fn server_tls(&self, clients: ClientCertificates) -> ServerTlsConfig {
        let chain = format!("{}{}", self.certificate_pem, self.ca_pem);
        ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(chain, &self.key_pem))
            .client_ca_root(Certificate::from_pem(&self.ca_pem))
            .client_auth_optional(clients == ClientCertificates::Optional)
            .timeout(HANDSHAKE)
    }

    /// The certificate in DER.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn der(&self) -> Result<CertificateDer<'static>, CredentialsError> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map_err(|_| CredentialsError::Unreadable)
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.identity() {
            Ok(identity) => write!(f, "Credentials({identity})"),
            Err(error) => write!(f, "Credentials({error})"),
        }
    }
}

fn read(dir: &Path, name: &str) -> Result<String, CredentialsError> {
    let path = dir.join(name);
    fs::read_to_string(&path).map_err(|source| CredentialsError::File { path, source })
}

fn read_if_there(dir: &Path, name: &str) -> Result<Option<String>, CredentialsError> {
    match read(dir, name) {
        Err(CredentialsError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// A certificate and the key to it.
fn pair(dir: &Path) -> Result<(String, String), CredentialsError> {
    for _ in 0..TRIES {
        let (key, certificate) = (read(dir, KEY)?, read(dir, CERTIFICATE)?);
        let next = read_if_there(dir, NEXT_CERTIFICATE)?;
        let certificates = std::iter::once(certificate).chain(next);
        if let Some(certificate) = certificates.into_iter().find(|certificate| fit(certificate, &key)) {
            return Ok((certificate, key));
        }
    }
    Err(CredentialsError::Mismatch { dir: dir.to_owned() })
}

fn fit(certificate: &str, key: &str) -> bool {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    let (Ok(certificate), Ok(key)) = (certificate, key) else { return false };
    CertifiedKey::from_der(vec![certificate], key, &default_provider()).is_ok()
}

/// Writes those that differ: all of them beside and to the disk first, then each over the one before, the last first. A reader sees
/// the old bytes of a file or the new, never half.
fn write(dir: &Path, files: &[(&str, &str)]) -> Result<(), CredentialsError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| CredentialsError::File { path, source }
    };
    fs::create_dir_all(dir).map_err(at(dir))?;
    restrict(dir, 0o700).map_err(at(dir))?;
    let differ = |path: &Path, text: &str| !fs::read(path).is_ok_and(|known| known == text.as_bytes());
    let named = files.iter().map(|(name, text)| (dir.join(name), *text));
    let new: Vec<_> = named.filter(|(path, text)| differ(path, text)).collect();
    for (path, text) in &new {
        write_synced(&beside(path), text.as_bytes()).map_err(at(path))?;
    }
    for (path, _) in new.iter().rev() {
        fs::rename(beside(path), path).map_err(at(path))?;
    }
    Ok(())
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn restrict(_path: &Path, _mode: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertificateAuthority, HOST_LIFETIME};

    #[test]
    fn saved_credentials_load_again_and_are_private() {
        let now = SystemTime::now();
        let authority = CertificateAuthority::create(now).unwrap();
        let host = Identity::host("mac-a").unwrap();
        let credentials = authority.credentials(&host, &[], now, HOST_LIFETIME).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("identity");
        assert!(!Credentials::exist(&inner));
        credentials.save(&inner).unwrap();
        assert!(Credentials::exist(&inner));
        assert_eq!(Credentials::load(&inner).unwrap(), credentials);
        assert_eq!(credentials.identity().unwrap(), host);
        let told = credentials.trusting("", ["07".to_owned()]);
        told.save(&inner).unwrap();
        assert_eq!(Credentials::load(&inner).unwrap(), told);
        assert_eq!((told.authorities(), &told.ca_pem), (vec![authority.fingerprint()], &credentials.ca_pem));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(inner.join(KEY)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "the key is readable by others");
        }
        assert!(!credentials.wants_renewal(now).unwrap());
        assert!(credentials.wants_renewal(now + HOST_LIFETIME / 2).unwrap());
        let other = CertificateAuthority::create(now).unwrap();
        let both = format!("{}{}", other.certificate_pem(), credentials.ca_pem);
        assert_eq!(credentials.issuer(&both).unwrap(), Some(authority.fingerprint()));
        assert_eq!(credentials.issuer(other.certificate_pem()).unwrap(), None);
    }

    #[test]
    fn a_replacement_that_ended_in_the_middle_loads_as_the_newer_pair() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = two_of_one_host();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        old.save(dir.path()).unwrap();
        put(NEXT_CERTIFICATE, &new.certificate_pem);
        assert_eq!(Credentials::load(dir.path()).unwrap(), old, "the key of before is there still");
        put(KEY, &new.key_pem);
        assert_eq!(Credentials::load(dir.path()).unwrap(), new);
        new.save(dir.path()).unwrap();
        assert_eq!(Credentials::load(dir.path()).unwrap(), new);
        assert!(!dir.path().join(NEXT_CERTIFICATE).exists());
        put(KEY, &old.key_pem);
        let mismatch = Credentials::load(dir.path()).unwrap_err().to_string();
        assert!(mismatch.contains("do not belong together: join again"), "{mismatch}");
    }

    #[test]
    fn who_reads_while_they_are_replaced_finds_a_pair() {
        let dir = tempfile::tempdir().unwrap();
        let both = two_of_one_host();
        both[0].save(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..=50 {
                    both[round % 2].save(dir.path()).unwrap();
                }
            });
            while !writer.is_finished() {
                let found = Credentials::load(dir.path()).unwrap();
                assert!(both.contains(&found));
            }
        });
    }

    fn two_of_one_host() -> [Credentials; 2] {
        let now = SystemTime::now();
        let authority = CertificateAuthority::create(now).unwrap();
        let host = Identity::host("mac-a").unwrap();
        [(); 2].map(|()| authority.credentials(&host, &[], now, HOST_LIFETIME).unwrap())
    }
}
