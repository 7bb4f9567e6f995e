//! The route table, parsed: who serves which model where.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use tandem_control_api::{ModelRoute, RouteTable};
use tandem_worker_api::Sampling;

/// Every model that clients may ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The models.
    pub routes: Vec<Route>,
}

/// One deployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `namespace/deployment`.
    pub deployment: Arc<str>,
    /// What its workers call the model.
    pub model: String,
    /// What clients may call it: always `namespace/model`, and `model` when it is the oldest of that name.
    pub names: Vec<String>,
    /// Where it belongs.
    pub namespace: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Longest sequence.
    pub context_tokens: u32,
    /// For requests that don't say.
    pub sampling: Sampling,
    /// Its workers.
    pub replicas: Vec<ReplicaRoute>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRoute {
    /// Names this start of this worker at this place.
    pub name: Arc<str>,
    /// `host:port`.
    pub address: String,
    /// In its certificate.
    pub server_name: String,
    /// What it computes with, as far as the operator knows.
    pub numerics_id: Arc<str>,
    /// To be sent nothing new.
    pub draining: bool,
}

impl Table {
    /// Parses what an operator said. What can't be used is left out, with a warning: the rest still serves.
    #[must_use]
    pub fn parse(table: RouteTable) -> Self {
        let mut taken = BTreeSet::new();
        let mut routes: Vec<Route> = table.models.into_iter().map(Route::parse).collect();
        for route in &mut routes {
            route.names.retain(|name| taken.insert(name.clone()));
        }
        Self { routes }
    }

    /// The route that answers to a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.names.iter().any(|known| known == name))
    }
}

impl Route {
    fn parse(route: ModelRoute) -> Self {
        let deployment = format!("{}/{}", route.namespace, route.deployment);
        let sampling = match route.sampling_json.as_str() {
            "" => Sampling::default(),
            json => serde_json::from_str::<Defaults>(json).map(Sampling::from).unwrap_or_else(|error| {
                tracing::warn!(deployment, %error, "sampling defaults can't be read and are not used");
                Sampling::default()
            }),
        };
        let short = route.owns_short_name.then(|| route.name.clone());
        let long = format!("{}/{}", route.namespace, route.name);
        let replicas = route
            .replicas
            .into_iter()
            .filter(|replica| {
                let usable = !replica.address.is_empty() && !replica.server_name.is_empty();
                if !usable {
                    tracing::warn!(
                        deployment,
                        workload = replica.workload,
                        "a replica without an address is left out"
                    );
                }
                usable
            })
            .map(|replica| ReplicaRoute {
                name: format!("{}/{}#{}@{}", replica.host, replica.workload, replica.epoch, replica.address)
                    .into(),
                address: replica.address,
                server_name: replica.server_name,
                numerics_id: replica.numerics_id.into(),
                draining: replica.draining,
            })
            .collect();
        Self {
            deployment: deployment.into(),
            names: short.into_iter().chain([long]).collect(),
            model: route.name,
            namespace: route.namespace,
            created: route.created,
            context_tokens: route.context_tokens,
            sampling,
            replicas,
        }
    }
}

/// A deployment's `spec.sampling`: fractions are strings there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Defaults {
    temperature: Option<Fraction>,
    top_k: Option<u32>,
    top_p: Option<Fraction>,
    min_p: Option<Fraction>,
    repetition_penalty: Option<Fraction>,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Fraction(f32);

impl TryFrom<String> for Fraction {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<Defaults> for Sampling {
    fn from(defaults: Defaults) -> Self {
        let number = |fraction: Option<Fraction>| fraction.map(|Fraction(number)| number);
        Self {
            temperature: number(defaults.temperature),
            top_k: defaults.top_k,
            top_p: number(defaults.top_p),
            min_p: number(defaults.min_p),
            repetition_penalty: number(defaults.repetition_penalty),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_control_api::Replica;

    fn route(namespace: &str, owns_short_name: bool) -> ModelRoute {
        ModelRoute {
            name: "kimi".to_owned(),
            namespace: namespace.to_owned(),
            deployment: "d".to_owned(),
            owns_short_name,
            sampling_json: r#"{"temperature": "0.6", "topK": 40, "minP": "0.01"}"#.to_owned(),
            replicas: vec![
                Replica {
                    address: "h:1".into(),
                    server_name: "s".into(),
                    host: "h".into(),
                    workload: "w".into(),
                    epoch: 3,
                    ..Replica::default()
                },
                Replica::default(),
            ],
            ..ModelRoute::default()
        }
    }

    #[test]
    fn the_short_name_is_the_oldest_deployments_and_the_long_one_is_everybodys() {
        let table = Table::parse(RouteTable {
            models: vec![route("b", false), route("a", true)],
            ..RouteTable::default()
        });
        assert_eq!(table.find("kimi").unwrap().namespace, "a");
        assert_eq!(table.find("b/kimi").unwrap().namespace, "b");
        assert_eq!(table.find("a/kimi").unwrap().namespace, "a");
        assert_eq!(table.find("c/kimi"), None);
    }

    #[test]
    fn what_can_be_used_is_used() {
        let route = Route::parse(route("a", true));
        assert_eq!(route.replicas.len(), 1, "one without an address can't be dialled");
        assert_eq!(&*route.replicas[0].name, "h/w#3@h:1");
        let sampling = route.sampling;
        assert_eq!((sampling.temperature, sampling.top_k, sampling.min_p), (Some(0.6), Some(40), Some(0.01)));
        let broken = ModelRoute { sampling_json: "{\"temperature\": []}".into(), ..ModelRoute::default() };
        assert_eq!(Route::parse(broken).sampling, Sampling::default());
    }
}
