//! Which copies serve and which are kept warm. With `standby: Hot` all serve. With `Warm`, `replicas` of them do:
//!
//! 1. When fewer serve than shall, and no others are about to, warm copies are promoted at once: it costs only work, and their
//!    memory is reserved. A host that is silent for [`SUSPECTED`] is evidence enough; so is a copy that has ended.
//! 2. Of the copies that count, as many are meant to serve as shall.
//! 3. Those that are too many are kept warm once enough others serve: a host that comes back makes no gap.

use std::cmp::Reverse;

use jiff::SignedDuration;
use tandem_crds::{Standby, WorkloadState};

use super::{One, Role, copies};
use crate::parse::{Copy, Presence};

/// A host that is silent for so long serves nobody as far as this operator knows.
pub(crate) const SUSPECTED: SignedDuration = SignedDuration::from_secs(5);

/// Which warm copy is told to serve: the least goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Promotable<'a> {
    /// Its weights are in memory.
    warm: Reverse<bool>,
    counted: Reverse<bool>,
    serving_here: usize,
    seconds: u32,
    id: &'a str,
}

/// Which copy serves no longer, of those that are too many: the least goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Demotable<'a> {
    ready: bool,
    /// Who was away when the plan before this one was made may be away again.
    was_there: bool,
    restarts: Reverse<u32>,
    serving_here: Reverse<usize>,
    id: Reverse<&'a str>,
}

