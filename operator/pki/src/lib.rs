//! Who is who: identities in certificates, the cluster's own authority, join tokens, clients' API keys, and the
//! TLS settings made of them.
//!
//! Every process has one certificate with one role and one name in a SAN URI. Servers are verified by DNS names that no
//! DNS serves (`kimi-1.mac-a.worker.tandem.internal`), so that an address may change without a new certificate, and a
//! certificate of one role can never pass for another.

mod api_key;
mod authority;
mod credentials;
mod enroll;
mod identity;
mod open_files;
mod stranger;
mod token;
mod transport;

pub use api_key::ApiKey;
pub use authority::{
    AuthorityError, CertificateAuthority, HOST_LIFETIME, Issued, KeyAndRequest, OPERATOR_LIFETIME,
};
pub use credentials::{ClientCertificates, Credentials, CredentialsError};
pub use enroll::{EnrollError, Enrollment, PodFiles, Proof, fetch_pinned_ca, join, local_address_towards};
pub use identity::{
    BadName, Identity, Name, NotIdentified, Shown, peer_certificate, peer_identity, peer_serial,
    serial_of_certificate,
};
pub use open_files::raise_open_files;
pub use stranger::is_stranger;
pub use token::{BadFingerprint, BadToken, Fingerprint, JoinToken};
pub use transport::{Connection, TlsError, dial, incoming, kept_fresh, server_config};

/// Makes ring the process's TLS provider. Harmless when one is installed already; every binary calls it first.
pub fn install_tls_provider() {
    // The error is the provider that was there before: the same one, or a test's choice.
    drop(rustls::crypto::ring::default_provider().install_default());
}
