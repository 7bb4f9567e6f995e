//! A deployment's status: what is, told by conditions. It speaks of what a plan has seen, not of what it sets in motion,
//! and of points in time rather than of durations, so that planning again changes nothing.

mod standby;

use jiff::{SignedDuration, Timestamp};
use tandem_crds::condition::{self, DEGRADED, READY, RECONCILING, REDUNDANT, STALLED};
use tandem_crds::{
    Condition, ConditionStatus, DeploymentRef, InferenceDeploymentStatus, ModelStatus, PlacementStatus,
    Recovery, Standby, WorkloadState,
};

use crate::input::Model;
use crate::parse::{Copy, Presence, Wanted, World};
use crate::place::{Decision, SUSPECTED, Spread, copies};
use crate::survive::survivors;

/// A copy on a host that is silent for less than this is presumed to be as it was: a new leader has not heard from
/// anyone yet, and that is no reason to cry.
const PRESUMED: SignedDuration = SignedDuration::from_secs(10);

/// With warm copies, one of them serves in its place before that.
fn presumed(wanted: &Wanted) -> SignedDuration {
    match wanted.spec.redundancy.standby {
        Standby::Hot => PRESUMED,
        Standby::Warm => SUSPECTED,
    }
}

/// Most placements in a status, as the API has it.
const MAX_PLACEMENTS: usize = 64;

/// Longest message of a condition, as the API has it.
const MAX_MESSAGE: usize = 1024;

/// One deployment's status. `owner` is the deployment that has its model's short name, be it this one or an older one.
pub(crate) fn status(
    world: &World,
    wanted: &Wanted,
    decision: &Decision,
    owner: Option<&DeploymentRef>,
    endpoint: Option<String>,
) -> InferenceDeploymentStatus {
    let mut view = View::of(world, wanted, decision);
    view.named_before = owner.filter(|owner| *owner != wanted.key);
    view.status(endpoint)
}

/// One deployment as its conditions see it.
struct View<'a> {
    world: &'a World<'a>,
    wanted: &'a Wanted<'a>,
    decision: &'a Decision,
    replicas: u32,
    failures: u32,
    /// Copies that serve, or are presumed to.
    ready: u32,
    /// Whether `hostFailures` are covered.
    redundant: bool,
    /// Copies on silent hosts that were ready when last heard.
    perhaps: u32,
    /// Copies that remain after the worst failures, serving or warm.
    remaining: u32,
    /// What answers then, and how soon.
    cover: String,
    /// An older deployment that has the model's short name.
    named_before: Option<&'a DeploymentRef>,
}

impl<'a> View<'a> {
    fn of(world: &'a World<'a>, wanted: &'a Wanted<'a>, decision: &'a Decision) -> Self {
        let (mut serving, mut standing) = (Spread::new(), Spread::new());
        let add = |spread: &mut Spread, host| *spread.entry(host).or_default() += 1;
        let mut perhaps = 0;
        for (index, copy) in wanted.copies.iter().enumerate() {
            let lost = decision.lost.contains(&index);
            match world.hosts[copy.host].presence {
                Presence::Known if copy.is_ready() => {
                    add(&mut serving, copy.host);
                    add(&mut standing, copy.host);
                }
                Presence::Known if copy.stands() => add(&mut standing, copy.host),
                Presence::Silent { since } if !lost && was_standing(world, copy) => {
                    match (copy.shall_serve(), world.now.duration_since(since) < presumed(wanted)) {
                        (true, true) => {
                            add(&mut serving, copy.host);
                            add(&mut standing, copy.host);
                        }
                        (true, false) => perhaps += 1,
                        (false, true) => add(&mut standing, copy.host),
                        (false, false) => {}
                    }
                }
                _ => {}
            }
        }
        let (replicas, failures) = (wanted.spec.replicas, wanted.spec.redundancy.host_failures);
        let remaining = survivors(standing.into_values(), failures);
        let cover = if failures == 0 || remaining == 0 {
            "None".to_owned()
        } else if survivors(serving.values().copied(), failures) >= remaining.min(replicas) {
            "Hot".to_owned()
        } else {
            standby::cover(world, wanted)
        };
        Self {
            world,
            wanted,
            decision,
            replicas,
            failures,
            ready: serving.values().sum(),
            redundant: remaining >= replicas,
            perhaps,
            remaining,
            cover,
            named_before: None,
        }
    }

