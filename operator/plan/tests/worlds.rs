//! Small worlds against an exhaustive search, and random lives of a fleet against what must always hold.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fleet;

use std::collections::BTreeSet;

use fleet::{Fleet, key, spec, warm};
use proptest::prelude::*;
use tandem_crds::WorkloadState;
use tandem_crds::{InferenceDeploymentSpec, Standby};

/// Copies that remain after the worst `failures` hosts vanish, by trying every set of hosts.
fn worst_case(copies: &[u32], failures: u32) -> u32 {
    (0_u32..1 << copies.len())
        .filter(|gone| gone.count_ones() <= failures)
        .map(|gone| {
            copies
                .iter()
                .enumerate()
                .filter(|(host, _)| gone & (1 << host) == 0)
                .map(|(_, copies)| copies)
                .sum()
        })
        .min()
        .unwrap_or(0)
}

/// The fewest copies that hold the promise within each host's limit, by trying every placement.
fn fewest(limits: &[u32], replicas: u32, failures: u32) -> Option<u32> {
    let mut placements = vec![Vec::new()];
    for limit in limits {
        placements = placements
            .into_iter()
            .flat_map(|placement: Vec<u32>| {
                (0..=*limit).map(move |copies| [placement.clone(), vec![copies]].concat())
            })
            .collect();
    }
    placements
        .into_iter()
        .filter(|placement| worst_case(placement, failures) >= replicas)
        .map(|placement| placement.iter().sum())
        .min()
}

fn wants(standby: Standby, replicas: u32, failures: u32) -> InferenceDeploymentSpec {
    match standby {
        Standby::Hot => spec(replicas, failures),
        Standby::Warm => warm(replicas, failures),
    }
}

fn standby() -> impl Strategy<Value = Standby> {
    prop_oneof![Just(Standby::Hot), Just(Standby::Warm)]
}

