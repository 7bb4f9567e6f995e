//! The control loop: observe → plan → lint → apply → status, level-driven. It sleeps until something changes or something is due.

mod observe;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tandem_control_api::RouteTable;
use tandem_crds::ConditionStatus;
use tandem_crds::condition::READY;
use tandem_store::{Kind, Selector, StoreError};

use crate::caller::chain;
use crate::cluster::Cluster;
use crate::lead::Leadership;
use crate::membership;
use crate::models::Models;
use crate::routes;
use crate::serve::ready;

use observe::Observed;

/// How often attention to silence is accounted for.
const LOOK: Duration = Duration::from_millis(500);
/// Changes within this time are one look.
const TOGETHER: Duration = Duration::from_millis(10);
/// Wait after a pass that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Longest sleep, should every wake-up be lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Runs until the cluster's shutdown fires.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let shutdown = cluster.shutdown.clone();
    let mut control = Control {
        leadership: Leadership::new(Arc::clone(&cluster)),
        models: Arc::new(Models::new()),
        version: u64::try_from(cluster.now().as_millisecond()).unwrap_or(1).max(1),
        cluster: Arc::clone(&cluster),
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = wake_on_changes(&cluster, Kind::InferenceDeployment) => {}
        () = wake_on_changes(&cluster, Kind::InferenceHost) => {}
        () = pay_attention(&cluster) => {}
        () = control.passes() => {}
    }
    control.leadership.give_up().await;
}

/// Every change of the store is a reason to look.
async fn wake_on_changes(cluster: &Cluster, kind: Kind) {
    loop {
        match cluster.store.watch(Selector::all(kind), None).await {
            Ok(mut watch) => {
                while let Some(event) = watch.next().await {
                    cluster.wake.notify_one();
                    if let Err(error) = event {
                        tracing::info!(%kind, %error, "watching anew");
                        break;
                    }
                }
            }
            Err(error) => tracing::warn!(%kind, error = chain(&error), "the store can't be watched"),
        }
        tokio::time::sleep(AFTER_FAILURE).await;
    }
}

async fn pay_attention(cluster: &Cluster) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        cluster.sessions.look(cluster.clock.elapsed());
    }
}

struct Control {
    cluster: Arc<Cluster>,
    leadership: Leadership,
    models: Arc<Models>,
    /// Of the newest route table; starts from the clock, so that it grows over restarts, too.
    version: u64,
}

impl Control {
    async fn passes(&mut self) {
        loop {
            let sleep = match self.pass().await {
                Ok(sleep) => sleep,
                Err(error) if error.is_conflict() => {
                    tracing::debug!(error = chain(&error), "somebody else was faster: looking again");
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "a look at the cluster failed");
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = self.cluster.wake.notified() => {}
                () = tokio::time::sleep(sleep.min(LONGEST_SLEEP)) => {}
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    /// One look at everything; how long until the next one is due.
    async fn pass(&mut self) -> Result<Duration, StoreError> {
        let cluster = Arc::clone(&self.cluster);
        let observed = observe::observe(&cluster).await?;
        self.publish_routes(&observed).await?;
        let due = self.leadership.keep(observed.floor()).await;
        let mut sleep = self.leadership.next_look().min(observed.next_silence);
        if let Some(term) = due {
            sleep = sleep.min(self.lead(&observed, term).await?);
        }
        Ok(sleep)
    }

    /// Every operator tells its own gateways.
    async fn publish_routes(&mut self, observed: &Observed) -> Result<(), StoreError> {
        let revoked = membership::revoked(&*self.cluster.store, self.cluster.now()).await?;
        let table = routes::table(&observed.deployments, &observed.hosts, revoked);
        let version = &mut self.version;
        self.cluster.routes.send_if_modified(|known| {
            if known.version > 0 && known.models == table.models && known.revoked == table.revoked {
                return false;
            }
            *version += 1;
            *known = Arc::new(RouteTable { version: *version, ..table });
            true
        });
        Ok(())
    }

    async fn lead(&mut self, observed: &Observed, _term: u64) -> Result<Duration, StoreError> {
        mark_hosts(&self.cluster, observed).await?;
        let specs: Vec<_> = observed.deployments.iter().map(|deployment| &deployment.spec).collect();
        self.models.keep(&*self.cluster.store, &specs).await?;
        for spec in specs {
            self.models.look(&self.cluster, spec);
        }
        Ok(LONGEST_SLEEP)
    }
}

/// A silent host's object says so, and a host that is heard again, too.
async fn mark_hosts(cluster: &Cluster, observed: &Observed) -> Result<(), StoreError> {
    for host in &observed.hosts {
        let Some(object) = &host.reported else { continue };
        let is =
            tandem_crds::condition::find(&host.status.conditions, READY).map(|condition| condition.status);
        let (status, reason, message) = if host.silent {
            (
                ConditionStatus::Unknown,
                "Silent",
                "the host's agent is not heard; what runs there may go on serving",
            )
        } else if host.heard {
            (ConditionStatus::True, "Reporting", "the agent reports")
        } else {
            continue;
        };
        if is == Some(status) {
            continue;
        }
        let mut new = host.status.clone();
        new.conditions.retain(|condition| condition.type_ != READY);
        new.conditions.insert(0, ready(object, status, reason, message, cluster.now()));
        let new = serde_json::to_value(new).expect("a status is JSON");
        cluster.store.replace_status(&object.key, &object.version, new).await?;
        tracing::info!(host = host.name, ?status, "host's Ready condition changed");
    }
    Ok(())
}