    fn status(&self, endpoint: Option<String>) -> InferenceDeploymentStatus {
        let prior = self.wanted.prior;
        let (model, sizing) = match self.wanted.model {
            Model::Resolved(resolved) => (
                Some(ModelStatus {
                    revision: resolved.revision.clone(),
                    source: resolved.source.clone(),
                    files: resolved.files.clone(),
                }),
                Some(resolved.sizing),
            ),
            Model::Resolving | Model::Failed(_) => {
                (prior.and_then(|prior| prior.model.clone()), prior.and_then(|prior| prior.sizing))
            }
        };
        let wanted_copies =
            if self.replicas == 0 || self.decision.refusal.is_none() && self.decision.counted > 0 {
                self.decision.counted
            } else {
                self.decision.counted.max(self.replicas + self.failures)
            };
        // Of those that are wanted, warm ones need not be ready.
        let wanted_copies = match self.wanted.spec.redundancy.standby {
            Standby::Hot => wanted_copies,
            Standby::Warm => wanted_copies.min(self.replicas),
        };
        let stalled = self.stalled();
        let conditions = vec![
            self.condition(READY, self.serving()),
            self.condition(REDUNDANT, self.redundancy()),
            self.condition(DEGRADED, self.degraded()),
            self.condition(RECONCILING, self.reconciling(stalled.0 == ConditionStatus::True)),
            self.condition(STALLED, stalled),
        ];
        InferenceDeploymentStatus {
            observed_generation: Some(self.wanted.generation),
            replicas: self.ready.min(self.replicas),
            copies: u32::try_from(self.wanted.copies.len()).unwrap_or(u32::MAX),
            ready_copies: self.ready,
            ready: format!("{}/{wanted_copies}", self.ready),
            selector: selector(&self.wanted.key.name),
            endpoint,
            model,
            sizing,
            cover: self.cover.clone(),
            placements: self.placements(),
            recovery: self.recovery(),
            conditions,
        }
    }