impl<'g, 'a: 'g> One<'g, 'a> {
    /// `placing` is false while nothing may be placed or moved. Promotions then happen all the same.
    pub(super) fn assign_modes(&mut self, placing: bool) {
        match self.wanted.spec.redundancy.standby {
            Standby::Hot if placing => self.promote_all(),
            Standby::Hot => {}
            Standby::Warm => {
                self.promote_for_those_that_are_gone();
                if placing {
                    self.promote_for_those_that_never_were();
                    self.promote_beside_a_spare();
                    self.demote_surplus();
                }
            }
        }
    }

    /// Whether more copies that count are meant to serve than shall.
    pub(super) fn has_surplus_serving(&self) -> bool {
        self.wanted.spec.redundancy.standby == Standby::Warm && self.meant_to_serve() > self.replicas as usize
    }

    fn promote_all(&mut self) {
        let reason = "redundancy.standby is Hot, so every copy serves".to_owned();
        for (index, copy) in self.wanted.copies.iter().enumerate() {
            let stays = self.roles[index] == Role::Counted && !self.goes(index);
            if stays && !copy.shall_serve() && self.world.hosts[copy.host].is_known() {
                self.decision.promote.push((index, reason.clone()));
            }
        }
    }

    /// Copies of any version count here, and of any host: what matters is that somebody answers.
    fn promote_for_those_that_are_gone(&mut self) {
        let serving = self.wanted.copies.iter().enumerate().filter(|(index, copy)| {
            copy.shall_serve() && !self.goes(*index) && (self.serves(copy) || self.is_coming(copy))
        });
        let missing = (self.replicas as usize).saturating_sub(serving.count());
        for _ in 0..missing {
            let Some(index) = self.best_promotable(|one, index| one.wanted.copies[index].stands()) else {
                return;
            };
            let reason = self.loss();
            self.decision.promote.push((index, reason));
        }
    }

    fn promote_for_those_that_never_were(&mut self) {
        let mut missing = (self.replicas as usize).saturating_sub(self.meant_to_serve());
        // What is warm serves soonest; what has yet to start at all may as well serve.
        while missing > 0
            && let Some(index) = self.best_promotable(|one, index| {
                one.roles[index] == Role::Counted && one.wanted.copies[index].stands()
            })
        {
            self.decision.promote.push((index, self.promise()));
            missing -= 1;
        }
        let replaced: Vec<usize> = self.decision.replace.iter().map(|(index, _)| *index).collect();
        self.decision.warm_replaced = replaced.iter().copied().skip(missing).collect();
        missing = missing.saturating_sub(replaced.len());
        self.decision.warm_starts = (0..self.decision.start.len()).skip(missing).collect();
        missing = missing.saturating_sub(self.decision.start.len());
        while missing > 0
            && let Some(index) = self.best_promotable(|one, index| one.roles[index] == Role::Counted)
        {
            self.decision.promote.push((index, self.promise()));
            missing -= 1;
        }
    }

    /// A copy that the promise does not need can't go while it serves and no other does in its place: a warm one elsewhere is
    /// told to, first.
    fn promote_beside_a_spare(&mut self) {
        let quiet = self.decision.start.is_empty()
            && self.decision.stop.is_empty()
            && self.decision.replace.is_empty()
            && self.decision.promote.is_empty();
        if !quiet || self.meant_to_serve() != self.replicas as usize {
            return;
        }
        let stands_without = |index: &usize| self.has_promise(&self.standing(Some(*index)));
        let Some(spare) = self.spares().find(stands_without) else { return };
        let spare = self.wanted.copies[spare];
        let elsewhere = |one: &Self, index: usize| {
            let copy = &one.wanted.copies[index];
            one.roles[index] == Role::Counted && copy.stands() && copy.host != spare.host
        };
        if let Some(index) = self.best_promotable(elsewhere) {
            let reason = format!("{} is one more than needed, and goes once others serve", spare.workload.id);
            self.decision.promote.push((index, reason));
        }
    }

    /// Copies that serve and that the promise does not need.
    fn spares(&self) -> impl Iterator<Item = usize> {
        (0..self.wanted.copies.len()).filter(|index| {
            let copy = &self.wanted.copies[*index];
            let mut counted = self.counted.clone();
            counted.entry(copy.host).and_modify(|copies| *copies = copies.saturating_sub(1));
            let counts = self.roles[*index] == Role::Counted && !self.goes(*index);
            counts && copy.is_ready() && self.has_promise(&counted)
        })
    }

    fn demote_surplus(&mut self) {
        // One that is not needed at all stops, instead of being kept warm, once others serve.
        if self.spares().next().is_some() {
            return;
        }
        while self.meant_to_serve() > self.replicas as usize {
            let candidates = (0..self.wanted.copies.len()).filter(|index| {
                let copy = &self.wanted.copies[*index];
                self.is_meant_to_serve(*index)
                    && copy.shall_serve()
                    && self.world.hosts[copy.host].is_known()
                    && self.serving_as_told(*index) >= self.replicas as usize
            });
            let Some(index) = candidates.min_by_key(|index| self.demotable(*index)) else { return };
            let reason = format!("{} serve without it", copies(self.replicas));
            self.decision.demote.push((index, reason.replace("copy serve", "copy serves")));
        }
    }

    /// Counted copies that serve from this decision on, or shall.
    fn meant_to_serve(&self) -> usize {
        (0..self.wanted.copies.len()).filter(|index| self.is_meant_to_serve(*index)).count()
    }

    fn is_meant_to_serve(&self, index: usize) -> bool {
        let named = |list: &[(usize, String)]| list.iter().any(|(other, _)| *other == index);
        let mode = self.wanted.copies[index].shall_serve() || named(&self.decision.promote);
        mode && self.roles[index] == Role::Counted && !self.goes(index) && !named(&self.decision.demote)
    }

    /// Counted copies that serve, without those that this decision takes away and without one more.
    fn serving_as_told(&self, but: usize) -> usize {
        let serves = |index: &usize| {
            *index != but && self.is_meant_to_serve(*index) && self.wanted.copies[*index].is_ready()
        };
        (0..self.wanted.copies.len()).filter(serves).count()
    }

    fn best_promotable(&self, may: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let candidates = (0..self.wanted.copies.len()).filter(|index| {
            let copy = &self.wanted.copies[*index];
            !copy.shall_serve()
                && self.roles[*index] != Role::Lost
                && self.world.hosts[copy.host].is_known()
                && !self.goes(*index)
                && !self.decision.promote.iter().any(|(other, _)| other == index)
                && may(self, *index)
        });
        candidates.min_by_key(|index| self.promotable(*index))
    }

    fn promotable(&self, index: usize) -> Promotable<'a> {
        let copy = &self.wanted.copies[index];
        Promotable {
            warm: Reverse(copy.stands()),
            counted: Reverse(self.roles[index] == Role::Counted),
            serving_here: self.serving_beside(index),
            seconds: copy.current().and_then(|status| status.seconds_to_ready).unwrap_or(u32::MAX),
            id: &copy.workload.id,
        }
    }

    fn demotable(&self, index: usize) -> Demotable<'a> {
        let copy = &self.wanted.copies[index];
        let placements = self.wanted.prior.into_iter().flat_map(|prior| &prior.placements);
        let away = placements
            .filter(|placement| placement.workload == copy.workload.id)
            .any(|placement| placement.state == "Unknown");
        Demotable {
            ready: copy.is_ready(),
            was_there: !away,
            restarts: Reverse(copy.current().map_or(0, |status| status.restarts)),
            serving_here: Reverse(self.serving_beside(index)),
            id: Reverse(&copy.workload.id),
        }
    }

    fn serving_beside(&self, index: usize) -> usize {
        let host = self.wanted.copies[index].host;
        let beside = |other: &usize| {
            *other != index && self.wanted.copies[*other].host == host && self.is_meant_to_serve(*other)
        };
        (0..self.wanted.copies.len()).filter(beside).count()
    }

    /// Whether a copy serves, or did when its host was heard a moment ago.
    fn serves(&self, copy: &Copy) -> bool {
        match self.world.hosts[copy.host].presence {
            Presence::Known => copy.is_ready(),
            Presence::Silent { since } => self.world.now.duration_since(since) < SUSPECTED,
            Presence::Absent => false,
        }
    }

    /// Whether a copy is on its way to serve, without having failed at it. One that fetches its weights may take hours.
    fn is_coming(&self, copy: &Copy) -> bool {
        self.world.hosts[copy.host].is_known()
            && copy.current().is_none_or(|status| {
                status.restarts == 0
                    && matches!(status.state, WorkloadState::Starting | WorkloadState::Loading)
            })
    }

    /// The first loss that no promotion answers yet.
    fn loss(&self) -> String {
        let gone = self.wanted.copies.iter().enumerate().filter(|(index, copy)| {
            copy.shall_serve() && !self.goes(*index) && !self.serves(copy) && !self.is_coming(copy)
        });
        let reasons = gone.map(|(_, copy)| {
            let (host, id) = (&self.world.hosts[copy.host], &copy.workload.id);
            match (host.presence, copy.current()) {
                (Presence::Silent { since }, _) => {
                    let seconds = self.world.now.duration_since(since).as_secs();
                    format!(
                        "host {} is silent for {seconds} s, so a warm copy serves in its place",
                        host.name
                    )
                }
                (_, Some(status)) => {
                    format!("{id} on {} is {}, so a warm copy serves in its place", host.name, status.state)
                }
                (_, None) => {
                    format!("{id} on {} is not heard of, so a warm copy serves in its place", host.name)
                }
            }
        });
        reasons.into_iter().nth(self.decision.promote.len()).unwrap_or_else(|| self.promise())
    }
}
