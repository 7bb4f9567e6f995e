//! Whether the replacement of the cluster's authority may go one step on. Pure: who decides tells what it has seen.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tandem_pki::{Fingerprint, Identity};

/// How far a replacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// The old authority signs; everybody learns to trust the new one, too.
    Introducing,
    /// The new authority signs; everybody gets a certificate of it, and both are trusted.
    Reissuing,
}

/// A replacement under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) phase: Phase,
    pub(crate) new: Fingerprint,
}

/// What somebody has said of itself last, by the certificate that it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) trusts: BTreeSet<Fingerprint>,
    /// Who has signed its certificate.
    pub(crate) issuer: Fingerprint,
    /// Seconds since 1970.
    pub(crate) at: i64,
}

/// Somebody whose certificate has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Party {
    pub(crate) who: Identity,
    pub(crate) word: Option<Word>,
    /// Whether the replacement waits for it.
    pub(crate) waited_for: bool,
}

/// What somebody has yet to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// It has said nothing yet.
    Word,
    /// It does not trust the new authority.
    Trust,
    /// It goes by a certificate of the old one.
    Certificate,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Let the new authority sign.
    Reissue,
    /// Forget the old authority.
    Finish,
}

impl Change {
    /// What this one has yet to do before the next step.
    pub(crate) fn lack(&self, party: &Party) -> Option<Lack> {
        let Some(word) = &party.word else { return Some(Lack::Word) };
        if !word.trusts.contains(&self.new) {
            return Some(Lack::Trust);
        }
        (self.phase == Phase::Reissuing && word.issuer != self.new).then_some(Lack::Certificate)
    }
}

/// For how long nobody has been missing. Who has just come along may run workers that have yet to look at their folder, and other
/// operators read the newest phase within seconds: each phase lasts a while longer than its slowest party.
#[derive(Default)]
pub(crate) struct Patience(Option<(Phase, Duration)>);

impl Patience {
    /// One look, at `elapsed` of a clock that never goes back. At most one step comes of it.
    pub(crate) fn look(
        &mut self,
        change: &Change,
        parties: &[Party],
        elapsed: Duration,
        settle: Duration,
    ) -> Option<Next> {
        if parties.iter().any(|party| party.waited_for && change.lack(party).is_some()) {
            self.0 = None;
            return None;
        }
        let since = match self.0 {
            Some((phase, since)) if phase == change.phase => since,
            _ => elapsed,
        };
        self.0 = Some((change.phase, since));
        (elapsed.saturating_sub(since) >= settle).then_some(match change.phase {
            Phase::Introducing => Next::Reissue,
            Phase::Reissuing => Next::Finish,
        })
    }

    /// What was seen counts no more: somebody else leads, or nothing is replaced.
    pub(crate) fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTLE: Duration = Duration::from_secs(15);

