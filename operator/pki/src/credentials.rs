//! Key, certificate and trusted authority of one process: on disk, and as TLS settings.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TlsIdentity, ServerTlsConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Identity, NotIdentified};

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
const CA: &str = "ca.pem";
/// A handshake that takes longer than this is somebody holding a socket open.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a process needs to be known to others and to know them.
#[derive(Clone)]
pub struct Credentials {
    /// Its own certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The authorities that it trusts, its own issuer first.
    pub ca_pem: String,
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
    /// Reads the three files of `dir`.
    ///
    /// # Errors
    /// When one is missing or unreadable.
    pub fn load(dir: &Path) -> Result<Self, CredentialsError> {
        let read = |name| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| CredentialsError::File { path, source })
        };
        Ok(Self { certificate_pem: read(CERTIFICATE)?, key_pem: read(KEY)?, ca_pem: read(CA)? })
    }

    /// Whether `dir` holds credentials, so that a first start can be told from a later one.
    #[must_use]
    pub fn exist(dir: &Path) -> bool {
        [CERTIFICATE, KEY, CA].iter().all(|name| dir.join(name).is_file())
    }

    /// Writes the three files, readable by their owner only, each replaced as a whole; the certificate comes last, so
    /// that a crash in between leaves an incomplete set, which [`Credentials::exist`] tells.
    ///
    /// # Errors
    /// When the folder or a file can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CredentialsError::File { path, source }
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        restrict(dir, 0o700).map_err(at(dir))?;
        for (name, text) in [(CA, &self.ca_pem), (KEY, &self.key_pem), (CERTIFICATE, &self.certificate_pem)] {
            let path = dir.join(name);
            replace(&path, text.as_bytes()).map_err(at(&path))?;
        }
        Ok(())
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

    /// For a server. The chain it shows includes the authority, so that a joining client can pin it.
    #[must_use]
    pub fn server_tls(&self, clients: ClientCertificates) -> ServerTlsConfig {
        let chain = format!("{}{}", self.certificate_pem, self.ca_pem);
        ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(chain, &self.key_pem))
            .client_ca_root(Certificate::from_pem(&self.ca_pem))
            .client_auth_optional(clients == ClientCertificates::Optional)
            .timeout(HANDSHAKE)
    }

    fn der(&self) -> Result<CertificateDer<'static>, CredentialsError> {
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

/// Writes beside, syncs, renames: a reader sees the old bytes or the new, never half.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
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
        assert_eq!(Credentials::load(&inner).unwrap().identity().unwrap(), host);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(inner.join(KEY)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "the key is readable by others");
        }
        assert!(!credentials.wants_renewal(now).unwrap());
        assert!(credentials.wants_renewal(now + HOST_LIFETIME / 2).unwrap());
    }
}
