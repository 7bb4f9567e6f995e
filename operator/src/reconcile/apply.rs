//! Apply: writes what a plan says, by the versions that it was made from. A write that comes too late ends the pass: the next
//! one plans anew. A write that is refused for its object's own sake is tried again later, and holds no other up.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::Value;
use tandem_crds::condition::{READY, REDUNDANT, STALLED, find};
use tandem_crds::{Condition, ConditionStatus, DeploymentRef, InferenceDeploymentStatus, TransferStatus};
use tandem_plan::{HostObservation, Plan, Step};
use tandem_store::{EventNote, Key, Object, Severity, StoreError};
use tandem_traces::Span;

use super::backoff::Part;
use super::observe::Observed;
use super::said::Said;
use super::settle::{Write, Writer, note};
use crate::MANAGER;
use crate::cluster::Cluster;
use crate::serve::ready;

/// How often figures of transfers are written, of however many hosts they are.
const WHILE_MOVING: Duration = Duration::from_secs(5);

/// Writes the specs of hosts, and notes each step that was taken.
pub(super) async fn specs(
    writer: &mut Writer<'_>,
    observed: &Observed,
    plan: &Plan,
) -> Result<(), StoreError> {
    let (cluster, trace) = (writer.cluster, writer.trace);
    let mut writes = Vec::new();
    for (host, spec) in &plan.specs {
        let Some((object, _)) = observed.hosts.get(host) else { continue };
        if writer.holds(object, Part::Spec) {
            continue;
        }
        let run = async move {
            let mut new = object.clone();
            new.json["spec"] = json(spec);
            let applying = traced(trace, "apply spec", &object.key);
            // Known before it is written: the host's session may see it sooner than this does.
            cluster.traced.carry(host, spec, &applying);
            told(&applying, cluster.store.replace(&new, MANAGER).await)?;
            drop(applying);
            let taken: Vec<&Step> = plan.steps.iter().filter(|step| step.host == *host).collect();
            for step in &taken {
                tracing::info!(%step, "step taken");
                cluster.metrics.step(reason_of(step));
            }
            note(cluster, taken.into_iter().filter_map(note_of_step).collect()).await;
            Ok(())
        };
        writes.push(Write { object, run: run.boxed() });
    }
    writer.settle(Part::Spec, writes).await
}

/// When each deployment's status was written last, by the clock that counts sleep.
pub(super) type Written = BTreeMap<DeploymentRef, Duration>;

/// Writes the statuses that differ, and notes each condition that has turned. How long until the figures of transfers, which may
/// be all that has moved, are due.
pub(super) async fn statuses(
    writer: &mut Writer<'_>,
    observed: &Observed,
    plan: &Plan,
    written: &mut Written,
) -> Result<Duration, StoreError> {
    let (cluster, trace) = (writer.cluster, writer.trace);
    let (now, mut due) = (cluster.clock.elapsed(), Duration::MAX);
    written.retain(|key, _| plan.statuses.contains_key(key));
    let mut writes = Vec::new();
    for (key, status) in &plan.statuses {
        let Some((object, deployment)) = observed.deployments.get(key) else { continue };
        if deployment.status.as_ref() == Some(status) || writer.holds(object, Part::Status) {
            continue;
        }
        let since = written.get(key).map_or(Duration::MAX, |at| now.saturating_sub(*at));
        if since < WHILE_MOVING && deployment.status.as_ref().is_some_and(|before| only_moves(before, status))
        {
            due = due.min(WHILE_MOVING - since);
            continue;
        }
        written.insert(key.clone(), now);
        let run = async move {
            let applying = traced(trace, "apply status", &object.key);
            let written = cluster.store.replace_status(&object.key, &object.version, json(status)).await;
            told(&applying, written)?;
            drop(applying);
            let before = deployment.status.as_ref().map_or(&[][..], |status| &status.conditions);
            note(cluster, turned(&object.key, before, status)).await;
            Ok(())
        };
        writes.push(Write { object, run: run.boxed() });
    }
    writer.settle(Part::Status, writes).await?;
    Ok(due)
}

/// A silent host's object says so, and a host that is heard again, too.
pub(super) async fn marks(writer: &mut Writer<'_>, observed: &Observed) -> Result<(), StoreError> {
    let cluster = writer.cluster;
    let mut writes = Vec::new();
    for (name, (object, host)) in &observed.hosts {
        let (Some(status), Some(presence)) = (&host.status, observed.presence.get(name)) else { continue };
        let (answer, reason, message) = match presence {
            HostObservation::Unknown { .. } => (
                ConditionStatus::Unknown,
                "Silent",
                "the host's agent is not heard; what runs there may go on serving",
            ),
            HostObservation::Known(_) => (ConditionStatus::True, "Reporting", "the agent reports"),
        };
        let known = find(&status.conditions, READY).map(|condition| condition.status);
        if known == Some(answer) || writer.holds(object, Part::Status) {
            continue;
        }
        let run = async move {
            // A spec written in this pass has changed the version; a newer report leaves this to the next pass.
            let newest = cluster.store.get(&object.key).await?;
            let Some(newest) = newest.filter(|newest| newest.status() == object.status()) else {
                return Ok(());
            };
            let mut new = status.clone();
            new.conditions.retain(|condition| condition.type_ != READY);
            new.conditions.insert(0, ready(&newest, answer, reason, message, cluster.now()));
            cluster.store.replace_status(&newest.key, &newest.version, json(&new)).await?;
            tracing::info!(host = name, ready = ?answer, "a host's Ready condition has turned");
            Ok(())
        };
        writes.push(Write { object, run: run.boxed() });
    }
    writer.settle(Part::Status, writes).await
}

