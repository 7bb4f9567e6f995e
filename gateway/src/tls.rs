//! The certificate that clients see: two files that somebody else renews, as cert-manager and certbot do.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Longest file that is read, in bytes: a chain has a few kilobytes.
const LONGEST: u64 = 1 << 20;
/// What we speak. Streams of events want nothing of HTTP/2.
const PROTOCOL: &[u8] = b"http/1.1";

/// Why clients can't be served under TLS.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file that is not there, or may not be read.
    #[error("{} can't be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// More than any certificate has.
    #[error("{} is longer than {LONGEST} bytes: it is no certificate or key", .0.display())]
    TooLong(PathBuf),
    /// Something else than PEM, or without what is looked for in it.
    #[error("{} holds no {what} in PEM", .path.display())]
    NoPem {
        /// Which file.
        path: PathBuf,
        /// Certificate or private key.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// A key of another certificate, or a kind of key that TLS does not use.
    #[error("{} and {} can't be used together", .certificate.display(), .key.display())]
    Unusable {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What TLS says.
        #[source]
        source: rustls::Error,
    },
}

/// Where the certificate and its key lie, both PEM.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The certificate, and the chain of those that have signed it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What the files held.
#[derive(PartialEq, Eq)]
struct Read {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl CertificateFiles {
    /// How a server shows this certificate.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn load(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        self.settings(&self.read()?)
    }

    fn read(&self) -> Result<Read, CertificateError> {
        Ok(Read { certificate: bounded(&self.certificate)?, key: bounded(&self.key)? })
    }

    fn settings(&self, read: &Read) -> Result<Arc<ServerConfig>, CertificateError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read.certificate).collect();
        let no = |path: &Path, what, source| CertificateError::NoPem { path: path.to_owned(), what, source };
        let chain = chain
            .and_then(|chain| {
                if chain.is_empty() { Err(rustls_pki_types::pem::Error::NoItemsFound) } else { Ok(chain) }
            })
            .map_err(|source| no(&self.certificate, "certificate", source))?;
        let key = PrivateKeyDer::from_pem_slice(&read.key)
            .map_err(|source| no(&self.key, "private key", source))?;
        let mut settings = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|source| CertificateError::Unusable {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source,
            })?;
        settings.alpn_protocols.push(PROTOCOL.to_vec());
        Ok(Arc::new(settings))
    }

    /// How a server shows what was read, if that is another pair than the one that is shown.
    fn newer(
        &self,
        shown: Option<&Read>,
        read: Read,
    ) -> Result<Option<(Read, Arc<ServerConfig>)>, CertificateError> {
        if shown == Some(&read) {
            return Ok(None);
        }
        self.settings(&read).map(|settings| Some((read, settings)))
    }

    /// Gives out the newest pair, for ever. A half of a replacement, or a pair that can't be used, leaves the one before in force. Every look reads
    /// both files: times don't tell of a link that was turned to another folder, as Kubernetes turns them.
    pub async fn keep_fresh(self, newest: watch::Sender<Arc<ServerConfig>>) {
        let files = Arc::new(self);
        let mut shown: Option<Read> = None;
        let mut said = String::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let look = Arc::clone(&files);
            let Ok(read) = tokio::task::spawn_blocking(move || look.read()).await else { continue };
            match read.and_then(|read| files.newer(shown.as_ref(), read)) {
                Ok(None) => said.clear(),
                Ok(Some((read, settings))) => {
                    // The first look finds what was loaded at the start.
                    if shown.replace(read).is_some() {
                        tracing::info!(certificate = %files.certificate.display(), "shows a newer certificate");
                    }
                    newest.send_replace(settings);
                    said.clear();
                }
                Err(error) => {
                    let sentence = format!("{:#}", anyhow::Error::from(error));
                    if sentence != said {
                        tracing::warn!("the certificate before stays in use: {sentence}");
                        said = sentence;
                    }
                }
            }
        }
    }
}

fn bounded(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let unreadable = |error| CertificateError::Unreadable(path.to_owned(), error);
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err(CertificateError::TooLong(path.to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    #[test]
    fn half_of_a_replacement_is_not_shown_and_the_whole_is() {
        tandem_pki::install_tls_provider();
        let pair = || {
            let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a".to_owned()]).unwrap();
            (cert.pem().into_bytes(), signing_key.serialize_pem().into_bytes())
        };
        let (first, second) = (pair(), pair());
        let read = |certificate: &[u8], key: &[u8]| Read { certificate: certificate.into(), key: key.into() };
        let files = CertificateFiles { certificate: "tls.crt".into(), key: "tls.key".into() };
        let shown = read(&first.0, &first.1);
        let newer = |read| files.newer(Some(&shown), read);
        assert!(newer(read(&first.0, &first.1)).unwrap().is_none());
        for torn in [read(&second.0, &first.1), read(&first.0, &second.1), read(&second.0, b"")] {
            assert!(newer(torn).is_err());
        }
        assert!(newer(read(&second.0, &second.1)).unwrap().is_some());
    }
}
