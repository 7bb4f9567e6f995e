//! A planner that follows changes says what a plan in full says, whatever happens.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod site;

use proptest::prelude::*;
use tandem_crds::{Lane, WorkloadState};
use tandem_plan::{Plan, Planner, lint, plan};

use site::{Asked, Event, HOSTS, KEYS, Site, event, key, tell_of};

/// Follows one event after the other; how many plans were made, and how many of them thought of a part only.
fn follow(events: &[(Event, bool, bool)]) -> Result<(usize, usize), TestCaseError> {
    let mut site = Site::new();
    let mut planner = Planner::new();
    planner.lead(site.state.term);
    let (mut plans, mut partial) = (0, 0);
    for (event, whole, plans_now) in events {
        site.happen(event);
        if *whole {
            planner.tell(site.state.clone(), site.seen.clone());
        } else {
            tell_of(&mut planner, &site, event);
        }
        if !plans_now {
            continue;
        }
        let full = plan(&site.state, &site.seen, site.now).unwrap();
        let next = planner.plan(site.now).unwrap().clone();
        prop_assert_eq!(&next, &full, "after {:?}", event);
        plans += 1;
        partial += usize::from(planner.decided().is_some_and(|some| some < site.state.deployments.len()));
        site.last = full;
    }
    if planner.plan(site.now).is_ok() {
        prop_assert!(planner.check(site.now).unwrap(), "the newest plan is the one in full");
    }
    Ok((plans, partial))
}

