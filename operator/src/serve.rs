//! The control API: one module per service of control.proto, and the TLS server that carries them.

mod agents;
mod authority;
mod enrollment;
mod fleet;
mod gateways;
mod keys;
mod models;
mod objects;
mod report;
mod secrets;

use std::sync::Arc;
use std::time::Duration;

use tandem_control_api::agents_server::AgentsServer;
use tandem_control_api::enrollment_server::EnrollmentServer;
use tandem_control_api::fleet_server::FleetServer;
use tandem_control_api::gateways_server::GatewaysServer;
use tandem_control_api::keys_server::KeysServer;
use tandem_control_api::objects_server::ObjectsServer;
use tandem_control_api::secrets_server::SecretsServer;
use tandem_pki::{ClientCertificates, incoming};
use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::cluster::Cluster;

pub(crate) use report::ready;

/// Largest request; above an object's limit, so that the store can say the size in its own words.
const LARGEST_REQUEST: usize = 4 * 1024 * 1024;
/// A connection whose peer doesn't answer a ping for this long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Requests and streams that one connection may have open.
const STREAMS: u32 = 128;

/// Serves until the cluster's shutdown fires.
pub(crate) async fn run(cluster: Arc<Cluster>, listener: TcpListener) -> anyhow::Result<()> {
    let callers = incoming(listener, cluster.own.trust.subscribe(), ClientCertificates::Optional)?;
    let shutdown = cluster.shutdown.clone();
    Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(STREAMS)
        .add_service(
            EnrollmentServer::new(enrollment::Enrollment::new(Arc::clone(&cluster)))
                .max_decoding_message_size(enrollment::LARGEST_REQUEST),
        )
        .add_service(
            AgentsServer::new(agents::Agents(Arc::clone(&cluster)))
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(GatewaysServer::new(gateways::Gateways(Arc::clone(&cluster))))
        .add_service(
            ObjectsServer::new(objects::Objects(Arc::clone(&cluster)))
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            SecretsServer::new(secrets::Secrets(Arc::clone(&cluster)))
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(KeysServer::new(keys::Keys(Arc::clone(&cluster))))
        .add_service(FleetServer::new(fleet::Fleet(cluster)))
        .serve_with_incoming_shutdown(callers, shutdown.cancelled_owned())
        .await?;
    Ok(())
}
