//! One choice from the request to its last word: which replica to ask, when to ask a second one, when to give up.
//!
//! [`Conductor::step`] takes one observation and says what to do. Suspicion starts another attempt beside the first;
//! conviction, loss and bounds end one. What is committed is the ledger's matter alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tandem_worker_api::{
    Finished, Frame, GenerateEvent, Rejected, Started, finished, generate_event, rejected,
};

use crate::budget::Budget;
use crate::choose::{Candidate, choose};
use crate::health::{Evidence, Standing};
use crate::ledger::{Ending, Ledger, Limits, Opening, Verdict};
use crate::{Event, FinishReason, Prompt, Refusal, Rejection, Seam};

/// Every wait and every retry of a choice.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// From the request to the last word.
    pub deadline: Duration,
    /// From an attempt's opening to its first event. Long: it may wait for its turn at a worker that is well.
    pub first_event: Duration,
    /// Between two events of an attempt at a worker that is well.
    pub between_events: Duration,
    /// For a replica that can take the choice, before the client is told to come back.
    pub replica: Duration,
    /// How long a replica that could not take it is left alone, at first.
    pub rest: Duration,
    /// Attempts at once.
    pub parallel: usize,
    /// Attempts in a row that add no token.
    pub fruitless: u32,
    /// Attempts in all.
    pub attempts: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(3600),
            first_event: Duration::from_secs(120),
            between_events: Duration::from_secs(60),
            replica: Duration::from_secs(30),
            rest: Duration::from_millis(250),
            parallel: 2,
            fruitless: 8,
            attempts: 64,
        }
    }
}

/// Deaths at the same place of a stream after which it is not tried again: a request that kills what computes it
/// must not walk through all replicas.
const POISONOUS: u32 = 2;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A rest grows to 2⁴ times the first.
const MOST_RESTS: u32 = 4;

/// A replica of the model, as it looks now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Names this start of this worker: one that was started again is another.
    pub name: Arc<str>,
    /// What it computes with.
    pub numerics_id: Arc<str>,
    /// What the evidence amounts to.
    pub standing: Standing,
    /// Takes nothing new.
    pub draining: bool,
    /// Attempts on it.
    pub active: u32,
}

/// What was observed.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Time passed, or a replica's standing changed.
    Look,
    /// An attempt spoke.
    Heard(u32, GenerateEvent),
    /// An attempt's call ended without a last word.
    Lost(u32, Loss),
}

/// How an attempt was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The worker never took it: refused, no answer, an error instead of events.
    NotTaken,
    /// The connection broke while the worker had it.
    Broken,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask this replica.
    Open(Opening, Arc<str>),
    /// Tell the attempt's worker to stop, and listen to it no longer.
    Cancel(u32, Why),
    /// Tell the client.
    Say(Event),
    /// Tell the client why it is over. Nothing runs any more.
    Fail(Refusal),
}

/// Why an attempt is cancelled; for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another attempt at a replica in good standing spoke.
    Outrun,
    /// Its replica is given up.
    Convicted,
    /// It is silent for too long.
    Overdue,
    /// It can't continue the stream.
    Unfit,
    /// The choice is over.
    Over,
}

#[derive(Debug)]
struct Run {
    replica: Arc<str>,
    heard: Duration,
    started: bool,
}

/// One choice under way.
#[derive(Debug)]
pub struct Conductor {
    policy: Policy,
    ledger: Ledger,
    runs: BTreeMap<u32, Run>,
    /// Replicas on which an attempt of this choice ended badly.
    failed: BTreeSet<Arc<str>>,
    /// Replicas that are left alone until then.
    resting: BTreeMap<Arc<str>, Duration>,
    rests: u32,
    overloaded: bool,
    opened: Duration,
    committed: Duration,
    /// Since when no worker takes it.
    alone: Option<Duration>,
    prompt: Option<Prompt>,
    /// Attempts, and deaths of their workers, since the last token.
    fruitless: u32,
    deaths: u32,
    over: bool,
}

impl Conductor {
    /// For a choice that was just asked for.
    #[must_use]
    pub fn new(
        stream: impl Into<String>,
        choice: u32,
        limits: Limits,
        policy: Policy,
        now: Duration,
    ) -> Self {
        Self {
            policy,
            ledger: Ledger::new(stream, choice, limits),
            runs: BTreeMap::new(),
            failed: BTreeSet::new(),
            resting: BTreeMap::new(),
            rests: 0,
            overloaded: false,
            opened: now,
            committed: now,
            alone: None,
            prompt: None,
            fruitless: 0,
            deaths: 0,
            over: false,
        }
    }

