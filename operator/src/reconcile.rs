//! The control loop: observe → plan → lint → apply → status, level-driven. It sleeps until something changes or something is due.

mod apply;
mod backoff;
mod ground;
mod observe;
mod routes;
mod said;
mod settle;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use tandem_crds::{DeploymentRef, InferenceDeployment, InferenceHost};
use tandem_plan::{HostObservation, Model, Observation, Outranked, Plan, Planner, Resolved, State};
use tandem_store::{Kind, Platform, Selector, StoreError, WatchEvent};
use tandem_traces::Span;

use self::backoff::Backoff;
use self::ground::Bindings;
use self::observe::{Observed, Reading};
use self::said::Said;
use self::settle::Writer;
use crate::caller::chain;
use crate::cluster::Cluster;
use crate::lead::{Leader, Leadership};
use crate::metrics::Reconciled;
use crate::models::{Found, Knowledge, Models};
use crate::nodes::{self, Ground};
use crate::rollout::{self, Rollout};
use crate::traced::Pass;
use crate::{keys, secrets, supply};

/// How often attention to silence is accounted for.
const LOOK: Duration = Duration::from_millis(500);
/// Changes within this time are one look.
const TOGETHER: Duration = Duration::from_millis(10);
/// Wait after a pass that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Longest sleep, should every wake-up be lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How often a plan that followed changes is held against one that is made in full.
const CHECK: Duration = Duration::from_secs(60);

/// Runs until the cluster's shutdown fires.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let shutdown = cluster.shutdown.clone();
    let mut control = Control {
        leadership: Leadership::new(Arc::clone(&cluster)),
        models: Arc::clone(&cluster.models),
        said: Said::default(),
        written: apply::Written::new(),
        backoff: Backoff::default(),
        bindings: Bindings::default(),
        listed: None,
        version: u64::try_from(cluster.now().as_millisecond()).unwrap_or(1).max(1),
        checked: Duration::ZERO,
        cluster: Arc::clone(&cluster),
    };
    let mut planner = Planner::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = wake_on_changes(&cluster, Kind::InferenceDeployment) => {}
        () = wake_on_changes(&cluster, Kind::InferenceHost) => {}
        () = pay_attention(&cluster) => {}
        () = cluster.watch_trust() => {}
        () = wake_with_the_platform(&cluster) => {}
        () = control.passes(&mut planner) => {}
    }
    control.leadership.give_up().await;
}

