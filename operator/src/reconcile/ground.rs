//! Hosts and the nodes under them: reads which node each host is bound to, and parts from hosts that have lost theirs.

use std::collections::BTreeMap;

use tandem_pki::Identity;
use tandem_store::{EventNote, Severity, StoreError};

use super::observe::{Observed, Reading};
use super::settle::note;
use crate::caller::chain;
use crate::cluster::Cluster;
use crate::membership::{self, Bound};
use crate::nodes::{Farewell, Ground, Nodes, farewell};

/// What was read of hosts' records. A host whose node is there is bound to it still: only another node's agent would bind it anew.
#[derive(Default)]
pub(super) struct Bindings(BTreeMap<String, Bound>);

impl Bindings {
    /// What each host stands on. Nothing is said of any host before all nodes are known.
    pub(super) async fn look(
        &mut self,
        cluster: &Cluster,
        observed: &Observed,
        reading: Reading,
    ) -> Result<BTreeMap<String, Ground>, StoreError> {
        let nodes = cluster.store.platform().and_then(|platform| platform.nodes());
        let Some(nodes) = nodes else { return Ok(BTreeMap::new()) };
        let nodes = Nodes::new(&nodes);
        if reading == Reading::Listed {
            self.0 = membership::bound_hosts(&*cluster.store).await?;
        }
        self.0.retain(|host, _| observed.hosts.contains_key(host));
        let mut ground = BTreeMap::new();
        for host in observed.hosts.keys() {
            let under = |bound: &Bound| nodes.under(host, bound.node.as_deref());
            let mut known = self.0.get(host).map(under);
            // Its agent may have joined as the new node's since.
            if known.is_none_or(Ground::is_lost) {
                let bound = membership::bound_host(&*cluster.store, host).await?;
                known = Some(under(&bound));
                self.0.insert(host.clone(), bound);
            }
            ground.extend(known.map(|known| (host.clone(), known)));
        }
        Ok(ground)
    }

    /// Parts from hosts that have lost their nodes and run nothing any more: revokes what they were let in with, and forgets those
    /// that are silent and won't come back.
    pub(super) async fn part(
        &mut self,
        cluster: &Cluster,
        observed: &Observed,
        ground: &BTreeMap<String, Ground>,
    ) -> Result<(), StoreError> {
        let mut due = Vec::new();
        for (name, ground) in ground {
            let Some((object, host)) = observed.hosts.get(name) else { continue };
            let certified = self.0.get(name).is_some_and(|bound| bound.certified);
            match farewell(*ground, host, observed.presence.get(name)) {
                Some(Farewell::Revoke) if !certified => {}
                Some(farewell) => due.push((name, object, farewell)),
                None => {}
            }
        }
        let Some(platform) = cluster.store.platform().filter(|_| !due.is_empty()) else { return Ok(()) };
        // The watch may be behind a node that has just come, and this can't be taken back.
        let there = platform.node_uids().await?;
        for (name, object, farewell) in due {
            let bound = membership::bound_host(&*cluster.store, name).await?;
            let Some(identity) = Identity::host(name).ok().filter(|_| cluster.holds_the_lease()) else {
                continue;
            };
            if bound.node.is_none_or(|uid| there.contains(&uid)) {
                continue;
            }
            if farewell == Farewell::Forget {
                // Before its record: a host without one would be any machine, and stay for ever.
                match cluster.store.delete(&object.key, Some(&object.version)).await {
                    Ok(_) | Err(StoreError::NotFound(_)) => {}
                    Err(error) if error.is_conflict() => continue,
                    Err(error) => return Err(error),
                }
                membership::forget(&*cluster.store, &identity).await?;
                tracing::info!(host = name, "forgets a host whose node is gone, and on which nothing runs");
            } else {
                membership::lock_out(&*cluster.store, &identity).await?;
                tracing::info!(host = name, "revokes the certificates of a host whose node is gone");
                let message = "the node that it was bound to is gone, and nothing runs there any more: its certificates are revoked";
                let about = object.key.clone();
                let (severity, reason) = (Severity::Normal, "NodeGone".to_owned());
                note(cluster, vec![EventNote { about, severity, reason, message: message.to_owned() }]).await;
            }
            self.0.remove(name);
            if let Err(error) = cluster.refresh_revoked().await {
                tracing::warn!(error = chain(&error), "the list of revoked certificates can't be read");
            }
            cluster.wake.notify_one();
        }
        Ok(())
    }
}
