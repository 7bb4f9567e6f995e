//! Scenarios, and a small host that obeys whatever the planner says while everything around it changes.

use proptest::prelude::*;

use super::*;
use crate::ledger::tests::{spec, workload};
use crate::{Ended, cause};

fn ready() -> Observation {
    Observation { weights: Weights::Present, credentials: Credentials::Valid, ..Observation::default() }
}

fn host(memory_bytes: u64, workloads: impl IntoIterator<Item = (&'static str, Observation)>) -> Observed {
    let workloads = workloads.into_iter().map(|(id, observation)| (id.to_owned(), observation)).collect();
    Observed { memory_bytes, workloads }
}

fn planned(spec: &InferenceHostSpec, observed: &Observed) -> Plan {
    let mut ledger = Ledger::new();
    ledger.accept(spec).unwrap();
    reconcile(spec, observed, &ledger, Duration::from_secs(1000))
}

fn start(id: &str, epoch: u64) -> Action {
    Action::Start { workload: id.to_owned(), epoch }
}

#[test]
fn a_new_workload_is_fetched_and_certified_at_once_and_then_started() {
    let spec = spec(1, 1, vec![workload("a", 1, 10)]);
    let plan = planned(&spec, &host(100, []));
    let a = || "a".to_owned();
    assert_eq!(plan.actions, [Action::Fetch { workload: a() }, Action::Certify { workload: a() }]);
    let fetched = Observation { credentials: Credentials::Requested, ..ready() };
    assert_eq!(planned(&spec, &host(100, [("a", fetched)])).actions, []);
    assert_eq!(planned(&spec, &host(100, [("a", ready())])).actions, [start("a", 1)]);
}

#[test]
fn what_runs_as_listed_is_left_alone() {
    let spec = spec(1, 1, vec![workload("a", 1, 10)]);
    for process in [
        Process::Running { epoch: 1, memory_bytes: 10 },
        Process::Starting { epoch: 1, memory_bytes: 10 },
        Process::Stopping { epoch: 1, memory_bytes: 10 },
    ] {
        // Even when the weights' folder was lost meanwhile.
        let observed = host(100, [("a", Observation { process, ..Observation::default() })]);
        assert_eq!(planned(&spec, &observed), Plan::default());
    }
}

#[test]
fn what_hangs_is_ended_whatever_it_holds() {
    let hung = Observation {
        process: Process::Running { epoch: 1, memory_bytes: 10 },
        health: Some(Health::Hung("it has not answered for 30 s".to_owned())),
        ..Observation::default()
    };
    let plan = planned(&spec(1, 1, vec![workload("a", 1, 10)]), &host(100, [("a", hung)]));
    assert!(matches!(&plan.actions[..], [Action::Kill { epoch: 1, .. }]), "{plan:?}");
}

#[test]
fn a_higher_epoch_replaces_what_runs_once_it_can_start() {
    let spec = spec(1, 2, vec![workload("a", 2, 60)]);
    let running = Process::Running { epoch: 1, memory_bytes: 60 };
    let unprepared = Observation { process: running.clone(), ..Observation::default() };
    let plan = planned(&spec, &host(100, [("a", unprepared)]));
    assert!(plan.actions.iter().all(|action| !matches!(action, Action::Stop { .. })), "{plan:?}");
    let plan = planned(&spec, &host(100, [("a", Observation { process: running, ..ready() })]));
    assert!(matches!(plan.actions[..], [Action::Stop { epoch: 1, .. }]), "{plan:?}");
}

#[test]
fn a_lower_epoch_than_the_ledgers_is_refused_and_what_runs_goes_on() {
    let mut ledger = Ledger::new();
    ledger.accept(&spec(1, 1, vec![workload("a", 5, 10)])).unwrap();
    let restored = spec(2, 1, vec![workload("a", 3, 10)]);
    ledger.accept(&restored).unwrap();
    for process in [Process::Running { epoch: 5, memory_bytes: 10 }, Process::None] {
        let observed = host(100, [("a", Observation { process, ..ready() })]);
        let plan = reconcile(&restored, &observed, &ledger, Duration::ZERO);
        assert_eq!(plan.actions, []);
        assert!(plan.refusals["a"].contains("epoch 3 is older than 5"));
    }
}

#[test]
fn an_older_term_is_not_acted_on() {
    let mut ledger = Ledger::new();
    ledger.accept(&spec(9, 1, vec![])).unwrap();
    let running = Observation { process: Process::Running { epoch: 1, memory_bytes: 1 }, ..ready() };
    let observed = host(100, [("other", running), ("a", ready())]);
    let old = spec(8, 99, vec![workload("a", 1, 10)]);
    assert_eq!(reconcile(&old, &observed, &ledger, Duration::ZERO), Plan::default());
}

#[test]
fn a_workload_that_left_is_stopped_and_then_forgotten() {
    let nothing = spec(1, 2, vec![]);
    let running = Observation { process: Process::Running { epoch: 4, memory_bytes: 10 }, ..ready() };
    let plan = planned(&nothing, &host(100, [("a", running)]));
    assert!(matches!(&plan.actions[..], [Action::Stop { epoch: 4, .. }]));
    let ended = Observation { process: Process::Exited { epoch: 4, hopeless: false }, ..ready() };
    let plan = planned(&nothing, &host(100, [("a", ended)]));
    assert_eq!(plan.actions, [Action::Forget { workload: "a".to_owned() }]);
}

#[test]
fn a_crash_loop_waits_longer_and_longer_and_a_hopeless_end_waits_for_a_new_epoch() {
    let orders = spec(1, 1, vec![workload("a", 1, 10)]);
    let mut crashed = Observation { process: Process::Exited { epoch: 1, hopeless: false }, ..ready() };
    (crashed.failures, crashed.failed_at) = (3, Duration::from_secs(999));
    let plan = planned(&orders, &host(100, [("a", crashed.clone())]));
    assert_eq!((plan.actions.len(), plan.wake), (0, Some(Duration::from_secs(1003))));
    crashed.failed_at = Duration::from_secs(996);
    assert_eq!(planned(&orders, &host(100, [("a", crashed.clone())])).actions, [start("a", 1)]);
    crashed.process = Process::Exited { epoch: 1, hopeless: true };
    assert_eq!(planned(&orders, &host(100, [("a", crashed.clone())])), Plan::default());
    let next = spec(1, 2, vec![workload("a", 2, 10)]);
    assert_eq!(planned(&next, &host(100, [("a", crashed)])).actions, [start("a", 2)]);
}

#[test]
fn doubtful_weights_are_hashed_before_anything_starts() {
    let orders = spec(1, 1, vec![workload("a", 1, 10)]);
    let doubtful = Observation {
        weights: Weights::Doubtful,
        process: Process::Exited { epoch: 1, hopeless: false },
        ..ready()
    };
    let plan = planned(&orders, &host(100, [("a", doubtful)]));
    assert_eq!(plan.actions, [Action::Verify { workload: "a".to_owned() }]);
}

#[test]
fn memory_is_given_in_the_specs_order_and_refusals_name_the_figures() {
    let orders =
        spec(1, 1, vec![workload("a", 1, 60 << 20), workload("b", 1, 60 << 20), workload("c", 1, 40 << 20)]);
    let plan = planned(&orders, &host(100 << 20, [("a", ready()), ("b", ready()), ("c", ready())]));
    assert_eq!(plan.actions, [start("a", 1), start("c", 1)]);
    assert!(plan.refusals["b"].contains("takes 60 MiB of memory, and this host has 40 MiB left"));
    // One that is still being fetched keeps its place.
    let plan = planned(&orders, &host(100 << 20, [("b", ready())]));
    assert!(!plan.actions.contains(&start("b", 1)), "{plan:?}");
}

/// What can happen to the little host between two looks.
#[derive(Clone, Debug)]
enum Event {
    Orders { term: u64, workloads: Vec<(u8, u64, u64)> },
    Prepared(u8),
    Exit(u8, i32),
    Stopped(u8),
    Time(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let orders = (0u64..4, prop::collection::vec((0u8..3, 1u64..5, 1u64..80), 0..3))
        .prop_map(|(term, workloads)| Event::Orders { term, workloads });
    let event = prop_oneof![
        2 => orders,
        3 => (0u8..3).prop_map(Event::Prepared),
        2 => (0u8..3, 0i32..7).prop_map(|(id, code)| Event::Exit(id, code)),
        2 => (0u8..3).prop_map(Event::Stopped),
        2 => (0u64..100).prop_map(Event::Time),
    ];
    prop::collection::vec(event, 0..80)
}

fn name(id: u8) -> String {
    format!("w{id}")
}

/// Obeys plans as the agent does, and checks at every start what must hold.
struct Host {
    orders: InferenceHostSpec,
    observed: Observed,
    ledger: Ledger,
    generation: u64,
    now: Duration,
    last_end: BTreeMap<String, (u64, Duration)>,
}

impl Host {
    fn new() -> Self {
        Self {
            orders: spec(0, 0, vec![]),
            observed: host(100, []),
            ledger: Ledger::new(),
            generation: 0,
            now: Duration::ZERO,
            last_end: BTreeMap::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Orders { term, workloads } => self.obey(term, workloads),
            Event::Prepared(id) => {
                if let Some(seen) = self.observed.workloads.get_mut(&name(id)) {
                    (seen.weights, seen.credentials) = (Weights::Present, Credentials::Valid);
                    if let Process::Starting { epoch, memory_bytes } = seen.process {
                        seen.process = Process::Running { epoch, memory_bytes };
                    }
                }
            }
            Event::Exit(id, code) => self.exit(id, code),
            Event::Stopped(id) => {
                if let Some(seen) = self.observed.workloads.get_mut(&name(id))
                    && let Process::Stopping { .. } = seen.process
                {
                    seen.process = Process::None;
                }
            }
            Event::Time(seconds) => self.now += Duration::from_secs(seconds),
        }
    }

    fn obey(&mut self, term: u64, workloads: Vec<(u8, u64, u64)>) {
        self.generation += 1;
        let mut listed: Vec<WorkloadSpec> = Vec::new();
        for (id, epoch, memory) in workloads {
            if !listed.iter().any(|other| other.id == name(id)) {
                listed.push(workload(&name(id), epoch, memory));
            }
        }
        let orders = spec(term, self.generation, listed);
        if self.ledger.accept(&orders).is_ok() {
            for new in &orders.workloads {
                let known = self.orders.workloads.iter().find(|old| old.id == new.id);
                if known.is_none_or(|old| old.epoch != new.epoch) {
                    let seen = self.observed.workloads.entry(new.id.clone()).or_default();
                    seen.failures = 0;
                    (seen.weights, seen.credentials) = (Weights::Absent, Credentials::Absent);
                }
            }
            self.orders = orders;
        }
    }

    fn exit(&mut self, id: u8, code: i32) {
        let Some(seen) = self.observed.workloads.get_mut(&name(id)) else { return };
        if let Process::Running { epoch, .. } = seen.process {
            let hopeless = Ended::of(Some(code)) == Ended::Hopeless;
            seen.process = Process::Exited { epoch, hopeless };
            seen.last_exit = Some(cause(Some(code), None, None));
            (seen.failures, seen.failed_at) = (seen.failures + 1, self.now);
            self.last_end.insert(name(id), (epoch, self.now));
        }
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        let plan = reconcile(&self.orders, &self.observed, &self.ledger, self.now);
        for action in plan.actions {
            match action {
                Action::Start { workload, epoch } => self.check_start(&workload, epoch)?,
                Action::Stop { workload, epoch, .. } => {
                    let seen = self.observed.workloads.get_mut(&workload).unwrap();
                    let Process::Running { epoch: running, memory_bytes } = seen.process else {
                        return Err(TestCaseError::fail("stopped what does not run"));
                    };
                    prop_assert_eq!(running, epoch);
                    seen.process = Process::Stopping { epoch, memory_bytes };
                }
                Action::Kill { .. } => return Err(TestCaseError::fail("nothing hangs here")),
                Action::Forget { workload } => {
                    let seen = self.observed.workloads.remove(&workload).unwrap();
                    prop_assert_eq!(seen.process.memory_bytes(), 0);
                }
                Action::Fetch { workload } | Action::Verify { workload } => {
                    let seen = self.observed.workloads.entry(workload).or_default();
                    seen.weights = Weights::Fetching { done: 0, total: 1 };
                }
                Action::Certify { workload } => {
                    self.observed.workloads.entry(workload).or_default().credentials = Credentials::Requested;
                }
            }
        }
        let taken: u64 = self.observed.workloads.values().map(|seen| seen.process.memory_bytes()).sum();
        prop_assert!(taken <= self.observed.memory_bytes, "{} bytes are taken", taken);
        Ok(())
    }

    fn check_start(&mut self, id: &str, epoch: u64) -> Result<(), TestCaseError> {
        let listed = self.orders.workloads.iter().find(|listed| listed.id == id);
        let Some(listed) = listed else { return Err(TestCaseError::fail("started what is not listed")) };
        prop_assert_eq!(listed.epoch, epoch);
        prop_assert!(Some(epoch) >= self.ledger.epoch(id), "an old epoch was started");
        let seen = self.observed.workloads.get_mut(id).unwrap();
        prop_assert!(
            matches!(seen.process, Process::None | Process::Exited { .. }),
            "two processes of one workload"
        );
        prop_assert_eq!(&seen.weights, &Weights::Present);
        if let Some((ended, at)) = self.last_end.get(id)
            && *ended == epoch
            && seen.failures > 0
        {
            prop_assert!(self.now >= *at + restart_delay(seen.failures), "started again too soon");
        }
        seen.process = Process::Starting { epoch, memory_bytes: listed.memory_bytes };
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_fences_memory_and_backoff_hold(events in events()) {
        let mut host = Host::new();
        for event in events {
            host.happen(event);
            host.look()?;
        }
    }
}
