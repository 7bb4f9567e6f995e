//! Agents' pods of an older revision are replaced host by host, pure: a host is emptied first, its copies ready elsewhere, and
//! its pod is deleted only when nothing runs there. The DaemonSet makes the new one.

use std::collections::BTreeMap;

use tandem_plan::HostObservation;
use tandem_store::platform::AgentPod;

use crate::pods::host_of;

/// The next step of replacing agents' pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rollout<'a> {
    /// The host that is to be emptied.
    pub(crate) leaving: Option<String>,
    /// The pod that can go now.
    pub(crate) delete: Option<&'a AgentPod>,
}

/// At most one host at a time, and none while another's pod is not ready.
pub(crate) fn next<'a>(pods: &'a [AgentPod], hosts: &BTreeMap<String, HostObservation>) -> Rollout<'a> {
    let runs = |pod: &AgentPod| match hosts.get(&host_of(&pod.node)) {
        Some(HostObservation::Known(report)) => Some(report.workloads.len()),
        // What runs on a host that is not heard is not known: its pod is left alone.
        Some(HostObservation::Unknown { .. }) => None,
        None => Some(0),
    };
    let is_waited_for = |pod: &&AgentPod| pod.current && !pod.ready;
    if pods.iter().any(|pod| is_waited_for(&pod)) {
        return Rollout::default();
    }
    // The emptiest first: what is begun is finished before another is begun.
    let outdated = pods.iter().filter(|pod| !pod.current).filter_map(|pod| Some((runs(pod)?, pod)));
    let Some((workloads, pod)) = outdated.min_by_key(|(workloads, pod)| (*workloads, pod.node.as_str()))
    else {
        return Rollout::default();
    };
    Rollout { leaving: Some(host_of(&pod.node)), delete: (workloads == 0).then_some(pod) }
}

#[cfg(test)]
mod tests {
    use tandem_crds::InferenceHostStatus;

    use super::*;

    fn pod(node: &str, current: bool, ready: bool) -> AgentPod {
        let (name, uid) = (format!("agent-{node}"), format!("uid-{node}"));
        AgentPod { name, uid, node: node.to_owned(), current, ready }
    }

    fn running(node: &str, workloads: usize) -> (String, HostObservation) {
        let workload = serde_json::json!({"id": "w", "epoch": 1, "state": "Ready"});
        let workloads = vec![serde_json::from_value(workload).unwrap(); workloads];
        let status = InferenceHostStatus { workloads, ..InferenceHostStatus::default() };
        (node.to_owned(), HostObservation::Known(Box::new(status)))
    }

    #[test]
    fn the_emptiest_host_is_emptied_and_its_pod_deleted_when_nothing_runs_there() {
        let pods = [pod("a", false, true), pod("b", false, true), pod("c", true, true)];
        let hosts = BTreeMap::from([running("a", 2), running("b", 1), running("c", 1)]);
        assert_eq!(next(&pods, &hosts), Rollout { leaving: Some("b".into()), delete: None });
        let hosts = BTreeMap::from([running("a", 2), running("b", 0), running("c", 2)]);
        assert_eq!(next(&pods, &hosts), Rollout { leaving: Some("b".into()), delete: Some(&pods[1]) });
    }

    #[test]
    fn one_at_a_time_and_none_while_a_new_one_is_not_ready() {
        let pods = [pod("a", false, true), pod("b", true, false)];
        let hosts = BTreeMap::from([running("a", 0), running("b", 0)]);
        assert_eq!(next(&pods, &hosts), Rollout::default());
        let pods = [pod("a", true, true), pod("b", true, true)];
        assert_eq!(next(&pods, &hosts), Rollout::default());
    }

    #[test]
    fn a_broken_old_pod_on_an_empty_host_is_replaced_and_a_silent_host_left_alone() {
        let pods = [pod("a", false, false)];
        assert_eq!(next(&pods, &BTreeMap::new()).delete, Some(&pods[0]));
        let since = jiff::Timestamp::UNIX_EPOCH;
        let hosts = BTreeMap::from([("a".to_owned(), HostObservation::Unknown { since })]);
        assert_eq!(next(&pods, &hosts), Rollout::default());
    }
}
