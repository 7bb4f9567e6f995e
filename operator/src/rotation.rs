//! Replacing the cluster's authority while everything serves: whoever leads looks who has come along, and takes the next step.

mod step;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tandem_pki::Identity;
use tandem_store::{Kind, Selector, StoreError, Version};
use tokio::time::MissedTickBehavior;

use self::step::Patience;
pub(crate) use self::step::{Change, Lack, Next, Party, Phase, Word};
use crate::authority::{self, Authorities, NoAuthority};
use crate::caller::chain;
use crate::cluster::Cluster;
use crate::membership;

/// How often it is looked who has come along: so often in the time that a phase lasts longer than its slowest party.
const LOOKS: u32 = 8;
/// How often members are forgotten whose certificates have ended.
const PRUNE: Duration = Duration::from_secs(3600);

/// Runs until the cluster's shutdown fires.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let shutdown = cluster.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = look_on(&cluster) => {}
    }
}

async fn look_on(cluster: &Cluster) {
    let mut looks = tokio::time::interval(cluster.timing.settle / LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchman = Watchman::default();
    let mut pruned: Option<Duration> = None;
    loop {
        looks.tick().await;
        if cluster.leading.borrow().is_none() {
            watchman = Watchman::default();
            continue;
        }
        if let Err(error) = watchman.look(cluster).await {
            tracing::warn!(error = chain(&error), "the authority's replacement waits");
        }
        let elapsed = cluster.clock.elapsed();
        if pruned.is_none_or(|last| elapsed.saturating_sub(last) >= PRUNE) {
            pruned = Some(elapsed);
            if let Err(error) = prune(cluster).await {
                tracing::warn!(error = chain(&error), "members can't be looked through");
            }
        }
    }
}

/// What the leader remembers between two looks.
#[derive(Default)]
struct Watchman {
    patience: Patience,
    /// The record that it was patient with: one that was changed by hand in between is another.
    of: Option<Version>,
    /// Who was missing, as it was logged last.
    missing: String,
}

impl Watchman {
    async fn look(&mut self, cluster: &Cluster) -> Result<(), NoAuthority> {
        let known = cluster.authorities();
        if self.of.as_ref() != Some(known.version()) {
            *self = Self { of: Some(known.version().clone()), ..Self::default() };
        }
        // What is not published yet can't have reached anybody.
        let (Some(change), true) = (known.change(), cluster.own.publisher.has_published(&known)) else {
            self.patience.reset();
            return Ok(());
        };
        let parties = parties(cluster, &known).await?;
        let missing = parties.iter().filter(|party| party.waited_for && change.lack(party).is_some());
        let missing: Vec<String> = missing.map(|party| party.who.to_string()).collect();
        let missing = missing.join(", ");
        if missing != self.missing {
            tracing::info!(phase = ?change.phase, missing, "the authority is being replaced");
            self.missing = missing;
        }
        let next = self.patience.look(&change, &parties, cluster.clock.elapsed(), cluster.timing.settle);
        let Some(next) = next.filter(|_| cluster.holds_the_lease()) else { return Ok(()) };
        match authority::step(&*cluster.store, &known, next, cluster.now()).await {
            Ok(newest) => {
                match newest.rotation() {
                    Some(_) => tracing::info!(authority = %newest.signing(), "the new authority signs"),
                    None => {
                        tracing::info!(authority = %newest.signing(), "the old authority is trusted no more")
                    }
                }
                cluster.follow_authority().await
            }
            // Somebody else was faster: the next look sees what it has written.
            Err(NoAuthority::Store(error)) if error.is_conflict() => cluster.follow_authority().await,
            Err(error) => Err(error),
        }
    }
}

/// Everybody with a certificate, and whether the replacement waits for it.
pub(crate) async fn parties(cluster: &Cluster, known: &Authorities) -> Result<Vec<Party>, StoreError> {
    let without = known.rotation().map(|rotation| &rotation.without);
    let excused = |who: &Identity| without.is_some_and(|without| without.contains(who));
    let parties = membership::parties(&*cluster.store, &cluster.gateways(), cluster.now()).await?;
    let mut parties: Vec<Party> = parties
        .into_iter()
        .map(|party| Party { waited_for: party.waited_for && !excused(&party.who), ..party })
        .collect();
    parties.sort_by(|one, other| one.who.cmp(&other.who));
    Ok(parties)
}

async fn prune(cluster: &Cluster) -> Result<(), StoreError> {
    let hosts = cluster.store.list(&Selector::all(Kind::InferenceHost)).await?;
    let hosts: BTreeSet<String> = hosts.objects.into_iter().map(|host| host.key.name).collect();
    membership::prune(&*cluster.store, &hosts, cluster.now()).await
}
