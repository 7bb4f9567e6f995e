//! API keys, for the CLI. The text of a key is in one answer, and in no log line.

use std::sync::Arc;

use tandem_control_api::keys_client::KeysClient;
use tandem_control_api::{
    CreateKeyRequest, CreatedKey, DeleteKeyRequest, DeleteKeyResponse, KeyList, KeySummary, KeyUsage,
    ListKeysRequest, keys_server,
};
use tonic::{Request, Response, Status};

use crate::caller::{self, refusal};
use crate::cluster::Cluster;
use crate::keys::{self, KeyRefused, Summary};
use crate::relay::Relay;

pub(super) struct Keys(pub(super) Arc<Cluster>);

#[tonic::async_trait]
impl keys_server::Keys for Keys {
    async fn create(&self, request: Request<CreateKeyRequest>) -> Result<Response<CreatedKey>, Status> {
        // Whoever leads tells the gateways, at once.
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            return KeysClient::new(relay.channel()).create(relay.carry(request)).await;
        }
        let admin = caller::admin(&self.0, &request)?;
        let asked = request.into_inner().key.unwrap_or_default();
        let (key, text) = keys::create(&*self.0.store, asked, self.0.now()).await.map_err(refused)?;
        tracing::info!(%admin, namespace = key.namespace, name = key.name, models = ?key.models, "made an API key");
        self.0.wake.notify_one();
        Ok(Response::new(CreatedKey { key: Some(key), text: text.to_string() }))
    }

    async fn list(&self, request: Request<ListKeysRequest>) -> Result<Response<KeyList>, Status> {
        caller::admin(&self.0, &request)?;
        let namespace = request.into_inner().namespace;
        let summaries = keys::list(&*self.0.store, &namespace).await.map_err(refusal)?;
        Ok(Response::new(KeyList { keys: summaries.into_iter().map(told).collect() }))
    }

    async fn delete(
        &self,
        request: Request<DeleteKeyRequest>,
    ) -> Result<Response<DeleteKeyResponse>, Status> {
        if let Some(relay) = Relay::find(&self.0, &request).await? {
            return KeysClient::new(relay.channel()).delete(relay.carry(request)).await;
        }
        let admin = caller::admin(&self.0, &request)?;
        let DeleteKeyRequest { namespace, name } = request.into_inner();
        keys::delete(&*self.0.store, &namespace, &name).await.map_err(refused)?;
        tracing::info!(%admin, namespace, name, "deleted an API key");
        self.0.wake.notify_one();
        Ok(Response::new(DeleteKeyResponse {}))
    }
}

fn told(summary: Summary) -> KeySummary {
    let Summary { key, created, used } = summary;
    let total = used.unwrap_or_default();
    KeySummary {
        used: Some(KeyUsage {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            requests: total.requests,
            prompt_tokens: total.prompt_tokens,
            completion_tokens: total.completion_tokens,
        }),
        key: Some(key),
        created_at: created.as_second(),
        last_used_at: used.map_or(0, |used| used.last.as_second()),
    }
}

pub(super) fn refused(error: KeyRefused) -> Status {
    match error {
        KeyRefused::Store(error) => refusal(error),
        KeyRefused::Missing { .. } => Status::not_found(error.to_string()),
        KeyRefused::Exists { .. } => Status::already_exists(error.to_string()),
        KeyRefused::Busy => Status::aborted(error.to_string()),
        KeyRefused::TooMany => Status::resource_exhausted(error.to_string()),
        other => Status::invalid_argument(other.to_string()),
    }
}
