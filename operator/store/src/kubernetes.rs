//! The home on Kubernetes: objects are custom resources, and the API server is who admits, defaults, merges and watches.
//!
//! Leases are `coordination.k8s.io` Leases and private records are Secrets, both in the operator's own namespace. Nothing is
//! written that did not change, apart from the renewals of a held lease.

mod api;
mod cache;
mod cluster;
mod events;
mod lease;
mod paths;
mod platform;
mod records;
mod refusals;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt as _, stream};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::core::params::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, ValidationDirective,
};
use serde_json::{Value, json};

use self::api::{Api, Built, Failure};
use self::cache::{Cache, Place};
use self::cluster::Watched;
use self::lease::Leases;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::event::{Event, EventNote};
use crate::object::{API_VERSION, Key, Kind, Object, Selector, Version};
use crate::platform::Platform;
use crate::revise;
use crate::watch::{Watch, listed_first};
use crate::{ApplyOptions, ApplyOutcome, Lease, Listing, MAX_OBJECT_BYTES, Record, Store};

/// Who writes status and private documents.
const MANAGER: &str = "tandem-operator";
/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How a cluster is reached, and what of it is Tandem's.
#[derive(Debug, Clone, Default)]
pub struct KubernetesOptions {
    /// A kubeconfig file; without one, the pod's own service account, and outside of a pod what `kubectl` would use.
    pub kubeconfig: Option<PathBuf>,
    /// The operator's namespace: its leases and its private records.
    pub namespace: String,
    /// The agents' namespace, which may be the same.
    pub agents_namespace: String,
    /// Namespaces whose deployments are meant; none: all.
    pub watch_namespaces: Vec<String>,
}

/// A store in a Kubernetes cluster.
pub struct KubernetesStore {
    api: Api,
    cache: Cache,
    options: KubernetesOptions,
    leases: Leases,
    watched: Watched,
    clock: Arc<dyn Clock>,
}

impl KubernetesStore {
    /// Finds the cluster and asks it whether it knows Tandem's resources.
    ///
    /// # Errors
    /// When the cluster can't be found or reached, or has no such resources.
    pub async fn connect(options: KubernetesOptions, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let mut config = config(&options).await?;
        config.connect_timeout = Some(CONNECT_WITHIN);
        let server = config.cluster_url.to_string();
        let client = kube::Client::try_from(config).map_err(|error| unreachable(&server, error))?;
        let watched = Watched::start(&client, &options.agents_namespace);
        let api = Api::new(client, &server);
        let store = Self {
            leases: Leases::new(&options.namespace, Arc::clone(&clock)),
            cache: Cache::new(api.clone()),
            api,
            options,
            watched,
            clock,
        };
        // Says at once what is wrong, instead of at the first watch.
        let one = ListParams { limit: Some(1), ..ListParams::default() };
        for (kind, namespace) in store
            .places(&Selector::all(Kind::InferenceDeployment))
            .into_iter()
            .chain([(Kind::InferenceHost, None)])
        {
            let request = Request::new(paths::collection(kind, namespace.as_deref())).list(&one);
            store.api.ask::<Value>(request).await.map_err(|failure| match failure.code() {
                404 => StoreError::Invalid {
                    problems: vec![format!(
                        "the cluster has no {kind}s: install Tandem's custom resource definitions"
                    )],
                },
                _ => failure.into(),
            })?;
        }
        Ok(store)
    }

    /// Where the objects that are meant are: of the whole cluster, or namespace by namespace.
    fn places(&self, selector: &Selector) -> Vec<Place> {
        let kind = selector.kind;
        match &selector.namespace {
            Some(namespace) if kind.namespaced() => vec![(kind, Some(namespace.clone()))],
            _ if kind.namespaced() && !self.options.watch_namespaces.is_empty() => self
                .options
                .watch_namespaces
                .iter()
                .map(|namespace| (kind, Some(namespace.clone())))
                .collect(),
            _ => vec![(kind, None)],
        }
    }

    /// The places to follow so that everything that is meant is seen; none where that would take a watch of its own.
    fn kept_places(&self, selector: &Selector) -> Option<Vec<Place>> {
        let places = self.places(&Selector::all(selector.kind));
        let Some(namespace) = selector.namespace.as_deref().filter(|_| selector.kind.namespaced()) else {
            return Some(places);
        };
        let holds = |(_, place): &Place| place.as_deref().is_none_or(|place| place == namespace);
        let places: Vec<Place> = places.into_iter().filter(holds).collect();
        (!places.is_empty()).then_some(places)
    }

