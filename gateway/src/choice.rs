//! One choice under way: carries out what its conductor decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandem_gateway_core::budget::Budget;
use tandem_gateway_core::conduct::{Action, Conductor, Input, Loss, Policy, Replica};
use tandem_gateway_core::ledger::Limits;
use tandem_gateway_core::quarantine::Quarantine;
use tandem_gateway_core::turns::Turns;
use tandem_gateway_core::{Event, Refusal};
use tandem_worker_api::GenerateRequest;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::task::TaskTracker;

use crate::attempt::{Attempt, short};
use crate::fleet::Fleet;
use crate::metrics::Told;

/// Events that wait for a client; when they are as many, its workers wait too.
pub(crate) const AHEAD: usize = 64;
/// How often bounds are looked at. Changes of standing are seen at once.
const LOOK: Duration = Duration::from_millis(100);
/// A client that takes nothing for so long has lost its workers.
const TAKEN_WITHIN: Duration = Duration::from_secs(90);

pub(crate) struct Choice {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) deployment: Arc<str>,
    pub(crate) policy: Policy,
    /// What every attempt is asked, but for its number and what it resumes.
    pub(crate) request: GenerateRequest,
    pub(crate) client: mpsc::Sender<Result<Event, Refusal>>,
    /// For second attempts on suspicion; all choices of the gateway share it.
    pub(crate) budget: Arc<Mutex<Budget>>,
    /// Where this request goes when it kills two workers, under its fingerprint.
    pub(crate) quarantine: Arc<Mutex<Quarantine>>,
    pub(crate) fingerprint: u64,
    /// Where attempts run, so that the end of the program can wait for their cancels.
    pub(crate) tasks: TaskTracker,
    pub(crate) turns: Arc<Mutex<Turns>>,
    pub(crate) told: Told,
}

/// The client went away, or does not read.
struct Gone;

impl Choice {
    /// Until the last word is said, or the client is gone. Attempts that are left are cancelled when it returns.
    pub(crate) async fn run(mut self) {
        let id = self.request.id.clone().unwrap_or_default();
        let limits = Limits { max_tokens: self.request.max_tokens, ignore_eos: self.request.ignore_eos };
        let mut conductor = Conductor::new(id.stream, id.choice, limits, self.policy, self.fleet.now());
        let mut changes = self.fleet.changes();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (out, mut inputs) = mpsc::channel(AHEAD);
        let mut attempts = HashMap::new();
        while !conductor.over() {
            let input = tokio::select! {
                biased;
                () = self.client.closed() => return,
                // `out` lives in this function, and `changed` in the fleet: neither ends.
                Some(input) = inputs.recv() => input,
                Ok(()) = changes.changed() => Input::Look,
                _ = looks.tick() => Input::Look,
            };
            let replicas = self.fleet.view(&self.deployment);
            let actions = self.step(&mut conductor, input, &replicas);
            for action in actions {
                if self.act(action, &mut attempts, &out).await.is_err() {
                    return;
                }
            }
        }
        self.told.leave(&self.turns, self.fleet.now());
        // What was not cancelled by now said its last word.
        attempts.into_values().for_each(Attempt::leave);
    }

    fn step(&self, conductor: &mut Conductor, input: Input, replicas: &[Replica]) -> Vec<Action> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        conductor.step(self.fleet.now(), input, replicas, &mut budget)
    }

    async fn act(
        &mut self,
        action: Action,
        attempts: &mut HashMap<u32, Attempt>,
        out: &mpsc::Sender<Input>,
    ) -> Result<(), Gone> {
        match action {
            Action::Open(opening, replica) => {
                let attempt = opening.id.attempt;
                let resumed = opening.resume.as_ref().map_or(0, |resume| resume.ids.len());
                tracing::info!(stream = %self.stream(), attempt, %replica, resumed, "attempt");
                let request =
                    GenerateRequest { id: Some(opening.id), resume: opening.resume, ..self.request.clone() };
                self.told.attempt();
                match self.fleet.replica(&replica) {
                    Some(replica) => {
                        attempts.insert(attempt, Attempt::start(&self.tasks, replica, request, out.clone()));
                    }
                    // It left the table since the view was made. `out` has room or the choice looks again soon.
                    None => {
                        let why = "the replica has left the table";
                        tracing::info!(stream = %self.stream(), attempt, %replica, why, "an attempt is lost");
                        drop(out.try_send(Input::Lost(attempt, Loss::NotTaken)));
                    }
                }
                Ok(())
            }
            Action::Cancel(attempt, why) => {
                tracing::info!(stream = %self.stream(), attempt, ?why, "an attempt is cancelled");
                attempts.remove(&attempt);
                Ok(())
            }
            Action::Say(event) => {
                self.told.event(&event, self.fleet.now());
                self.tell(Ok(event)).await
            }
            Action::Fail(refusal) => {
                if refusal == Refusal::Poisonous {
                    let mut quarantine = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
                    quarantine.put(self.fingerprint, self.fleet.now());
                }
                self.told.failed(&refusal);
                let refusal = self.with_a_turn(refusal);
                tracing::info!(stream = %self.stream(), ?refusal, "a choice failed");
                self.tell(Err(refusal)).await
            }
        }
    }

    /// Who is sent away because every worker is full is told when a place may be free.
    fn with_a_turn(&self, refusal: Refusal) -> Refusal {
        let Refusal::Overloaded { .. } = refusal else { return refusal };
        let turns = *self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Refusal::Overloaded { retry_after: turns.wait(self.told.ahead(), self.fleet.now()) }
    }

    async fn tell(&self, event: Result<Event, Refusal>) -> Result<(), Gone> {
        match timeout(TAKEN_WITHIN, self.client.send(event)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// For logs.
    fn stream(&self) -> &str {
        short(self.request.id.as_ref().map_or("", |id| id.stream.as_str()))
    }
}
