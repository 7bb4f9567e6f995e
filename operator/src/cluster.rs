//! What all services and the control loop of one operator share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tandem_control_api::{RouteTable, Supply, Trust};
use tandem_store::{Clock, Store, StoreError};
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::asked::Asked;
use crate::authority::{self, Authorities, NoAuthority};
use crate::caller::chain;
use crate::lead::{Leader, Own};
use crate::logs::LogRelay;
use crate::membership;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pods::ServiceAccounts;
use crate::sessions::Sessions;
use crate::settings::Timing;
use crate::sources::Sources;
use crate::traced::Traced;

/// How long an operator may let in somebody whom another one has revoked, and sign with an authority that another one has
/// replaced.
const TRUST_WITHIN: Duration = Duration::from_secs(5);

/// One operator's shared state.
pub(crate) struct Cluster {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    /// What is trusted, and what signs.
    authorities: watch::Sender<Arc<Authorities>>,
    following: tokio::sync::Mutex<()>,
    /// Who this operator is, to callers and to other operators.
    pub(crate) own: Own,
    pub(crate) timing: Timing,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Metrics,
    pub(crate) logs: LogRelay,
    pub(crate) asked: Asked,
    pub(crate) models: Arc<Models>,
    /// Whose pods may join.
    pub(crate) service_accounts: ServiceAccounts,
    /// Where models may come from, and how they are reached.
    pub(crate) sources: Sources,
    /// What each host is told of where weights come from, by name. A host that is not in it has to wait for a look.
    pub(crate) supplies: watch::Sender<Arc<BTreeMap<String, Supply>>>,
    /// Connected gateways: name → where clients reach it.
    gateways: Mutex<BTreeMap<String, (u64, String)>>,
    pub(crate) routes: watch::Sender<Arc<RouteTable>>,
    /// Term while this operator leads.
    pub(crate) leading: watch::Sender<Option<u64>>,
    /// Until when the lease is held, by the clock that counts sleep, in milliseconds. Whoever was paused finds it past.
    pub(crate) lease_until: AtomicU64,
    /// Which operator leads.
    pub(crate) leader: watch::Sender<Leader>,
    /// Makes the control loop look again.
    pub(crate) wake: Notify,
    pub(crate) traced: Traced,
    /// Fires when the process is to end.
    pub(crate) shutdown: CancellationToken,
}

