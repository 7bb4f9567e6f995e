//! What to do when etcd lets nobody in: each sentence says which flag, or which right.

use std::error::Error;
use std::io;

/// etcd's own words, and the way out where there is one.
pub(super) fn advice(message: &str, prefix: &str) -> Option<String> {
    // Words, as etcd's codes are the same for many things.
    let says = |words: &str| message.contains(words);
    if says("invalid user ID or password") {
        return Some("check --etcd-user, and what is in the file of --etcd-password-file".to_owned());
    }
    if says("user name is empty") {
        return Some(
            "it asks who this is: name a user by --etcd-user and --etcd-password-file, or by the common name of the certificate \
             of --etcd-cert"
                .to_owned(),
        );
    }
    if says("authentication is not enabled") {
        return Some("it knows no users: leave out --etcd-user, or run `etcdctl auth enable`".to_owned());
    }
    if says("permission denied") {
        return Some(format!(
            "the user may not read and write below {prefix}/: run `etcdctl role grant-permission --prefix ROLE readwrite {prefix}/` \
             for a role of the user, or name another --etcd-prefix"
        ));
    }
    None
}

/// The way out when a member that is asked over TLS has never answered, as far as that can be told.
///
/// A certificate of the member's that is not trusted is this side's own finding, and certain. That the member does not take this
/// side's, or asks for one and is shown none, it says to the connection and not to the request: what the request meets is an alert,
/// an end or a broken pipe, whichever comes first. So everything counts as that but what a machine or a network says that is not there.
pub(super) fn tls_advice(error: &(dyn Error + 'static), shows_certificate: bool) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        cause = error.source();
        let Some(error) = error.downcast_ref::<io::Error>() else { continue };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(error @ rustls::Error::InvalidCertificate(_)) = inner {
            return Some(format!(
                "{error}: name the authority of etcd's certificates by --etcd-ca, and members as their certificates name them"
            ));
        }
        if is_of_the_way(error.kind()) {
            return None;
        }
    }
    Some(if shows_certificate {
        "if a member listens there, it may not trust the certificate of --etcd-cert".to_owned()
    } else {
        "if a member listens there, it may ask for a certificate of an authority that it trusts: see --etcd-cert and --etcd-key"
            .to_owned()
    })
}

/// Nobody was met who could have refused.
fn is_of_the_way(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
    };
    matches!(
        kind,
        AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    /// What happened, wrapped as clients wrap it.
    #[derive(Debug)]
    struct Wrapped(Option<io::Error>);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("transport error")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.0.as_ref().map(|error| error as _)
        }
    }

    #[test]
    fn however_a_missing_certificate_shows_it_is_told_and_an_absent_member_is_not_blamed_on_it() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        for met in [
            None,
            Some(io::Error::from(io::ErrorKind::BrokenPipe)),
            Some(io::Error::from(io::ErrorKind::ConnectionReset)),
            Some(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Some(io::Error::new(io::ErrorKind::InvalidData, alert)),
        ] {
            let met = Wrapped(met);
            assert!(tls_advice(&met, false).is_some_and(|said| said.contains("--etcd-key")), "{met:?}");
            assert!(tls_advice(&met, true).is_some_and(|said| said.contains("not trust")), "{met:?}");
        }
        let stranger = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let stranger = Wrapped(Some(io::Error::new(io::ErrorKind::InvalidData, stranger)));
        assert!(tls_advice(&stranger, false).is_some_and(|said| said.contains("--etcd-ca")));
        let absent = Wrapped(Some(io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert_eq!(tls_advice(&absent, false), None);
    }
}
