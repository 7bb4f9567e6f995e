//! Objects, for the CLI: what the store holds, and the writes that a person may make.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use serde_json::Value;
use tandem_control_api::{
    ApplyRequest, ApplyResponse, DeleteRequest, DeleteResponse, EventList, EventsRequest, ListRequest,
    Object, ObjectEvent, ObjectList, ObjectRef, ScaleRequest, apply_response, object_event, objects_server,
};
use tandem_pki::Identity;
use tandem_store::{ApplyOptions, ApplyOutcome, Key, Kind, Selector, WatchEvent};
use tonic::{Request, Response, Status};

use crate::caller::{self, refusal};
use crate::cluster::Cluster;
use crate::membership;

/// Manager of applies that don't say.
const DEFAULT_MANAGER: &str = "tandem";
/// Owner of counts that were scaled.
const SCALER: &str = "tandem-scale";

pub(super) struct Objects(pub(super) Arc<Cluster>);

type Events = Pin<Box<dyn Stream<Item = Result<ObjectEvent, Status>> + Send>>;

fn kind(name: &str) -> Result<Kind, Status> {
    Kind::parse(name).ok_or_else(|| {
        Status::invalid_argument(format!(
            "kind {name:?} is not known: say InferenceDeployment or InferenceHost"
        ))
    })
}

fn key(reference: Option<&ObjectRef>) -> Result<Key, Status> {
    let reference = reference.ok_or_else(|| Status::invalid_argument("the request names no object"))?;
    if reference.name.is_empty() {
        return Err(Status::invalid_argument("the request names no object"));
    }
    Ok(Key::new(kind(&reference.kind)?, &reference.namespace, &reference.name))
}

fn selector(request: &ListRequest) -> Result<Selector, Status> {
    let kind = kind(&request.kind)?;
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let namespace = if kind.namespaced() { some(&request.namespace) } else { None };
    Ok(Selector { kind, namespace, name: some(&request.name) })
}

/// As people see it: without the bookkeeping of field owners.
pub(super) fn shown(object: &tandem_store::Object) -> String {
    let mut json = object.json.clone();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    json.to_string()
}

/// What people may say of a host: labels and annotations. The rest is the operator's, or has a command of its own.
fn check_host_manifest(manifest: &Value) -> Result<(), Status> {
    let empty = |field: &str| {
        manifest.get(field).is_none_or(|value| value.as_object().is_some_and(serde_json::Map::is_empty))
    };
    if empty("spec") {
        return Ok(());
    }
    Err(Status::invalid_argument(
        "spec of an InferenceHost is written by the operator: apply labels and annotations only, and use `tandem hosts \
         cordon` or `tandem hosts drain` to keep work away",
    ))
}

impl Objects {
    /// A host is deleted when it is gone for good: its certificate is worth nothing from then on, and its name is free.
    async fn forget_host(&self, name: &str) -> Result<(), Status> {
        if self.0.sessions.seen(name).0 {
            return Err(Status::failed_precondition(format!(
                "host {name} is connected, and would be back at once: drain it with `tandem hosts drain {name}` and stop its \
                 agent first"
            )));
        }
        let identity = Identity::host(name).map_err(|error| Status::invalid_argument(error.to_string()))?;
        membership::forget(&*self.0.store, &identity).await.map_err(refusal)?;
        self.0.refresh_revoked().await.map_err(refusal)?;
        self.0.wake.notify_one();
        Ok(())
    }
}