    fn condition(&self, type_: &str, (status, reason, message): Told) -> Condition {
        let prior = self.wanted.prior.and_then(|prior| condition::find(&prior.conditions, type_));
        let since = prior.filter(|prior| prior.status == status).map(|prior| prior.last_transition_time);
        Condition {
            type_: type_.to_owned(),
            status,
            observed_generation: Some(self.wanted.generation),
            last_transition_time: since.unwrap_or_else(|| whole_second(self.world.now)),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_MESSAGE).collect(),
        }
    }

    fn serving(&self) -> Told {
        if self.replicas == 0 {
            return no("ScaledToZero", "replicas is 0, so nothing runs");
        }
        if self.ready > 0 {
            return yes(
                "Serving",
                format!("{} serve{}", copies(self.ready), self.name()).replace("copy serve", "copy serves"),
            );
        }
        if self.perhaps > 0 {
            let message =
                format!("nobody hears from the hosts of {}; they may still serve", copies(self.perhaps));
            return (ConditionStatus::Unknown, "HostsSilent", message);
        }
        self.trouble()
    }

    /// By which name clients reach it, when the model's own is another's.
    fn name(&self) -> String {
        let Some(owner) = self.named_before else { return String::new() };
        let (namespace, model) = (&self.wanted.key.namespace, &self.wanted.spec.model.name);
        format!(
            "; clients ask for {namespace}/{model}, as {model} is {}/{}, which is older",
            owner.namespace, owner.name
        )
    }

    /// Why nothing serves, or not enough: the first cause that applies.
    fn trouble(&self) -> Told {
        match self.wanted.model {
            Model::Failed(sentence) => return no("ModelUnavailable", sentence),
            Model::Resolving if self.wanted.copies.is_empty() => {
                return no("Resolving", "the model's files and sizes are being found out");
            }
            Model::Resolving | Model::Resolved(_) => {}
        }
        if let Some(storm) = &self.world.frozen {
            return no("PlacementFrozen", &storm.sentence);
        }
        if let Some(refusal) = &self.decision.refusal {
            return no(refusal.reason, &refusal.sentence);
        }
        if let Some((index, since)) = self.decision.awaited.first() {
            let host = self.world.hosts[self.wanted.copies[*index].host].name;
            let until = since.saturating_add(self.wanted.patience()).unwrap_or(Timestamp::MAX);
            let message = format!(
                "host {host} is silent since {}; its copy is placed elsewhere from {} on",
                at(*since),
                at(until)
            );
            return no("HostSilent", &message);
        }
        let unready: Vec<String> =
            self.wanted.copies.iter().filter(|copy| !copy.stands()).map(|copy| self.describe(copy)).collect();
        let all_failed = !unready.is_empty() && self.wanted.copies.iter().all(has_failed);
        let reason = if all_failed { "CopiesFailed" } else { "CopiesStarting" };
        let message =
            if unready.is_empty() { "copies are about to start".to_owned() } else { unready.join("; ") };
        no(reason, &message)
    }

    fn describe(&self, copy: &Copy) -> String {
        let host = self.world.hosts[copy.host].name;
        let id = &copy.workload.id;
        match copy.current() {
            _ if !self.world.hosts[copy.host].is_known() => format!("{id} on {host} is out of reach"),
            Some(status) => {
                let message =
                    status.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
                format!("{id} on {host} is {}{message}", status.state)
            }
            None => format!("{id} is assigned to {host}"),
        }
    }

    fn redundancy(&self) -> Told {
        if self.replicas == 0 {
            return yes("ScaledToZero", "replicas is 0, so there is nothing to cover".to_owned());
        }
        if self.redundant && self.failures == 0 {
            return yes(
                "Covered",
                "as many copies serve as replicas asks; hostFailures is 0, so no loss is covered".to_owned(),
            );
        }
        if self.redundant {
            let message = match self.failures {
                1 => format!("any host may vanish and {} remain", copies(self.remaining)),
                failures => format!("any {failures} hosts may vanish and {} remain", copies(self.remaining)),
            };
            let message = message.replace("1 copy remain", "1 copy remains");
            let soon = if self.cover == "Hot" { String::new() } else { format!(": {}", self.cover) };
            return yes("Covered", message + &soon);
        }
        self.trouble()
    }

    fn degraded(&self) -> Told {
        if self.ready < self.replicas && self.ready + self.perhaps >= self.replicas {
            let message = format!("nobody hears from the hosts of {}", copies(self.perhaps));
            (ConditionStatus::Unknown, "HostsSilent", message)
        } else if self.ready < self.replicas {
            yes("FewerCopies", format!("{} of {} replicas serve", self.ready, self.replicas))
        } else {
            no("AsAsked", "as many copies serve as replicas asks")
        }
    }

    fn reconciling(&self, stalled: bool) -> Told {
        let generation = self.wanted.generation;
        let applied = no("Applied", &format!("generation {generation} is applied"));
        if self.was_applied() || self.decision.settled || self.replicas == 0 && self.wanted.copies.is_empty()
        {
            return applied;
        }
        if stalled {
            return no("Stalled", &format!("generation {generation} waits for a person; see Stalled"));
        }
        let message = match (self.wanted.model, self.decision.waiting.first()) {
            (Model::Resolving, _) => "the model's files and sizes are being found out".to_owned(),
            (_, Some((index, reason))) => {
                format!("{} stays for now: {reason}", self.wanted.copies[*index].workload.id)
            }
            _ => format!(
                "generation {generation} is being applied; copies ready: {} of {}",
                self.ready, self.decision.counted
            ),
        };
        yes("Applying", message)
    }

    /// Whether an earlier plan already called this generation applied: from then on, repair is not reconciling.
    fn was_applied(&self) -> bool {
        let prior = self.wanted.prior.and_then(|prior| condition::find(&prior.conditions, RECONCILING));
        prior.is_some_and(|prior| {
            prior.reason == "Applied"
                && prior.status == ConditionStatus::False
                && prior.observed_generation == Some(self.wanted.generation)
        })
    }

    fn stalled(&self) -> Told {
        let fine = no("Moving", "nothing waits for a person");
        if self.replicas == 0 {
            return fine;
        }
        if let Model::Failed(sentence) = self.wanted.model {
            return yes("ModelUnavailable", sentence.clone());
        }
        if let Some(storm) = &self.world.frozen
            && !self.redundant
            && self.world.now.duration_since(storm.since) >= self.wanted.patience().max(PRESUMED)
        {
            return yes("PlacementFrozen", storm.sentence.clone());
        }
        if let Some(blocked) = &self.decision.blocked {
            return yes("NoRoomToUpdate", blocked.clone());
        }
        if let Some(refusal) = &self.decision.refusal
            && self.decision.counted == 0
            && (self.wanted.copies.is_empty() || self.decision.outdated)
        {
            return yes(refusal.reason, refusal.sentence.clone());
        }
        if !self.wanted.copies.is_empty() && self.wanted.copies.iter().all(has_failed) {
            let (_, _, message) = self.trouble();
            return yes("CopiesFailed", message);
        }
        fine
    }

    fn placements(&self) -> Vec<PlacementStatus> {
        let mut placements: Vec<PlacementStatus> = Vec::new();
        for copy in &self.wanted.copies {
            let host = &self.world.hosts[copy.host];
            let state = match (host.presence, copy.current()) {
                (Presence::Known, Some(status)) => status.state.to_string(),
                (Presence::Known, None) => "Assigned".to_owned(),
                (Presence::Silent { .. } | Presence::Absent, _) => "Unknown".to_owned(),
            };
            placements.push(PlacementStatus {
                workload: copy.workload.id.clone(),
                host: host.name.to_owned(),
                epoch: copy.workload.epoch,
                state,
                transfer: copy.current().and_then(|status| status.transfer),
            });
        }
        // Copies that are no longer assigned stay listed while they finish what runs, so that gateways know whose they are.
        for ending in self.wanted.prior.into_iter().flat_map(|prior| &prior.placements) {
            if placements.iter().any(|placement| placement.workload == ending.workload) {
                continue;
            }
            let Some(host) = self.world.host(&ending.host).map(|host| &self.world.hosts[host]) else {
                continue;
            };
            let status = host
                .report
                .and_then(|report| report.workloads.iter().find(|status| status.id == ending.workload));
            if status
                .is_some_and(|status| !matches!(status.state, WorkloadState::Stopped | WorkloadState::Failed))
            {
                placements
                    .push(PlacementStatus { state: WorkloadState::Draining.to_string(), ..ending.clone() });
            }
        }
        placements.truncate(MAX_PLACEMENTS);
        placements
    }

    fn recovery(&self) -> Option<Recovery> {
        let prior = self.wanted.prior?;
        let was_covered = condition::is_true(&prior.conditions, REDUNDANT) && self.was_applied();
        if self.redundant || !(was_covered || prior.recovery.is_some()) {
            return None;
        }
        let since =
            prior.recovery.as_ref().map_or_else(|| whole_second(self.world.now), |recovery| recovery.since);
        let (_, _, reason) = self.trouble();
        Some(Recovery { since, reason: reason.chars().take(MAX_MESSAGE).collect() })
    }
}

