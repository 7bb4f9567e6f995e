//! Lives of a small fleet, told as incident reports. The reports are golden: `INSTA_UPDATE=always cargo test -p tandem-plan
//! --test scenarios` writes them anew, and their difference is what to review.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fleet;
mod story;

use fleet::{Fleet, resolved, selecting, spec};
use story::Story;
use tandem_crds::WorkloadState;
use tandem_plan::Model;

#[test]
fn a_host_dies_and_comes_back() {
    let mut story = Story::new();
    story.then("hosts a, b and c join, one copy's room each", |fleet| {
        ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 4))
    });
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("host a falls silent", |fleet| fleet.kill("a"));
    story.then("5 s later", |fleet| fleet.pass(5));
    story.then("7 s later", |fleet| fleet.pass(7));
    story.then("60 s after the silence began", |fleet| fleet.pass(48));
    story.then("host a returns", |fleet| fleet.revive("a"));
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_host_returns_before_its_place_is_taken() {
    let mut story = Story::new();
    story.then("hosts a, b and c join", |fleet| ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 4)));
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("host b falls silent for 30 s", |fleet| {
        fleet.cut_off("b");
        fleet.pass(30);
    });
    story.then("host b returns, as it was", |fleet| fleet.revive("b"));
    insta::assert_snapshot!(story.report);
}

#[test]
fn two_hosts_without_a_third() {
    let mut story = Story::new();
    story.then("hosts a and b join", |fleet| ["a", "b"].iter().for_each(|host| fleet.join(host, 4)));
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("host b falls silent for good", |fleet| {
        fleet.kill("b");
        fleet.pass(90);
    });
    story.then("host c joins with too little memory", |fleet| fleet.join("c", 3));
    story.then("host d joins", |fleet| fleet.join("d", 4));
    insta::assert_snapshot!(story.report);
}

#[test]
fn scaling() {
    let mut story = Story::new();
    story.then("hosts a, b and c join, two copies' room each", |fleet| {
        ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 8))
    });
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("on-call scales to 3", |fleet| fleet.scale("kimi", 3));
    story.then("on-call scales to 9", |fleet| fleet.scale("kimi", 9));
    story.then("on-call scales to 1", |fleet| fleet.scale("kimi", 1));
    story.then("on-call scales to 0", |fleet| fleet.scale("kimi", 0));
    insta::assert_snapshot!(story.report);
}

#[test]
fn cordon_and_drain() {
    let mut story = Story::new();
    story.then("hosts a, b and c join", |fleet| ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 4)));
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("host a is cordoned", |fleet| fleet.cordon("a", true));
    story.then("host a is drained", |fleet| fleet.drain("a"));
    story.then("host b is drained, too, and no other has room", |fleet| fleet.drain("b"));
    story.then("host c is drained, the last one", |fleet| fleet.drain("c"));
    story.then("host a is back in service", |fleet| fleet.cordon("a", false));
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_host_that_is_about_to_go_is_emptied_like_a_drained_one_and_taken_again_when_it_stays() {
    let mut fleet = Fleet::new();
    ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 4));
    fleet.apply("kimi", spec(1, 1), 4);
    fleet.settle();
    let on = |fleet: &mut Fleet, host: &str| fleet.host(host).spec.workloads.len();
    assert_eq!((on(&mut fleet, "a"), on(&mut fleet, "c")), (1, 0));
    fleet.leaving.insert("a".to_owned());
    // The copy on `a` stays until the one that takes its place is ready.
    fleet.plan();
    assert_eq!(on(&mut fleet, "a"), 1);
    fleet.settle();
    assert_eq!((on(&mut fleet, "a"), on(&mut fleet, "c")), (0, 1));
    fleet.leaving.clear();
    fleet.scale("kimi", 2);
    fleet.settle();
    assert_eq!(on(&mut fleet, "a"), 1);
}

#[test]
fn two_that_claim_one_name_are_told_apart_and_the_younger_says_so() {
    let mut fleet = Fleet::new();
    ["a", "b"].iter().for_each(|host| fleet.join(host, 8));
    let mut named = spec(1, 0);
    named.model.name = "kimi".to_owned();
    fleet.apply("first", named.clone(), 4);
    fleet.apply("second", named, 4);
    fleet.settle();
    let routes = fleet.plan().routes;
    let owns: Vec<_> =
        routes.iter().map(|route| (route.deployment.name.as_str(), route.owns_short_name)).collect();
    assert_eq!(owns, [("first", true), ("second", false)]);
    let told = |fleet: &mut Fleet, name: &str| {
        let status = fleet.deployment(name).status.clone().unwrap();
        status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap().message.clone()
    };
    assert_eq!(told(&mut fleet, "first"), "1 copy serves");
    assert_eq!(
        told(&mut fleet, "second"),
        "1 copy serves; clients ask for llm/kimi, as kimi is llm/first, which is older"
    );
}