    /// What is kept of these places, if it is no older than what this process has written and read.
    async fn kept(&self, selector: &Selector) -> Option<Vec<Arc<cache::Shelf>>> {
        let places = self.kept_places(selector)?;
        let shelves: Vec<_> = places.iter().map(|place| self.cache.shelf(place)).collect();
        let current = join_all(shelves.iter().map(|shelf| shelf.current())).await;
        current.into_iter().all(|current| current).then_some(shelves)
    }

    /// The object as it is, for a write that was refused or has to be told apart from none.
    async fn current(&self, key: &Key) -> Result<Object, StoreError> {
        self.get(key).await?.ok_or_else(|| StoreError::NotFound(key.clone()))
    }

    /// What a refused write of an object means.
    async fn refused(&self, key: &Key, failure: Failure) -> StoreError {
        let Failure::Refused(status) = failure else { return failure.into() };
        match status.code {
            409 if refusals::is_already_there(&status) => StoreError::AlreadyExists(key.clone()),
            409 => {
                let fields = refusals::disputed_fields(&status);
                if !fields.is_empty() {
                    return StoreError::FieldConflict { key: key.clone(), fields };
                }
                match self.current(key).await {
                    Ok(object) => StoreError::Conflict { key: key.clone(), current: object.version },
                    Err(error) => error,
                }
            }
            404 if refusals::is_about_a_namespace(&status) => StoreError::Invalid {
                problems: vec![format!(
                    "namespace {0} does not exist: make it first (`kubectl create namespace {0}`)",
                    key.namespace
                )],
            },
            404 => StoreError::NotFound(key.clone()),
            413 => {
                StoreError::TooLarge { key: key.clone(), bytes: MAX_OBJECT_BYTES, limit: MAX_OBJECT_BYTES }
            }
            400 | 422 => StoreError::Invalid { problems: refusals::problems(&status) },
            // A manifest with a field of the wrong shape fails before it is validated, as an internal error.
            500 if refusals::is_a_bad_manifest(&status.message) => {
                StoreError::Invalid { problems: refusals::problems(&status) }
            }
            _ => Failure::Refused(status).into(),
        }
    }

    async fn write_object(&self, key: &Key, request: Built) -> Result<Object, StoreError> {
        match self.api.ask::<Value>(request).await {
            Ok(json) => {
                let object = paths::object(json).ok_or_else(|| StoreError::NotFound(key.clone()))?;
                self.cache.seen(&object);
                Ok(object)
            }
            Err(error) => Err(self.refused(key, error).await),
        }
    }
}

/// The objects of one place, and the version of that list.
async fn list_place(
    api: &Api,
    (kind, namespace): &Place,
    name: Option<&str>,
) -> Result<(Vec<Object>, Version), StoreError> {
    let params = ListParams {
        field_selector: name.map(|name| format!("metadata.name={name}")),
        ..ListParams::default()
    };
    let request = Request::new(paths::collection(*kind, namespace.as_deref())).list(&params);
    let mut list: Value = api.ask(request).await?;
    let version =
        list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let items = list.get_mut("items").map(Value::take).unwrap_or_default();
    let objects =
        items.as_array().cloned().unwrap_or_default().into_iter().filter_map(paths::object).collect();
    Ok((objects, Version(version)))
}

/// In order, and with the oldest of the versions: a watch from there misses nothing.
fn listing(parts: impl IntoIterator<Item = (Vec<Object>, Version)>) -> Listing {
    let (parts, versions): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let version = versions.into_iter().min_by_key(watch::number);
    let mut objects: Vec<Object> = parts.into_iter().flatten().collect();
    objects.sort_by(|one, other| one.key.cmp(&other.key));
    Listing { objects, version: version.unwrap_or_else(|| Version(String::new())) }
}

async fn config(options: &KubernetesOptions) -> Result<kube::Config, StoreError> {
    let Some(path) = &options.kubeconfig else {
        return kube::Config::infer().await.map_err(|error| unreachable("the cluster", error));
    };
    let name = path.display().to_string();
    let file = Kubeconfig::read_from(path).map_err(|error| unreachable(&name, error))?;
    kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| unreachable(&name, error))
}

fn unreachable(server: &str, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unreachable { server: server.to_owned(), source: Box::new(error) }
}

fn check_size(key: &Key, json: &Value) -> Result<(), StoreError> {
    let bytes = json.to_string().len();
    if bytes > MAX_OBJECT_BYTES {
        return Err(StoreError::TooLarge { key: key.clone(), bytes, limit: MAX_OBJECT_BYTES });
    }
    Ok(())
}

