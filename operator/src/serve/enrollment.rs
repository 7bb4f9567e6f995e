//! Joining: a token and a certificate request become a certificate bound to one name and one role.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_control_api::enrollment_server;
use tandem_control_api::{Certificate, JoinRequest, Role};
use tandem_pki::{HOST_LIFETIME, Identity, Issued, JoinToken};
use tonic::{Request, Response, Status};

use crate::caller::{self, chain, refusal};
use crate::cluster::Cluster;
use crate::membership::{self, Binding, JoinRefused, Made};
use crate::pods::{self, PodRefused};

/// Largest request of a caller that nobody knows yet.
pub(super) const LARGEST_REQUEST: usize = 64 * 1024;
/// Attempts that one address may make at once, and how long one of them takes to come back.
const ATTEMPTS: u32 = 30;
const ATTEMPT_BACK: Duration = Duration::from_secs(2);
/// Addresses that are remembered; beyond, those with the most attempts left are forgotten.
const ADDRESSES: usize = 4096;

pub(super) struct Enrollment {
    cluster: Arc<Cluster>,
    attempts: Mutex<Attempts>,
}

impl Enrollment {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, attempts: Mutex::default() }
    }
}

/// A leaky bucket per address: strangers cost signatures and disk writes.
#[derive(Default)]
struct Attempts(BTreeMap<IpAddr, (u32, Duration)>);

impl Attempts {
    fn take(&mut self, from: IpAddr, now: Duration) -> bool {
        let leak = |(used, since): (u32, Duration)| {
            let back = now.saturating_sub(since).as_secs() / ATTEMPT_BACK.as_secs();
            let back = u32::try_from(back).unwrap_or(u32::MAX);
            (used.saturating_sub(back), since + ATTEMPT_BACK * back.min(used))
        };
        if self.0.len() >= ADDRESSES {
            self.0.retain(|_, entry| leak(*entry).0 > 0);
            if self.0.len() >= ADDRESSES {
                return self.0.contains_key(&from);
            }
        }
        let (used, since) = self.0.get(&from).map_or((0, now), |entry| leak(*entry));
        if used >= ATTEMPTS {
            return false;
        }
        self.0.insert(from, (used + 1, if used == 0 { now } else { since }));
        true
    }
}

#[tonic::async_trait]
impl enrollment_server::Enrollment for Enrollment {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Certificate>, Status> {
        let cluster = &self.cluster;
        let from = request.remote_addr().map(|address| address.ip());
        if let Some(from) = from {
            let allowed = self
                .attempts
                .lock()
                .expect("no panic while attempts are counted")
                .take(from, cluster.clock.elapsed());
            if !allowed {
                return Err(Status::resource_exhausted(
                    "too many attempts to join from this address: wait a minute",
                ));
            }
        }
        let request = request.into_inner();
        let role = request.role();
        let identity = match role {
            Role::Host => Identity::host(&request.name),
            Role::Gateway => Identity::gateway(&request.name),
            _ => return Err(Status::invalid_argument("only hosts and gateways join with a token")),
        }
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let store = &*cluster.store;
        let known = membership::is_member(store, &identity).await.map_err(refusal)?;
        if !request.service_account_token.is_empty() {
            return self.join_pod(request, identity, known).await;
        }
        let token: JoinToken = request
            .token
            .parse()
            .map_err(|error: tandem_pki::BadToken| Status::invalid_argument(error.to_string()))?;
        if !cluster.authorities().knows(token.ca()) {
            return Err(said(JoinRefused::Unknown, &identity));
        }
        let spendable = membership::check_token(store, &token, role, &request.name, cluster.now())
            .await
            .map_err(|error| said(error, &identity))?;
        if known && !spendable.names_holder {
            return Err(said(JoinRefused::Taken(identity.clone()), &identity));
        }
        // Signed before the token is spent: a request that can't be signed costs no token, and nothing is handed out unless
        // the token was this caller's to spend.
        let issued = cluster
            .authorities()
            .sign(&request.csr_pem, &identity, &request.addresses, cluster.system_time(), HOST_LIFETIME)
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        membership::spend(store, &spendable).await.map_err(|error| said(error, &identity))?;
        let bound = if known { Binding::TakenOver(None) } else { Binding::First };
        let made = Made { identity: &identity, issued: &issued };
        membership::remember(store, &identity, &made, &bound, cluster.now())
            .await
            .map_err(|error| said(error, &identity))?;
        tracing::info!(%identity, ?from, serial = issued.serial, "joined");
        if known {
            cluster.refresh_revoked().await.map_err(refusal)?;
            cluster.wake.notify_one();
        }
        Ok(certificate(issued))
    }
}

impl Enrollment {
    /// A pod of the cluster: what it is bound to is known, so that it may come again, and another node of its name takes over.
    async fn join_pod(
        &self,
        request: JoinRequest,
        identity: Identity,
        known: bool,
    ) -> Result<Response<Certificate>, Status> {
        let cluster = &self.cluster;
        let store = &*cluster.store;
        let checked = pods::check(
            store.platform(),
            &cluster.service_accounts,
            &request.service_account_token,
            request.role(),
            &request.name,
        );
        let uid = match checked.await {
            Ok(uid) => uid,
            Err(PodRefused::Store(error)) => return Err(refusal(error)),
            Err(error) => {
                tracing::warn!(%identity, reason = %error, "refused to let join");
                return Err(Status::permission_denied(error.to_string()));
            }
        };
        let issued = cluster
            .authorities()
            .sign(&request.csr_pem, &identity, &request.addresses, cluster.system_time(), HOST_LIFETIME)
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        let bound = Binding::TakenOver(Some(uid.clone()));
        let made = Made { identity: &identity, issued: &issued };
        membership::remember(store, &identity, &made, &bound, cluster.now())
            .await
            .map_err(|error| said(error, &identity))?;
        tracing::info!(%identity, uid, serial = issued.serial, "joined as a pod");
        if known {
            cluster.refresh_revoked().await.map_err(refusal)?;
            cluster.wake.notify_one();
        }
        Ok(certificate(issued))
    }
}

/// What a caller is handed.
pub(super) fn certificate(issued: Issued) -> Response<Certificate> {
    Response::new(Certificate {
        certificate_pem: issued.certificate_pem,
        ca_pem: issued.ca_pem,
        not_after: issued.not_after,
    })
}

pub(super) fn said(error: JoinRefused, identity: &Identity) -> Status {
    if let JoinRefused::Store(error) = error {
        return refusal(error);
    }
    tracing::warn!(%identity, reason = %error, "refused to let join");
    match error {
        JoinRefused::Revoked => caller::revoked(),
        error => Status::permission_denied(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_run_out_and_come_back() {
        let mut attempts = Attempts::default();
        let from = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..ATTEMPTS {
            assert!(attempts.take(from, Duration::ZERO));
        }
        assert!(!attempts.take(from, Duration::from_secs(1)));
        assert!(attempts.take(IpAddr::from([10, 0, 0, 2]), Duration::from_secs(1)));
        assert!(attempts.take(from, ATTEMPT_BACK));
        assert!(!attempts.take(from, ATTEMPT_BACK));
    }

    #[test]
    fn the_book_of_addresses_is_bounded() {
        let mut attempts = Attempts::default();
        for n in 0..2 * u32::try_from(ADDRESSES).unwrap() {
            attempts.take(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        assert!(attempts.0.len() <= ADDRESSES);
        assert!(attempts.take(IpAddr::from([255, 0, 0, 1]), Duration::from_secs(3600)));
    }
}