#[test]
fn another_quant_rolls_in() {
    let mut story = Story::new();
    story.then("hosts a and b join, one copy's room each", |fleet| {
        ["a", "b"].iter().for_each(|host| fleet.join(host, 4))
    });
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("its quant becomes Q2_K", |fleet| {
        let mut other = spec(1, 1);
        other.quant = "Q2_K".to_owned();
        fleet.apply_model("kimi", other, Model::Resolving);
    });
    story.then("Q2_K is resolved: smaller", |fleet| {
        let wanted = fleet.deployment("kimi").spec.clone();
        fleet.apply_model("kimi", wanted, resolved("Q2_K", 3));
    });
    story.then("its quant becomes Q8_0: too large for any host", |fleet| {
        let mut other = spec(1, 1);
        other.quant = "Q8_0".to_owned();
        fleet.apply("kimi", other, 8);
    });
    story.then("its sampling changes, its quant goes back", |fleet| {
        let mut other = spec(1, 1);
        other.quant = "Q2_K".to_owned();
        other.sampling =
            Some(tandem_crds::Sampling { temperature: Some("0.5".to_owned()), ..Default::default() });
        fleet.apply("kimi", other, 3);
    });
    insta::assert_snapshot!(story.report);
}

#[test]
fn the_only_copy_is_not_given_up_for_another_version() {
    let mut story = Story::new();
    story.then("host a joins", |fleet| fleet.join("a", 4));
    story.then("kimi is applied: 1 replica, hostFailures 0", |fleet| fleet.apply("kimi", spec(1, 0), 4));
    story.then("its quant changes", |fleet| {
        let mut other = spec(1, 0);
        other.quant = "Q2_K".to_owned();
        fleet.apply("kimi", other, 3);
    });
    story.then("host b joins", |fleet| fleet.join("b", 4));
    insta::assert_snapshot!(story.report);
}

