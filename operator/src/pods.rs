//! Joining as a pod of the cluster: the API server says whose token it is, and on which node its pod runs.

use tandem_control_api::Role;
use tandem_store::platform::{NodeState, TokenOwner};
use tandem_store::{Platform, StoreError};
use thiserror::Error;

/// Whom a token has to be made for, so that it lets nobody in anywhere else.
pub(crate) const AUDIENCE: &str = "tandem-operator";

/// A service account, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Whose pods may join.
#[derive(Clone, Debug)]
pub struct ServiceAccounts {
    /// Of agents: a pod speaks for the host that is its node.
    pub agents: ServiceAccount,
    /// Of gateways: a pod speaks for the gateway of its name.
    pub gateways: ServiceAccount,
}

impl Default for ServiceAccounts {
    fn default() -> Self {
        let account =
            |name: &str| ServiceAccount { namespace: "tandem-system".to_owned(), name: name.to_owned() };
        Self { agents: account("tandem-agent"), gateways: account("tandem-gateway") }
    }
}

/// Why a pod may not join.
#[derive(Debug, Error)]
pub(crate) enum PodRefused {
    #[error("this operator's store is not in Kubernetes: join with a token of `tandem join-token`")]
    NoCluster,
    #[error(
        "the API server does not know this token for the audience {AUDIENCE}: project one for it into the pod, and mind its \
         expiry"
    )]
    Unknown,
    #[error("the token is of service account {found}; {role}s join as {wanted}")]
    Account { found: String, role: &'static str, wanted: String },
    #[error("the token is bound to no pod on a node: use a projected token of the pod itself")]
    Unbound,
    #[error("the token is of a pod on node {node}, which is host {is}, not {asked}")]
    OtherNode { node: String, is: String, asked: String },
    #[error("the token is of a pod on node {0}, which is gone")]
    NodeGone(String),
    #[error("the token is of pod {pod}, not of {asked}")]
    OtherPod { pod: String, asked: String },
    #[error("the store refused")]
    Store(#[from] StoreError),
}

/// What a host or gateway is bound to: the UID of its node or pod.
pub(crate) async fn check(
    platform: Option<&dyn Platform>,
    accounts: &ServiceAccounts,
    token: &str,
    role: Role,
    name: &str,
) -> Result<String, PodRefused> {
    let platform = platform.ok_or(PodRefused::NoCluster)?;
    let owner = platform.review_token(token, AUDIENCE).await?.ok_or(PodRefused::Unknown)?;
    let uid = may_be(accounts, &owner, role, name)?;
    // The API server believes a token for a while after its pod's node is gone, and for as long as the pod is there.
    if let (true, Some(node)) = (role != Role::Gateway, &owner.node) {
        let known = |node: &NodeState| node.uid == uid;
        let known = platform.nodes().is_some_and(|nodes| nodes.values().any(known));
        if !known && !platform.node_uids().await?.contains(&uid) {
            return Err(PodRefused::NodeGone(node.name.clone()));
        }
    }
    Ok(uid)
}

fn may_be(
    accounts: &ServiceAccounts,
    owner: &TokenOwner,
    role: Role,
    name: &str,
) -> Result<String, PodRefused> {
    let (wanted, word) = match role {
        Role::Gateway => (&accounts.gateways, "gateway"),
        _ => (&accounts.agents, "agent"),
    };
    if (&owner.namespace, &owner.service_account) != (&wanted.namespace, &wanted.name) {
        return Err(PodRefused::Account {
            found: format!("{}/{}", owner.namespace, owner.service_account),
            role: word,
            wanted: format!("{}/{}", wanted.namespace, wanted.name),
        });
    }
    let (Some(pod), Some(node)) = (&owner.pod, &owner.node) else { return Err(PodRefused::Unbound) };
    if role == Role::Gateway {
        return if pod.name == name {
            Ok(pod.uid.clone())
        } else {
            Err(PodRefused::OtherPod { pod: pod.name.clone(), asked: name.to_owned() })
        };
    }
    let is = host_of(&node.name);
    if is == name {
        Ok(node.uid.clone())
    } else {
        Err(PodRefused::OtherNode { node: node.name.clone(), is, asked: name.to_owned() })
    }
}

/// The host that a node is: a host's name has no dots.
pub(crate) fn host_of(node: &str) -> String {
    node.replace('.', "-")
}

#[cfg(test)]
mod tests {
    use tandem_store::platform::Bound;

    use super::*;

    fn owner(account: &str) -> TokenOwner {
        let bound = |name: &str| Some(Bound { name: name.to_owned(), uid: format!("uid-of-{name}") });
        TokenOwner {
            namespace: "tandem-system".to_owned(),
            service_account: account.to_owned(),
            pod: bound("pod-1"),
            node: bound("ip-10-0-0-1.internal"),
        }
    }

    fn asks(owner: &TokenOwner, role: Role, name: &str) -> Result<String, PodRefused> {
        may_be(&ServiceAccounts::default(), owner, role, name)
    }

    #[test]
    fn an_agent_speaks_for_its_node_and_a_gateway_for_its_pod() {
        let agent = owner("tandem-agent");
        assert_eq!(asks(&agent, Role::Host, "ip-10-0-0-1-internal").unwrap(), "uid-of-ip-10-0-0-1.internal");
        assert!(matches!(asks(&agent, Role::Host, "other"), Err(PodRefused::OtherNode { .. })));
        let gateway = owner("tandem-gateway");
        assert_eq!(asks(&gateway, Role::Gateway, "pod-1").unwrap(), "uid-of-pod-1");
        assert!(matches!(asks(&gateway, Role::Gateway, "pod-2"), Err(PodRefused::OtherPod { .. })));
    }

    #[test]
    fn another_account_and_an_unbound_token_are_refused() {
        assert!(matches!(asks(&owner("default"), Role::Host, "x"), Err(PodRefused::Account { .. })));
        assert!(matches!(asks(&owner("tandem-gateway"), Role::Host, "x"), Err(PodRefused::Account { .. })));
        let unbound = TokenOwner { node: None, ..owner("tandem-agent") };
        assert!(matches!(asks(&unbound, Role::Host, "x"), Err(PodRefused::Unbound)));
    }
}
