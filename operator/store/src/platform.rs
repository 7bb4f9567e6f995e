//! What a home on Kubernetes knows beyond objects: whose token a pod shows, people's own secrets, and where pods and people find
//! what they need to trust an operator.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{StoreError, Version};

/// The cluster under a home.
#[async_trait]
pub trait Platform: Send + Sync {
    /// One of people's own secrets, if there is one of this name.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<PlatformSecret>, StoreError>;

    /// Asks whose token this is, made for this audience. `None`: nobody's, expired, or for another audience.
    async fn review_token(&self, token: &str, audience: &str) -> Result<Option<TokenOwner>, StoreError>;

    /// Every node that there is, by name; none before this process has been told of all of them once. May be a moment old, and
    /// costs no request.
    fn nodes(&self) -> Option<BTreeMap<String, NodeState>>;

    /// UIDs of every node that there is now: for what can't be taken back.
    async fn node_uids(&self) -> Result<BTreeSet<String>, StoreError>;

    /// Every agent's pod that is on a node, in order of their nodes. Costs no request.
    fn agent_pods(&self) -> Vec<AgentPod>;

    /// Grows with every change of nodes and agents' pods.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Deletes this very pod, so that its DaemonSet makes one of the newest revision.
    async fn delete_pod(&self, pod: &AgentPod) -> Result<(), StoreError>;

    /// Publishes the authorities' certificates where pods of the operator's and the agents' namespaces mount them: the config
    /// map `tandem-trust`, key `ca.crt`. Writes nothing when they are there already.
    async fn publish_trust(&self, ca_pem: &str) -> Result<(), StoreError>;

    /// Publishes a person's credentials in the operator's namespace: the Secret `tandem-admin`.
    async fn publish_admin(&self, values: &BTreeMap<String, String>) -> Result<(), StoreError>;

    /// What is published there.
    async fn admin(&self) -> Result<Option<PlatformSecret>, StoreError>;
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
pub struct NodeState {
    /// Its UID: a node that was deleted and made again has another.
    pub uid: String,
    /// Cordoned, or about to be removed: what runs there has to move.
    pub leaving: bool,
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node that it runs on.
    pub node: String,
    /// Whether it is of its DaemonSet's newest revision.
    pub current: bool,
    /// Whether all its containers are ready.
    pub ready: bool,
}
