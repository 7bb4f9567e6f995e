//! Warm copies in the life of a small fleet, told as incident reports: see `scenarios`, whose way of telling this is.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fleet;
mod story;

use fleet::{resolved, spec, warm};
use story::Story;
use tandem_crds::WorkloadState;

fn three_hosts() -> Story {
    let mut story = Story::new();
    story.then("hosts a, b and c join, one copy's room each", |fleet| {
        ["a", "b", "c"].iter().for_each(|host| fleet.join(host, 4))
    });
    story.then("kimi is applied: 1 replica, hostFailures 1, standby Warm", |fleet| {
        fleet.apply("kimi", warm(1, 1), 4)
    });
    story
}

#[test]
fn the_serving_host_dies_and_a_warm_copy_serves() {
    let mut story = three_hosts();
    story.then("host a falls silent", |fleet| fleet.kill("a"));
    story.then("5 s later", |fleet| fleet.pass(5));
    story.then("60 s after the silence began", |fleet| fleet.pass(55));
    story.then("host a returns, empty", |fleet| fleet.revive("a"));
    insta::assert_snapshot!(story.report);
}

#[test]
fn the_serving_host_is_cut_off_and_comes_back() {
    let mut story = three_hosts();
    story.then("host a falls silent for 20 s and goes on serving", |fleet| {
        fleet.cut_off("a");
        fleet.pass(20);
    });
    story.then("host a returns, as it was", |fleet| fleet.revive("a"));
    story.then("host a falls silent for 3 s", |fleet| {
        fleet.cut_off("a");
        fleet.pass(3);
    });
    story.then("host a returns again", |fleet| fleet.revive("a"));
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_serving_copy_ends_by_itself() {
    let mut story = three_hosts();
    story.then("the copy on a ends and is started again", |fleet| {
        for (_, state) in fleet.machines.get_mut("a").unwrap().running.values_mut() {
            *state = WorkloadState::Failed;
        }
    });
    insta::assert_snapshot!(story.report);
}

#[test]
fn scaling_and_standby_change() {
    let mut story = three_hosts();
    story.then("on-call scales to 2", |fleet| fleet.scale("kimi", 2));
    story.then("on-call scales to 1", |fleet| fleet.scale("kimi", 1));
    story.then("standby becomes Hot", |fleet| fleet.apply("kimi", spec(1, 1), 4));
    story.then("standby becomes Warm again", |fleet| fleet.apply("kimi", warm(1, 1), 4));
    story.then("hostFailures becomes 0", |fleet| fleet.apply("kimi", warm(1, 0), 4));
    insta::assert_snapshot!(story.report);
}

#[test]
fn another_version_rolls_in_and_the_serving_host_dies_meanwhile() {
    let mut story = Story::new();
    story.then("hosts a and b join, one copy's room each", |fleet| {
        ["a", "b"].iter().for_each(|host| fleet.join(host, 4))
    });
    story.then("kimi is applied: 1 replica, hostFailures 1, standby Warm", |fleet| {
        fleet.apply("kimi", warm(1, 1), 4)
    });
    story.then("its quant becomes Q2_K", |fleet| {
        let mut other = warm(1, 1);
        other.quant = "Q2_K".to_owned();
        fleet.apply_model("kimi", other, resolved("Q2_K", 3));
    });
    story.then("another quant is asked for and looked up", |fleet| {
        let mut other = warm(1, 1);
        other.quant = "Q3_K".to_owned();
        fleet.apply_model("kimi", other, tandem_plan::Model::Resolving);
    });
    story.then("the serving host dies before it is found", |fleet| {
        let dead = fleet.host_that_serves("kimi");
        fleet.kill(&dead);
        fleet.pass(6);
    });
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_drained_host_hands_over_first() {
    let mut story = three_hosts();
    story.then("host a is drained", |fleet| fleet.drain("a"));
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_storm_places_nothing_and_a_warm_copy_serves() {
    let mut story = three_hosts();
    story.then("hosts a and c fall silent at once", |fleet| {
        ["a", "c"].iter().for_each(|host| fleet.cut_off(host));
        fleet.pass(6);
    });
    story.then("they return", |fleet| ["a", "c"].iter().for_each(|host| fleet.revive(host)));
    insta::assert_snapshot!(story.report);
}

#[test]
fn a_time_that_nobody_has_measured_is_not_invented() {
    let mut story = Story::new();
    story.then("hosts a and b join", |fleet| {
        ["a", "b"].iter().for_each(|host| fleet.join(host, 4));
        fleet.machines.get_mut("b").unwrap().seconds_to_ready = None;
    });
    story.then("kimi is applied: 1 replica, hostFailures 1, standby Warm", |fleet| {
        fleet.apply("kimi", warm(1, 1), 4)
    });
    story.then("host b has measured", |fleet| {
        fleet.machines.get_mut("b").unwrap().seconds_to_ready = Some(38);
    });
    insta::assert_snapshot!(story.report);
}

/// Two operators' worth of plans for one loss: the second finds the first one's promotion under way.
#[test]
fn one_loss_promotes_one_copy() {
    let mut fleet = fleet::Fleet::new();
    ["a", "b", "c", "d"].iter().for_each(|host| fleet.join(host, 4));
    fleet.apply("kimi", warm(1, 2), 4);
    fleet.settle();
    assert_eq!(fleet.serving("kimi"), 1);
    let dead = fleet.host_that_serves("kimi");
    fleet.kill(&dead);
    fleet.pass(5);
    let promotions = |plan: &tandem_plan::Plan| {
        let promotes = |step: &&tandem_plan::Step| matches!(step.action, tandem_plan::Action::Promote { .. });
        plan.steps.iter().filter(promotes).count()
    };
    assert_eq!(promotions(&fleet.plan()), 1);
    for _ in 0..3 {
        assert_eq!(promotions(&fleet.plan()), 0);
        fleet.obey();
    }
    assert_eq!(promotions(&fleet.plan()), 0);
}
