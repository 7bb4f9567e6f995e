//! Which copies end: those that count no more, those beyond what is promised, and old ones in whose place new ones come.

use std::cmp::Reverse;

use super::{One, Role, copies};

/// Which copy the promise misses least: the least goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Dispensable<'a> {
    stands: bool,
    /// Copies of its kind, serving or warm, are no more than there shall be.
    of_scarce_mode: bool,
    schedulable: bool,
    copies_here: Reverse<u32>,
    workloads_here: Reverse<usize>,
    id: Reverse<&'a str>,
}

impl<'g, 'a: 'g> One<'g, 'a> {
    pub(super) fn stop_what_does_not_count(&mut self) {
        let goal = self.goal();
        for index in 0..self.wanted.copies.len() {
            let copy = &self.wanted.copies[index];
            let host = &self.world.hosts[copy.host];
            if self.goes(index) {
                continue;
            }
            let without = self.standing(Some(index));
            let serving = self.serving(Some(index));
            let serves = serving >= self.replicas;
            let (may_go, reason) = match &self.roles[index] {
                Role::Counted => continue,
                Role::Lost => (
                    serves && self.has_promise(&without),
                    format!("host {} is lost, and others serve in its place", host.name),
                ),
                // The best that is possible without the leaving hosts must be reached; that may be less than the promise.
                Role::Leaving(reason) => (
                    !copy.stands() && host.is_known() || serves && self.holds(&without, &goal),
                    reason.clone(),
                ),
                Role::Outdated => (serves && self.has_promise(&without), self.version_reason()),
            };
            if may_go {
                self.decision.stop.push((index, reason));
            } else if self.roles[index] != Role::Lost {
                let waits = if serving == 0 {
                    format!(
                        "{reason}; it goes once another copy is ready, since it is the last one that serves"
                    )
                } else {
                    format!("{reason}; it goes once others are ready that hold what is promised")
                };
                self.decision.waiting.push((index, waits));
            }
        }
    }

    pub(super) fn stop_surplus(&mut self) {
        let goal = self.goal();
        loop {
            let candidates = (0..self.wanted.copies.len()).filter(|index| {
                let done = |(other, _): &(usize, String)| other == index;
                self.roles[*index] == Role::Counted
                    && !self.decision.stop.iter().any(done)
                    && self.is_surplus(*index, &goal)
            });
            let Some(index) = candidates.min_by_key(|index| self.dispensable(*index)) else { return };
            let host = self.wanted.copies[index].host;
            self.counted.entry(host).and_modify(|copies| *copies -= 1);
            let reason = format!("it is one more than needed: {}", self.promise());
            self.decision.stop.push((index, reason));
        }
    }

    fn is_surplus(&self, index: usize, goal: &[u32]) -> bool {
        let copy = &self.wanted.copies[index];
        let mut counted = self.counted.clone();
        counted.entry(copy.host).and_modify(|copies| *copies -= 1);
        let serves = || !copy.is_ready() || goal.first().is_none_or(|all| self.serving(Some(index)) >= *all);
        self.holds(&counted, goal)
            && (!copy.stands() || self.holds(&self.standing(Some(index)), goal) && serves())
    }

    fn dispensable(&self, index: usize) -> Dispensable<'a> {
        let copy = &self.wanted.copies[index];
        Dispensable {
            stands: copy.stands(),
            of_scarce_mode: copy.shall_serve() != self.has_surplus_serving(),
            schedulable: self.world.hosts[copy.host].takes_new(),
            copies_here: Reverse(self.counted.get(&copy.host).copied().unwrap_or(0)),
            workloads_here: Reverse(self.crowd(copy.host)),
            id: Reverse(copy.workload.id.as_str()),
        }
    }

    /// A new version that finds no room beside the old one takes the place of one old copy, when all else is well.
    pub(super) fn replace_in_turn(&mut self) {
        let outdated: Vec<usize> = (0..self.wanted.copies.len())
            .filter(|index| {
                let done = |(other, _): &(usize, String)| other == index;
                self.roles[*index] == Role::Outdated
                    && !self.decision.stop.iter().any(done)
                    && !self.decision.replace.iter().any(done)
            })
            .collect();
        let quiet = self.decision.start.is_empty() && self.decision.replace.is_empty();
        let counted_ready = self
            .wanted
            .copies
            .iter()
            .zip(&self.roles)
            .all(|(copy, role)| *role != Role::Counted || copy.stands());
        if outdated.is_empty() || !quiet || !counted_ready || self.has_promise(&self.counted) {
            return;
        }
        let fits = |index: &usize| {
            let copy = &self.wanted.copies[*index];
            let freed = self.room.left(copy.host).0 + i128::from(copy.workload.memory_bytes);
            self.world.hosts[copy.host].is_known() && freed >= i128::from(self.need)
        };
        let Some(index) = outdated.into_iter().filter(fits).min_by_key(|index| self.dispensable(*index))
        else {
            if self.decision.stop.is_empty() && self.counted.values().any(|copies| *copies > 0) {
                self.decision.blocked = Some(format!(
                    "generation {} has room for {} of {}, so old ones stay; add a host, or lower what it asks for",
                    self.wanted.generation,
                    self.counted.values().sum::<u32>(),
                    copies(self.replicas + self.failures),
                ));
            }
            return;
        };
        if self.serving(Some(index)) == 0 {
            self.decision.blocked = Some(format!(
                "generation {} needs room for a second copy beside the only one that serves; add a host, or scale to 0 and \
                 back, which interrupts",
                self.wanted.generation
            ));
            return;
        }
        let copy = &self.wanted.copies[index];
        *self.counted.entry(copy.host).or_default() += 1;
        self.decision.waiting.retain(|(other, _)| *other != index);
        self.decision
            .replace
            .push((index, format!("{}, and there is no room beside it", self.version_reason())));
    }
}
