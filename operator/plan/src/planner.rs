//! Plans that follow changes. A [`Planner`] holds what was planned last and what it was made from, is told what is otherwise now, and
//! thinks anew about what that touches. What comes out is what [`crate::plan()`] says of the same state, to the letter.
//!
//! What is kept of the last plan, and when it is believed again:
//! - What becomes of a deployment rests on the deployment, its model and status, the hosts of its copies and those that its status
//!   places it on. When one of them changes, it is decided on anew.
//! - One that had to look around, because it starts copies, lacks room or chooses which of its copies goes, rests on all hosts and
//!   on what those before it take, too. It is decided on anew whenever any of that changes. A deployment that has what it wants
//!   does not look around.
//! - One with copies on a silent host, or whose status is not stored yet, rests on the time. It is decided on anew each time.
//! - What hosts are told is put together anew from all that is about to move; what stands still needs no word.
//!
//! Hosts that come, go or get other labels, deployments that go, a storm, another leader, and hosts with very many files touch
//! everything: then all is planned in full.

mod files;
mod memory;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use tandem_crds::{DeploymentRef, InferenceDeployment, InferenceHost};

use crate::input::{HostObservation, Model, Observation, State};
use crate::joins::{created, key};
use crate::output::{Outranked, Plan};

use memory::Memory;

/// Plans one change after the other. See [`Planner::plan`].
#[derive(Default)]
pub struct Planner {
    state: State,
    seen: Observation,
    /// Positions in `state`.
    hosts: HashMap<String, usize>,
    deployments: HashMap<DeploymentRef, usize>,
    /// None: everything is to be planned anew.
    memory: Option<Memory>,
    plan: Plan,
}

impl Planner {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the next plan is made from.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is seen, as far as this planner was told.
    #[must_use]
    pub fn observation(&self) -> &Observation {
        &self.seen
    }

