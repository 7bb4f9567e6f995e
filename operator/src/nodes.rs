//! What becomes of hosts whose nodes are about to go or are gone, pure: who tells has read which node each host is bound to.

use std::collections::{BTreeMap, BTreeSet};

use tandem_crds::InferenceHost;
use tandem_plan::HostObservation;
use tandem_store::platform::NodeState;

use crate::pods::host_of;

/// What a host stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// It stays: its node does, or it is bound to none.
    Firm,
    /// Its node is cordoned, or about to be removed.
    Leaving,
    /// Its node is gone, and another one has the name: its agent's next pod joins as another host.
    Replaced,
    /// Its node is gone.
    Gone,
}

impl Ground {
    /// Whether the node that the host is bound to is not there any more.
    pub(crate) fn is_lost(self) -> bool {
        matches!(self, Self::Replaced | Self::Gone)
    }
}

/// Every node that there is, by the host that it would be. Two nodes may be the same host by their names.
pub(crate) struct Nodes<'a>(BTreeMap<String, Vec<&'a NodeState>>);

impl<'a> Nodes<'a> {
    pub(crate) fn new(nodes: &'a BTreeMap<String, NodeState>) -> Self {
        let mut by_host: BTreeMap<String, Vec<&NodeState>> = BTreeMap::new();
        for (name, node) in nodes {
            by_host.entry(host_of(name)).or_default().push(node);
        }
        Self(by_host)
    }

    /// What a host stands on that is bound to the node of this UID. A host that is bound to none may be any machine: it goes with a
    /// node of its name that is cordoned, and the lack of one says nothing.
    pub(crate) fn under(&self, host: &str, bound: Option<&str>) -> Ground {
        let of_its_name = self.0.get(host).map_or(&[][..], Vec::as_slice);
        let leaving = |node: &&NodeState| node.leaving;
        let Some(uid) = bound else {
            return if of_its_name.iter().any(leaving) { Ground::Leaving } else { Ground::Firm };
        };
        match of_its_name.iter().find(|node| node.uid == uid) {
            Some(node) if node.leaving => Ground::Leaving,
            Some(_) => Ground::Firm,
            None if of_its_name.is_empty() => Ground::Gone,
            None => Ground::Replaced,
        }
    }
}

/// Hosts that are to be emptied.
pub(crate) fn leaving(ground: &BTreeMap<String, Ground>) -> BTreeSet<String> {
    ground.iter().filter(|(_, ground)| **ground != Ground::Firm).map(|(host, _)| host.clone()).collect()
}

/// What is due for a host that has lost its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// What it was let in with is worth nothing any more. The agent on the new node of its name joins by itself.
    Revoke,
    /// It is no host any more, and its name is free.
    Forget,
}

/// Nothing, as long as something runs there or is meant to: copies move first. A host that is not heard runs what its spec says, for
/// all that is known. One that is heard is not forgotten: it would be back at once.
pub(crate) fn farewell(
    ground: Ground,
    host: &InferenceHost,
    presence: Option<&HostObservation>,
) -> Option<Farewell> {
    let heard = match presence {
        Some(HostObservation::Known(report)) if !report.workloads.is_empty() => return None,
        Some(HostObservation::Known(_)) => true,
        Some(HostObservation::Unknown { .. }) | None => false,
    };
    if !host.spec.workloads.is_empty() {
        return None;
    }
    match ground {
        Ground::Firm | Ground::Leaving => None,
        Ground::Gone if !heard => Some(Farewell::Forget),
        Ground::Gone | Ground::Replaced => Some(Farewell::Revoke),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};
    use tandem_crds::InferenceHostStatus;

    use super::*;

    fn nodes(all: &[(&str, &str, bool)]) -> BTreeMap<String, NodeState> {
        let state = |uid: &str, leaving| NodeState { uid: uid.to_owned(), leaving };
        all.iter().map(|(name, uid, leaving)| ((*name).to_owned(), state(uid, *leaving))).collect()
    }

    #[test]
    fn a_host_stands_on_the_node_that_it_is_bound_to() {
        let all = nodes(&[("a", "1", false), ("b.x", "2", true), ("c", "4", false)]);
        let nodes = Nodes::new(&all);
        assert_eq!(nodes.under("a", Some("1")), Ground::Firm);
        assert_eq!(nodes.under("b-x", Some("2")), Ground::Leaving);
        assert_eq!(nodes.under("c", Some("3")), Ground::Replaced);
        assert_eq!(nodes.under("d", Some("5")), Ground::Gone);
        // Of another name, and therefore not its own.
        assert_eq!(nodes.under("d", Some("1")), Ground::Gone);
    }

    #[test]
    fn a_machine_that_is_no_node_never_lacks_one() {
        let all = nodes(&[("b", "2", true)]);
        assert_eq!(Nodes::new(&all).under("mac-a", None), Ground::Firm);
        assert_eq!(Nodes::new(&all).under("b", None), Ground::Leaving);
        assert_eq!(Nodes::new(&nodes(&[])).under("mac-a", None), Ground::Firm);
    }

    #[test]
    fn two_nodes_that_are_one_host_by_name_are_told_apart() {
        let all = nodes(&[("a-b", "1", true), ("a.b", "2", false)]);
        let nodes = Nodes::new(&all);
        assert_eq!(
            (nodes.under("a-b", Some("1")), nodes.under("a-b", Some("2"))),
            (Ground::Leaving, Ground::Firm)
        );
        assert_eq!(nodes.under("a-b", Some("3")), Ground::Replaced);
    }

    #[test]
    fn all_but_those_on_firm_ground_are_emptied() {
        let ground = [Ground::Firm, Ground::Leaving, Ground::Replaced, Ground::Gone];
        let ground = ["a", "b", "c", "d"].map(str::to_owned).into_iter().zip(ground).collect();
        assert_eq!(leaving(&ground), ["b", "c", "d"].map(str::to_owned).into());
    }

    fn host(workloads: &Value) -> InferenceHost {
        let manifest = json!({
            "apiVersion": "inference.tandem.dev/v1alpha1", "kind": "InferenceHost", "metadata": {"name": "a"},
            "spec": {"workloads": workloads},
        });
        serde_json::from_value(manifest).unwrap()
    }

    fn heard(workloads: &Value) -> HostObservation {
        let workloads = serde_json::from_value(workloads.clone()).unwrap();
        HostObservation::Known(Box::new(InferenceHostStatus { workloads, ..InferenceHostStatus::default() }))
    }

    #[test]
    fn copies_move_before_a_host_loses_its_name() {
        let (nothing, runs) = (json!([]), json!([{"id": "w", "epoch": 1, "state": "Ready"}]));
        let silent = HostObservation::Unknown { since: Timestamp::UNIX_EPOCH };
        let empty = host(&nothing);
        for ground in [Ground::Firm, Ground::Leaving] {
            assert_eq!(farewell(ground, &empty, None), None);
        }
        for ground in [Ground::Replaced, Ground::Gone] {
            assert_eq!(farewell(ground, &empty, Some(&heard(&runs))), None, "it still ends them");
            assert_eq!(farewell(ground, &empty, Some(&heard(&nothing))), Some(Farewell::Revoke));
        }
        for presence in [None, Some(&silent)] {
            assert_eq!(farewell(Ground::Replaced, &empty, presence), Some(Farewell::Revoke));
            assert_eq!(farewell(Ground::Gone, &empty, presence), Some(Farewell::Forget));
        }
    }
}
