//! Secrets, for the CLI. Values go in; answers and log lines name keys only.

use std::sync::Arc;

use tandem_control_api::secrets_client::SecretsClient;
use tandem_control_api::{
    DeleteSecretRequest, DeleteSecretResponse, ListSecretsRequest, SecretList, SecretSummary,
    SetSecretRequest, secrets_server,
};
use tonic::{Request, Response, Status};

use crate::caller::{self, refusal};
use crate::cluster::Cluster;
use crate::relay::Relay;
use crate::secrets::{self, SecretRefused, Summary};

pub(super) struct Secrets(pub(super) Arc<Cluster>);

#[tonic::async_trait]
impl secrets_server::Secrets for Secrets {
    async fn set(&self, request: Request<SetSecretRequest>) -> Result<Response<SecretSummary>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            return SecretsClient::new(relay.channel()).set(relay.carry(request)).await;
        }
        let admin = caller::admin(&self.0, &request)?;
        let SetSecretRequest { namespace, name, values } = request.into_inner();
        let values = values.into_iter().collect();
        let set = secrets::set(&*self.0.store, &namespace, &name, &values, self.0.now());
        let summary = set.await.map_err(refused)?;
        tracing::info!(%admin, namespace, name, keys = ?values.keys(), "set a secret");
        // Models that wait for it, and hosts that have an older one, are seen to at once.
        self.0.wake.notify_one();
        Ok(Response::new(told(summary)))
    }

    async fn list(&self, request: Request<ListSecretsRequest>) -> Result<Response<SecretList>, Status> {
        caller::admin(&self.0, &request)?;
        let namespace = request.into_inner().namespace;
        let summaries = secrets::list(&*self.0.store, &namespace).await.map_err(refusal)?;
        Ok(Response::new(SecretList { secrets: summaries.into_iter().map(told).collect() }))
    }

    async fn delete(
        &self,
        request: Request<DeleteSecretRequest>,
    ) -> Result<Response<DeleteSecretResponse>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            return SecretsClient::new(relay.channel()).delete(relay.carry(request)).await;
        }
        let admin = caller::admin(&self.0, &request)?;
        let DeleteSecretRequest { namespace, name } = request.into_inner();
        secrets::delete(&*self.0.store, &namespace, &name).await.map_err(refused)?;
        tracing::info!(%admin, namespace, name, "deleted a secret");
        self.0.wake.notify_one();
        Ok(Response::new(DeleteSecretResponse {}))
    }
}

fn told(summary: Summary) -> SecretSummary {
    SecretSummary {
        namespace: summary.namespace,
        name: summary.name,
        keys: summary.keys,
        changed_at: summary.changed.as_second(),
    }
}

fn refused(error: SecretRefused) -> Status {
    match error {
        SecretRefused::Store(error) => refusal(error),
        SecretRefused::Missing { .. } => Status::not_found(error.to_string()),
        SecretRefused::Busy { .. } => Status::aborted(error.to_string()),
        SecretRefused::TooMany => Status::resource_exhausted(error.to_string()),
        other => Status::invalid_argument(other.to_string()),
    }
}
