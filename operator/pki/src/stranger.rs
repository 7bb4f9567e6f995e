//! Handshakes that fail because one side does not know the authority of the other: no matter of trying again.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// Whether a connection failed because one side does not trust the authority that has signed the other's certificate. So it is for who
/// was away while a cluster's authority was replaced.
#[must_use]
pub fn is_stranger(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let is = error.downcast_ref::<rustls::Error>().is_some_and(says_so);
        // HTTP/2 keeps the text alone of what breaks a connection.
        if is || error.to_string() == refused().to_string() {
            return true;
        }
        // An I/O error does not count what it holds among its sources.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match held {
            Some(held) => Some(held as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// What a server says to a client whose authority it does not know.
fn refused() -> rustls::Error {
    rustls::Error::AlertReceived(AlertDescription::UnknownCA)
}

fn says_so(error: &rustls::Error) -> bool {
    *error == rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) || *error == refused()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_however_deep_it_lies() {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(is_stranger(&io::Error::other(io::Error::other(unknown()))));
        assert!(is_stranger(&unknown()));
        assert!(is_stranger(&io::Error::other("received fatal alert: UnknownCA")));
        assert!(!is_stranger(&io::Error::other(rustls::Error::DecryptError)));
    }
}
