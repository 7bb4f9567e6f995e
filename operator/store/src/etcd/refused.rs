//! What to do when etcd lets nobody in: each sentence says which flag, or which right.

use std::error::Error;
use std::io;

/// gRPC's code of a request whose connection was closed under it.
const CANCELLED: i32 = 1;

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

/// The way out when a member can't be reached for want of trust, as far as that can be told.
pub(super) fn tls_advice(status: &(dyn Error + 'static), code: i32) -> Option<String> {
    let mut cause = status.source();
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(error @ rustls::Error::InvalidCertificate(_)) = tls {
            return Some(format!(
                "{error}: name the authority of etcd's certificates by --etcd-ca, and members as their certificates name them"
            ));
        }
        cause = error.source();
    }
    // Who accepts a connection, and refuses the certificate after that, says so to the connection and not to the request.
    (code == CANCELLED).then(|| {
        "it closes the connection, as it does with who shows no certificate of an authority that it trusts: see --etcd-cert and \
         --etcd-key"
            .to_owned()
    })
}
