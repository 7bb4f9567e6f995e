//! API keys: whom to let in, how much each may still ask, and what each has used.
//!
//! A limit is so much a minute, and all of it may be used at once: what is used flows back evenly over the next minute. How long an
//! answer becomes is known only when it has come, so that a request is let in while anything is left and tokens are charged as
//! they come; who has used more than there was waits until it has flowed back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// SHA-256 of a key's text.
pub type Digest = [u8; 32];

const MINUTE: Duration = Duration::from_secs(60);

/// What one key allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// It may use models of this namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Names of models within the namespace; empty: all.
    pub models: Vec<String>,
    /// 0: no limit.
    pub requests_per_minute: u64,
    /// Prompt and output together; 0: no limit.
    pub tokens_per_minute: u64,
    /// Seconds since 1970; 0: never.
    pub expires_at: u64,
}

impl Key {
    /// Whether it may use a model of this namespace and name.
    #[must_use]
    pub fn allows(&self, namespace: &str, model: &str) -> bool {
        self.namespace == namespace
            && (self.models.is_empty() || self.models.iter().any(|allowed| allowed == model))
    }
}

/// What a key has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Requests that were let in.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens that were made for them.
    pub completion_tokens: u64,
}

impl Usage {
    fn add(&mut self, more: Usage) {
        self.requests = self.requests.saturating_add(more.requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(more.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(more.completion_tokens);
    }

    fn tokens(self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// Which limit was reached, and when there is something left again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// `requests` or `tokens`.
    pub what: &'static str,
    /// How much a minute.
    pub limit: u64,
    /// How long to wait.
    pub retry_after: Duration,
}

/// What is left of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// How much a minute.
    pub limit: u64,
    /// How much of it now.
    pub remaining: u64,
}

/// A limit of so much a minute: all of it is there again at `full_at`.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    limit: u64,
    full_at: Duration,
}

impl Bucket {
    /// `None` where there is no limit.
    fn of(limit: u64) -> Option<Self> {
        (limit > 0).then_some(Self { limit, full_at: Duration::ZERO })
    }

    /// How long this much takes to flow back.
    fn time_of(self, amount: u64) -> Duration {
        let nanos = u128::from(amount) * MINUTE.as_nanos() / u128::from(self.limit);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Zero when so much is there.
    fn wait_for(self, amount: u64, now: Duration) -> Duration {
        let room = MINUTE.saturating_sub(self.time_of(amount));
        self.full_at.saturating_sub(now.saturating_add(room))
    }

    fn take(&mut self, amount: u64, now: Duration) {
        self.full_at = self.full_at.max(now).saturating_add(self.time_of(amount));
    }

    fn left(self, now: Duration) -> Left {
        let free = MINUTE.saturating_sub(self.full_at.saturating_sub(now));
        let remaining = u128::from(self.limit) * free.as_nanos() / MINUTE.as_nanos();
        Left { limit: self.limit, remaining: u64::try_from(remaining).unwrap_or(self.limit) }
    }
}

#[derive(Debug)]
struct Entry {
    key: Arc<Key>,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Every key that is let in. Times are since the observer started.
#[derive(Debug, Default)]
pub struct Ring {
    entries: BTreeMap<Digest, Entry>,
}

impl Ring {
    /// These keys and no others. What a key has used of its limits stays used.
    pub fn replace(&mut self, keys: impl IntoIterator<Item = (Digest, Key)>) {
        let mut before = std::mem::take(&mut self.entries);
        for (digest, key) in keys {
            let entry = before.remove(&digest).filter(|entry| *entry.key == key).unwrap_or_else(|| Entry {
                requests: Bucket::of(key.requests_per_minute),
                tokens: Bucket::of(key.tokens_per_minute),
                key: Arc::new(key),
            });
            self.entries.insert(digest, entry);
        }
    }

    /// The key of this hash, unless it has expired. `clock` is in seconds since 1970.
    #[must_use]
    pub fn find(&self, digest: &Digest, clock: u64) -> Option<Arc<Key>> {
        let key = &self.entries.get(digest)?.key;
        (key.expires_at == 0 || clock < key.expires_at).then(|| key.clone())
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// When a limit is reached. Nothing is taken then.
    pub fn begin(&mut self, digest: &Digest, now: Duration) -> Result<(), Limited> {
        let Some(entry) = self.entries.get_mut(digest) else { return Ok(()) };
        for (what, bucket) in [("requests", entry.requests), ("tokens", entry.tokens)] {
            let Some(bucket) = bucket else { continue };
            let retry_after = bucket.wait_for(1, now);
            if retry_after > Duration::ZERO {
                return Err(Limited { what, limit: bucket.limit, retry_after });
            }
        }
        if let Some(requests) = &mut entry.requests {
            requests.take(1, now);
        }
        Ok(())
    }

    /// Charges tokens that a request has used.
    pub fn charge(&mut self, digest: &Digest, tokens: u64, now: Duration) {
        if let Some(bucket) = self.entries.get_mut(digest).and_then(|entry| entry.tokens.as_mut()) {
            bucket.take(tokens, now);
        }
    }

    /// What is left of requests and of tokens, where there are limits.
    #[must_use]
    pub fn left(&self, digest: &Digest, now: Duration) -> [Option<Left>; 2] {
        let entry = self.entries.get(digest);
        let left = |bucket: Option<Bucket>| bucket.map(|bucket| bucket.left(now));
        [left(entry.and_then(|entry| entry.requests)), left(entry.and_then(|entry| entry.tokens))]
    }
}

/// `(namespace, name)` of a key.
pub type KeyName = (String, String);

/// What was used since an operator said that it had counted.
#[derive(Debug, Default)]
pub struct Meter {
    fresh: BTreeMap<KeyName, Usage>,
    /// On its way, under this number, until there is a receipt.
    sent: BTreeMap<KeyName, Usage>,
    number: u64,
}

impl Meter {
    /// Something was used.
    pub fn add(&mut self, key: &Key, usage: Usage) {
        if usage.requests > 0 || usage.tokens() > 0 {
            self.fresh.entry((key.namespace.clone(), key.name.clone())).or_default().add(usage);
        }
    }

