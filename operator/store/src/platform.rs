//! What a home on Kubernetes knows beyond objects: whose token a pod shows, the nodes under the hosts, the agents' pods, and
//! people's own secrets.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{StoreError, Version};

/// The cluster under a home. Reads of nodes and pods come from watched caches and cost no request.
#[async_trait]
pub trait Platform: Send + Sync {
    /// One of people's own secrets, if there is one of this name.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<PlatformSecret>, StoreError>;

    /// Asks whose token this is, made for this audience. `None`: nobody's, expired, or for another audience.
    async fn review_token(&self, token: &str, audience: &str) -> Result<Option<TokenOwner>, StoreError>;

    /// Every node, by name.
    async fn nodes(&self) -> Result<BTreeMap<String, Node>, StoreError>;

    /// Every agent's pod in the agents' namespace, by node.
    async fn agent_pods(&self) -> Result<Vec<AgentPod>, StoreError>;

    /// A word after every change of nodes or agents' pods; ends never, and recovers by itself.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// Publishes the authorities' certificates where pods of the operator's and the agents' namespaces mount them: the config
    /// map `tandem-trust`, key `ca.crt`. Writes nothing when they are there already.
    async fn publish_trust(&self, ca_pem: &str) -> Result<(), StoreError>;

    /// Deletes this very pod, so that its DaemonSet makes a new one of the newest revision.
    async fn delete_pod(&self, pod: &AgentPod) -> Result<(), StoreError>;
}

/// Values of a secret. It has no `Debug`, so that nothing can print it.
#[derive(Clone, PartialEq, Eq)]
pub struct PlatformSecret {
    /// By key, as bytes.
    pub values: BTreeMap<String, Vec<u8>>,
    /// Changes with every change of the secret.
    pub version: Version,
}

/// Whom the API server has found a token to be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    /// Namespace of its service account.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The pod that it is bound to: name and UID.
    pub pod: Option<Bound>,
    /// The node that this pod runs on: name and UID.
    pub node: Option<Bound>,
}

/// An object that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its UID: another object of the same name has another.
    pub uid: String,
}

/// A node, as far as it matters for the host on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its UID: a node that was deleted and made again has another.
    pub uid: String,
    /// Cordoned, or tainted so that nothing may stay: what runs there has to move.
    pub leaving: bool,
    /// Labels, such as `topology.kubernetes.io/zone`.
    pub labels: BTreeMap<String, String>,
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node that it runs on.
    pub node: String,
    /// The DaemonSet that owns it.
    pub daemon_set: String,
    /// Whether it is of its DaemonSet's newest revision.
    pub current: bool,
    /// Whether all its containers are ready.
    pub ready: bool,
}
