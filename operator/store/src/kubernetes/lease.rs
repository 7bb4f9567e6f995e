//! Leases by `coordination.k8s.io` Leases, with a term that only grows in an annotation.

use std::sync::Arc;
use std::time::Duration;

use kube::core::Request;
use kube::core::params::{GetParams, PostParams};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::MANAGER;
use super::api::{Api, Failure};
use crate::Lease;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::sightings::Sightings;

const TERM: &str = "tandem.dev/term";
/// Races in a row with other holders, after which the next look decides.
const TRIES: usize = 3;

/// The leases of one namespace, as this process has seen them.
pub(super) struct Leases {
    path: String,
    clock: Arc<dyn Clock>,
    seen: Sightings,
}

/// What the API server has.
struct Held {
    version: String,
    holder: String,
    term: u64,
    lasts: Duration,
    json: Value,
}

impl Leases {
    pub(super) fn new(namespace: &str, clock: Arc<dyn Clock>) -> Self {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        Self { path, clock, seen: Sightings::default() }
    }

    pub(super) async fn acquire(
        &self,
        api: &Api,
        name: &str,
        holder: &str,
        ttl: Duration,
        floor: u64,
    ) -> Result<Lease, StoreError> {
        for _ in 0..TRIES {
            let held = self.get(api, name, ttl).await?;
            let over = held.as_ref().is_none_or(|held| held.holder.is_empty() || self.is_over(name, held));
            let before = held.as_ref().map_or(0, |held| held.term);
            let term = match &held {
                Some(held) if !over && held.holder != holder => return Err(lost(name, held)),
                // The same holder again, and nobody in between: the same term, unless a higher one was seen elsewhere.
                Some(held) if !over && held.term > floor => held.term,
                _ => before.max(floor) + 1,
            };
            let lease = Lease { name: name.to_owned(), holder: holder.to_owned(), term, ttl };
            match self.write(api, &lease, held.as_ref(), holder).await {
                Ok(()) => return Ok(lease),
                Err(failure) if failure.code() == 409 => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        match self.get(api, name, ttl).await? {
            Some(held) => Err(lost(name, &held)),
            None => {
                Err(StoreError::LeaseLost { name: name.to_owned(), holder: "nobody".to_owned(), term: 0 })
            }
        }
    }

    pub(super) async fn renew(&self, api: &Api, lease: &Lease) -> Result<(), StoreError> {
        let held = self.get(api, &lease.name, lease.ttl).await?;
        let Some(held) = held else {
            return Err(StoreError::LeaseLost {
                name: lease.name.clone(),
                holder: "nobody".to_owned(),
                term: 0,
            });
        };
        if held.holder != lease.holder || held.term != lease.term || self.is_over(&lease.name, &held) {
            return Err(lost(&lease.name, &held));
        }
        match self.write(api, lease, Some(&held), &lease.holder).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.code() == 409 => match self.get(api, &lease.name, lease.ttl).await? {
                Some(held) => Err(lost(&lease.name, &held)),
                None => Err(StoreError::LeaseLost {
                    name: lease.name.clone(),
                    holder: "nobody".to_owned(),
                    term: 0,
                }),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    pub(super) async fn release(&self, api: &Api, lease: &Lease) -> Result<(), StoreError> {
        let Some(held) = self.get(api, &lease.name, lease.ttl).await? else { return Ok(()) };
        if held.holder != lease.holder || held.term != lease.term {
            return Ok(());
        }
        match self.write(api, lease, Some(&held), "").await {
            Ok(()) => Ok(()),
            // Somebody was faster, and has it now.
            Err(failure) if failure.code() == 409 => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    fn is_over(&self, name: &str, held: &Held) -> bool {
        self.seen.is_over(name, &held.version, held.lasts, self.clock.elapsed())
    }

    async fn get(&self, api: &Api, name: &str, within: Duration) -> Result<Option<Held>, StoreError> {
        let request = Request::new(self.path.clone()).get(&object_name(name), &GetParams::default());
        let json = match ended(within, api.ask::<Value>(request)).await {
            Ok(json) => json,
            Err(failure) if failure.code() == 404 => return Ok(None),
            Err(failure) => return Err(failure.into()),
        };
        // Seen when it came: whoever wrote it counts from before.
        let now = self.clock.elapsed();
        let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let held = Held {
            version: text("/metadata/resourceVersion").to_owned(),
            holder: text("/spec/holderIdentity").to_owned(),
            term: json["metadata"]["annotations"][TERM]
                .as_str()
                .and_then(|term| term.parse().ok())
                .unwrap_or(0),
            lasts: Duration::from_secs(json["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(1)),
            json,
        };
        self.seen.see(name, &held.version, now);
        Ok(Some(held))
    }

    /// Writes who holds the lease, if it still is what was read.
    async fn write(
        &self,
        api: &Api,
        lease: &Lease,
        held: Option<&Held>,
        holder: &str,
    ) -> Result<(), Failure> {
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let mut json = held.map_or_else(
            || json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": object_name(&lease.name)}}),
            |held| held.json.clone(),
        );
        let same = held.is_some_and(|held| held.holder == holder && held.term == lease.term);
        json["metadata"]["annotations"][TERM] = json!(lease.term.to_string());
        json["spec"]["holderIdentity"] = json!(holder);
        // Whole seconds are what a Lease can say; a longer one than meant is safe.
        json["spec"]["leaseDurationSeconds"] = json!(lease.ttl.as_millis().div_ceil(1000).max(1));
        json["spec"]["renewTime"] = json!(now);
        if !same {
            json["spec"]["acquireTime"] = json!(now);
            let transitions = json["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
            json["spec"]["leaseTransitions"] = json!(transitions + i64::from(held.is_some()));
        }
        let params = PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) };
        let data = json.to_string().into_bytes();
        let request = match held {
            Some(_) => Request::new(self.path.clone()).replace(&object_name(&lease.name), &params, data),
            None => Request::new(self.path.clone()).create(&params, data),
        };
        let sent = self.clock.elapsed();
        let written: Value = ended(lease.ttl, api.ask(request)).await?;
        self.seen.see(&lease.name, written["metadata"]["resourceVersion"].as_str().unwrap_or_default(), sent);
        Ok(())
    }
}

fn object_name(name: &str) -> String {
    format!("tandem-{name}")
}

fn lost(name: &str, held: &Held) -> StoreError {
    StoreError::LeaseLost { name: name.to_owned(), holder: held.holder.clone(), term: held.term }
}

/// What is not said within half of a lease comes too late for it.
async fn ended<T>(ttl: Duration, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match timeout(ttl / 2, asked).await {
        Ok(answer) => answer,
        Err(late) => {
            Err(StoreError::Unreachable { server: "the API server".to_owned(), source: Box::new(late) }
                .into())
        }
    }
}
