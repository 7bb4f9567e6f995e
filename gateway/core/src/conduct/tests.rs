use proptest::prelude::*;

use super::*;
use crate::health::Evidence;
use crate::script::{Script, undisturbed};

const MS: Duration = Duration::from_millis(1);

/// A fleet of scripted workers, and a clock that moves when told.
struct World {
    now: Duration,
    conductor: Conductor,
    replicas: Vec<Replica>,
    /// Live attempts at their workers.
    scripts: BTreeMap<u32, (Arc<str>, Script)>,
    said: Vec<Event>,
    failure: Option<Refusal>,
    opened: Vec<Arc<str>>,
    cancelled: Vec<(u32, Why)>,
    tokens: u32,
    budget: Budget,
}

impl World {
    fn new(names: &[&str], tokens: u32) -> Self {
        Self::with(names, tokens, Limits::default(), Policy::default())
    }

    fn with(names: &[&str], tokens: u32, limits: Limits, policy: Policy) -> Self {
        let replica = |name: &&str| Replica {
            name: (*name).into(),
            numerics_id: "x".into(),
            standing: Standing::Well,
            draining: false,
            active: 0,
        };
        let mut world = Self {
            now: Duration::ZERO,
            conductor: Conductor::new("s", 0, limits, policy, Duration::ZERO),
            replicas: names.iter().map(replica).collect(),
            scripts: BTreeMap::new(),
            said: Vec::new(),
            failure: None,
            opened: Vec::new(),
            cancelled: Vec::new(),
            tokens,
            budget: Budget::default(),
        };
        world.step(Input::Look);
        world
    }