/// What is sent: who owns which field is the server's own account.
fn stated(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

#[async_trait]
impl Store for KubernetesStore {
    fn home(&self) -> &'static str {
        "kubernetes"
    }

    fn platform(&self) -> Option<&dyn Platform> {
        Some(self)
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        let request = Request::new(paths::collection_of(key)?)
            .get(&key.name, &kube::core::params::GetParams::default());
        match self.api.ask::<Value>(request).await {
            Ok(json) => Ok(paths::object(json).inspect(|object| self.cache.seen(object))),
            Err(failure) if failure.code() == 404 => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn list(&self, selector: &Selector) -> Result<Listing, StoreError> {
        let places = self.places(selector);
        let lists = places.iter().map(|place| list_place(&self.api, place, selector.name.as_deref()));
        let mut listing = listing(try_join_all(lists).await?);
        listing.objects.retain(|object| selector.matches(&object.key));
        listing.objects.iter().for_each(|object| self.cache.seen(object));
        Ok(listing)
    }

    async fn recent(&self, selector: &Selector) -> Result<Listing, StoreError> {
        match self.kept(selector).await {
            Some(shelves) => Ok(listing(shelves.iter().map(|shelf| shelf.objects(selector)))),
            None => self.list(selector).await,
        }
    }

    async fn watch(&self, selector: Selector, since: Option<Version>) -> Result<Watch, StoreError> {
        let places = self.places(&selector);
        let follow = |(kind, namespace): Place, version: Version| {
            watch::follow(self.api.clone(), kind, namespace, selector.name.clone(), version)
        };
        if let Some(since) = since {
            let watches = places.into_iter().map(|place| follow(place, since.clone()));
            return Ok(stream::select_all(watches).boxed());
        }
        if let Some(shelves) = self.kept(&selector).await {
            let (mut parts, mut changes) = (Vec::new(), Vec::new());
            for shelf in shelves {
                let (objects, version, then) = shelf.follow(&selector);
                parts.push((objects, version));
                changes.push(then);
            }
            let existing = listing(parts);
            let changes = stream::select_all(changes).take_until(self.api.closed());
            return Ok(listed_first(existing.objects, existing.version, changes));
        }
        let lists = places.iter().map(|place| list_place(&self.api, place, selector.name.as_deref()));
        let lists = try_join_all(lists).await?;
        let watches =
            places.into_iter().zip(&lists).map(|(place, (_, version))| follow(place, version.clone()));
        let changes = stream::select_all(watches.collect::<Vec<_>>());
        let existing = listing(lists);
        Ok(listed_first(existing.objects, existing.version, changes))
    }

    async fn apply(
        &self,
        manifest: Value,
        options: &ApplyOptions,
    ) -> Result<(Object, ApplyOutcome), StoreError> {
        let key = revise::key_of(&manifest)?;
        check_size(&key, &manifest)?;
        revise::check_stated(&manifest)?;
        let collection = paths::collection_of(&key)?;
        let old = self.get(&key).await?;
        revise::check_preconditions(old.as_ref(), &key, &manifest)?;
        let params = PatchParams {
            dry_run: options.dry_run,
            force: options.force,
            field_manager: Some(options.manager.clone()),
            field_validation: Some(ValidationDirective::Strict),
        };
        let request = Request::new(collection).patch(&key.name, &params, &Patch::Apply(stated(manifest)));
        let object = self.write_object(&key, request).await?;
        let outcome = match old {
            None => ApplyOutcome::Created,
            Some(old) if old.version == object.version && !options.dry_run => ApplyOutcome::Unchanged,
            // A dry run never has a new version.
            Some(old)
                if old.spec() == object.spec()
                    && old.json["metadata"]["labels"] == object.json["metadata"]["labels"]
                    && old.json["metadata"]["annotations"] == object.json["metadata"]["annotations"]
                    && options.dry_run =>
            {
                ApplyOutcome::Unchanged
            }
            Some(_) => ApplyOutcome::Configured,
        };
        Ok((object, outcome))
    }

    async fn create(&self, object: Value, manager: &str) -> Result<Object, StoreError> {
        let key = revise::key_of(&object)?;
        check_size(&key, &object)?;
        revise::check_stated(&object)?;
        let params = PostParams { dry_run: false, field_manager: Some(manager.to_owned()) };
        let data = stated(object).to_string().into_bytes();
        let request = Request::new(paths::collection_of(&key)?).create(&params, data);
        self.write_object(&key, strict(request)).await
    }

    async fn replace(&self, object: &Object, manager: &str) -> Result<Object, StoreError> {
        check_size(&object.key, &object.json)?;
        revise::check_stated(&object.json)?;
        let mut json = object.json.clone();
        json["metadata"]["resourceVersion"] = json!(object.version.0);
        let params = PostParams { dry_run: false, field_manager: Some(manager.to_owned()) };
        let request = Request::new(paths::collection_of(&object.key)?).replace(
            &object.key.name,
            &params,
            json.to_string().into_bytes(),
        );
        self.write_object(&object.key, strict(request)).await
    }

    async fn replace_status(
        &self,
        key: &Key,
        version: &Version,
        status: Value,
    ) -> Result<Object, StoreError> {
        let mut metadata = json!({"name": key.name, "resourceVersion": version.0});
        if key.kind.namespaced() {
            metadata["namespace"] = json!(key.namespace);
        }
        let body = json!({"apiVersion": API_VERSION, "kind": key.kind.as_str(), "metadata": metadata, "status": status});
        check_size(key, &body)?;
        let params = PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) };
        let request = Request::new(paths::collection_of(key)?).replace_subresource(
            "status",
            &key.name,
            &params,
            body.to_string().into_bytes(),
        );
        self.write_object(key, request).await
    }

    async fn scale(&self, key: &Key, replicas: i32, manager: &str) -> Result<Object, StoreError> {
        if key.kind != Kind::InferenceDeployment {
            let problem = format!("{key} has no replicas: scale an InferenceDeployment");
            return Err(StoreError::Invalid { problems: vec![problem] });
        }
        // Not by the scale subresource: for custom resources the API server then notes no owner, and the next apply of
        // somebody else would win in silence.
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let request = Request::new(paths::collection_of(key)?).patch(&key.name, &params, &patch);
        self.write_object(key, request).await
    }

    async fn delete(&self, key: &Key, version: Option<&Version>) -> Result<Object, StoreError> {
        let object = self.current(key).await?;
        if let Some(version) = version {
            revise::check_version(&object, version)?;
        }
        let preconditions = Preconditions {
            uid: Some(object.uid().to_owned()),
            resource_version: version.map(|version| version.0.clone()),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let request = Request::new(paths::collection_of(key)?).delete(&key.name, &params);
        match self.api.ask::<Value>(request).await {
            Ok(left) => {
                // Somebody's finalizer keeps it, marked as going.
                let kept = left.pointer("/metadata/finalizers").and_then(Value::as_array);
                match kept
                    .filter(|finalizers| !finalizers.is_empty())
                    .and_then(|_| paths::object(left.clone()))
                {
                    Some(going) => self.cache.seen(&going),
                    None => self.cache.removed(&object),
                }
                Ok(object)
            }
            Err(error) => Err(self.refused(key, error).await),
        }
    }

    async fn acquire(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
        floor: u64,
    ) -> Result<Lease, StoreError> {
        self.leases.acquire(&self.api, name, holder, ttl, floor).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.leases.renew(&self.api, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.leases.release(&self.api, lease).await
    }

    async fn record_events(&self, notes: Vec<EventNote>) -> Result<(), StoreError> {
        events::record(self, &self.api, notes, self.clock.now()).await
    }

    async fn events(&self, key: &Key) -> Result<Vec<Event>, StoreError> {
        let Some(object) = self.get(key).await? else { return Ok(Vec::new()) };
        let known = events::of(&self.api, &object).await?;
        Ok(known.into_iter().map(|known| known.event).collect())
    }

    async fn record(&self, collection: &str, key: &str) -> Result<Option<Record>, StoreError> {
        records::get(&self.api, &self.options.namespace, collection, key).await
    }

    async fn records(&self, collection: &str) -> Result<Vec<Record>, StoreError> {
        records::list(&self.api, &self.options.namespace, collection).await
    }

    async fn put_record(
        &self,
        collection: &str,
        key: &str,
        expected: Option<&Version>,
        value: Vec<u8>,
    ) -> Result<Version, StoreError> {
        records::put(&self.api, &self.options.namespace, collection, key, expected, value).await
    }

    async fn delete_record(&self, collection: &str, key: &str, expected: &Version) -> Result<(), StoreError> {
        records::delete(&self.api, &self.options.namespace, collection, key, expected).await
    }

    async fn close(&self) {
        self.api.close();
    }
}

/// The same request, refusing unknown and doubled fields instead of dropping them.
fn strict(request: Built) -> Built {
    let mut request = request?;
    let uri = request.uri().to_string();
    let separator = if uri.ends_with('?') || uri.ends_with('&') {
        ""
    } else if uri.contains('?') {
        "&"
    } else {
        "?"
    };
    if let Ok(uri) = format!("{uri}{separator}fieldValidation=Strict").parse() {
        *request.uri_mut() = uri;
    }
    Ok(request)
}