fn names(hosts: usize) -> Vec<String> {
    (0..hosts).map(|host| format!("h{host}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The older deployment gets the fewest copies that any placement could do with; the younger the fewest that what is left
    /// allows; and where the promise can't be held, the condition says so and as much as possible serves.
    #[test]
    fn placement_is_what_an_exhaustive_search_finds(
        units in prop::collection::vec(0_u64..7, 1..5),
        wants in prop::collection::vec((1_u32..4, 0_u32..3, 1_u64..4, standby()), 1..3),
    ) {
        let mut fleet = Fleet::new();
        let hosts = names(units.len());
        for (host, units) in hosts.iter().zip(&units) {
            fleet.join(host, *units);
        }
        for (index, (replicas, failures, size, standby)) in wants.iter().enumerate() {
            fleet.apply(&format!("d{index}"), self::wants(*standby, *replicas, *failures), *size);
        }
        let plans = fleet.settle();
        let stops = |step: &&tandem_plan::Step| matches!(step.action, tandem_plan::Action::Stop { .. });
        let in_vain: Vec<_> = plans.iter().flat_map(|plan| &plan.steps).filter(stops).collect();
        prop_assert!(in_vain.is_empty(), "started in vain: {in_vain:?}");
        let mut left = units.clone();
        for (index, (replicas, failures, size, standby)) in wants.iter().enumerate() {
            let name = format!("d{index}");
            let limits: Vec<u32> = left.iter().map(|units| (units / size) as u32).collect();
            let assigned = fleet.assigned(&name);
            let placed: Vec<u32> = hosts.iter().map(|host| assigned[host]).collect();
            prop_assert!(placed.iter().zip(&limits).all(|(placed, limit)| placed <= limit), "{placed:?} of {limits:?}");
            let status = fleet.deployment(&name).status.clone().unwrap();
            let all = placed.iter().sum::<u32>();
            let serving = if *standby == Standby::Hot { all } else { all.min(*replicas) };
            prop_assert_eq!((fleet.serving(&name), status.ready_copies), (serving, serving));
            let redundant = tandem_crds::condition::is_true(&status.conditions, "Redundant");
            match fewest(&limits, *replicas, *failures) {
                Some(count) => {
                    prop_assert_eq!(placed.iter().sum::<u32>(), count, "{:?} within {:?}", placed, limits);
                    prop_assert!(worst_case(&placed, *failures) >= *replicas);
                    prop_assert!(redundant);
                }
                None => {
                    prop_assert!(!redundant);
                    // As much of it as the hosts allow, for each number of failures.
                    for fewer in 0..=*failures {
                        let best = worst_case(&limits, fewer).min(*replicas);
                        prop_assert!(worst_case(&placed, fewer) >= best, "{:?} within {:?}", placed, limits);
                    }
                    let possible = (*replicas).min(limits.iter().sum());
                    prop_assert!(placed.iter().sum::<u32>() >= possible);
                    prop_assert_eq!(tandem_crds::condition::is_true(&status.conditions, "Ready"), possible > 0);
                    prop_assert_eq!(tandem_crds::condition::is_true(&status.conditions, "Stalled"), possible == 0);
                }
            }
            for (left, placed) in left.iter_mut().zip(&placed) {
                *left -= u64::from(*placed) * size;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Join(u64),
    Kill(usize),
    CutOff(usize),
    Revive(usize),
    Remove(usize),
    Cordon(usize),
    Uncordon(usize),
    Drain(usize),
    Apply(usize, u32, u32, u64, Standby),
    Requantise(usize, u64),
    Scale(usize, u32),
    Delete(usize),
    Pass(i64),
    Obey,
    Crash(usize),
    Collect,
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1_u64..6).prop_map(Event::Join),
        2 => (0_usize..5).prop_map(Event::Kill),
        1 => (0_usize..5).prop_map(Event::CutOff),
        2 => (0_usize..5).prop_map(Event::Revive),
        1 => (0_usize..5).prop_map(Event::Remove),
        1 => (0_usize..5).prop_map(Event::Cordon),
        1 => (0_usize..5).prop_map(Event::Uncordon),
        1 => (0_usize..5).prop_map(Event::Drain),
        3 => (0_usize..3, 0_u32..4, 0_u32..3, 1_u64..3, standby())
            .prop_map(|(name, r, f, u, s)| Event::Apply(name, r, f, u, s)),
        1 => (0_usize..3, 1_u64..4).prop_map(|(name, units)| Event::Requantise(name, units)),
        2 => (0_usize..3, 0_u32..4).prop_map(|(name, replicas)| Event::Scale(name, replicas)),
        1 => (0_usize..3).prop_map(Event::Delete),
        3 => prop_oneof![Just(3_i64), Just(12), Just(61)].prop_map(Event::Pass),
        3 => Just(Event::Obey),
        1 => (0_usize..5).prop_map(Event::Crash),
        2 => Just(Event::Collect),
        2 => Just(Event::Settle),
    ]
}

/// One event; those that make no sense now do nothing.
fn happen(fleet: &mut Fleet, event: &Event, joined: &mut usize) {
    let hosts: Vec<String> = fleet.machines.keys().cloned().collect();
    let host = |index: &usize| hosts.get(index % hosts.len().max(1)).cloned();
    let exists = |fleet: &Fleet, name: &str| fleet.state.models.contains_key(&key(name));
    match event {
        Event::Join(units) if hosts.len() < 5 => {
            let name = format!("h{joined}");
            fleet.join(&name, *units);
            fleet.machines.get_mut(&name).unwrap().files = Some(BTreeSet::new());
            *joined += 1;
        }
        Event::Kill(index) => {
            if let Some(host) = host(index).filter(|host| fleet.machines[host].alive) {
                fleet.kill(&host);
            }
        }
        Event::CutOff(index) => {
            if let Some(host) = host(index).filter(|host| fleet.machines[host].alive) {
                fleet.cut_off(&host);
            }
        }
        Event::Revive(index) => host(index).into_iter().for_each(|host| fleet.revive(&host)),
        Event::Remove(index) => host(index).into_iter().for_each(|host| fleet.remove_host(&host)),
        Event::Cordon(index) => host(index).into_iter().for_each(|host| fleet.cordon(&host, true)),
        Event::Uncordon(index) => host(index).into_iter().for_each(|host| fleet.cordon(&host, false)),
        Event::Drain(index) => host(index).into_iter().for_each(|host| fleet.drain(&host)),
        Event::Apply(name, replicas, failures, units, standby) => {
            fleet.apply(&format!("d{name}"), wants(*standby, *replicas, *failures), *units);
        }
        Event::Requantise(name, units) => {
            let name = format!("d{name}");
            if exists(fleet, &name) {
                let mut spec = fleet.deployment(&name).spec.clone();
                spec.quant = format!("Q{units}_K");
                fleet.apply(&name, spec, *units);
            }
        }
        Event::Scale(name, replicas) => {
            let name = format!("d{name}");
            if exists(fleet, &name) {
                fleet.scale(&name, *replicas);
            }
        }
        Event::Delete(name) => fleet.delete(&format!("d{name}")),
        Event::Pass(seconds) => fleet.pass(*seconds),
        Event::Obey => {
            fleet.obey();
        }
        Event::Crash(index) => {
            if let Some(host) = host(index) {
                for (_, state) in fleet.machines.get_mut(&host).unwrap().running.values_mut() {
                    *state = WorkloadState::Loading;
                }
            }
        }
        Event::Collect => fleet.collect(),
        Event::Settle => {
            fleet.settle();
        }
        Event::Join(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, in whatever order: every plan passes the linter, planning again changes nothing, and once the world
    /// holds still, the fleet does, too, with what can be promised kept.
    #[test]
    fn a_fleet_lives_through_anything(events in prop::collection::vec(event(), 1..40)) {
        let mut fleet = Fleet::new();
        let mut joined = 0;
        for event in &events {
            happen(&mut fleet, event, &mut joined);
            fleet.plan();
        }
        let silent: Vec<String> =
            fleet.machines.iter().filter(|(_, machine)| !machine.alive).map(|(name, _)| name.clone()).collect();
        silent.iter().for_each(|host| fleet.revive(host));
        for host in fleet.machines.keys().cloned().collect::<Vec<_>>() {
            fleet.cordon(&host, false);
        }
        fleet.settle();
        for deployment in &fleet.state.deployments {
            let name = deployment.metadata.name.as_deref().unwrap();
            let conditions = &deployment.status.as_ref().unwrap().conditions;
            let is = |type_| tandem_crds::condition::is_true(conditions, type_);
            let placed: Vec<u32> = fleet.assigned(name).into_values().collect();
            let (replicas, failures) = (deployment.spec.replicas, deployment.spec.redundancy.host_failures);
            prop_assert_eq!(is("Redundant"), worst_case(&placed, failures) >= replicas, "{}: {:?}", name, placed);
            let all = placed.iter().sum::<u32>();
            prop_assert_eq!(is("Ready"), replicas > 0 && all > 0);
            let hot = deployment.spec.redundancy.standby == Standby::Hot;
            let shall = if hot { all } else { all.min(replicas) };
            if is("Stalled") {
                // What can't be applied leaves copies of the old version as they are, beside those of the new one that serve.
                prop_assert!((all.min(replicas)..=all).contains(&fleet.serving(name)), "{}", name);
            } else {
                prop_assert_eq!(fleet.serving(name), shall, "{}", name);
            }
            prop_assert!(!is("Reconciling") || is("Stalled") || !is("Redundant") , "{}: {:#?}", name, conditions);
            // No copy is there that the promise does not need.
            if is("Redundant") {
                for host in 0..placed.len() {
                    let mut fewer = placed.clone();
                    if fewer[host] > 0 {
                        fewer[host] -= 1;
                        prop_assert!(worst_case(&fewer, failures) < replicas, "{}: {:?} has a spare copy", name, placed);
                    }
                }
            }
        }
    }
}
