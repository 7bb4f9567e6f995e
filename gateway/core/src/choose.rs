//! Which replica gets the next attempt.

/// A replica as an attempt sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Names it; breaks ties.
    pub name: &'a str,
    /// Takes nothing new.
    pub draining: bool,
    /// There is evidence against it, not enough to give it up.
    pub suspected: bool,
    /// It is given up for now.
    pub convicted: bool,
    /// Runs an attempt of this stream already.
    pub busy_with_it: bool,
    /// An attempt of this stream failed on it.
    pub failed: bool,
    /// Streams on it.
    pub active: u32,
    /// What it computes with.
    pub numerics_id: &'a str,
}

/// The order of fields is the policy: less is better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    suspected: bool,
    failed: bool,
    /// It would continue the stream otherwise than bit for bit.
    other_numerics: bool,
    active: u32,
    name: &'a str,
}

/// The best replica for the next attempt at a stream whose tokens were computed with `numerics_id`.
///
/// One on which the stream failed before is taken only when no other is left and it has come back since (it is not
/// convicted then). One that is suspected is better than none.
#[must_use]
pub fn choose<'a, 'c>(
    candidates: &'c [Candidate<'a>],
    numerics_id: Option<&str>,
) -> Option<&'c Candidate<'a>> {
    candidates
        .iter()
        .filter(|c| !(c.draining || c.convicted || c.busy_with_it || c.failed && c.suspected))
        .min_by_key(|c| Score {
            suspected: c.suspected,
            failed: c.failed,
            other_numerics: numerics_id.is_some_and(|id| id != c.numerics_id),
            active: c.active,
            name: c.name,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &'static str) -> Candidate<'static> {
        Candidate {
            name,
            draining: false,
            suspected: false,
            convicted: false,
            busy_with_it: false,
            failed: false,
            active: 0,
            numerics_id: "x",
        }
    }

    fn name<'a>(candidates: &[Candidate<'a>], numerics_id: Option<&str>) -> Option<&'a str> {
        choose(candidates, numerics_id).map(|c| c.name)
    }

    #[test]
    fn the_least_busy_and_then_the_first_by_name() {
        let busy = Candidate { active: 3, ..candidate("a") };
        assert_eq!(name(&[candidate("c"), busy, candidate("b")], None), Some("b"));
    }

    #[test]
    fn equal_numerics_before_an_idle_one() {
        let alike = Candidate { active: 9, ..candidate("b") };
        let other = Candidate { numerics_id: "y", ..candidate("a") };
        assert_eq!(name(&[other.clone(), alike.clone()], Some("x")), Some("b"));
        assert_eq!(name(&[other.clone(), alike], None), Some("a"));
        assert_eq!(name(&[other], Some("x")), Some("a"), "another's numerics are better than nothing");
    }

    #[test]
    fn never_one_that_drains_is_given_up_or_has_the_stream_already() {
        let draining = Candidate { draining: true, ..candidate("a") };
        let convicted = Candidate { convicted: true, ..candidate("b") };
        let busy = Candidate { busy_with_it: true, ..candidate("c") };
        assert_eq!(name(&[draining, convicted, busy], None), None);
    }

    #[test]
    fn one_that_failed_the_stream_only_when_it_is_well_again_and_alone() {
        let failed = Candidate { failed: true, ..candidate("a") };
        let fresh = Candidate { active: 50, numerics_id: "y", ..candidate("b") };
        assert_eq!(name(&[failed.clone(), fresh], Some("x")), Some("b"));
        assert_eq!(name(std::slice::from_ref(&failed), None), Some("a"));
        assert_eq!(name(&[Candidate { suspected: true, ..failed }], None), None);
    }

    #[test]
    fn a_suspect_is_better_than_none() {
        let suspect = Candidate { suspected: true, ..candidate("a") };
        assert_eq!(name(&[suspect.clone(), Candidate { active: 9, ..candidate("b") }], None), Some("b"));
        assert_eq!(name(&[suspect], None), Some("a"));
    }
}
