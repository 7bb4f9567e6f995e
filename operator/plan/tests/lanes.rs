//! More is asked than fits: lanes before age, then the oldest, and nothing that runs is stopped for it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fleet;

use fleet::{Fleet, spec};
use tandem_crds::{InferenceDeploymentSpec, Lane, condition};

fn of_lane(lane: Lane) -> InferenceDeploymentSpec {
    let mut spec = spec(1, 0);
    spec.placement.lane = lane;
    spec
}

fn copies(fleet: &Fleet, name: &str) -> u32 {
    fleet.assigned(name).values().sum()
}

/// Reason and message of why a deployment does not serve.
fn refusal(fleet: &Fleet, name: &str) -> (String, String) {
    let conditions = &fleet.deployment(name).status.as_ref().unwrap().conditions;
    let ready = condition::find(conditions, condition::READY).unwrap();
    assert_eq!(ready.status, tandem_crds::ConditionStatus::False);
    assert!(condition::is_true(conditions, condition::STALLED));
    (ready.reason.clone(), ready.message.clone())
}

#[test]
fn a_younger_production_deployment_is_placed_before_an_older_batch_one() {
    let mut fleet = Fleet::new();
    fleet.join("a", 1);
    fleet.apply("older", of_lane(Lane::Batch), 1);
    fleet.apply("younger", of_lane(Lane::Production), 1);
    fleet.settle();
    assert_eq!((copies(&fleet, "older"), copies(&fleet, "younger")), (0, 1));
    let (reason, message) = refusal(&fleet, "older");
    assert_eq!(reason, "DoesNotFit");
    let holds = "llm/younger, which is of lane Production, before Batch, holds 1.0 GiB on a";
    assert!(message.contains(holds), "{message}");
}

#[test]
fn nothing_that_runs_is_stopped_for_another_lane() {
    let mut fleet = Fleet::new();
    fleet.join("a", 1);
    fleet.apply("batch", of_lane(Lane::Batch), 1);
    fleet.settle();
    fleet.apply("production", of_lane(Lane::Production), 1);
    fleet.settle();
    assert_eq!((copies(&fleet, "batch"), copies(&fleet, "production")), (1, 0));
    let (_, message) = refusal(&fleet, "production");
    assert!(message.contains("llm/batch, which runs already, holds 1.0 GiB on a"), "{message}");
    // What gets free goes to the lane that comes first.
    fleet.apply("waiting", of_lane(Lane::Batch), 1);
    fleet.delete("batch");
    fleet.settle();
    assert_eq!((copies(&fleet, "waiting"), copies(&fleet, "production")), (0, 1));
}

#[test]
fn within_a_lane_the_oldest_wins() {
    let mut fleet = Fleet::new();
    fleet.join("a", 2);
    for name in ["first", "second", "third"] {
        fleet.apply(name, of_lane(Lane::Batch), 1);
    }
    fleet.settle();
    assert_eq!(["first", "second", "third"].map(|name| copies(&fleet, name)), [1, 1, 0]);
    let (_, message) = refusal(&fleet, "third");
    assert!(message.contains("llm/first, which is older") && message.contains("llm/second, which is older"));
}