    /// Whether the last word was said.
    #[must_use]
    pub fn over(&self) -> bool {
        self.over
    }

    /// Attempts that run, to be cancelled when the client goes away.
    pub fn running(&self) -> impl Iterator<Item = u32> + '_ {
        self.runs.keys().copied()
    }

    /// Takes one observation. `replicas` is the model's fleet as it looks at `now`; `budget` is the whole gateway's.
    pub fn step(
        &mut self,
        now: Duration,
        input: Input,
        replicas: &[Replica],
        budget: &mut Budget,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.over {
            return actions;
        }
        match input {
            Input::Look => {}
            Input::Heard(attempt, event) => self.heard(now, attempt, event, replicas, &mut actions),
            Input::Lost(attempt, loss) => self.lost(now, attempt, loss),
        }
        if !self.over {
            self.look(now, replicas, budget, &mut actions);
        }
        actions
    }

    fn heard(
        &mut self,
        now: Duration,
        attempt: u32,
        event: GenerateEvent,
        replicas: &[Replica],
        actions: &mut Vec<Action>,
    ) {
        use generate_event::Event as Said;
        let Some(run) = self.runs.get_mut(&attempt) else { return };
        run.heard = now;
        match event.event {
            None | Some(Said::Prefill(_)) => {}
            Some(Said::Started(started)) => self.started(attempt, &started, actions),
            Some(Said::Rejected(rejected)) => self.rejected(now, attempt, rejected, actions),
            Some(Said::Frame(frame)) => self.frame(now, attempt, frame, replicas, actions),
            Some(Said::Finished(finished)) => self.finished(now, attempt, &finished, actions),
        }
    }

    fn started(&mut self, attempt: u32, started: &Started, actions: &mut Vec<Action>) {
        match self.ledger.started(attempt, started) {
            Ok(prompt) => {
                if let Some(run) = self.runs.get_mut(&attempt) {
                    run.started = true;
                }
                (self.alone, self.rests) = (None, 0);
                if self.prompt.is_none() {
                    self.say_prompt(prompt, actions);
                }
            }
            Err(_) => self.unfit(attempt, actions),
        }
    }

    fn say_prompt(&mut self, prompt: Prompt, actions: &mut Vec<Action>) {
        if self.prompt != Some(prompt) {
            self.prompt = Some(prompt);
            actions.push(Action::Say(Event::Started(prompt)));
        }
    }

    fn rejected(&mut self, now: Duration, attempt: u32, rejected: Rejected, actions: &mut Vec<Action>) {
        let Some(replica) = self.drop_run(attempt) else { return };
        let overloaded = rejected.code() == rejected::Code::Overloaded;
        match Rejection::from(rejected) {
            // Who has committed tokens already is not told that its request was wrong.
            Rejection::Final(refusal) if self.ledger.is_empty() => self.fail(refusal, actions),
            Rejection::Final(_) | Rejection::Diverged => {
                self.failed.insert(replica);
            }
            Rejection::Elsewhere => {
                self.overloaded |= overloaded;
                self.alone.get_or_insert(now);
                self.rest(now, replica);
                // Not taking it is no fault of the choice.
                self.fruitless = self.fruitless.saturating_sub(1);
            }
        }
    }

    fn frame(
        &mut self,
        now: Duration,
        attempt: u32,
        frame: Frame,
        replicas: &[Replica],
        actions: &mut Vec<Action>,
    ) {
        match self.ledger.offer(attempt, frame) {
            Verdict::Stale => {}
            Verdict::Cancel(_) => self.unfit(attempt, actions),
            Verdict::Commit(commit) => {
                self.prompt_of(commit.prompt, actions);
                if let Some(exact) = commit.seam_exact {
                    let recovery = now.saturating_sub(self.committed);
                    actions.push(Action::Say(Event::Seam(Seam { index: commit.index, exact, recovery })));
                }
                self.committed = now;
                self.fruitless = 0;
                self.deaths = 0;
                actions.push(Action::Say(Event::Token(commit.token)));
                match commit.finish {
                    Some(reason) => self.end(Some(attempt), reason, actions),
                    None => self.outrun(attempt, replicas, actions),
                }
            }
        }
    }

    fn prompt_of(&mut self, prompt: Option<Prompt>, actions: &mut Vec<Action>) {
        if let Some(prompt) = prompt {
            self.say_prompt(prompt, actions);
        }
    }

    /// A speaker in good standing needs no second one.
    fn outrun(&mut self, speaker: u32, replicas: &[Replica], actions: &mut Vec<Action>) {
        if self.runs.len() < 2 || !self.runs.get(&speaker).is_some_and(|run| well(replicas, &run.replica)) {
            return;
        }
        let others: Vec<u32> = self.runs.keys().copied().filter(|attempt| *attempt != speaker).collect();
        for attempt in others {
            self.cancel(attempt, Why::Outrun, actions);
        }
    }

    fn finished(&mut self, now: Duration, attempt: u32, finished: &Finished, actions: &mut Vec<Action>) {
        let Some(replica) = self.drop_run_only(attempt) else { return };
        match self.ledger.finished(attempt, finished) {
            Ending::Choice(reason) => self.end(None, reason, actions),
            Ending::Elsewhere(finished::Reason::Drained) => self.rest(now, replica),
            Ending::Elsewhere(reason) => {
                self.deaths += u32::from(reason == finished::Reason::Failed);
                self.failed.insert(replica);
            }
            Ending::Stale => {}
        }
    }

    /// Leaves a replica alone, longer each time until a worker takes the choice.
    fn rest(&mut self, now: Duration, replica: Arc<str>) {
        self.resting.insert(replica, now + self.policy.rest * (1 << self.rests));
        self.rests = (self.rests + 1).min(MOST_RESTS);
    }

    /// A broken connection is worth another attempt at once. A second loss is not: the replica may be dead before its
    /// standing says so, and all fruitless attempts would be spent on it within a millisecond.
    fn lost(&mut self, now: Duration, attempt: u32, loss: Loss) {
        if let Some(replica) = self.drop_run(attempt) {
            if !self.failed.insert(replica.clone()) {
                self.rest(now, replica);
            }
            self.deaths += u32::from(loss == Loss::Broken);
        }
    }

    fn look(&mut self, now: Duration, replicas: &[Replica], budget: &mut Budget, actions: &mut Vec<Action>) {
        if now.saturating_sub(self.opened) >= self.policy.deadline {
            return self.fail(Refusal::DeadlineExceeded(self.policy.deadline), actions);
        }
        self.end_hopeless_runs(now, replicas, actions);
        if self.deaths >= POISONOUS {
            return self.fail(Refusal::Poisonous, actions);
        }
        if self.runs.values().any(|run| well(replicas, &run.replica)) {
            return;
        }
        if self.runs.len() >= self.policy.parallel {
            return;
        }
        if self.fruitless >= self.policy.fruitless || self.ledger.opened() >= self.policy.attempts {
            if self.runs.is_empty() {
                let message = format!(
                    "no replica could continue the request in {} attempts; the last token was the {}th",
                    self.ledger.opened(),
                    self.ledger.len()
                );
                self.fail(Refusal::Unavailable { message, retry_after: RETRY_AFTER }, actions);
            }
            return;
        }
        let hedging = !self.runs.is_empty();
        match self.best(now, replicas) {
            // Who has lost its worker is moved whatever it costs.
            Some(replica) if !hedging || budget.spend() => self.open(now, replica, actions),
            None if !hedging => self.wait(now, replicas, actions),
            _ => {}
        }
    }

    fn end_hopeless_runs(&mut self, now: Duration, replicas: &[Replica], actions: &mut Vec<Action>) {
        let policy = self.policy;
        let standing = |run: &Run| replicas.iter().find(|r| r.name == run.replica).map(|r| r.standing);
        let hopeless: Vec<(u32, Why, bool)> = self
            .runs
            .iter()
            .filter_map(|(attempt, run)| {
                let silent = now.saturating_sub(run.heard);
                let bound = if run.started { policy.between_events } else { policy.first_event };
                match standing(run) {
                    // Its connection broke, and the attempt's own word of that is on its way: the same death, whoever tells first.
                    Some(Standing::Convicted(evidence)) => {
                        Some((*attempt, Why::Convicted, evidence == Evidence::Unreachable))
                    }
                    _ => (silent >= bound).then_some((*attempt, Why::Overdue, false)),
                }
            })
            .collect();
        for (attempt, why, died) in hopeless {
            if let Some(run) = self.runs.get(&attempt) {
                self.failed.insert(run.replica.clone());
            }
            self.deaths += u32::from(died);
            self.cancel(attempt, why, actions);
        }
    }

    fn best(&self, now: Duration, replicas: &[Replica]) -> Option<Arc<str>> {
        let hedging = !self.runs.is_empty();
        let candidates: Vec<Candidate<'_>> = replicas
            .iter()
            .filter(|replica| self.resting.get(&replica.name).is_none_or(|until| *until <= now))
            .map(|replica| Candidate {
                name: &replica.name,
                draining: replica.draining,
                suspected: replica.standing != Standing::Well,
                convicted: matches!(replica.standing, Standing::Convicted(_)),
                busy_with_it: self.runs.values().any(|run| run.replica == replica.name),
                failed: self.failed.contains(&replica.name),
                active: replica.active,
                numerics_id: &replica.numerics_id,
            })
            // A second suspect beside the first would be work for nothing.
            .filter(|candidate| !(hedging && (candidate.suspected || candidate.failed)))
            .collect();
        let name = choose(&candidates, self.ledger.numerics_id())?.name;
        replicas.iter().find(|replica| &*replica.name == name).map(|replica| replica.name.clone())
    }

    fn open(&mut self, now: Duration, replica: Arc<str>, actions: &mut Vec<Action>) {
        let opening = self.ledger.open();
        let attempt = opening.id.attempt;
        self.fruitless += 1;
        self.runs.insert(attempt, Run { replica: replica.clone(), heard: now, started: false });
        actions.push(Action::Open(opening, replica));
    }

    /// Nobody can be asked now.
    fn wait(&mut self, now: Duration, replicas: &[Replica], actions: &mut Vec<Action>) {
        let serving = replicas.iter().filter(|r| r.standing == Standing::Well && !r.draining);
        if self.overloaded && self.ledger.is_empty() && serving.clone().count() > 0 {
            return self.fail(Refusal::Overloaded { retry_after: RETRY_AFTER }, actions);
        }
        let since = *self.alone.get_or_insert(now);
        if now.saturating_sub(since) >= self.policy.replica {
            let message = if replicas.is_empty() {
                "no worker serves this model yet; it may still be starting".to_owned()
            } else {
                format!("none of the model's {} workers can answer now", replicas.len())
            };
            self.fail(Refusal::Unavailable { message, retry_after: RETRY_AFTER }, actions);
        }
    }

    fn end(&mut self, speaker: Option<u32>, reason: FinishReason, actions: &mut Vec<Action>) {
        // Who spoke the last token ends by itself.
        if let Some(speaker) = speaker {
            self.runs.remove(&speaker);
        }
        self.cancel_all(actions);
        self.over = true;
        actions.push(Action::Say(Event::Finished(reason)));
    }

    fn fail(&mut self, refusal: Refusal, actions: &mut Vec<Action>) {
        self.cancel_all(actions);
        self.over = true;
        actions.push(Action::Fail(refusal));
    }

    fn cancel_all(&mut self, actions: &mut Vec<Action>) {
        let all: Vec<u32> = self.runs.keys().copied().collect();
        for attempt in all {
            self.cancel(attempt, Why::Over, actions);
        }
    }

    fn unfit(&mut self, attempt: u32, actions: &mut Vec<Action>) {
        if let Some(run) = self.runs.get(&attempt) {
            self.failed.insert(run.replica.clone());
        }
        self.cancel(attempt, Why::Unfit, actions);
    }

    fn cancel(&mut self, attempt: u32, why: Why, actions: &mut Vec<Action>) {
        if self.drop_run(attempt).is_some() {
            actions.push(Action::Cancel(attempt, why));
        }
    }

    fn drop_run(&mut self, attempt: u32) -> Option<Arc<str>> {
        self.ledger.close(attempt);
        self.drop_run_only(attempt)
    }

    fn drop_run_only(&mut self, attempt: u32) -> Option<Arc<str>> {
        self.runs.remove(&attempt).map(|run| run.replica)
    }
}

fn well(replicas: &[Replica], name: &str) -> bool {
    // One that nobody watches any more speaks until it is heard to end.
    replicas
        .iter()
        .find(|replica| &*replica.name == name)
        .is_none_or(|replica| replica.standing == Standing::Well)
}

#[cfg(test)]
mod tests;
