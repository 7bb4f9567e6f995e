//! Clients and their API keys, as the newest route table has them, and what each has used.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tandem_control_api::gateways_client::GatewaysClient;
use tandem_control_api::{ApiKey, KeyUsage, UsageReport};
use tandem_gateway_core::Refusal;
use tandem_gateway_core::access::{Digest, Key, Limited, Meter, Ring, Usage};
use tandem_openai::{Gate, Model, Open, Visitor};
use tokio::time::{MissedTickBehavior, timeout};

use crate::clock::Clock;
use crate::routes::{Operator, connect};

/// How often an operator is told what was used, if something was.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How long one operator may take to count it.
const REPORT_WITHIN: Duration = Duration::from_secs(5);

/// Whom this gateway lets in.
pub struct Access {
    /// Clients without a key of ours are let in to everything.
    open: bool,
    clock: Clock,
    /// Names this start of this process in reports.
    run: String,
    inner: Mutex<Inner>,
    refusals: Mutex<Refusals>,
}

/// How many requests were not let in since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Refusals {
    /// Without a key that is known.
    pub(crate) unauthenticated: u64,
    /// Past a limit of their key.
    pub(crate) limited: u64,
}

#[derive(Default)]
struct Inner {
    ring: Ring,
    meter: Meter,
    /// A table has come, from an operator or from the last run.
    heard: bool,
}

impl Access {
    /// Nobody has a key until [`Access::apply`]. `open` lets everybody in who shows none.
    #[must_use]
    pub fn new(open: bool) -> Arc<Self> {
        let run = format!("{:032x}", rand::random::<u128>());
        Arc::new(Self {
            open,
            clock: Clock::start(),
            run,
            inner: Mutex::default(),
            refusals: Mutex::default(),
        })
    }

    /// Makes these the keys.
    pub fn apply(&self, keys: &[ApiKey]) {
        let keys = keys.iter().filter_map(|key| {
            let digest = digest(&key.sha256);
            if digest.is_none() {
                tracing::warn!(key.namespace, key.name, "a key's hash can't be read: it is not let in");
            }
            let parsed = Key {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                models: key.models.clone(),
                requests_per_minute: key.requests_per_minute.into(),
                tokens_per_minute: key.tokens_per_minute,
                expires_at: u64::try_from(key.expires_at).unwrap_or(0),
            };
            Some((digest?, parsed))
        });
        let mut inner = self.inner();
        inner.ring.replace(keys);
        inner.heard = true;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refusals(&self) -> Refusals {
        *self.counted()
    }

    fn counted(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, shown: Option<&str>) -> Result<Arc<dyn Visitor>, Refusal> {
        let ours = shown.filter(|key| key.starts_with(tandem_pki::ApiKey::PREFIX));
        let Some(text) = ours else {
            // Other programs' clients send a key of some kind even where none is wanted.
            return if self.open { Ok(Arc::new(Open)) } else { Err(self.refused(shown.is_some())) };
        };
        let digest = tandem_pki::ApiKey::digest_of(text);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let key = self.inner().ring.find(&digest, seconds);
        let key = key.ok_or_else(|| self.refused(true))?;
        Ok(Arc::new(Guest { access: self.clone(), digest, key }))
    }

    fn refused(&self, shown: bool) -> Refusal {
        if !self.inner().heard {
            let message = "no operator has said yet who may ask, and nothing is left of an earlier run";
            return Refusal::Unavailable { message: message.to_owned(), retry_after: Duration::from_secs(1) };
        }
        self.counted().unauthenticated += 1;
        Refusal::Unauthenticated(
            if shown {
                "this API key is not known here: it was deleted, has expired, or is another server's"
            } else {
                "this gateway wants an API key, as `Authorization: Bearer tdm-…`: ask who runs it; `tandem keys create` makes one"
            }
            .to_owned(),
        )
    }

    /// Tells an operator what was used, if there is anything to tell.
    pub async fn report(&self, operator: &Operator) {
        let Some((number, used)) = self.inner().meter.report() else { return };
        let used = used.into_iter().map(|((namespace, name), usage)| KeyUsage {
            namespace,
            name,
            requests: usage.requests,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
        });
        let report = UsageReport { run: self.run.clone(), number, used: used.collect() };
        for url in &operator.urls {
            let told = async {
                let channel = connect(url, operator).await?;
                let told = GatewaysClient::new(channel).report_usage(report.clone()).await;
                told.map_err(|status| status.message().to_owned())
            };
            match timeout(REPORT_WITHIN, told).await {
                Ok(Ok(_)) => return self.inner().meter.received(number),
                Ok(Err(error)) => {
                    tracing::debug!(operator = url, error, "what keys have used is not counted yet")
                }
                Err(_) => {
                    tracing::debug!(operator = url, "what keys have used is not counted yet: no answer")
                }
            }
        }
    }

    /// Tells operators what was used, for ever. What can't be told is kept, and told later.
    pub async fn keep_reporting(self: Arc<Self>, operator: Operator) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.report(&operator).await;
        }
    }
}