#[tonic::async_trait]
impl objects_server::Objects for Objects {
    type WatchStream = Events;

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let request = request.into_inner();
        let manifest: Value = serde_json::from_str(&request.manifest_json)
            .map_err(|error| Status::invalid_argument(format!("the manifest is not JSON: {error}")))?;
        if manifest.get("kind").and_then(Value::as_str) == Some(Kind::InferenceHost.as_str()) {
            check_host_manifest(&manifest)?;
            let name = manifest.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            if self.0.store.get(&Key::host(name)).await.map_err(refusal)?.is_none() {
                return Err(Status::not_found(format!(
                    "there is no InferenceHost {name}: a host appears when its agent has joined, see `tandem join-token`"
                )));
            }
        }
        let manager = if request.field_manager.is_empty() { DEFAULT_MANAGER } else { &request.field_manager };
        let options =
            ApplyOptions { manager: manager.to_owned(), force: request.force, dry_run: request.dry_run };
        let (object, outcome) = self.0.store.apply(manifest, &options).await.map_err(refusal)?;
        if !request.dry_run && outcome != ApplyOutcome::Unchanged {
            tracing::info!(%admin, object = %object.key, ?outcome, manager, "applied");
        }
        let result = match outcome {
            ApplyOutcome::Created => apply_response::Result::Created,
            ApplyOutcome::Configured => apply_response::Result::Configured,
            ApplyOutcome::Unchanged => apply_response::Result::Unchanged,
        };
        Ok(Response::new(ApplyResponse { json: shown(&object), result: result.into(), warnings: Vec::new() }))
    }

    async fn get(&self, request: Request<ObjectRef>) -> Result<Response<Object>, Status> {
        caller::admin(&self.0, &request)?;
        let key = key(Some(request.get_ref()))?;
        let object = self.0.store.get(&key).await.map_err(refusal)?;
        let object = object.ok_or_else(|| Status::not_found(format!("there is no {key}")))?;
        Ok(Response::new(Object { json: shown(&object) }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ObjectList>, Status> {
        caller::admin(&self.0, &request)?;
        let listing = self.0.store.list(&selector(request.get_ref())?).await.map_err(refusal)?;
        let json = listing.objects.iter().map(shown).collect();
        Ok(Response::new(ObjectList { json, resource_version: listing.version.0 }))
    }

    async fn watch(&self, request: Request<ListRequest>) -> Result<Response<Events>, Status> {
        caller::admin(&self.0, &request)?;
        let serial = caller::serial(&request)?;
        let watch = self.0.store.watch(selector(request.get_ref())?, None).await.map_err(refusal)?;
        let events = watch.map(|event| {
            use object_event::Type;
            let event = event.map_err(refusal)?;
            let (kind, version) = match &event {
                WatchEvent::Added(object) => (Type::Added, &object.version),
                WatchEvent::Modified(object) => (Type::Modified, &object.version),
                WatchEvent::Deleted(object) => (Type::Deleted, &object.version),
                WatchEvent::Bookmark(version) => (Type::Bookmark, version),
            };
            let json = event.object().map(shown).unwrap_or_default();
            Ok(ObjectEvent { r#type: kind.into(), json, resource_version: version.0.clone() })
        });
        let events = events.take_until(self.0.once_revoked(serial));
        Ok(Response::new(Box::pin(events.take_until(self.0.shutdown.clone().cancelled_owned()))))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let key = key(request.get_ref().r#ref.as_ref())?;
        if key.kind == Kind::InferenceHost {
            self.forget_host(&key.name).await?;
        }
        self.0.store.delete(&key, None).await.map_err(refusal)?;
        tracing::info!(%admin, object = %key, "deleted");
        Ok(Response::new(DeleteResponse {}))
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<Object>, Status> {
        let admin = caller::admin(&self.0, &request)?;
        let key = key(request.get_ref().r#ref.as_ref())?;
        let replicas = request.get_ref().replicas;
        let object = self.0.store.scale(&key, replicas, SCALER).await.map_err(refusal)?;
        tracing::info!(%admin, object = %key, replicas, "scaled");
        Ok(Response::new(Object { json: shown(&object) }))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<EventList>, Status> {
        caller::admin(&self.0, &request)?;
        let key = key(request.get_ref().r#ref.as_ref())?;
        let events = self.0.store.events(&key).await.map_err(refusal)?;
        let json =
            events.iter().map(|event| serde_json::to_string(event).expect("an event is JSON")).collect();
        Ok(Response::new(EventList { json }))
    }
}
