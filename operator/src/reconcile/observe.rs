//! Observe: the store's objects, typed, and who is silent. Changes nothing.

use std::time::Duration;

use tandem_store::{Key, Kind, Object, Selector, StoreError};

use crate::cluster::Cluster;
use crate::routes::{RoutedDeployment, RoutedHost};

/// Everything that one look sees.
pub(super) struct Observed {
    pub(super) deployments: Vec<RoutedDeployment>,
    pub(super) hosts: Vec<RoutedHost>,
    /// Newest term that a connected host has obeyed and the store knows nothing of.
    beyond: u64,
    /// How long until the next host that is heard now would count as silent.
    pub(super) next_silence: Duration,
}

impl Observed {
    /// A leader's term has to be above this: what hosts have obeyed and what stands in the store.
    pub(super) fn floor(&self) -> u64 {
        self.beyond
    }
}

/// Looks at everything.
pub(super) async fn observe(cluster: &Cluster) -> Result<Observed, StoreError> {
    let deployments = cluster.store.list(&Selector::all(Kind::InferenceDeployment)).await?;
    let hosts = cluster.store.list(&Selector::all(Kind::InferenceHost)).await?;
    let names: Vec<String> = hosts.objects.iter().map(|host| host.key.name.clone()).collect();
    cluster.sessions.expect(&names);
    cluster.sessions.look(cluster.clock.elapsed());

    let mut next_silence = Duration::MAX;
    let timing = &cluster.timing;
    let hosts = hosts.objects.into_iter().filter_map(|object| {
        let silence = cluster.sessions.silence(&object.key.name)?;
        let patience =
            if silence.ever_heard { timing.silent_after } else { timing.boot_grace.max(timing.silent_after) };
        let silent = silence.lasted >= patience;
        if !silent {
            next_silence = next_silence.min(patience - silence.lasted);
        }
        Some(RoutedHost {
            spec: typed(&object.key, object.spec())?,
            status: typed(&object.key, object.status()).unwrap_or_default(),
            name: object.key.name.clone(),
            silent,
            heard: silence.ever_heard,
            reported: Some(object).filter(|object| !object.status().is_null()),
        })
    });
    let hosts: Vec<RoutedHost> = hosts.collect();
    let beyond = 0;
    let deployments = deployments.objects.into_iter().filter_map(deployment).collect();
    Ok(Observed { deployments, hosts, beyond, next_silence })
}

fn deployment(object: Object) -> Option<RoutedDeployment> {
    Some(RoutedDeployment {
        spec: typed(&object.key, object.spec())?,
        created: object.json["metadata"]["creationTimestamp"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
        uid: object.uid().to_owned(),
        namespace: object.key.namespace,
        name: object.key.name,
    })
}

/// The store admits only what parses; an object that does not is of another release, and left alone.
fn typed<T: serde::de::DeserializeOwned>(key: &Key, value: &serde_json::Value) -> Option<T> {
    if value.is_null() {
        return None;
    }
    match serde_json::from_value(value.clone()) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(object = %key, %error, "this release can't read the object: it is left alone");
            None
        }
    }
}
