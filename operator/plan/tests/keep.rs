//! Files that hosts keep although nothing there uses them: the last copies of what somebody wants.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod fleet;

use std::collections::BTreeSet;

use fleet::{Fleet, digest, spec};
use proptest::prelude::*;

const QUANT: &str = "Q4_K_M";

/// Hosts, each with these files on its disk.
fn fleet(hosts: &[(&str, &[&str])]) -> Fleet {
    let mut fleet = Fleet::new();
    for (name, quants) in hosts {
        fleet.join(name, 4);
        let files = quants.iter().map(|quant| digest(quant)).collect();
        fleet.machines.get_mut(*name).unwrap().files = Some(files);
    }
    fleet
}

/// Names of the hosts that keep the file of a quant.
fn keep(fleet: &Fleet, quant: &str) -> Vec<String> {
    let hosts = fleet.state.hosts.iter().filter(|host| host.spec.keep_files.contains(&digest(quant)));
    hosts.map(|host| host.metadata.name.clone().unwrap()).collect()
}

#[test]
fn what_is_scaled_to_nothing_stays_on_disk() {
    let mut fleet = fleet(&[("a", &[]), ("b", &[])]);
    fleet.apply("kimi", spec(1, 0), 1);
    fleet.settle();
    let ran: Vec<String> =
        fleet.assigned("kimi").into_iter().filter(|(_, count)| *count > 0).map(|(host, _)| host).collect();
    assert_eq!(keep(&fleet, QUANT), ran);
    let generation = fleet.host(&ran[0]).spec.generation;
    fleet.scale("kimi", 0);
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ran);
    assert_eq!(fleet.host(&ran[0]).spec.generation, generation + 1, "the workload's end is the only change");
    fleet.collect();
    assert!(fleet.machines[&ran[0]].files.as_ref().unwrap().contains(&digest(QUANT)));
    fleet.delete("kimi");
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), [""; 0], "nobody wants it any more");
    assert_eq!(fleet.host(&ran[0]).spec.generation, generation + 2);
}

#[test]
fn as_many_hosts_as_may_fail_and_one_keep_a_file() {
    let mut fleet = fleet(&[("a", &[QUANT]), ("b", &[QUANT]), ("c", &[QUANT]), ("d", &[])]);
    fleet.apply("kimi", spec(0, 1), 1);
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a", "b"], "by name, as nothing runs");
    fleet.cut_off("a");
    fleet.pass(10);
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a", "b", "c"], "what the silent one has nobody hears");
    fleet.revive("a");
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a", "b", "c"], "nothing moves without need");
    fleet.machines.get_mut("b").unwrap().files = Some(BTreeSet::new());
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a", "c"], "b says that it has lost it");
    fleet.machines.get_mut("a").unwrap().files = None;
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a", "c"], "a does not say");
}

#[test]
fn a_host_that_runs_it_keeps_it_rather_than_one_that_has_it_lying_about() {
    let mut fleet = fleet(&[("a", &[QUANT]), ("b", &[])]);
    fleet.cordon("a", true);
    fleet.apply("kimi", spec(1, 0), 1);
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a"], "it had it first");
    fleet.drain("a");
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a", "b"], "a is about to leave");
}

#[test]
fn files_of_another_quant_are_let_go_of_once_the_new_one_is_wanted() {
    let mut fleet = fleet(&[("a", &[])]);
    fleet.apply("kimi", spec(1, 0), 1);
    fleet.settle();
    let mut other = spec(1, 0);
    other.quant = "Q8_0".to_owned();
    fleet.apply_model("kimi", other.clone(), tandem_plan::Model::Resolving);
    fleet.settle();
    assert_eq!(keep(&fleet, QUANT), ["a"], "the files known last are wanted until others are known");
    fleet.apply("kimi", other, 1);
    fleet.settle();
    assert_eq!((keep(&fleet, QUANT), keep(&fleet, "Q8_0")), (Vec::new(), vec!["a".to_owned()]));
}

#[derive(Clone, Debug)]
enum Event {
    Fetch(usize, usize),
    Lose(usize, usize),
    CutOff(usize),
    Revive(usize),
    Drain(usize),
    Apply(usize, u32),
    Delete(usize),
    Collect,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_usize..5, 0_usize..3).prop_map(|(host, file)| Event::Fetch(host, file)),
        1 => (0_usize..5, 0_usize..3).prop_map(|(host, file)| Event::Lose(host, file)),
        1 => (0_usize..5).prop_map(Event::CutOff),
        2 => (0_usize..5).prop_map(Event::Revive),
        1 => (0_usize..5).prop_map(Event::Drain),
        2 => (0_usize..3, 0_u32..3).prop_map(|(file, failures)| Event::Apply(file, failures)),
        1 => (0_usize..3).prop_map(Event::Delete),
        2 => Just(Event::Collect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// However hosts come, go and collect: what a known host had and somebody wants, a known host still has after a collection,
    /// and planning again changes nothing.
    #[test]
    fn collecting_never_takes_the_last_known_copy(events in prop::collection::vec(event(), 1..40)) {
        let quants = ["Q2_K", "Q4_K_M", "Q8_0"];
        let names = ["a", "b", "c", "d", "e"];
        let mut fleet = fleet(&names.map(|name| (name, &[][..])));
        for event in events {
            let known = |fleet: &Fleet| -> BTreeSet<String> {
                let machines = fleet.machines.values().filter(|machine| machine.alive);
                machines.flat_map(|machine| machine.files.clone().unwrap()).collect()
            };
            match event {
                Event::Fetch(host, file) => {
                    let files = fleet.machines.get_mut(names[host]).unwrap().files.as_mut().unwrap();
                    files.insert(digest(quants[file]));
                }
                Event::Lose(host, file) => {
                    let files = fleet.machines.get_mut(names[host]).unwrap().files.as_mut().unwrap();
                    files.remove(&digest(quants[file]));
                }
                Event::CutOff(host) => fleet.cut_off(names[host]),
                Event::Revive(host) => fleet.revive(names[host]),
                Event::Drain(host) => fleet.drain(names[host]),
                Event::Apply(file, failures) => {
                    let mut spec = spec(0, failures);
                    spec.quant = quants[file].to_owned();
                    fleet.apply(&format!("d{file}"), spec, 1);
                }
                Event::Delete(file) => fleet.delete(&format!("d{file}")),
                Event::Collect => {
                    let before = known(&fleet);
                    fleet.collect();
                    let after = known(&fleet);
                    for deployment in &fleet.state.deployments {
                        let file = digest(&deployment.spec.quant);
                        prop_assert!(!before.contains(&file) || after.contains(&file), "{} is lost", file);
                    }
                }
            }
            fleet.plan();
            let again = fleet.plan();
            prop_assert!(again.specs.is_empty(), "planning again changes {:?}", again.specs);
        }
    }
}