/// One write, as a part of its pass.
fn traced(pass: &Span, name: &'static str, object: &Key) -> Span {
    let span = pass.child(name);
    if span.is_on() {
        span.note("object", object.to_string());
    }
    span
}

fn told<T>(write: &Span, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
    outcome.inspect_err(|error| write.fail(&error.to_string()))
}

/// Whether two statuses differ in no more than the figures of transfers that both have.
fn only_moves(before: &InferenceDeploymentStatus, after: &InferenceDeploymentStatus) -> bool {
    let still = |status: &InferenceDeploymentStatus| {
        let mut status = status.clone();
        for placement in &mut status.placements {
            placement.transfer = placement.transfer.map(|_| TransferStatus::default());
        }
        status
    };
    still(before) == still(after)
}

/// Says loudly that a plan was refused.
pub(super) async fn refused(
    cluster: &Cluster,
    observed: &Observed,
    findings: &[String],
    said: &mut Said,
) -> Result<(), StoreError> {
    let text = findings.join("; ");
    if !said.anew("lint", &text) {
        return Ok(());
    }
    tracing::error!(findings = text, "the plan breaks its own rules: nothing of it is applied");
    let note = |object: &Object| EventNote {
        about: object.key.clone(),
        severity: Severity::Warning,
        reason: "PlanRefused".to_owned(),
        message: format!("the operator's plan breaks its own rules, so nothing is changed: {text}"),
    };
    cluster.store.record_events(observed.deployments.values().map(|(object, _)| note(object)).collect()).await
}

fn json<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("API types are JSON")
}

fn note_of_step(step: &Step) -> Option<EventNote> {
    use tandem_plan::Action;
    let about = key(step.deployment()?);
    let workload = match &step.action {
        Action::Lead { .. } => return None,
        Action::Start { workload, .. }
        | Action::Replace { workload, .. }
        | Action::Promote { workload, .. }
        | Action::Demote { workload, .. }
        | Action::Revise { workload, .. }
        | Action::Stop { workload, .. } => workload,
    };
    let message = format!("{workload} on {}: {}", step.host, step.reason);
    Some(EventNote { about, severity: Severity::Normal, reason: reason_of(step).to_owned(), message })
}

/// One word for a step.
fn reason_of(step: &Step) -> &'static str {
    use tandem_plan::Action;
    match &step.action {
        Action::Lead { .. } => "Leading",
        Action::Start { .. } => "Starting",
        Action::Replace { .. } => "Replacing",
        Action::Promote { .. } => "Promoting",
        Action::Demote { .. } => "Demoting",
        Action::Revise { .. } => "Revising",
        Action::Stop { .. } => "Stopping",
    }
}

fn key(deployment: &DeploymentRef) -> Key {
    Key::deployment(&deployment.namespace, &deployment.name)
}

/// Conditions that a person may want to know the time of: an answer that has turned, and each new reason why a person is needed.
/// What a new deployment does not have yet is no news.
fn turned(about: &Key, before: &[Condition], after: &InferenceDeploymentStatus) -> Vec<EventNote> {
    let news = |condition: &&Condition| {
        let before = find(before, &condition.type_);
        let answers_else = before.is_some_and(|known| known.status != condition.status);
        match condition.type_.as_str() {
            READY | REDUNDANT => {
                answers_else || (before.is_none() && condition.status == ConditionStatus::True)
            }
            STALLED => {
                let other_reason = before.is_none_or(|known| known.reason != condition.reason);
                answers_else || (condition.status == ConditionStatus::True && other_reason)
            }
            _ => false,
        }
    };
    after.conditions.iter().filter(news).map(|condition| note_of_condition(about, condition)).collect()
}

fn note_of_condition(about: &Key, condition: &Condition) -> EventNote {
    let bad = match condition.type_.as_str() {
        READY | REDUNDANT => condition.status == ConditionStatus::False,
        _ => condition.status == ConditionStatus::True,
    };
    EventNote {
        about: about.clone(),
        severity: if bad { Severity::Warning } else { Severity::Normal },
        reason: condition.reason.clone(),
        message: format!("{}: {}", condition.type_, condition.message),
    }
}

#[cfg(test)]
mod tests {
    use tandem_crds::PlacementStatus;

    use super::*;

    #[test]
    fn figures_of_a_transfer_move_and_its_beginning_and_end_are_more() {
        let status = |transfer: Option<u64>| InferenceDeploymentStatus {
            placements: vec![PlacementStatus {
                workload: "w".to_owned(),
                host: "a".to_owned(),
                epoch: 1,
                state: "Fetching".to_owned(),
                transfer: transfer
                    .map(|done_bytes| TransferStatus { done_bytes, ..TransferStatus::default() }),
            }],
            ..InferenceDeploymentStatus::default()
        };
        assert!(only_moves(&status(Some(1)), &status(Some(2))));
        assert!(!only_moves(&status(None), &status(Some(2))));
        assert!(!only_moves(&status(Some(1)), &status(None)));
        let mut other = status(Some(2));
        other.placements[0].state = "Starting".to_owned();
        assert!(!only_moves(&status(Some(1)), &other));
    }
}
