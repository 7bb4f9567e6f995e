//! Writes that the store refuses for an object's own sake: each waits by itself, longer with every refusal, and no other object
//! waits with it. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_store::{Key, Object, StoreError};

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// What of an object is written: one may be refused while the other is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Spec,
    Status,
}

/// Every write that is held back. Times are of the clock that counts sleep.
#[derive(Debug, Default)]
pub(super) struct Backoff(BTreeMap<(Key, Part), Held>);

#[derive(Debug)]
struct Held {
    until: Duration,
    /// The wait that ends then.
    wait: Duration,
    uid: String,
    generation: i64,
}

impl Held {
    /// Who changes an object's spec, or makes it anew, may have done what the refusal asked for.
    fn is_of(&self, object: &Object) -> bool {
        self.uid == object.uid() && self.generation == object.generation()
    }
}

impl Backoff {
    /// Whether this is not to be written yet.
    pub(super) fn holds(&self, object: &Object, part: Part, now: Duration) -> bool {
        self.0.get(&(object.key.clone(), part)).is_some_and(|held| held.is_of(object) && now < held.until)
    }

    /// It was refused; how long it waits now.
    pub(super) fn failed(&mut self, object: &Object, part: Part, now: Duration) -> Duration {
        let known = self.0.get(&(object.key.clone(), part)).filter(|held| held.is_of(object));
        let wait = known.map_or(FIRST_WAIT, |held| (held.wait * 2).min(LONGEST_WAIT));
        let (uid, generation) = (object.uid().to_owned(), object.generation());
        self.0.insert((object.key.clone(), part), Held { until: now + wait, wait, uid, generation });
        wait
    }

    /// It was written.
    pub(super) fn succeeded(&mut self, key: &Key, part: Part) {
        self.0.remove(&(key.clone(), part));
    }

    /// Forgets objects that are gone.
    pub(super) fn keep(&mut self, exists: impl Fn(&Key) -> bool) {
        self.0.retain(|(key, _), _| exists(key));
    }

    /// How long until the next may be written.
    pub(super) fn due(&self, now: Duration) -> Duration {
        // One whose time has come and that nobody has written since is no longer asked for.
        let waiting = self.0.values().map(|held| held.until).filter(|until| *until > now);
        waiting.min().map_or(Duration::MAX, |until| until - now)
    }
}

/// Whether a refusal is about the object that was to be written, so that others may well be taken. Whatever else goes wrong
/// would go wrong with every object.
pub(super) fn is_the_objects_own(error: &StoreError) -> bool {
    match error {
        StoreError::NotFound(_)
        | StoreError::FieldConflict { .. }
        | StoreError::Invalid { .. }
        | StoreError::TooLarge { .. } => true,
        // An admission webhook's no is a 403 or whatever it likes, one that fails is a 500. No name, no room, no back end: these
        // are everybody's.
        StoreError::Refused { code, .. } => !matches!(code, 401 | 429 | 502..=504),
        StoreError::AlreadyExists(_)
        | StoreError::Conflict { .. }
        | StoreError::Expired { .. }
        | StoreError::LeaseLost { .. }
        | StoreError::RecordConflict { .. }
        | StoreError::InUse { .. }
        | StoreError::NewerFormat { .. }
        | StoreError::Damaged { .. }
        | StoreError::Storage { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Unreachable { .. }
        | StoreError::NotEmpty
        | StoreError::KeptElsewhere
        | StoreError::Closed => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tandem_store::Version;

    use super::*;

    fn host(name: &str, uid: &str, generation: i64) -> Object {
        let json = json!({"metadata": {"name": name, "uid": uid, "generation": generation}});
        Object { key: Key::host(name), version: Version("1".to_owned()), json }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let (mut backoff, a, mut now) = (Backoff::default(), host("a", "1", 1), seconds(100));
        let mut waits = Vec::new();
        for _ in 0..11 {
            assert!(!backoff.holds(&a, Part::Spec, now));
            let wait = backoff.failed(&a, Part::Spec, now);
            assert!(backoff.holds(&a, Part::Spec, now + wait - Duration::from_millis(1)));
            assert_eq!(backoff.due(now), wait);
            now += wait;
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff.due(now), Duration::MAX);
    }

    #[test]
    fn each_object_and_each_part_of_it_waits_by_itself() {
        let (mut backoff, a, b, now) =
            (Backoff::default(), host("a", "1", 1), host("b", "2", 1), Duration::ZERO);
        backoff.failed(&a, Part::Spec, now);
        assert!(backoff.holds(&a, Part::Spec, now));
        assert!(!backoff.holds(&a, Part::Status, now));
        assert!(!backoff.holds(&b, Part::Spec, now));
        backoff.failed(&b, Part::Status, now + seconds(5));
        assert_eq!(backoff.due(now), seconds(1));
        backoff.succeeded(&a.key, Part::Status);
        assert!(backoff.holds(&a, Part::Spec, now));
        backoff.succeeded(&a.key, Part::Spec);
        assert!(!backoff.holds(&a, Part::Spec, now));
        assert_eq!(backoff.due(now), seconds(6));
        assert_eq!(backoff.failed(&a, Part::Spec, now), seconds(1));
    }

    #[test]
    fn another_generation_another_object_and_one_that_is_gone_begin_anew() {
        let (mut backoff, a, now) = (Backoff::default(), host("a", "1", 1), Duration::ZERO);
        for _ in 0..4 {
            backoff.failed(&a, Part::Spec, now);
        }
        for other in [host("a", "1", 2), host("a", "9", 1)] {
            assert!(!backoff.holds(&other, Part::Spec, now));
        }
        backoff.keep(|key| *key == a.key);
        assert!(backoff.holds(&a, Part::Spec, now));
        assert_eq!(backoff.failed(&host("a", "1", 2), Part::Spec, now), seconds(1));
        backoff.keep(|_| false);
        assert_eq!(backoff.due(now), Duration::MAX);
    }

    #[test]
    fn what_would_meet_every_object_is_not_the_objects_own() {
        let key = Key::host("a");
        let refused = |code| StoreError::Refused { code, message: String::new() };
        let unreachable = || StoreError::Unreachable {
            server: "etcd".to_owned(),
            source: Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
        };
        for own in [
            StoreError::Invalid { problems: Vec::new() },
            StoreError::TooLarge { key: key.clone(), bytes: 2, limit: 1 },
            StoreError::FieldConflict { key: key.clone(), fields: Vec::new() },
            StoreError::NotFound(key.clone()),
            refused(400),
            refused(403),
            refused(500),
        ] {
            assert!(is_the_objects_own(&own), "{own}");
        }
        let conflict = StoreError::Conflict { key, current: Version("2".to_owned()) };
        for other in [unreachable(), conflict, StoreError::Closed, refused(401), refused(429), refused(503)] {
            assert!(!is_the_objects_own(&other), "{other}");
        }
    }
}