/// The gateway's gate.
pub struct KeyGate(pub Arc<Access>);

impl Gate for KeyGate {
    fn admit(&self, key: Option<&str>) -> Result<Arc<dyn Visitor>, Refusal> {
        self.0.admit(key)
    }
}

/// A client with a key.
struct Guest {
    access: Arc<Access>,
    digest: Digest,
    key: Arc<Key>,
}

impl Guest {
    fn now(&self) -> Duration {
        self.access.clock.now()
    }
}

impl Visitor for Guest {
    /// Models of the key's namespace, by their long names and by their short ones: within its namespace a key means its own.
    fn models(&self, all: Vec<Model>) -> Vec<Model> {
        let mut seen = Vec::new();
        for model in all {
            let Some((namespace, name)) = model.id.split_once('/') else { continue };
            if self.key.allows(namespace, name) {
                seen.push(Model { id: name.to_owned(), ..model.clone() });
                seen.push(model);
            }
        }
        seen
    }

    fn begin(&self) -> Result<(), Refusal> {
        let mut inner = self.access.inner();
        inner.ring.begin(&self.digest, self.now()).map_err(|limited| {
            self.access.counted().limited += 1;
            let Limited { what, limit, retry_after } = limited;
            Refusal::Limited { what, limit, retry_after }
        })?;
        inner.meter.add(&self.key, Usage { requests: 1, ..Usage::default() });
        Ok(())
    }

    fn used(&self, prompt_tokens: u32, completion_tokens: u32) {
        let usage = Usage {
            requests: 0,
            prompt_tokens: prompt_tokens.into(),
            completion_tokens: completion_tokens.into(),
        };
        let tokens = usage.prompt_tokens + usage.completion_tokens;
        let mut inner = self.access.inner();
        inner.ring.charge(&self.digest, tokens, self.now());
        inner.meter.add(&self.key, usage);
    }

    fn left(&self) -> Vec<(&'static str, u64)> {
        let names = [
            ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
            ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"),
        ];
        let left = self.access.inner().ring.left(&self.digest, self.now());
        let told = names.into_iter().zip(left).filter_map(|(names, left)| Some((names, left?)));
        told.flat_map(|((limit, remaining), left)| [(limit, left.limit), (remaining, left.remaining)])
            .collect()
    }
}

fn digest(hex: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    hex::decode_to_slice(hex, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str) -> Model {
        let owned_by = id.split('/').next().unwrap().to_owned();
        Model { id: id.to_owned(), answers_to: id.to_owned(), created: 0, owned_by, context_tokens: 0 }
    }

    fn key(text: &tandem_pki::ApiKey) -> ApiKey {
        ApiKey {
            namespace: "b".to_owned(),
            name: "ci".to_owned(),
            sha256: hex::encode(text.digest()),
            ..ApiKey::default()
        }
    }

    #[test]
    fn a_short_name_is_the_keys_own_namespaces() {
        let text = tandem_pki::ApiKey::generate();
        let access = Access::new(false);
        assert!(matches!(access.admit(None), Err(Refusal::Unavailable { .. })), "nobody has said who may");
        access.apply(&[key(&text)]);
        let guest = access.admit(Some(&text.to_string())).unwrap();
        let seen = guest.models(["kimi", "a/kimi", "b/kimi"].map(model).into());
        let names: Vec<_> = seen.iter().map(|m| (m.id.as_str(), m.answers_to.as_str())).collect();
        assert_eq!(names, [("kimi", "b/kimi"), ("b/kimi", "b/kimi")]);
    }

    #[test]
    fn an_open_gate_refuses_keys_that_are_not_known_all_the_same() {
        let access = Access::new(true);
        access.apply(&[]);
        for shown in [None, Some("sk-anything"), Some("")] {
            assert!(access.admit(shown).is_ok(), "{shown:?}");
        }
        let wrong = tandem_pki::ApiKey::generate().to_string();
        assert!(matches!(access.admit(Some(&wrong)), Err(Refusal::Unauthenticated(_))));
        let closed = Access::new(false);
        closed.apply(&[]);
        for shown in [None, Some("sk-anything"), Some("")] {
            assert!(matches!(closed.admit(shown), Err(Refusal::Unauthenticated(_))), "{shown:?}");
        }
    }
}
