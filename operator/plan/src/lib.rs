//! Decides what runs where. Pure: no clock, no randomness, no I/O; the same input gives the same plan.
//!
//! ```text
//! let plan = plan(&state, &observation, now)?;   // Err: another operator leads; stop
//! lint(&state, &observation, now, &plan);        // must be empty; refuse to apply otherwise, and say so loudly
//! for (host, spec) in plan.specs    → write InferenceHost.spec, by the resourceVersion that `state` was read at
//! for step in plan.steps            → an event on its deployment, once the host's spec is written
//! for (key, status) in plan.statuses → write where it differs from what is stored (it keeps what did not change)
//! plan.routes                       → the gateways' route table, whenever it differs from the last
//! plan.wake_at                      → plan again then at the latest, even if nothing happens
//! ```
//!
//! Plan again whenever an object or an observation changes: a plan is the *next* step, not the way to the end. A copy
//! that moves, for instance, is first started elsewhere, and only a later plan, that sees it ready, stops the old one.
//! When nothing changed, `specs` and `steps` are empty and the statuses equal what is stored.
//!
//! What the operator must get right:
//! - A host that this operator has not heard from since it began to lead, and whose object exists, is
//!   [`HostObservation::Unknown`] since it began to lead. Absent means: never reported at all.
//! - [`State::models`] speaks of the deployment's *current* spec: after a change of source, quant, files or context it is
//!   [`Model::Resolving`] until files and sizing are known again.
//! - Plans rest on one consistent reading: on a write conflict, throw the plan away and plan again.
//!
//! [`sizing`] says what a copy takes; it is asked before a plan is made.
//!
//! Whoever plans again and again keeps a [`Planner`]: told what changed, it makes the same plan and thinks only about what the change
//! touches.
//!
//! Rooms, in the order in which a plan passes through them: `joins` (who is where and runs what), `parse` (objects → a world
//! without illegal values), `size` (bytes), `place` (which copies start and stop, deployment by deployment, oldest first), `diff` (host specs and steps),
//! `keep` (files that stay on disks), `status` (conditions) and `route`. [`lint()`] checks a plan by its own reading of the rules.
//! Beside them, [`capacity`] and its [`catalogue`]: what would fit where, before anything is bought; [`supply`]: from which other hosts a host fetches weights.

pub mod capacity;
pub mod catalogue;
mod diff;
mod input;
mod joins;
mod keep;
mod lint;
mod output;
mod parse;
mod place;
mod planner;
mod refusal;
mod roll;
mod route;
mod size;
pub mod sizing;
mod status;
pub mod supply;
mod survive;

use jiff::Timestamp;

use diff::Changing;
use joins::Joins;
use place::Ground;

pub use input::{HostObservation, Model, Observation, Resolved, State};
pub use lint::{Finding, lint};
pub use output::{Action, Outranked, Plan, Replica, Route, Step, Waiting};
pub use planner::Planner;
pub use size::human;

/// Plans the next step from what is stored and what is seen.
///
/// # Errors
/// When a host's spec carries a higher term than `state.term`: another operator leads, so this one must not write.
pub fn plan(state: &State, observation: &Observation, now: Timestamp) -> Result<Plan, Outranked> {
    let joins = Joins::of(state)?;
    let mut world = parse::world(state, observation, &joins, now);
    world.bring_all();
    let decisions = place::decide(&world, &mut Ground::of(&world));
    let owners = route::owners(&world);
    let known = diff::known(&world);
    let diff = diff::diff(
        &world,
        Changing {
            led: (0..world.hosts.len()).filter(|host| world.hosts[*host].spec.term < world.term).collect(),
            deployments: decisions.iter().enumerate().collect(),
            known: &|id| known.get(id).copied(),
            kept: keep::keepers(&world),
        },
    );
    let mut plan = Plan {
        waiting: diff.waiting,
        wake_at: route::wake_at(&world),
        steps: diff.steps,
        specs: diff.specs,
        ..Plan::default()
    };
    for (wanted, decision) in world.deployments.iter().zip(&decisions) {
        let owner = owners.get(wanted.spec.model.name.as_str()).copied();
        let status = status::status(&world, wanted, decision, owner, observation.endpoint.clone());
        plan.statuses.insert(wanted.key.clone(), status);
        plan.routes.push(route::route(&world, wanted, owner == Some(wanted.key)));
    }
    plan.routes.sort_by(|a, b| a.deployment.cmp(&b.deployment));
    plan.frozen = world.frozen.map(|storm| storm.sentence);
    Ok(plan)
}
