//! The cluster under the home: token reviews, people's secrets, and what is published for pods and people.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use k8s_openapi::ByteString;
use kube::core::Request;
use kube::core::params::{
    DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{KubernetesStore, MANAGER};
use crate::error::StoreError;
use crate::object::Version;
use crate::platform::{AgentPod, Bound, NodeState, Platform, PlatformSecret, TokenOwner};

/// What pods mount to know the operators.
const TRUST: &str = "tandem-trust";
/// What the CLI reads to be an admin.
const ADMIN: &str = "tandem-admin";

fn path(namespace: &str, plural: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{plural}")
}

impl KubernetesStore {
    async fn publish(&self, namespace: &str, plural: &str, object: Value) -> Result<(), StoreError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let params =
            PatchParams { force: true, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let request = Request::new(path(namespace, plural)).patch(&name, &params, &Patch::Apply(object));
        Ok(self.api.ask::<Value>(request).await.map(drop)?)
    }

    async fn read(&self, namespace: &str, plural: &str, name: &str) -> Result<Option<Value>, StoreError> {
        let request = Request::new(path(namespace, plural)).get(name, &GetParams::default());
        match self.api.ask::<Value>(request).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.code() == 404 => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }
}

#[async_trait]
impl Platform for KubernetesStore {
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<PlatformSecret>, StoreError> {
        let Some(secret) = self.read(namespace, "secrets", name).await? else { return Ok(None) };
        let data: BTreeMap<String, ByteString> =
            serde_json::from_value(secret["data"].clone()).unwrap_or_default();
        let version = secret["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let values = data.into_iter().map(|(key, value)| (key, value.0)).collect();
        Ok(Some(PlatformSecret { values, version: Version(version) }))
    }

    async fn review_token(&self, token: &str, audience: &str) -> Result<Option<TokenOwner>, StoreError> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": {"token": token, "audiences": [audience]},
        });
        let request = Request::new("/apis/authentication.k8s.io/v1/tokenreviews")
            .create(&PostParams::default(), review.to_string().into_bytes());
        let answer: Value = self.api.ask(request).await?;
        Ok(owner(&answer["status"], audience))
    }

    fn nodes(&self) -> Option<BTreeMap<String, NodeState>> {
        self.watched.nodes()
    }

    async fn node_uids(&self) -> Result<BTreeSet<String>, StoreError> {
        let request = Request::new("/api/v1/nodes").list_metadata(&ListParams::default());
        let list: Value = self.api.ask(request).await?;
        let uid = |node: &Value| node["metadata"]["uid"].as_str().map(str::to_owned);
        Ok(list["items"].as_array().into_iter().flatten().filter_map(uid).collect())
    }

    fn agent_pods(&self) -> Vec<AgentPod> {
        self.watched.agent_pods()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.watched.changes()
    }

    async fn delete_pod(&self, pod: &AgentPod) -> Result<(), StoreError> {
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let request = Request::new(path(&self.options.agents_namespace, "pods")).delete(&pod.name, &params);
        match self.api.ask::<Value>(request).await {
            Ok(_) => Ok(()),
            // It is gone, or another of its name is there.
            Err(failure) if matches!(failure.code(), 404 | 409) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn publish_trust(&self, ca_pem: &str) -> Result<(), StoreError> {
        let mut namespaces = vec![&self.options.namespace, &self.options.agents_namespace];
        namespaces.dedup();
        for namespace in namespaces.into_iter().filter(|namespace| !namespace.is_empty()) {
            let known = self.read(namespace, "configmaps", TRUST).await?;
            if known.is_some_and(|known| known["data"]["ca.crt"] == ca_pem) {
                continue;
            }
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": TRUST, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
                "data": {"ca.crt": ca_pem},
            });
            self.publish(namespace, "configmaps", object).await?;
        }
        Ok(())
    }

    async fn publish_admin(&self, values: &BTreeMap<String, String>) -> Result<(), StoreError> {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": ADMIN,
                "namespace": self.options.namespace,
                "labels": {"app.kubernetes.io/managed-by": MANAGER},
            },
            "stringData": values,
        });
        self.publish(&self.options.namespace, "secrets", object).await
    }

    async fn admin(&self) -> Result<Option<PlatformSecret>, StoreError> {
        self.secret(&self.options.namespace, ADMIN).await
    }
}

/// Whose token it is; nobody's, when it is not valid for this audience.
fn owner(status: &Value, audience: &str) -> Option<TokenOwner> {
    let for_it = status["audiences"].as_array()?.iter().any(|known| known == audience);
    if status["authenticated"] != true || !for_it {
        return None;
    }
    let account = status["user"]["username"].as_str()?.strip_prefix("system:serviceaccount:")?;
    let (namespace, service_account) = account.split_once(':')?;
    let extra = |what: &str| {
        let value = &status["user"]["extra"][format!("authentication.kubernetes.io/{what}")][0];
        value.as_str().map(str::to_owned)
    };
    let bound = |what: &str| {
        Some(Bound { name: extra(&format!("{what}-name"))?, uid: extra(&format!("{what}-uid"))? })
    };
    Some(TokenOwner {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: bound("pod"),
        node: bound("node"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["tandem-operator"],
            "user": {
                "username": "system:serviceaccount:tandem-agents:tandem-agent",
                "extra": {
                    "authentication.kubernetes.io/node-name": ["n1"],
                    "authentication.kubernetes.io/node-uid": ["u1"],
                    "authentication.kubernetes.io/pod-name": ["agent-x"],
                },
            },
        })
    }

    #[test]
    fn a_token_is_its_accounts_and_bound_to_what_has_name_and_uid() {
        let owner = owner(&status(), "tandem-operator").unwrap();
        assert_eq!(
            (owner.namespace.as_str(), owner.service_account.as_str()),
            ("tandem-agents", "tandem-agent")
        );
        assert_eq!(owner.node, Some(Bound { name: "n1".into(), uid: "u1".into() }));
        assert_eq!(owner.pod, None);
    }

    #[test]
    fn one_for_somebody_else_or_of_a_person_is_nobodys() {
        assert_eq!(owner(&status(), "vault"), None);
        let mut refused = status();
        refused["authenticated"] = json!(false);
        assert_eq!(owner(&refused, "tandem-operator"), None);
        let mut person = status();
        person["user"]["username"] = json!("jane");
        assert_eq!(owner(&person, "tandem-operator"), None);
    }
}