    fn step(&mut self, input: Input) {
        let actions = self.conductor.step(self.now, input, &self.replicas, &mut self.budget);
        for action in actions {
            assert!(self.failure.is_none(), "an action after the end: {action:?}");
            match action {
                Action::Open(opening, replica) => {
                    self.opened.push(replica.clone());
                    let script = Script::new(&opening, "x", 0, self.tokens);
                    self.scripts.insert(opening.id.attempt, (replica, script));
                }
                Action::Cancel(attempt, why) => {
                    self.scripts.remove(&attempt);
                    self.cancelled.push((attempt, why));
                }
                Action::Say(event) => self.said.push(event),
                Action::Fail(refusal) => self.failure = Some(refusal),
            }
        }
        let running: Vec<u32> = self.conductor.running().collect();
        assert!(running.len() <= Policy::default().parallel);
        if self.conductor.over() {
            assert!(running.is_empty(), "something runs after the end");
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.step(Input::Look);
    }

    /// The attempt speaks `times` times.
    fn speak(&mut self, attempt: u32, times: usize) {
        for _ in 0..times {
            let Some(event) = self.scripts.get_mut(&attempt).and_then(|(_, script)| script.next()) else {
                return;
            };
            self.now += MS;
            self.step(Input::Heard(attempt, event));
        }
    }

    fn lose(&mut self, attempt: u32, loss: Loss) {
        self.scripts.remove(&attempt);
        self.step(Input::Lost(attempt, loss));
    }

    fn stand(&mut self, name: &str, standing: Standing) {
        self.replicas.iter_mut().find(|replica| &*replica.name == name).unwrap().standing = standing;
        self.step(Input::Look);
    }

    fn reject(&mut self, attempt: u32, code: rejected::Code) {
        self.scripts.remove(&attempt);
        let rejected = Rejected { code: code.into(), message: "no".to_owned(), param: "p".to_owned() };
        let event = Some(generate_event::Event::Rejected(rejected));
        self.step(Input::Heard(attempt, GenerateEvent { event }));
    }

    fn finish(&mut self, attempt: u32, reason: finished::Reason) {
        self.scripts.remove(&attempt);
        let finished =
            Finished { reason: reason.into(), tokens: self.ids().len() as u32, message: String::new() };
        let event = Some(generate_event::Event::Finished(finished));
        self.step(Input::Heard(attempt, GenerateEvent { event }));
    }

    fn ids(&self) -> Vec<u32> {
        self.said
            .iter()
            .filter_map(|event| if let Event::Token(token) = event { Some(token.id) } else { None })
            .collect()
    }

    fn seams(&self) -> Vec<Seam> {
        self.said
            .iter()
            .filter_map(|event| if let Event::Seam(seam) = event { Some(*seam) } else { None })
            .collect()
    }

    fn assert_complete(&self) {
        assert_eq!(self.failure, None);
        assert_eq!(self.ids(), undisturbed(0, self.tokens));
        assert_eq!(self.said.last(), Some(&Event::Finished(FinishReason::Length)));
    }
}

const SUSPECT: Standing = Standing::Suspected(Evidence::Silent);
const CONVICT: Standing = Standing::Convicted(Evidence::Silent);

#[test]
fn an_undisturbed_choice_takes_one_attempt() {
    let mut world = World::new(&["a", "b"], 4);
    world.speak(0, 9);
    world.assert_complete();
    assert_eq!((world.opened.len(), world.cancelled.len(), world.seams().len()), (1, 0, 0));
    assert_eq!(world.said[0], Event::Started(Prompt { tokens: 3, ..Prompt::default() }));
}

#[test]
fn a_death_at_any_token_is_continued_by_the_other() {
    for spoken in 0..=6 {
        let mut world = World::new(&["a", "b"], 5);
        world.speak(0, spoken);
        world.now += MS * 40;
        world.lose(0, Loss::Broken);
        assert_eq!(world.opened.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
        world.speak(1, 9);
        world.assert_complete();
        let seams = world.seams();
        if (2..=5).contains(&spoken) {
            let index = spoken as u32 - 1;
            assert_eq!((seams[0].index, seams[0].exact, seams.len()), (index, true, 1));
            assert_eq!(seams[0].recovery, MS * 42, "40 until it was noticed, Started and the token 1 each");
        } else {
            assert_eq!(seams, [], "nobody spoke before, or nobody had to after");
        }
    }
}

#[test]
fn dying_after_the_last_token_of_a_limit_needs_nobody() {
    let limits = Limits { max_tokens: 3, ignore_eos: false };
    let mut world = World::with(&["a", "b"], 9, limits, Policy::default());
    world.speak(0, 4);
    assert_eq!(world.said.last(), Some(&Event::Finished(FinishReason::Length)));
    world.lose(0, Loss::Broken);
    assert_eq!(world.opened.len(), 1);
}

#[test]
fn suspicion_starts_a_second_attempt_and_the_first_may_still_win() {
    let mut world = World::new(&["a", "b"], 6);
    world.speak(0, 3);
    world.stand("a", SUSPECT);
    assert_eq!(world.opened.len(), 2);
    world.wait(MS * 100);
    assert_eq!(world.opened.len(), 2, "one hedge is enough");
    world.speak(0, 1);
    assert_eq!(world.cancelled, [], "a suspect that speaks is still a suspect");
    world.stand("a", Standing::Well);
    world.speak(0, 1);
    assert_eq!(world.cancelled, [(1, Why::Outrun)]);
    world.speak(0, 9);
    world.assert_complete();
    assert_eq!(world.seams(), [], "a wrong guess is not seen by the client");
}

#[test]
fn the_second_attempt_that_speaks_first_takes_over_and_a_zombie_changes_nothing() {
    let mut world = World::new(&["a", "b"], 6);
    world.speak(0, 3);
    let (_, mut zombie) = world.scripts.remove(&0).unwrap();
    world.stand("a", SUSPECT);
    world.speak(1, 2);
    assert_eq!(world.cancelled, [(0, Why::Outrun)]);
    for event in zombie.by_ref() {
        world.step(Input::Heard(0, event));
    }
    world.speak(1, 9);
    world.assert_complete();
    assert_eq!(world.seams().len(), 1);
}

#[test]
fn without_a_budget_suspicion_waits_for_conviction_and_a_loss_does_not() {
    let mut world = World::new(&["a", "b", "c"], 6);
    world.budget = Budget::new(0, 10);
    world.speak(0, 3);
    world.stand("a", SUSPECT);
    assert_eq!(world.opened.len(), 1);
    world.stand("a", CONVICT);
    assert_eq!(world.opened.len(), 2);
    world.speak(1, 3);
    world.lose(1, Loss::Broken);
    world.speak(2, 9);
    world.assert_complete();
}

#[test]
fn no_second_attempt_at_another_suspect() {
    let mut world = World::new(&["a", "b"], 6);
    world.speak(0, 2);
    world.replicas[1].standing = SUSPECT;
    world.stand("a", SUSPECT);
    assert_eq!(world.opened.len(), 1);
}

#[test]
fn conviction_ends_an_attempt() {
    let mut world = World::new(&["a", "b"], 6);
    world.speak(0, 3);
    world.stand("a", CONVICT);
    assert_eq!(world.cancelled, [(0, Why::Convicted)]);
    world.speak(1, 9);
    world.assert_complete();
}

#[test]
fn a_request_that_kills_two_workers_at_one_place_is_not_tried_on_a_third() {
    let mut world = World::new(&["a", "b", "c"], 6);
    world.speak(0, 3);
    world.lose(0, Loss::Broken);
    world.speak(1, 1);
    world.lose(1, Loss::Broken);
    assert_eq!(world.failure, Some(Refusal::Poisonous));
    assert_eq!(world.opened.len(), 2);
}

#[test]
fn a_death_counts_also_when_the_replicas_standing_tells_of_it_first() {
    let mut world = World::new(&["a", "b", "c"], 6);
    world.speak(0, 3);
    world.stand("a", Standing::Convicted(Evidence::Unreachable));
    assert_eq!(world.cancelled, [(0, Why::Convicted)]);
    // What the attempt itself says afterwards is not a second death.
    world.lose(0, Loss::Broken);
    assert_eq!(world.failure, None);
    world.stand("b", Standing::Convicted(Evidence::Unreachable));
    assert_eq!(world.failure, Some(Refusal::Poisonous));
    assert_eq!(world.opened.len(), 2, "the third is spared");
}

#[test]
fn deaths_with_tokens_between_them_are_not_the_requests_fault() {
    let mut world = World::new(&["a", "b", "c"], 6);
    for attempt in 0..2 {
        world.speak(attempt, 3);
        world.lose(attempt, Loss::Broken);
    }
    world.speak(2, 9);
    world.assert_complete();
}

#[test]
fn workers_that_are_not_there_are_not_deaths() {
    let mut world = World::new(&["a", "b", "c"], 6);
    world.lose(0, Loss::NotTaken);
    world.lose(1, Loss::NotTaken);
    world.speak(2, 9);
    world.assert_complete();
}

#[test]
fn a_failed_replica_is_asked_again_only_when_it_is_well_and_alone() {
    let mut world = World::new(&["a"], 6);
    world.speak(0, 3);
    world.replicas[0].standing = Standing::Convicted(Evidence::Unreachable);
    world.lose(0, Loss::Broken);
    assert_eq!(world.opened.len(), 1);
    world.stand("a", Standing::Well);
    world.speak(1, 9);
    world.assert_complete();
}

#[test]
fn a_drained_worker_hands_over() {
    let mut world = World::new(&["a", "b"], 6);
    world.speak(0, 3);
    world.replicas[0].draining = true;
    world.finish(0, finished::Reason::Drained);
    world.speak(1, 9);
    world.assert_complete();
    assert_eq!(world.seams().len(), 1);
}

#[test]
fn failed_logits_twice_at_one_place_end_it() {
    let mut world = World::new(&["a", "b", "c"], 6);
    world.speak(0, 3);
    world.finish(0, finished::Reason::Failed);
    world.speak(1, 1);
    world.finish(1, finished::Reason::Failed);
    assert_eq!(world.failure, Some(Refusal::Poisonous));
}

#[test]
fn a_clients_mistake_is_told_once_and_counts_against_nobody() {
    let mut world = World::new(&["a", "b"], 6);
    world.reject(0, rejected::Code::InvalidRequest);
    assert!(matches!(&world.failure, Some(Refusal::Invalid { message, .. }) if message == "no"));
    assert_eq!(world.opened.len(), 1);
}

#[test]
fn full_replicas_are_tried_in_turn_and_then_the_client_is_told() {
    let mut world = World::new(&["a", "b"], 6);
    world.reject(0, rejected::Code::Overloaded);
    assert_eq!(world.opened.len(), 2);
    world.reject(1, rejected::Code::Overloaded);
    assert!(matches!(world.failure, Some(Refusal::Overloaded { .. })));
}

#[test]
fn a_stream_in_flight_waits_for_a_full_replica() {
    let mut world = World::new(&["a", "b"], 6);
    world.speak(0, 3);
    world.replicas[0].standing = CONVICT;
    world.lose(0, Loss::Broken);
    world.reject(1, rejected::Code::Overloaded);
    assert_eq!(world.failure, None);
    world.wait(Policy::default().rest);
    world.speak(2, 9);
    world.assert_complete();
}

#[test]
fn replicas_that_stay_full_are_asked_less_often_and_not_for_ever() {
    let mut world = World::new(&["a"], 6);
    world.speak(0, 3);
    world.lose(0, Loss::NotTaken);
    let lost = world.now;
    while world.failure.is_none() {
        let attempts: Vec<u32> = world.scripts.keys().copied().collect();
        match attempts.first() {
            Some(attempt) => world.reject(*attempt, rejected::Code::Overloaded),
            None => world.wait(MS * 50),
        }
    }
    assert!(matches!(world.failure, Some(Refusal::Unavailable { .. })));
    assert!(world.now - lost < Policy::default().replica + MS * 100);
    assert!(world.opened.len() < 16, "{} attempts", world.opened.len());
}

#[test]
fn without_a_replica_it_waits_so_long_and_no_longer() {
    let mut world = World::new(&[], 6);
    world.wait(Duration::from_secs(29));
    assert_eq!(world.failure, None);
    world.wait(Duration::from_secs(1));
    assert!(matches!(world.failure, Some(Refusal::Unavailable { .. })));
}

#[test]
fn every_wait_has_a_bound() {
    let policy = Policy::default();
    let mut world = World::new(&["a", "b"], 6);
    world.wait(policy.first_event);
    assert_eq!(world.cancelled, [(0, Why::Overdue)]);
    world.speak(1, 2);
    world.wait(policy.between_events);
    assert_eq!(world.cancelled[1], (1, Why::Overdue));
    world.wait(policy.deadline);
    assert_eq!(world.failure, Some(Refusal::DeadlineExceeded(policy.deadline)));
}

#[test]
fn a_dead_replica_that_still_looks_well_does_not_use_up_the_attempts() {
    let mut world = World::new(&["a"], 6);
    world.speak(0, 3);
    world.lose(0, Loss::Broken);
    world.lose(1, Loss::NotTaken);
    assert_eq!(world.opened.len(), 2, "once more at once, and then it is left alone");
    world.replicas[0].standing = CONVICT;
    world.wait(Duration::from_secs(5));
    assert_eq!((world.opened.len(), &world.failure), (2, &None));
}

#[test]
fn attempts_that_bring_nothing_are_counted() {
    let mut world = World::new(&["a"], 6);
    for attempt in 0..Policy::default().fruitless {
        world.lose(attempt, Loss::NotTaken);
        world.wait(Duration::from_secs(4));
    }
    assert!(matches!(world.failure, Some(Refusal::Unavailable { .. })));
    assert_eq!(world.opened.len() as u32, Policy::default().fruitless);
}

proptest! {
    /// Whatever happens to three replicas, the client reads the undisturbed tokens or is told the truth.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(moves in proptest::collection::vec((0u8..12, 0usize..3), 1..300)) {
        let mut world = World::new(&["a", "b", "c"], 30);
        for (what, whom) in moves {
            if world.conductor.over() { break; }
            let attempts: Vec<u32> = world.scripts.keys().copied().collect();
            let attempt = attempts.get(whom % attempts.len().max(1)).copied();
            let name = ["a", "b", "c"][whom];
            match (what, attempt) {
                (0, Some(attempt)) => world.lose(attempt, Loss::Broken),
                (1, Some(attempt)) => world.lose(attempt, Loss::NotTaken),
                (2, Some(attempt)) => world.finish(attempt, finished::Reason::Drained),
                (3, Some(attempt)) => world.reject(attempt, rejected::Code::Overloaded),
                (4, _) => world.stand(name, SUSPECT),
                (5, _) => world.stand(name, CONVICT),
                (6, _) => world.stand(name, Standing::Well),
                (7, _) => world.wait(MS * 500),
                (_, Some(attempt)) => world.speak(attempt, 1),
                (_, None) => world.wait(MS * 100),
            }
            let ids = world.ids();
            prop_assert_eq!(&ids[..], &undisturbed(0, 30)[..ids.len()]);
        }
        if world.conductor.over() && world.failure.is_none() {
            world.assert_complete();
        }
    }
}