    fn of(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes())
    }

    fn change(phase: Phase) -> Change {
        Change { phase, new: of("new") }
    }

    fn party(trusts: &[&str], issuer: &str) -> Party {
        let word = Word { trusts: trusts.iter().map(|text| of(text)).collect(), issuer: of(issuer), at: 0 };
        Party { who: Identity::host("mac-a").unwrap(), word: Some(word), waited_for: true }
    }

    #[test]
    fn each_phase_waits_for_what_the_next_one_needs() {
        let silent = Party { word: None, ..party(&[], "old") };
        let knows_one = party(&["old"], "old");
        let knows_both = party(&["old", "new"], "old");
        let done = party(&["old", "new"], "new");
        let lack = |phase, party: &Party| change(phase).lack(party);
        for phase in [Phase::Introducing, Phase::Reissuing] {
            assert_eq!(lack(phase, &silent), Some(Lack::Word));
            assert_eq!(lack(phase, &knows_one), Some(Lack::Trust));
            assert_eq!(lack(phase, &done), None);
        }
        assert_eq!(lack(Phase::Introducing, &knows_both), None);
        assert_eq!(lack(Phase::Reissuing, &knows_both), Some(Lack::Certificate));
    }

    #[test]
    fn a_step_comes_after_the_slowest_and_a_while() {
        let introducing = change(Phase::Introducing);
        let mut patience = Patience::default();
        let mut look = |parties: &[Party], at: u64| {
            patience.look(&introducing, parties, Duration::from_secs(at), SETTLE)
        };
        let (slow, quick) = (party(&["old"], "old"), party(&["old", "new"], "old"));
        assert_eq!(look(&[quick.clone(), slow.clone()], 0), None);
        assert_eq!(look(std::slice::from_ref(&quick), 10), None);
        assert_eq!(look(std::slice::from_ref(&quick), 24), None);
        // A host joins that knows nothing yet: the time starts again.
        assert_eq!(look(&[quick.clone(), slow], 25), None);
        assert_eq!(look(std::slice::from_ref(&quick), 26), None);
        assert_eq!(look(std::slice::from_ref(&quick), 41), Some(Next::Reissue));
        // Nobody is there at all.
        let mut patience = Patience::default();
        let reissuing = change(Phase::Reissuing);
        assert_eq!(patience.look(&reissuing, &[], Duration::ZERO, SETTLE), None);
        assert_eq!(patience.look(&reissuing, &[], SETTLE, SETTLE), Some(Next::Finish));
    }

    #[test]
    fn what_was_seen_in_the_phase_before_does_not_count() {
        let mut patience = Patience::default();
        assert_eq!(patience.look(&change(Phase::Introducing), &[], Duration::ZERO, SETTLE), None);
        assert_eq!(patience.look(&change(Phase::Introducing), &[], SETTLE, SETTLE), Some(Next::Reissue));
        assert_eq!(patience.look(&change(Phase::Reissuing), &[], SETTLE, SETTLE), None);
    }

    /// What may happen to a member between two looks.
    #[derive(Clone, Debug)]
    enum Happens {
        Hears(usize),
        Renews(usize),
        Goes(usize),
        Joins,
        Leader,
        Nothing,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            4 => (0..4usize).prop_map(Happens::Hears),
            4 => (0..4usize).prop_map(Happens::Renews),
            1 => (0..4usize).prop_map(Happens::Goes),
            1 => Just(Happens::Joins),
            1 => Just(Happens::Leader),
            8 => Just(Happens::Nothing),
        ]
    }

    proptest! {
        /// Whatever comes in between: nobody is left behind that is waited for, and phases follow each other.
        #[test]
        fn nobody_is_left_behind(story in proptest::collection::vec((happens(), 0..8u64), 1..200)) {
            let mut phase = Some(Phase::Introducing);
            let mut parties = vec![party(&["old"], "old"); 3];
            let mut patience = Patience::default();
            let mut elapsed = 0;
            for (happens, later) in story {
                elapsed += later;
                let Some(now) = phase else { break };
                match happens {
                    Happens::Hears(n) => if let Some(word) = parties.get_mut(n).and_then(|one| one.word.as_mut()) {
                        word.trusts.insert(of("new"));
                    },
                    // Gets what is signed with at that time.
                    Happens::Renews(n) => if let Some(word) = parties.get_mut(n).and_then(|one| one.word.as_mut()) {
                        word.issuer = of(if now == Phase::Reissuing { "new" } else { "old" });
                    },
                    Happens::Goes(n) => if n < parties.len() { parties.remove(n); },
                    Happens::Joins => parties.push(Party { word: None, ..party(&[], "old") }),
                    Happens::Leader => patience = Patience::default(),
                    Happens::Nothing => {}
                }
                let at = Duration::from_secs(elapsed);
                match patience.look(&change(now), &parties, at, SETTLE) {
                    None => {}
                    Some(Next::Reissue) => {
                        prop_assert_eq!(now, Phase::Introducing);
                        prop_assert!(parties.iter().all(|one| one.word.as_ref().unwrap().trusts.contains(&of("new"))));
                        phase = Some(Phase::Reissuing);
                    }
                    Some(Next::Finish) => {
                        prop_assert_eq!(now, Phase::Reissuing);
                        prop_assert!(parties.iter().all(|one| one.word.as_ref().unwrap().issuer == of("new")));
                        phase = None;
                    }
                }
            }
        }
    }
}
