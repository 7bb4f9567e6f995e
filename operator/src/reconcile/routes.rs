//! Routes: from a plan to what gateways are told.

use std::sync::Arc;

use tandem_control_api::{ApiKey, ModelRoute, Replica, RouteTable, Trust};
use tandem_plan::Route;
use tokio::sync::watch;

/// What a table says beside its models.
pub(super) struct Said {
    /// Whom to trust.
    pub(super) trust: Trust,
    /// Whom to let in.
    pub(super) keys: Vec<ApiKey>,
}

/// Publishes the newest table, if it is another, under the next version.
pub(super) fn publish(to: &watch::Sender<Arc<RouteTable>>, version: &mut u64, routes: &[Route], said: Said) {
    let Said { trust: Trust { ca_pem, revoked, issuer }, keys } = said;
    let models = routes.iter().map(model).collect();
    to.send_if_modified(|known| {
        let new = RouteTable { version: known.version, models, revoked, ca_pem, keys, issuer };
        if known.version > 0 && **known == new {
            return false;
        }
        *version += 1;
        *known = Arc::new(RouteTable { version: *version, ..new });
        true
    });
}

fn model(route: &Route) -> ModelRoute {
    let sampling = route.sampling.as_ref();
    ModelRoute {
        name: route.model.clone(),
        namespace: route.deployment.namespace.clone(),
        deployment: route.deployment.name.clone(),
        owns_short_name: route.owns_short_name,
        replicas: route.replicas.iter().map(replica).collect(),
        sampling_json: sampling.map_or_else(String::new, |sampling| {
            serde_json::to_string(sampling).expect("API types are JSON")
        }),
        context_tokens: route.context_tokens,
        created: u64::try_from(route.created.as_second()).unwrap_or(0),
    }
}

fn replica(replica: &tandem_plan::Replica) -> Replica {
    Replica {
        workload: replica.workload.clone(),
        epoch: replica.epoch,
        host: replica.host.clone(),
        address: replica.address.clone(),
        server_name: replica.server_name.clone(),
        numerics_id: replica.numerics_id.clone(),
        quant: replica.quant.clone(),
        draining: replica.draining,
    }
}
