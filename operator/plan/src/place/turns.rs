//! Whose turn it is, and what each finds left by those before it.

use super::{Decision, Ground, One, Take};
use crate::parse::World;

/// What becomes of every deployment. The ground is left as it was.
pub(crate) fn decide(world: &World, ground: &mut Ground) -> Vec<Decision> {
    let mut decisions: Vec<Decision> = Vec::new();
    decisions.resize_with(world.deployments.len(), Decision::default);
    let mut taken = Taken::default();
    for index in turns(world, (0..world.deployments.len()).collect()) {
        let decision = decide_one(world, index, ground);
        taken.take(world, ground, &decision.takes);
        decisions[index] = decision;
    }
    taken.give_back(world, ground);
    decisions
}

/// Lanes before age: within a lane, the order is the world's.
pub(crate) fn turns(world: &World, mut deployments: Vec<usize>) -> Vec<usize> {
    deployments.sort_unstable_by_key(|index| (world.deployments[*index].spec.placement.lane, *index));
    deployments
}

/// What becomes of one deployment, when those before it have taken theirs.
pub(crate) fn decide_one(world: &World, index: usize, ground: &Ground) -> Decision {
    let wanted = &world.deployments[index];
    let mut one = One::new(world, wanted, ground);
    let mut decision = one.decide();
    let need = one.need;
    decision.looked = one.room.looked.get();
    // What stops keeps its room in this plan; what starts takes it at once.
    let starts = decision.start.iter();
    let starts = starts.map(|(host, _)| Take { host: *host, less: 0, more: need, workloads: 1 });
    let replaced = decision.replace.iter().map(|(copy, _)| &wanted.copies[*copy]);
    let replaced = replaced.map(|copy| Take {
        host: copy.host,
        less: copy.workload.memory_bytes,
        more: need,
        workloads: 0,
    });
    decision.takes = starts.chain(replaced).collect();
    decision
}

/// What decisions have taken of a ground, newest last.
#[derive(Default)]
pub(crate) struct Taken(Vec<(usize, (u64, usize))>);

impl Taken {
    pub(crate) fn take(&mut self, world: &World, ground: &mut Ground, takes: &[Take]) {
        self.0.extend(takes.iter().map(|take| (take.host, ground.take(world, take))));
    }

    pub(crate) fn give_back(self, world: &World, ground: &mut Ground) {
        for (host, before) in self.0.into_iter().rev() {
            ground.set(host, world.hosts[host].zone, before);
        }
    }
}
