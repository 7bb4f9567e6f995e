//! What one change costs a planner that follows, with the time to tell it. Each plan is held against the one that is made in full.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tandem_crds::{InferenceHost, WorkloadState};
use tandem_plan::{HostObservation, Planner, plan};

use super::{Fleet, key, median};

/// Medians in milliseconds.
#[derive(Serialize)]
pub(super) struct Row {
    /// All is told again and nothing of it is new: each object is compared with the one that is known.
    told_again_ms: f64,
    /// Nothing is told.
    nothing_ms: f64,
    /// A copy that was ready loads again.
    state_ms: f64,
    /// A host has fallen silent.
    silent_ms: f64,
    /// A host is silent for so long that its copies are placed elsewhere.
    lost_ms: f64,
    /// A deployment shall have one more replica.
    scaled_ms: f64,
    /// There is a new deployment.
    added_ms: f64,
    /// A deployment is deleted, which is planned in full.
    deleted_ms: f64,
}

pub(super) fn print(what: &str, rows: &[super::Row], of: fn(&super::Row) -> &Row) {
    println!("\nOne change, where {what}:\n");
    println!(
        "| hosts | deployments | nothing ms | a copy's state ms | host silent ms | host lost ms | scaled ms | added ms | deleted ms | told again ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let one = of(row);
        println!(
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} |",
            row.hosts,
            row.deployments,
            one.nothing_ms,
            one.state_ms,
            one.silent_ms,
            one.lost_ms,
            one.scaled_ms,
            one.added_ms,
            one.deleted_ms,
            one.told_again_ms
        );
    }
}

pub(super) fn measure(fleet: &Fleet, runs: u32) -> Result<Row> {
    let mut follower = Follower { fleet, planner: Planner::new(), checked: false };
    follower.planner.tell(fleet.state.clone(), fleet.seen.clone());
    follower.plan()?;
    let mut run = 0;
    let mut each = |follower: &mut Follower, change: fn(&mut Follower, usize) -> Result<Duration>| {
        follower.checked = false;
        median(runs, || {
            run += 37;
            change(follower, run)
        })
    };
    Ok(Row {
        nothing_ms: each(&mut follower, |follower, _| follower.time(|_| ()))?,
        state_ms: each(&mut follower, |follower, run| follower.state(run))?,
        silent_ms: each(&mut follower, |follower, run| follower.silent(run, 1))?,
        lost_ms: each(&mut follower, |follower, run| follower.silent(run, 600))?,
        scaled_ms: each(&mut follower, |follower, run| follower.scaled(run))?,
        added_ms: each(&mut follower, |follower, run| follower.added(run))?,
        deleted_ms: each(&mut follower, |follower, run| follower.deleted(run))?,
        told_again_ms: each(&mut follower, |follower, run| follower.told_again(run))?,
    })
}

struct Follower<'a> {
    fleet: &'a Fleet,
    planner: Planner,
    /// Whether a plan of this kind was held against one in full.
    checked: bool,
}

impl Follower<'_> {
    fn plan(&mut self) -> Result<()> {
        self.planner.plan(self.fleet.now).context("no plan")?;
        Ok(())
    }

    fn time(&mut self, change: impl FnOnce(&mut Planner)) -> Result<Duration> {
        let start = Instant::now();
        change(&mut self.planner);
        self.planner.plan(self.fleet.now).context("no plan")?;
        let took = start.elapsed();
        if !std::mem::replace(&mut self.checked, true) {
            let full = plan(self.planner.state(), self.planner.observation(), self.fleet.now)?;
            ensure!(*self.planner.plan(self.fleet.now)? == full, "following ends in another plan");
        }
        Ok(took)
    }

    /// A host that runs something, another each time.
    fn host(&self, run: usize) -> Result<InferenceHost> {
        let hosts = &self.fleet.state.hosts;
        let mut from = hosts.iter().cycle().skip(run % hosts.len()).take(hosts.len());
        from.find(|host| !host.spec.workloads.is_empty()).cloned().context("no host runs anything")
    }

    fn state(&mut self, run: usize) -> Result<Duration> {
        let before = self.host(run)?;
        let name = before.metadata.name.clone().unwrap_or_default();
        let told = |planner: &mut Planner, host: InferenceHost, name: String| {
            let seen = host.status.clone().map(|status| HostObservation::Known(Box::new(status)));
            planner.host(host);
            planner.see(name, seen);
        };
        let mut after = before.clone();
        for workload in after.status.iter_mut().flat_map(|status| &mut status.workloads).take(1) {
            workload.state = WorkloadState::Loading;
        }
        let again = name.clone();
        let took = self.time(|planner| told(planner, after, again))?;
        told(&mut self.planner, before, name);
        self.plan()?;
        Ok(took)
    }

    fn silent(&mut self, run: usize, seconds: i64) -> Result<Duration> {
        let name = self.host(run)?.metadata.name.unwrap_or_default();
        let since = self.fleet.now - jiff::SignedDuration::from_secs(seconds);
        let before = self.fleet.seen.hosts.get(&name).cloned();
        let again = name.clone();
        let took = self.time(|planner| planner.see(again, Some(HostObservation::Unknown { since })))?;
        self.planner.see(name, before);
        self.plan()?;
        Ok(took)
    }

    fn scaled(&mut self, run: usize) -> Result<Duration> {
        let before = self.fleet.state.deployments[run % self.fleet.state.deployments.len()].clone();
        let mut after = before.clone();
        after.spec.replicas += 1;
        after.metadata.generation = Some(2);
        let took = self.time(|planner| planner.deployment(after))?;
        self.planner.deployment(before);
        self.plan()?;
        Ok(took)
    }

    fn added(&mut self, run: usize) -> Result<Duration> {
        let number = u32::try_from(run)?;
        let (deployment, model) = self.fleet.asked("one-more", 1, false, 1_000_000 + number)?;
        let key = key(&deployment);
        let again = key.clone();
        let took = self.time(|planner| {
            planner.model(again, Some(model));
            planner.deployment(deployment);
        })?;
        self.planner.forget_deployment(&key);
        self.planner.model(key, None);
        self.plan()?;
        Ok(took)
    }

    fn deleted(&mut self, run: usize) -> Result<Duration> {
        let before = self.fleet.state.deployments[run % self.fleet.state.deployments.len()].clone();
        let key = key(&before);
        let took = self.time(|planner| planner.forget_deployment(&key))?;
        self.planner.deployment(before);
        self.plan()?;
        Ok(took)
    }

    fn told_again(&mut self, _: usize) -> Result<Duration> {
        let (state, seen) = (self.fleet.state.clone(), self.fleet.seen.clone());
        self.time(|planner| planner.tell(state, seen))
    }
}