    /// Takes in a whole state and observation: whatever differs from what is known.
    pub fn tell(&mut self, state: State, observation: Observation) {
        let names: BTreeSet<&str> =
            state.hosts.iter().filter_map(|host| host.metadata.name.as_deref()).collect();
        let gone: Vec<String> =
            self.hosts.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        gone.iter().for_each(|name| self.forget_host(name));
        let keys: BTreeSet<DeploymentRef> = state.deployments.iter().filter_map(key).collect();
        let gone: Vec<DeploymentRef> =
            self.deployments.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| self.forget_deployment(key));
        self.lead(state.term);
        state.hosts.into_iter().for_each(|host| self.host(host));
        let gone: Vec<DeploymentRef> =
            self.state.models.keys().filter(|key| !state.models.contains_key(*key)).cloned().collect();
        gone.into_iter().for_each(|key| self.model(key, None));
        state.models.into_iter().for_each(|(key, model)| self.model(key, Some(model)));
        state.deployments.into_iter().for_each(|deployment| self.deployment(deployment));
        let Observation { hosts, leaving, endpoint } = observation;
        let gone: Vec<String> =
            self.seen.hosts.keys().filter(|name| !hosts.contains_key(*name)).cloned().collect();
        gone.into_iter().for_each(|name| self.see(name, None));
        hosts.into_iter().for_each(|(name, seen)| self.see(name, Some(seen)));
        self.leave(leaving);
        self.endpoint(endpoint);
    }

    /// The planning leader's number.
    pub fn lead(&mut self, term: u64) {
        if self.state.term != term {
            self.state.term = term;
            self.memory = None;
        }
    }

    /// A host is new, or another than before. One without a name is none.
    pub fn host(&mut self, host: InferenceHost) {
        let Some(name) = host.metadata.name.clone() else { return };
        let Some(position) = self.hosts.get(&name).copied() else {
            self.hosts.insert(name, self.state.hosts.len());
            self.state.hosts.push(host);
            self.memory = None;
            return;
        };
        let before = &self.state.hosts[position];
        if *before == host {
            return;
        }
        if before.metadata.labels != host.metadata.labels || host.spec.term > self.state.term {
            self.memory = None;
        }
        if let Some(memory) = &mut self.memory {
            memory.take_out_host(&self.state, &self.seen, position);
        }
        self.state.hosts[position] = host;
    }

    /// A host is no more.
    pub fn forget_host(&mut self, name: &str) {
        let Some(position) = self.hosts.remove(name) else { return };
        self.memory = None;
        self.state.hosts.swap_remove(position);
        if let Some(name) = self.state.hosts.get(position).and_then(|moved| moved.metadata.name.clone()) {
            self.hosts.insert(name, position);
        }
    }

    /// A deployment is new, or another than before. One without a name is none.
    pub fn deployment(&mut self, deployment: InferenceDeployment) {
        let Some(key) = key(&deployment) else { return };
        let Some(position) = self.deployments.get(&key).copied() else {
            let position = self.state.deployments.len();
            self.deployments.insert(key.clone(), position);
            let age = created(&deployment);
            self.state.deployments.push(deployment);
            let youngest = |memory: &Memory| memory.would_be_youngest(&self.state, age, &key);
            self.memory = self.memory.take().filter(youngest);
            if let Some(memory) = &mut self.memory {
                memory.add_deployment(key, position);
            }
            return;
        };
        let before = &self.state.deployments[position];
        if *before == deployment {
            return;
        }
        if created(before) != created(&deployment) {
            self.memory = None;
        }
        if let Some(memory) = &mut self.memory {
            memory.take_out_deployment(&self.state, &key);
            if before.spec.placement != deployment.spec.placement {
                memory.everybody_looks_again();
            }
        }
        self.state.deployments[position] = deployment;
    }

    /// A deployment is no more.
    pub fn forget_deployment(&mut self, key: &DeploymentRef) {
        let Some(position) = self.deployments.remove(key) else { return };
        self.memory = None;
        self.state.deployments.swap_remove(position);
        if let Some(moved) = self.state.deployments.get(position).and_then(crate::joins::key) {
            self.deployments.insert(moved, position);
        }
    }

    /// What became of a deployment's model.
    pub fn model(&mut self, key: DeploymentRef, model: Option<Model>) {
        if self.state.models.get(&key) == model.as_ref() {
            return;
        }
        if let Some(memory) = &mut self.memory {
            memory.take_out_deployment(&self.state, &key);
        }
        match model {
            Some(model) => self.state.models.insert(key, model),
            None => self.state.models.remove(&key),
        };
    }

    /// What is seen of a host now; none: it has never reported.
    pub fn see(&mut self, name: String, seen: Option<HostObservation>) {
        if self.seen.hosts.get(&name) == seen.as_ref() {
            return;
        }
        self.about_to_change(&name);
        match seen {
            Some(seen) => self.seen.hosts.insert(name, seen),
            None => self.seen.hosts.remove(&name),
        };
    }

    /// Which hosts are about to go.
    pub fn leave(&mut self, leaving: BTreeSet<String>) {
        let others: Vec<String> = self.seen.leaving.symmetric_difference(&leaving).cloned().collect();
        others.iter().for_each(|name| self.about_to_change(name));
        self.seen.leaving = leaving;
    }

    /// Where clients reach a gateway.
    pub fn endpoint(&mut self, endpoint: Option<String>) {
        if self.seen.endpoint != endpoint {
            self.seen.endpoint = endpoint;
            // Every status says so.
            self.memory = None;
        }
    }

    fn about_to_change(&mut self, host: &str) {
        if let (Some(memory), Some(position)) = (&mut self.memory, self.hosts.get(host)) {
            memory.take_out_host(&self.state, &self.seen, *position);
        }
    }

    /// The next step, from all that was told: the same as `plan(self.state(), self.observation(), now)`.
    ///
    /// # Errors
    /// When a host's spec carries a higher term than this operator's: another one leads, so this one must not write.
    pub fn plan(&mut self, now: Timestamp) -> Result<&Plan, Outranked> {
        if let Some(mut memory) = self.memory.take()
            && memory.next(&self.state, &self.seen, now, &mut self.plan)
        {
            self.memory = Some(memory);
            return Ok(&self.plan);
        }
        let mut memory = Memory::of(&self.state)?;
        let mut plan = Plan::default();
        if memory.next(&self.state, &self.seen, now, &mut plan) {
            self.memory = Some(memory);
        } else {
            plan = crate::plan(&self.state, &self.seen, now)?;
        }
        self.plan = plan;
        Ok(&self.plan)
    }

    /// The newest plan; empty before the first.
    #[must_use]
    pub fn planned(&self) -> &Plan {
        &self.plan
    }

    /// Plans in full, and takes that plan; whether it is the one that [`Self::plan`] said, as it must be. If not, everything is
    /// forgotten and the next plan begins anew.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn check(&mut self, now: Timestamp) -> Result<bool, Outranked> {
        let full = crate::plan(&self.state, &self.seen, now)?;
        let same = full == self.plan;
        if !same {
            self.memory = None;
            self.plan = full;
        }
        Ok(same)
    }

    /// How many deployments the newest plan was thought through for; none if it was planned in full, by other means.
    #[must_use]
    pub fn decided(&self) -> Option<usize> {
        self.memory.as_ref().map(Memory::decided)
    }
}

/// A set of places, by the name that they have in common.
type Named = BTreeMap<String, BTreeSet<usize>>;
