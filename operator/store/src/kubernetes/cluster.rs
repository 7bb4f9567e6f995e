//! Nodes and agents' pods, watched: what the operator reads of them costs no request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::platform::{AgentPod, NodeState};

/// Pods of agents.
const AGENTS: &str = "app.kubernetes.io/component=agent,app.kubernetes.io/part-of=tandem";
/// The label by which a DaemonSet's pod names its revision.
const REVISION: &str = "controller-revision-hash";
/// Taints with which others say that a node is about to go.
const GOING: [&str; 3] =
    ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "node.kubernetes.io/out-of-service"];

/// What is watched. Ends with this value.
pub(super) struct Watched {
    nodes: Shelf<Node>,
    pods: Shelf<Pod>,
    revisions: Shelf<ControllerRevision>,
    changes: watch::Sender<u64>,
    tasks: Vec<JoinHandle<()>>,
}

/// What is known of one kind. A list replaces it whole, once it has come to its end.
struct Shelf<K: kube::Resource<DynamicType = ()> + 'static> {
    store: Store<K>,
    /// Whether the first list has come to its end.
    listed: Arc<AtomicBool>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Watched {
    pub(super) fn start(client: &Client, agents_namespace: &str) -> Self {
        let changes = watch::Sender::new(0);
        let (nodes, first) = watch(Api::<Node>::all(client.clone()), watcher::Config::default(), &changes);
        let pods = Api::<Pod>::namespaced(client.clone(), agents_namespace);
        let (pods, second) = watch(pods, watcher::Config::default().labels(AGENTS), &changes);
        let revisions = Api::<ControllerRevision>::namespaced(client.clone(), agents_namespace);
        let (revisions, third) = watch(revisions, watcher::Config::default().labels(AGENTS), &changes);
        Self { nodes, pods, revisions, changes, tasks: vec![first, second, third] }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Every node that there is; none before all are known.
    pub(super) fn nodes(&self) -> Option<BTreeMap<String, NodeState>> {
        let listed = self.nodes.listed.load(Ordering::Acquire);
        listed.then(|| self.nodes.store.state().iter().map(|node| (node.name_any(), state(node))).collect())
    }

    /// Every agent's pod that is on a node.
    pub(super) fn agent_pods(&self) -> Vec<AgentPod> {
        let mut newest: BTreeMap<String, (i64, String)> = BTreeMap::new();
        for revision in self.revisions.store.state() {
            let Some(owner) = revision.owner_references().first() else { continue };
            let hash = revision.labels().get(REVISION).cloned().unwrap_or_default();
            let known = newest.entry(owner.uid.clone()).or_default();
            if revision.revision > known.0 {
                *known = (revision.revision, hash);
            }
        }
        let pods = self.pods.store.state();
        let mut pods: Vec<AgentPod> = pods.iter().filter_map(|pod| agent_pod(pod, &newest)).collect();
        pods.sort_by(|one, other| one.node.cmp(&other.node));
        pods
    }
}

fn watch<K>(api: Api<K>, config: watcher::Config, changes: &watch::Sender<u64>) -> (Shelf<K>, JoinHandle<()>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let (changes, listed) = (changes.clone(), Arc::new(AtomicBool::new(false)));
    let shelf = Shelf { store, listed: Arc::clone(&listed) };
    let task = tokio::spawn(async move {
        let slim = |object: &mut K| object.managed_fields_mut().clear();
        let events = watcher(api, config).default_backoff().modify(slim).reflect(writer);
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if matches!(event, watcher::Event::InitDone) {
                        listed.store(true, Ordering::Release);
                    }
                    changes.send_modify(|seen| *seen = seen.wrapping_add(1));
                }
                Err(error) => tracing::warn!(%error, "the cluster can't be watched: it is tried again"),
            }
        }
    });
    (shelf, task)
}

fn state(node: &Node) -> NodeState {
    let spec = node.spec.as_ref();
    let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
    let taints = spec.and_then(|spec| spec.taints.as_ref());
    let tainted = taints.into_iter().flatten().any(|taint| GOING.contains(&taint.key.as_str()));
    let leaving = cordoned || tainted || node.metadata.deletion_timestamp.is_some();
    NodeState { uid: node.uid().unwrap_or_default(), leaving }
}

fn agent_pod(pod: &Pod, newest: &BTreeMap<String, (i64, String)>) -> Option<AgentPod> {
    let owner = pod.owner_references().iter().find(|owner| owner.kind == "DaemonSet")?;
    let revision = pod.labels().get(REVISION);
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.into_iter().flatten().any(|known| known.type_ == "Ready" && known.status == "True");
    Some(AgentPod {
        name: pod.name_any(),
        uid: pod.uid()?,
        node: pod.spec.as_ref()?.node_name.clone()?,
        current: newest.get(&owner.uid).is_none_or(|(_, hash)| Some(hash) == revision),
        ready: ready && pod.metadata.deletion_timestamp.is_none(),
    })
}