impl Cluster {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        authorities: Authorities,
        own: Own,
        timing: Timing,
        service_accounts: ServiceAccounts,
        sources: Sources,
    ) -> Self {
        Self {
            sessions: Sessions::new(clock.elapsed()),
            store,
            clock,
            authorities: watch::Sender::new(Arc::new(authorities)),
            following: tokio::sync::Mutex::default(),
            own,
            timing,
            metrics: Metrics::new(),
            logs: LogRelay::default(),
            asked: Asked::default(),
            models: Arc::new(Models::new()),
            service_accounts,
            sources,
            supplies: watch::Sender::new(Arc::default()),
            gateways: Mutex::new(BTreeMap::new()),
            routes: watch::Sender::new(Arc::new(RouteTable::default())),
            leading: watch::Sender::new(None),
            lease_until: AtomicU64::new(0),
            leader: watch::Sender::new(Leader::Unknown),
            wake: Notify::new(),
            traced: Traced::default(),
            shutdown: CancellationToken::new(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// As certificates count time.
    pub(crate) fn system_time(&self) -> SystemTime {
        let now = self.now();
        let since = Duration::try_from(now.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        SystemTime::UNIX_EPOCH + since
    }

    /// Whether the lease is held at this very moment.
    pub(crate) fn holds_the_lease(&self) -> bool {
        self.clock.elapsed() < Duration::from_millis(self.lease_until.load(Ordering::Relaxed))
    }

    /// Ready when another operator leads.
    pub(crate) fn no_longer_leads(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut leader = self.leader.subscribe();
        async move {
            while *leader.borrow_and_update() == Leader::Here {
                if leader.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Reads the list of revoked certificates anew.
    pub(crate) async fn refresh_revoked(&self) -> Result<Vec<String>, StoreError> {
        let serials = membership::revoked(&*self.store, self.now()).await?;
        self.own.trust.send_if_modified(|own| {
            let newer = own.trusting("", serials.iter().cloned());
            let changed = *own != newer;
            *own = newer;
            changed
        });
        Ok(serials)
    }

    /// Keeps both fresh, the list and the authorities: another operator may have changed them.
    pub(crate) async fn watch_trust(&self) {
        let mut ticks = tokio::time::interval(TRUST_WITHIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.refresh_revoked().await {
                tracing::warn!(error = chain(&error), "the list of revoked certificates can't be read");
            }
            if let Err(error) = self.follow_authority().await {
                tracing::warn!(error = chain(&error), "what the store says of the authority is not followed");
            }
        }
    }

    /// What is trusted, and what signs, as this operator knows it.
    pub(crate) fn authorities(&self) -> Arc<Authorities> {
        self.authorities.borrow().clone()
    }

    /// Takes the newest word of the store on the authorities: shows a certificate of the one that signs, tells everybody whom to
    /// trust, and puts it where it is looked for.
    pub(crate) async fn follow_authority(&self) -> Result<(), NoAuthority> {
        let _one_at_a_time = self.following.lock().await;
        let now = self.system_time();
        let newer = authority::newer(&*self.store, &self.authorities()).await?.map(Arc::new);
        let aged = !matches!(self.own.credentials().wants_renewal(now), Ok(false));
        if newer.is_some() || aged {
            let newest = newer.unwrap_or_else(|| self.authorities());
            let credentials = newest.operator(&self.own.publisher.advertise, now)?;
            self.authorities.send_replace(newest);
            self.own.trust.send_modify(|own| {
                *own = credentials.trusting("", std::mem::take(&mut own.revoked));
            });
            self.wake.notify_one();
        }
        let (authorities, revoked) = (self.authorities(), self.own.credentials().revoked);
        let when = (now, self.now());
        if let Err(error) = self.own.publisher.publish(&*self.store, &authorities, &revoked, when).await {
            tracing::warn!("whom to trust is not published yet: {error:#}");
        }
        Ok(())
    }

    /// What hosts and gateways are told.
    pub(crate) fn whom_to_trust(&self) -> Trust {
        let own = self.own.credentials();
        // An operator's own certificate is of the authority that signs.
        let issuer = own.issuer(&own.ca_pem).ok().flatten();
        Trust {
            issuer: issuer.map(|issuer| issuer.to_string()).unwrap_or_default(),
            ca_pem: own.ca_pem,
            revoked: own.revoked.into_iter().collect(),
        }
    }

    /// Ready when the certificate of this serial number is revoked.
    pub(crate) fn once_revoked(&self, serial: String) -> impl Future<Output = ()> + Send + use<> {
        let mut own = self.own.trust.subscribe();
        async move {
            if own.wait_for(|own| own.revoked.contains(&serial)).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Whether a certificate of this serial number was revoked.
    pub(crate) fn is_revoked(&self, serial: &str) -> bool {
        self.own.trust.borrow().revoked.contains(serial)
    }

    /// A gateway is here, until the guard is dropped.
    pub(crate) fn gateway_here(self: &Arc<Self>, name: &str, url: &str) -> GatewayHere {
        let mut gateways = self.gateways.lock().expect("no panic while gateways are changed");
        let number = gateways.get(name).map_or(0, |(number, _)| number + 1);
        gateways.insert(name.to_owned(), (number, url.to_owned()));
        self.wake.notify_one();
        GatewayHere { cluster: Arc::clone(self), name: name.to_owned(), number }
    }

    /// Connected gateways by name, with where clients reach them.
    pub(crate) fn gateways(&self) -> BTreeMap<String, String> {
        let gateways = self.gateways.lock().expect("no panic while gateways are changed");
        gateways.iter().map(|(name, (_, url))| (name.clone(), url.clone())).collect()
    }
}

/// Keeps a gateway in the list of those connected.
pub(crate) struct GatewayHere {
    cluster: Arc<Cluster>,
    name: String,
    number: u64,
}

impl Drop for GatewayHere {
    fn drop(&mut self) {
        let mut gateways = self.cluster.gateways.lock().expect("no panic while gateways are changed");
        if gateways.get(&self.name).is_some_and(|(number, _)| *number == self.number) {
            gateways.remove(&self.name);
            self.cluster.wake.notify_one();
        }
    }
}