/// Status, reason, message.
type Told = (ConditionStatus, &'static str, String);

fn yes(reason: &'static str, message: impl Into<String>) -> Told {
    (ConditionStatus::True, reason, message.into())
}

fn no(reason: &'static str, message: &str) -> Told {
    (ConditionStatus::False, reason, message.to_owned())
}

fn has_failed(copy: &Copy) -> bool {
    copy.current().is_some_and(|status| status.state == WorkloadState::Failed)
}

/// Whether the last report of a silent host had a copy ready, or warm if that is what it is for.
fn was_standing(world: &World, copy: &Copy) -> bool {
    let as_it_shall = if copy.shall_serve() { WorkloadState::Ready } else { WorkloadState::Warm };
    let report = world.hosts[copy.host].report;
    report.into_iter().flat_map(|report| &report.workloads).any(|status| {
        status.id == copy.workload.id && status.epoch == copy.workload.epoch && status.state == as_it_shall
    })
}

/// Longest value of a label.
const MAX_LABEL: usize = 63;

/// What selects a deployment's workloads in its namespace, and no other's. A name that is too long for a label is cut, and a hash of the
/// whole keeps it apart.
fn selector(name: &str) -> String {
    let value = if name.len() <= MAX_LABEL {
        name.to_owned()
    } else {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let head: String = name.chars().take(MAX_LABEL - 17).collect();
        format!("{head}-{hash:016x}")
    };
    format!("{}/deployment={value}", tandem_crds::GROUP)
}

fn whole_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn at(moment: Timestamp) -> String {
    whole_second(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_one_that_autoscalers_can_read() {
        assert_eq!(selector("kimi"), "inference.tandem.dev/deployment=kimi");
        let long = |last: &str| selector(&format!("{}{last}", "a".repeat(200)));
        let value = long("b");
        let value = value.split_once('=').map(|(_, value)| value).unwrap_or_default();
        assert!(value.len() <= MAX_LABEL && value.starts_with('a'), "{value}");
        assert_ne!(long("b"), long("c"), "two deployments have two selectors");
    }
}
