//! Who calls, and how a refusal reads on the wire.

use tandem_pki::{Identity, Name, peer_identity, peer_serial};
use tandem_store::StoreError;
use tonic::{Code, Request, Status};

use crate::cluster::Cluster;
use crate::relay::{CALLERS_SERIAL, ON_BEHALF_OF};

/// A host, by its certificate.
pub(crate) fn host<T>(cluster: &Cluster, request: &Request<T>) -> Result<Name, Status> {
    match identity(cluster, request)? {
        Identity::Host(name) => Ok(name),
        other => Err(wrong_role(&other, "a host's agent")),
    }
}

/// A gateway, by its certificate.
pub(crate) fn gateway<T>(cluster: &Cluster, request: &Request<T>) -> Result<Name, Status> {
    match identity(cluster, request)? {
        Identity::Gateway(name) => Ok(name),
        other => Err(wrong_role(&other, "a gateway")),
    }
}

/// An admin, by their certificate.
pub(crate) fn admin<T>(cluster: &Cluster, request: &Request<T>) -> Result<Name, Status> {
    match identity(cluster, request)? {
        Identity::Admin(name) => Ok(name),
        other => Err(wrong_role(&other, "an admin")),
    }
}

/// Anybody with a certificate of the cluster.
pub(crate) fn identity<T>(cluster: &Cluster, request: &Request<T>) -> Result<Identity, Status> {
    let mut identity = peer_identity(request)?;
    let mut serials = vec![peer_serial(request)?];
    // Another operator has checked who called it; nobody else may speak for others.
    if let Some(caller) = request.metadata().get(ON_BEHALF_OF).filter(|_| identity == Identity::Operator) {
        let caller = caller.to_str().ok().and_then(Identity::from_uri);
        identity =
            caller.ok_or_else(|| Status::invalid_argument("it is not said for whom this operator calls"))?;
        // It may have checked against an older list.
        let serial = request.metadata().get(CALLERS_SERIAL).and_then(|serial| serial.to_str().ok());
        serials.extend(serial.map(str::to_owned));
    }
    if serials.iter().any(|serial| cluster.is_revoked(serial)) {
        tracing::warn!(%identity, from = ?request.remote_addr(), "a revoked certificate was shown");
        return Err(revoked());
    }
    Ok(identity)
}

/// Serial number of the certificate of who calls, whether through another operator or not.
pub(crate) fn serial<T>(request: &Request<T>) -> Result<String, Status> {
    let own = peer_serial(request)?;
    let callers = request.metadata().get(CALLERS_SERIAL).and_then(|serial| serial.to_str().ok());
    Ok(match (peer_identity(request)?, callers) {
        (Identity::Operator, Some(serial)) => serial.to_owned(),
        _ => own,
    })
}

/// What somebody with a revoked certificate is told.
pub(crate) fn revoked() -> Status {
    Status::unauthenticated("this certificate was revoked: join again with a new token")
}

fn wrong_role(caller: &Identity, wanted: &str) -> Status {
    Status::permission_denied(format!("this call is for {wanted}, and the certificate is of {caller}"))
}

/// What a caller is told of a store's refusal; what it can do nothing about is logged whole and told in one line.
pub(crate) fn refusal(error: StoreError) -> Status {
    let code = match &error {
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::Conflict { .. } | StoreError::RecordConflict { .. } => Code::Aborted,
        StoreError::FieldConflict { .. } | StoreError::LeaseLost { .. } => Code::FailedPrecondition,
        StoreError::Invalid { .. } | StoreError::TooLarge { .. } => Code::InvalidArgument,
        StoreError::Expired { .. } => Code::OutOfRange,
        StoreError::KeptElsewhere => Code::Unimplemented,
        _ => {
            tracing::error!(error = chain(&error), "the store failed");
            return Status::internal("the operator's store failed: see its log");
        }
    };
    Status::new(code, error.to_string())
}

/// An error with all its causes, for the log.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
