//! Joining a cluster: pin the authority by its hash, then trade the token for a certificate.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tandem_control_api::enrollment_client::EnrollmentClient;
use tandem_control_api::{JoinRequest, Role};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::{AuthorityError, Credentials, Fingerprint, Identity, JoinToken, KeyAndRequest};

/// Bound on every step of joining: connect, handshake, answer.
const STEP: Duration = Duration::from_secs(10);

/// Why joining did not work.
#[derive(Debug, Error)]
pub enum EnrollError {
    /// An operator address that is no `https://host:port`.
    #[error("`{0}` is not an operator's address: give it as https://HOST:PORT")]
    BadAddress(String),
    /// Nobody there.
    #[error("no operator answers at {0}: check the address, and that its port is open")]
    Unreachable(String),
    /// Somebody else's cluster, or somebody in the middle, or a token that is older than the cluster's authority.
    #[error(
        "the server at {0} is not of the cluster that the token was made for, or its authority was replaced since; the token was \
         not sent"
    )]
    WrongAuthority(String),
    /// The operator said no.
    #[error("the operator refused: {0}")]
    Refused(String),
    /// A mounted file is not there.
    #[error("{} can't be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// No key could be made.
    #[error("no key could be made")]
    Key(#[from] AuthorityError),
    /// TLS settings that tonic refused.
    #[error("the connection could not be set up")]
    Transport(#[from] tonic::transport::Error),
}

/// What lets somebody join.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Made by `tandem join-token`. It names the cluster's authority, too.
    Token(JoinToken),
    /// The caller's own pod.
    Pod(PodFiles),
}

/// What Kubernetes mounts into a pod that is to join. Read anew each time, since Kubernetes renews them.
#[derive(Clone, Debug)]
pub struct PodFiles {
    /// Its service account's token, projected for the audience `tandem-operator`.
    pub token: PathBuf,
    /// The cluster's authorities, as PEM.
    pub ca: PathBuf,
}

/// Who wants to join, and where.
#[derive(Clone, Debug)]
pub struct Enrollment {
    /// `https://HOST:PORT` of any operator.
    pub operator: String,
    /// What lets it in.
    pub proof: Proof,
    /// `Role::Host` or `Role::Gateway`.
    pub role: Role,
    /// The name to be bound to.
    pub name: String,
    /// IP addresses and DNS names at which peers will dial.
    pub addresses: Vec<String>,
}

/// Trades the proof for credentials. A token is sent only over a connection whose authority has the hash that it names, a pod's
/// only to an operator of the authority that is mounted; the private key never leaves this process.
///
/// # Errors
/// See [`EnrollError`]; every one says what to do.
pub async fn join(enrollment: &Enrollment) -> Result<Credentials, EnrollError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| EnrollError::Unreadable(path.to_owned(), error))
    };
    let (ca_pem, token, service_account_token) = match &enrollment.proof {
        Proof::Token(token) => {
            (fetch_pinned_ca(&enrollment.operator, token.ca()).await?, token.to_string(), String::new())
        }
        Proof::Pod(files) => (read(&files.ca)?, String::new(), read(&files.token)?.trim().to_owned()),
    };
    let own = KeyAndRequest::generate()?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&ca_pem))
        .domain_name(Identity::Operator.server_name());
    let channel = Endpoint::from_shared(enrollment.operator.clone())?
        .tls_config(tls)?
        .connect_timeout(STEP)
        .timeout(STEP)
        .connect()
        .await?;
    let request = JoinRequest {
        token,
        role: enrollment.role.into(),
        name: enrollment.name.clone(),
        csr_pem: own.csr_pem,
        addresses: enrollment.addresses.clone(),
        service_account_token,
    };
    let answer = EnrollmentClient::new(channel)
        .join(request)
        .await
        .map_err(|status| EnrollError::Refused(status.message().to_owned()))?
        .into_inner();
    Ok(Credentials::new(answer.certificate_pem, own.key_pem, answer.ca_pem))
}

/// Fetches the authority's certificate from the chain that the operator shows, if it has this fingerprint.
///
/// # Errors
/// When nobody answers, or the authority is another.
pub async fn fetch_pinned_ca(operator: &str, expected: Fingerprint) -> Result<String, EnrollError> {
    let unreachable = || EnrollError::Unreachable(operator.to_owned());
    let uri: tonic::transport::Uri =
        operator.parse().map_err(|_| EnrollError::BadAddress(operator.to_owned()))?;
    let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(EnrollError::BadAddress(operator.to_owned()));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = timeout(STEP, TcpStream::connect((host, uri.port_u16().unwrap_or(443))))
        .await
        .map_err(|_| unreachable())?
        .map_err(|_| unreachable())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedAuthority { expected, provider: provider.clone() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| unreachable())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(Identity::Operator.server_name())
        .map_err(|_| EnrollError::BadAddress(operator.to_owned()))?;
    let stream = match timeout(STEP, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            return Err(EnrollError::WrongAuthority(operator.to_owned()));
        }
        _ => return Err(unreachable()),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain
        .iter()
        .find(|certificate| Fingerprint::of(certificate) == expected)
        .map(|certificate| pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec())))
        .ok_or_else(|| EnrollError::WrongAuthority(operator.to_owned()))
}

/// The local address from which this operator is reached: what to advertise where nobody said. No packet is sent.
///
/// # Errors
/// When the address can't be resolved or no route leads to it.
pub fn local_address_towards(operator: &str) -> io::Result<IpAddr> {
    let uri: tonic::transport::Uri =
        operator.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for remote in (host, uri.port_u16().unwrap_or(443)).to_socket_addrs()? {
        let any: IpAddr =
            if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let local = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(remote)?;
            socket.local_addr()
        });
        match local {
            Ok(local) => return Ok(local.ip().to_canonical()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Accepts exactly the chains that hold the certificate with the expected hash, and that lead to it: while an authority is
/// being replaced, by way of the one that signs.
#[derive(Debug)]
struct PinnedAuthority {
    expected: Fingerprint,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority =
            intermediates.iter().find(|c| Fingerprint::of(c) == self.expected).ok_or(unknown.clone())?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.clone().into_owned()).map_err(|_| unknown.clone())?;
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| unknown)?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_an_operator_on_this_machine_is_loopback() {
        assert_eq!(local_address_towards("https://127.0.0.1:7443").unwrap(), Ipv4Addr::LOCALHOST);
        assert!(local_address_towards("https://").is_err());
    }
}