/// Hosts and deployments to begin with, all running.
fn beginning() -> Vec<(Event, bool, bool)> {
    let asked = |number: usize| Asked {
        replicas: 1,
        failures: 1,
        warm: number % 2 == 1,
        lane: Lane::default(),
        pool: None,
        name: (number % 3) as u8,
        version: (number % 4) as u8,
        units: 1,
        patience: 60,
    };
    let hosts =
        (0..HOSTS).map(|host| Event::Join { host, units: 3, zone: (host % 3) as u8, pool: (host % 2) as u8 });
    let deployments = (0..KEYS.len()).map(|number| Event::Deploy(number, number as u8, asked(number)));
    let settle = (0..4).flat_map(|_| [Event::Carry(u16::MAX), Event::ObeyAll]);
    hosts.chain(deployments).chain(settle).map(|event| (event, false, true)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, and whether the planner is told all or only what changed, at once or later: the plan is the one that is
    /// made in full.
    #[test]
    fn following_changes_ends_where_planning_in_full_does(
        settled in any::<bool>(),
        events in prop::collection::vec((event(), prop::bool::weighted(0.3), prop::bool::weighted(0.8)), 1..60),
    ) {
        let mut all = if settled { beginning() } else { Vec::new() };
        all.extend(events);
        follow(&all)?;
    }
}

#[test]
fn a_change_is_thought_about_where_it_is() {
    let mut events = beginning();
    let before = events.len();
    let after = [
        Event::Carry(u16::MAX),
        Event::ObeyAll,
        Event::Silent(0),
        Event::Pass(4),
        Event::Heard(0),
        Event::Obey(1, WorkloadState::Loading),
        Event::Obey(1, WorkloadState::Ready),
        Event::Scale(2, 2),
        Event::Cordon(3, true),
    ];
    events.extend(after.map(|event| (event, false, true)));
    let (_, partial_before) = follow(&events[..before]).unwrap();
    let (plans, partial) = follow(&events).unwrap();
    assert_eq!((plans - before, partial - partial_before), (9, 9), "each of these touches a part");
}

#[test]
fn nothing_is_thought_about_when_nothing_happens() {
    let mut site = Site::new();
    let mut planner = Planner::new();
    for (event, ..) in beginning() {
        site.happen(&event);
        site.last = plan(&site.state, &site.seen, site.now).unwrap();
    }
    site.happen(&Event::Carry(u16::MAX));
    site.happen(&Event::ObeyAll);
    for _ in 0..3 {
        site.last = plan(&site.state, &site.seen, site.now).unwrap();
        site.happen(&Event::CarryStatuses(u8::MAX));
    }
    planner.tell(site.state.clone(), site.seen.clone());
    planner.plan(site.now).unwrap();
    assert_eq!(planner.decided(), Some(KEYS.len()), "the first plan thinks about all");
    planner.tell(site.state.clone(), site.seen.clone());
    site.happen(&Event::Pass(1));
    let made = planner.plan(site.now).unwrap().clone();
    assert!(made.steps.is_empty() && made.specs.is_empty(), "{:#?}", made.steps);
    assert!(lint(planner.state(), planner.observation(), site.now, &made).is_empty());
    assert_eq!(planner.decided(), Some(0));
    // Time has passed for a silent host, and nobody has planned since: what was said then is not what is said now.
    site.happen(&Event::Silent(0));
    planner.tell(site.state.clone(), site.seen.clone());
    planner.plan(site.now).unwrap();
    site.happen(&Event::Pass(61));
    assert!(!planner.check(site.now).unwrap());
    assert_eq!(planner.planned(), &plan(&site.state, &site.seen, site.now).unwrap());
    assert!(planner.check(site.now).unwrap());
}

/// Who holds the room that somebody lacks is told by name, so that it matters even where as much is held as before.
#[test]
fn a_refusal_names_who_holds_the_room_now() {
    let asked = |units, lane| Asked {
        replicas: 1,
        failures: 0,
        warm: false,
        lane,
        pool: None,
        name: 0,
        version: 0,
        units,
        patience: 60,
    };
    let mut site = Site::new();
    let events = [
        Event::Join { host: 0, units: 3, zone: 0, pool: 0 },
        Event::Join { host: 1, units: 2, zone: 0, pool: 0 },
        Event::Deploy(0, 0, asked(2, Lane::Production)),
        Event::Deploy(2, 1, asked(2, Lane::Production)),
        Event::Deploy(4, 2, asked(3, Lane::Production)),
    ];
    let mut planner = Planner::new();
    for event in &events {
        site.happen(event);
    }
    for _ in 0..4 {
        site.last = plan(&site.state, &site.seen, site.now).unwrap();
        site.happen(&Event::Carry(u16::MAX));
        site.happen(&Event::ObeyAll);
    }
    planner.tell(site.state.clone(), site.seen.clone());
    let refused = |plan: &Plan| format!("{:?}", plan.statuses[&key(4)].conditions);
    assert!(refused(planner.plan(site.now).unwrap()).contains("a/d, which is older, holds"));
    let whose = |site: &mut Site, number: usize| site.host(number).unwrap().spec.workloads.clone();
    let (first, second) = (whose(&mut site, 0), whose(&mut site, 1));
    site.host(0).unwrap().spec.workloads = second;
    site.host(1).unwrap().spec.workloads = first;
    planner.tell(site.state.clone(), site.seen.clone());
    let next = planner.plan(site.now).unwrap();
    assert_eq!(next, &plan(&site.state, &site.seen, site.now).unwrap());
    assert!(refused(next).contains("a/b-c, which is older, holds"), "{}", refused(next));
}

#[test]
fn another_leader_ends_planning_and_it_begins_again_above_it() {
    let mut site = Site::new();
    let mut planner = Planner::new();
    planner.lead(site.state.term);
    for (event, ..) in beginning() {
        site.happen(&event);
        tell_of(&mut planner, &site, &event);
        site.last = planner.plan(site.now).unwrap().clone();
    }
    site.host(4).unwrap().spec.term = 7;
    planner.host(site.host(4).unwrap().clone());
    assert_eq!(planner.plan(site.now).unwrap_err().term, 7);
    assert_eq!(planner.plan(site.now).unwrap_err().host, "h4", "it is not forgotten");
    planner.lead(8);
    site.state.term = 8;
    assert_eq!(planner.plan(site.now).unwrap(), &plan(&site.state, &site.seen, site.now).unwrap());
}