#[test]
fn what_does_not_fit_is_told_what_would() {
    let mut story = Story::new();
    story.then("kimi is applied to a fleet without hosts", |fleet| fleet.apply("kimi", spec(1, 2), 4));
    story.then("host a joins, too small", |fleet| fleet.join("a", 3));
    story.then("host b joins", |fleet| fleet.join("b", 4));
    story.then("a second deployment of the same model comes", |fleet| fleet.apply("copycat", spec(1, 0), 4));
    story.then("a third wants hosts that nobody has", |fleet| {
        fleet.apply("picky", selecting(("zone", "z"), spec(1, 0)), 1);
    });
    story.then("a fourth has no such files", |fleet| {
        let sentence = "no file is of quant Q4_K_M; there are Q8_0 and Q2_K: change spec.quant".to_owned();
        fleet.apply_model("lost", spec(1, 0), Model::Failed(sentence));
    });
    story.then("kimi is deleted", |fleet| fleet.delete("kimi"));
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_storm_freezes_placement() {
    let mut story = Story::new();
    story.then("hosts a, b, c and d join", |fleet| {
        ["a", "b", "c", "d"].iter().for_each(|host| fleet.join(host, 4))
    });
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("hosts a, b and c fall silent at once", |fleet| {
        ["a", "b", "c"].iter().for_each(|host| fleet.cut_off(host))
    });
    story.then("two minutes later", |fleet| fleet.pass(120));
    story.then("hosts a and c return", |fleet| ["a", "c"].iter().for_each(|host| fleet.revive(host)));
    insta::assert_snapshot!(story.report);
}

#[test]
fn copies_spread_over_zones() {
    let mut story = Story::new();
    story.then("hosts a and b join in zone 1, c in zone 2", |fleet| {
        for (host, zone) in [("a", "1"), ("b", "1"), ("c", "2")] {
            fleet.join_with_labels(host, 4, &[("topology.kubernetes.io/zone", zone)]);
        }
    });
    story.then("kimi is applied: 1 replica, hostFailures 1", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    insta::assert_snapshot!(story.report);
}

#[test]
fn another_leader_outranks() {
    let mut fleet = Fleet::new();
    fleet.join("a", 4);
    fleet.apply("kimi", spec(1, 0), 4);
    fleet.settle();
    fleet.host("a").spec.term = 7;
    let observation = fleet.observation();
    let refused = tandem_plan::plan(&fleet.state, &observation, fleet.now).unwrap_err();
    assert_eq!((refused.term, refused.own), (7, 1));
    fleet.state.term = 8;
    let plan = fleet.plan();
    assert_eq!(plan.specs["a"].term, 8, "a new leader fences earlier ones out");
    assert_eq!(plan.steps.len(), 1);
}

#[test]
fn copies_that_all_fail_need_a_person() {
    let mut fleet = Fleet::new();
    fleet.join("a", 4);
    fleet.apply("kimi", spec(1, 0), 4);
    fleet.settle();
    for (_, state) in fleet.machines.get_mut("a").unwrap().running.values_mut() {
        *state = WorkloadState::Failed;
    }
    let plan = fleet.plan();
    let conditions = &plan.statuses[&fleet::key("kimi")].conditions;
    let stalled = tandem_crds::condition::find(conditions, "Stalled").unwrap();
    assert_eq!(
        (stalled.reason.as_str(), stalled.message.as_str()),
        ("CopiesFailed", "llm-kimi-1 on a is Failed")
    );
    assert!(!tandem_crds::condition::is_true(conditions, "Ready"));
    let recovery = plan.statuses[&fleet::key("kimi")].recovery.clone().unwrap();
    assert_eq!(recovery.since, fleet.now);
}

/// Sized to the byte, and still nothing that a worker would load.
#[test]
fn a_model_of_types_without_kernels_is_refused_by_their_names() {
    let mut fleet = Fleet::new();
    fleet.join("a", 4);
    fleet.apply("kimi", spec(1, 0), 4);
    let Some(Model::Resolved(resolved)) = fleet.state.models.get_mut(&fleet::key("kimi")) else { panic!() };
    resolved.lacking = vec!["Q2_K".to_owned(), "Q3_K".to_owned()];
    let plan = fleet.plan();
    assert!(plan.steps.iter().all(|step| step.deployment().is_none()), "{:?}", plan.steps);
    let status = &plan.statuses[&fleet::key("kimi")];
    let stalled = tandem_crds::condition::find(&status.conditions, "Stalled").unwrap();
    assert_eq!(
        (stalled.reason.as_str(), stalled.message.as_str()),
        (
            "TypeNotSupported",
            "this release's kernels lack Q2_K, Q3_K, of which the files hold tensors; use a quant without them"
        )
    );
    assert!(status.sizing.is_some(), "its size is known all the same");
}

/// Between a spec that drops a copy and its host's word on it, gateways send it nothing new.
#[test]
fn a_copy_drains_as_soon_as_it_is_dropped() {
    let mut fleet = Fleet::new();
    fleet.join("a", 8);
    fleet.apply("kimi", spec(2, 0), 4);
    fleet.settle();
    fleet.scale("kimi", 1);
    fleet.plan();
    let route = &fleet.plan().routes[0];
    let told: Vec<_> =
        route.replicas.iter().map(|replica| (replica.workload.as_str(), replica.draining)).collect();
    assert_eq!(told, [("llm-kimi-1", false), ("llm-kimi-2", true)]);
}

/// A new leader has not heard from anyone yet: routes and conditions stay as they were.
#[test]
fn a_new_leader_takes_no_route_away() {
    let conditions = |plan: &tandem_plan::Plan| plan.statuses[&fleet::key("kimi")].conditions.clone();
    let mut fleet = Fleet::new();
    ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 4));
    fleet.apply("kimi", spec(1, 1), 4);
    let settled = fleet.settle().pop().unwrap();
    fleet.state.term = 2;
    ["a", "b", "c"].iter().for_each(|host| fleet.cut_off(host));
    fleet.pass(3);
    let plan = fleet.plan();
    assert_eq!((&plan.routes, conditions(&plan)), (&settled.routes, conditions(&settled)));
    fleet.revive("c");
    let plan = fleet.plan();
    assert_eq!((&plan.routes, conditions(&plan)), (&settled.routes, conditions(&settled)));
    assert!(plan.specs.values().all(|spec| spec.term == 2));
}