    /// The report to send: the one before again, until [`Meter::received`]; `None` when there is nothing to tell.
    pub fn report(&mut self) -> Option<(u64, Vec<(KeyName, Usage)>)> {
        if self.sent.is_empty() {
            if self.fresh.is_empty() {
                return None;
            }
            self.sent = std::mem::take(&mut self.fresh);
            self.number += 1;
        }
        Some((self.number, self.sent.iter().map(|(key, usage)| (key.clone(), *usage)).collect()))
    }

    /// The report of this number was counted.
    pub fn received(&mut self, number: u64) {
        if number == self.number {
            self.sent.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: Digest = [7; 32];

    fn ring(requests_per_minute: u64, tokens_per_minute: u64) -> Ring {
        let mut ring = Ring::default();
        ring.replace([(DIGEST, Key { requests_per_minute, tokens_per_minute, ..Key::default() })]);
        ring
    }

    #[test]
    fn a_key_is_of_its_namespace_and_of_the_models_that_it_names() {
        let key = Key { namespace: "llm".into(), models: vec!["kimi".into()], ..Key::default() };
        assert!(key.allows("llm", "kimi") && !key.allows("llm", "tiny") && !key.allows("prod", "kimi"));
        let all = Key { namespace: "llm".into(), ..Key::default() };
        assert!(all.allows("llm", "tiny") && !all.allows("prod", "tiny"));
    }

    #[test]
    fn an_expired_key_is_not_found() {
        let mut ring = Ring::default();
        ring.replace([(DIGEST, Key { expires_at: 100, ..Key::default() })]);
        assert!(ring.find(&DIGEST, 99).is_some() && ring.find(&DIGEST, 100).is_none());
        assert!(ring.find(&[0; 32], 0).is_none());
    }

    #[test]
    fn tokens_that_were_not_there_are_waited_for() {
        let mut ring = ring(0, 60);
        let now = Duration::from_secs(100);
        ring.begin(&DIGEST, now).unwrap();
        ring.charge(&DIGEST, 90, now);
        let limited = ring.begin(&DIGEST, now).unwrap_err();
        assert_eq!(
            (limited.what, limited.limit, limited.retry_after),
            ("tokens", 60, Duration::from_secs(31))
        );
        assert!(ring.begin(&DIGEST, now + limited.retry_after).is_ok());
    }

    #[test]
    fn a_new_table_does_not_give_back_what_was_used() {
        let mut ring = ring(1, 0);
        let key = Key { requests_per_minute: 1, ..Key::default() };
        ring.begin(&DIGEST, Duration::ZERO).unwrap();
        ring.replace([(DIGEST, key)]);
        assert!(ring.begin(&DIGEST, Duration::ZERO).is_err());
        ring.replace([]);
        assert!(ring.find(&DIGEST, 0).is_none());
    }

    proptest! {
        /// In any minute no more than twice the limit: what was there at its begin, and what flowed back.
        #[test]
        fn no_window_lets_in_more_than_was_there_and_came_back(
            limit in 1u64..50, gaps in prop::collection::vec(0u64..5_000, 1..300),
        ) {
            let mut ring = ring(limit, 0);
            let (mut now, mut taken) = (Duration::ZERO, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                match ring.begin(&DIGEST, now) {
                    Ok(()) => taken.push(now),
                    Err(limited) => {
                        prop_assert!(limited.retry_after <= MINUTE);
                        let [left, _] = ring.left(&DIGEST, now);
                        prop_assert_eq!(left.unwrap().remaining, 0);
                    }
                }
            }
            for (index, from) in taken.iter().enumerate() {
                let within = taken[index..].iter().filter(|at| **at < *from + MINUTE).count();
                prop_assert!(within as u64 <= 2 * limit);
            }
        }

        /// Whatever is lost on the way, what was used is told once.
        #[test]
        fn nothing_is_told_twice_or_lost(steps in prop::collection::vec((0u64..5, any::<bool>()), 1..100)) {
            let key = Key { name: "ci".into(), ..Key::default() };
            let (mut meter, mut used, mut counted, mut last) = (Meter::default(), 0, 0, 0);
            for (tokens, arrives) in steps {
                used += tokens;
                meter.add(&key, Usage { completion_tokens: tokens, ..Usage::default() });
                let Some((number, report)) = meter.report() else { continue };
                if number > last {
                    // The first time that the operator sees it; the receipt may be lost all the same.
                    last = number;
                    counted += report.iter().map(|(_, usage)| usage.completion_tokens).sum::<u64>();
                }
                if arrives {
                    meter.received(number);
                }
            }
            let open: u64 = meter.fresh.values().map(|usage| usage.completion_tokens).sum();
            prop_assert_eq!(used, counted + open);
        }
    }
}