/// Every change of the store is a reason to look.
async fn wake_on_changes(cluster: &Cluster, kind: Kind) {
    loop {
        match cluster.store.watch(Selector::all(kind), None).await {
            Ok(mut watch) => {
                while let Some(event) = watch.next().await {
                    if let Some(object) = event.as_ref().ok().and_then(WatchEvent::object) {
                        cluster.traced.wakes(&object.key);
                    }
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

/// Nodes and agents' pods are a reason to look, too.
async fn wake_with_the_platform(cluster: &Cluster) {
    if let Some(platform) = cluster.store.platform() {
        let mut changes = platform.changes();
        while changes.changed().await.is_ok() {
            cluster.wake.notify_one();
        }
    }
    std::future::pending().await
}

async fn pay_attention(cluster: &Cluster) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        cluster.sessions.look(cluster.clock.elapsed());
    }
}

#[derive(Clone, Copy)]
struct Listed {
    /// By the clock that counts sleep.
    at: Duration,
    term: u64,
}

struct Control {
    cluster: Arc<Cluster>,
    leadership: Leadership,
    models: Arc<Models>,
    said: Said,
    written: apply::Written,
    backoff: Backoff,
    /// Which nodes hosts are bound to.
    bindings: Bindings,
    /// When the store itself was asked for everything, and in which term; none: a pass has failed since.
    listed: Option<Listed>,
    /// Of the newest route table; starts from the clock, so that it grows over restarts, too.
    version: u64,
    /// When a plan was last held against one in full, by the clock that counts sleep.
    checked: Duration,
}

impl Control {
    async fn passes(&mut self, planner: &mut Planner) {
        // By the clock that counts sleep.
        let mut due = Duration::ZERO;
        let mut woken = true;
        loop {
            // Another operator leads, or the next pass is not due: the lease alone is looked at.
            let leads =
                self.leadership.look().await.is_some() || *self.cluster.leader.borrow() == Leader::Here;
            let elapsed = self.cluster.clock.elapsed();
            if leads && (woken || elapsed >= due) {
                due = self.cluster.clock.elapsed() + self.next(planner).await;
            }
            let planned = due.saturating_sub(self.cluster.clock.elapsed());
            let sleep = if leads { planned } else { Duration::MAX }.min(self.leadership.next_look());
            woken = tokio::select! {
                () = self.cluster.wake.notified() => true,
                () = tokio::time::sleep(sleep) => false,
            };
            if woken {
                tokio::time::sleep(TOGETHER).await;
            }
        }
    }

    /// One pass; how long until the next is due.
    async fn next(&mut self, planner: &mut Planner) -> Duration {
        let begun = Instant::now();
        let (reading, listed) = self.reading();
        let outcome = self.pass(planner, reading).await;
        self.listed = listed.filter(|_| outcome.is_ok());
        let (how, sleep) = match outcome {
            Ok(sleep) => (Reconciled::Done, sleep),
            Err(error) if error.is_conflict() => {
                tracing::debug!(error = chain(&error), "somebody else was faster: planning anew");
                (Reconciled::Conflict, Duration::ZERO)
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "a look at the cluster failed");
                (Reconciled::Failed, AFTER_FAILURE)
            }
        };
        self.cluster.metrics.reconciled(how, begun.elapsed(), self.cluster.now());
        sleep.min(LONGEST_SLEEP)
    }

    /// One look at everything, and the next step; how long until the next look is due.
    async fn pass(&mut self, planner: &mut Planner, reading: Reading) -> Result<Duration, StoreError> {
        let cluster = Arc::clone(&self.cluster);
        let mut trace = cluster.traced.pass();
        let observed = observe::observe(&cluster, reading).await?;
        cluster.traced.keep(|host| observed.hosts.contains_key(host));
        let revoked = cluster.refresh_revoked().await?;
        let keys = keys::to_let_in(&*cluster.store, cluster.now()).await?;
        let term = self.leadership.keep(observed.newest_term, observed.unknown_term).await;
        self.backoff.keep(|key| observed.has(key));
        let due = observed.next_change;
        let credentials = credentials(&cluster, &observed).await?;
        let hosts: Vec<InferenceHost> = observed.hosts.values().map(|(_, host)| host.clone()).collect();
        let supply = |planned| supply::publish(&cluster, &hosts, planned, &observed.presence, &credentials);
        // Hosts that this operator has not heard yet are no reason to move anything, nor to take a route away.
        if observed.settling {
            supply(&BTreeMap::new());
            return Ok(due);
        }
        let state = self.resolve(&observed, &hosts, &credentials, term).await?;
        let pods = cluster.store.platform().map(Platform::agent_pods).unwrap_or_default();
        let rollout = rollout::next(&pods, &observed.presence);
        let ground = self.bindings.look(&cluster, &observed, reading).await?;
        // Hosts that are about to go, or whose agents' pods are next to be replaced.
        let leaving = nodes::leaving(&ground).into_iter().chain(rollout.leaving.clone()).collect();
        let observation = Observation {
            hosts: observed.presence.clone(),
            leaving,
            endpoint: endpoint(&cluster, &observed),
        };
        trace.part("observe");
        let now = cluster.now();
        if let Err(outranked) = self.plan(planner, state, observation, now) {
            tracing::warn!(%outranked, "not planning");
            supply(&BTreeMap::new());
            return Ok(due);
        }
        trace.part("plan");
        let plan = planner.planned();
        // In full, whatever the plan was made from: the linter must not share what the planner remembers.
        let findings = tandem_plan::lint(planner.state(), planner.observation(), now, plan);
        let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
        if !findings.is_empty() {
            supply(&BTreeMap::new());
            // Nothing that led there is believed again.
            *planner = Planner::new();
            apply::refused(&cluster, &observed, &findings, &mut self.said).await?;
            return Ok(due);
        }
        trace.part("lint");
        let trust = tandem_control_api::Trust { revoked, ..cluster.whom_to_trust() };
        let said = routes::Said { trust, keys };
        routes::publish(&cluster.routes, &mut self.version, &plan.routes, said);
        let nothing = BTreeMap::new();
        supply(if term.is_some() { &plan.specs } else { &nothing });
        if term.is_some() {
            cluster.metrics.deployments(plan.statuses.iter());
            let heard = |presence: &HostObservation| matches!(presence, HostObservation::Known(_));
            let hosts = observed.presence.iter().map(|(host, presence)| (host, heard(presence)));
            cluster.metrics.hosts(hosts, cluster.gateways().len());
        }
        let due = due.min(self.until_due(plan, now));
        Ok(if term.is_some() {
            due.min(self.carry_out(&observed, plan, &rollout, &ground, trace).await?)
        } else {
            due
        })
    }

    /// Plans what follows from what has changed, and now and then holds that against a plan in full.
    fn plan(
        &mut self,
        planner: &mut Planner,
        state: State,
        observation: Observation,
        now: Timestamp,
    ) -> Result<(), Outranked> {
        let begun = Instant::now();
        planner.tell(state, observation);
        planner.plan(now)?;
        self.cluster.metrics.planned(begun.elapsed());
        let elapsed = self.cluster.clock.elapsed();
        if elapsed.saturating_sub(self.checked) >= CHECK {
            self.checked = elapsed;
            if !planner.check(now)? {
                tracing::error!(
                    "a plan that followed changes was not the one that is made in full, which is taken"
                );
            }
        }
        Ok(())
    }

    /// Writes, while leading; how long until what was left out is due. The lease is looked at before each kind of write: a pause in between must not let an old leader
    /// write.
    async fn carry_out(
        &mut self,
        observed: &Observed,
        plan: &Plan,
        rollout: &Rollout<'_>,
        ground: &BTreeMap<String, Ground>,
        trace: Pass,
    ) -> Result<Duration, StoreError> {
        let frozen = plan.frozen.as_deref().unwrap_or_default();
        if self.said.anew("frozen", frozen) && !frozen.is_empty() {
            tracing::warn!(reason = frozen, "placement is frozen");
        }
        for waiting in &plan.waiting {
            tracing::debug!(
                workload = waiting.workload,
                host = waiting.host,
                reason = waiting.reason,
                "waiting"
            );
        }
        if self.leadership.term().is_some()
            && let (Some(pod), Some(platform)) = (rollout.delete, self.cluster.store.platform())
        {
            tracing::info!(pod = pod.name, node = pod.node, "replaces an agent's pod of an older revision");
            platform.delete_pod(pod).await?;
        }
        let trace = if plan.specs.is_empty() { Span::none() } else { trace.acts() };
        let mut writer = Writer {
            cluster: &self.cluster,
            leadership: &mut self.leadership,
            backoff: &mut self.backoff,
            trace: &trace,
        };
        if writer.leads() {
            apply::specs(&mut writer, observed, plan).await?;
        }
        let mut due = Duration::MAX;
        if writer.leads() {
            due = apply::statuses(&mut writer, observed, plan, &mut self.written).await?;
        }
        if writer.leads() {
            apply::marks(&mut writer, observed).await?;
        }
        let due = due.min(writer.due());
        if self.leadership.term().is_some() {
            self.bindings.part(&self.cluster, observed, ground).await?;
        }
        Ok(due)
    }

    /// How the next pass reads the store, and what it is to remember of that if it ends well. A new leader, and one whose last
    /// pass failed, asks the store itself, and so does every leader now and then, should a watch have missed something.
    fn reading(&self) -> (Reading, Option<Listed>) {
        let (now, term) = (self.cluster.clock.elapsed(), self.leadership.term());
        let good =
            |listed: &Listed| Some(listed.term) == term && now.saturating_sub(listed.at) < LONGEST_SLEEP;
        match self.listed.filter(good) {
            Some(listed) => (Reading::Recent, Some(listed)),
            None => (Reading::Listed, term.map(|term| Listed { at: now, term })),
        }
    }

    /// What is stored, and what is known of each model; begins to find out what is not.
    async fn resolve(
        &self,
        observed: &Observed,
        hosts: &[InferenceHost],
        credentials: &BTreeMap<DeploymentRef, Found>,
        term: Option<u64>,
    ) -> Result<State, StoreError> {
        let deployments: Vec<InferenceDeployment> =
            observed.deployments.values().map(|(_, deployment)| deployment.clone()).collect();
        if term.is_some() {
            let specs: Vec<_> = observed
                .deployments
                .iter()
                .map(|(key, (_, deployment))| (key.namespace.as_str(), &deployment.spec))
                .collect();
            self.models.keep(&*self.cluster.store, &specs).await?;
        }
        let known = |(key, (_, deployment)): (&DeploymentRef, &(_, InferenceDeployment))| {
            let found = credentials.get(key).unwrap_or(&Ok(None));
            let model = match self.models.look(&self.cluster, &key.namespace, &deployment.spec, found) {
                Knowledge::Working => Model::Resolving,
                Knowledge::Failed(sentence) => Model::Failed(sentence),
                Knowledge::Known(answer) => Model::Resolved(Resolved {
                    revision: answer.model.revision.clone(),
                    source: answer.model.source.clone(),
                    files: answer.model.files.clone(),
                    sizing: answer.sizing,
                    lacking: answer.lacking.clone(),
                }),
            };
            (key.clone(), model)
        };
        let models =
            if term.is_some() { observed.deployments.iter().map(known).collect() } else { BTreeMap::new() };
        Ok(State {
            // Who doesn't lead plans for the routes alone, and writes nothing.
            term: term.unwrap_or(observed.newest_term),
            hosts: hosts.to_vec(),
            deployments,
            models,
        })
    }

    fn until_due(&self, plan: &Plan, now: Timestamp) -> Duration {
        let planned =
            plan.wake_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO));
        let elapsed = self.cluster.clock.elapsed();
        let retry = self.models.next_retry().map(|at| at.saturating_sub(elapsed));
        planned.into_iter().chain(retry).min().unwrap_or(LONGEST_SLEEP)
    }
}

/// What there is of the credential that each deployment names.
async fn credentials(
    cluster: &Cluster,
    observed: &Observed,
) -> Result<BTreeMap<DeploymentRef, Found>, StoreError> {
    let mut credentials = BTreeMap::new();
    for (key, (_, deployment)) in &observed.deployments {
        let Some(named) = &deployment.spec.model.credentials else { continue };
        let found = secrets::find(&*cluster.store, &key.namespace, &named.secret_ref).await?;
        let found = found
            .map(Some)
            .ok_or_else(|| secrets::missing(&*cluster.store, &key.namespace, &named.secret_ref));
        credentials.insert(key.clone(), found);
    }
    Ok(credentials)
}

/// Where clients reach a gateway: the first by name that is connected here, else one that a host reports.
fn endpoint(cluster: &Cluster, observed: &Observed) -> Option<String> {
    let connected = cluster.gateways().into_values().find(|url| !url.is_empty());
    let reported = || observed.hosts.values().find_map(|(_, host)| host.status.as_ref()?.gateway_url.clone());
    connected.or_else(reported)
}
