//! Events of objects, as `kubectl describe` shows them: repetitions add up in one Event, and an object keeps its newest.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{Timestamp, ToSpan as _};
use kube::core::Request;
use kube::core::params::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use uuid::Uuid;

use super::MANAGER;
use super::api::{Api, Failure};
use crate::Store;
use crate::error::StoreError;
use crate::event::{self, Event, EventNote, Severity};
use crate::object::{API_VERSION, Key, Object};

/// Event writes at once.
const AT_ONCE: usize = 8;
/// Times of Events have whole seconds; order within one is told by this annotation.
const SEEN: &str = "tandem.dev/last-seen";

/// An event that the API server has.
pub(super) struct Known {
    name: String,
    version: String,
    pub(super) event: Event,
}

fn path(about: &Key) -> String {
    // Events of what has no namespace are in this one.
    let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
    format!("/api/v1/namespaces/{namespace}/events")
}

/// What is known of an object, oldest first.
pub(super) async fn of(api: &Api, object: &Object) -> Result<Vec<Known>, StoreError> {
    let params = ListParams {
        field_selector: Some(format!("involvedObject.uid={},reportingComponent={MANAGER}", object.uid())),
        ..ListParams::default()
    };
    let list: Value = api.ask(Request::new(path(&object.key)).list(&params)).await?;
    let mut known: Vec<Known> = list["items"].as_array().into_iter().flatten().filter_map(known).collect();
    known.sort_by_key(|known| known.event.last_timestamp);
    Ok(known)
}

fn known(json: &Value) -> Option<Known> {
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
    let last = json["metadata"]["annotations"][SEEN].as_str().or_else(|| text("/lastTimestamp"))?;
    let event = Event {
        severity: if text("/type") == Some("Warning") { Severity::Warning } else { Severity::Normal },
        reason: text("/reason")?.to_owned(),
        message: text("/message")?.to_owned(),
        count: json["count"].as_u64().unwrap_or(1),
        first_timestamp: text("/firstTimestamp")?.parse().ok()?,
        last_timestamp: last.parse().ok()?,
    };
    let (name, version) = (text("/metadata/name")?.to_owned(), text("/metadata/resourceVersion")?.to_owned());
    Some(Known { name, version, event })
}

/// Adds notes to the events of their objects, and writes what has changed by that.
pub(super) async fn record(
    store: &dyn Store,
    api: &Api,
    notes: Vec<EventNote>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut by_object: BTreeMap<Key, Vec<EventNote>> = BTreeMap::new();
    for note in notes {
        by_object.entry(note.about.clone()).or_default().push(note);
    }
    stream::iter(by_object)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |(key, notes)| async move {
            // Nothing is noted of what is gone.
            let Some(object) = store.get(&key).await? else { return Ok(()) };
            let known = of(api, &object).await?;
            let mut events: Vec<Event> = known.iter().map(|known| known.event.clone()).collect();
            for (nth, note) in notes.iter().enumerate() {
                let nth = i64::try_from(nth).unwrap_or(i64::MAX);
                event::add(&mut events, note, now.checked_add(nth.microseconds()).unwrap_or(now));
            }
            write(api, &object, &known, &events).await
        })
        .await
}

async fn write(api: &Api, object: &Object, known: &[Known], events: &[Event]) -> Result<(), StoreError> {
    let same = |one: &Event, other: &Event| one.reason == other.reason && one.message == other.message;
    let mut requests = Vec::new();
    let params = PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) };
    for event in events {
        let before = known.iter().find(|known| same(&known.event, event));
        if before.is_some_and(|known| known.event == *event) {
            continue;
        }
        let mut json = json_of(object, event);
        requests.push(match before {
            Some(known) => {
                json["metadata"]["resourceVersion"] = json!(known.version);
                Request::new(path(&object.key)).replace(&known.name, &params, json.to_string().into_bytes())
            }
            None => Request::new(path(&object.key)).create(&params, json.to_string().into_bytes()),
        });
    }
    for known in known.iter().filter(|known| !events.iter().any(|event| same(&known.event, event))) {
        requests.push(Request::new(path(&object.key)).delete(&known.name, &DeleteParams::default()));
    }
    stream::iter(requests)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |request| async move {
            match api.ask::<Value>(request).await {
                // Another operator noted the same at the same moment, or the event's time was over.
                Err(failure @ Failure::Refused(_)) if matches!(failure.code(), 404 | 409) => Ok(()),
                done => done.map(drop).map_err(StoreError::from),
            }
        })
        .await
}

fn json_of(object: &Object, event: &Event) -> Value {
    let key = &object.key;
    let namespace = if key.namespace.is_empty() { "default" } else { &key.namespace };
    let seconds = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // The same for the same event, so that two operators make one of it.
    let identity = format!("{}/{}/{}", object.uid(), event.reason, event.message);
    let name = format!("{}.{}", key.name, Uuid::new_v5(&Uuid::NAMESPACE_OID, identity.as_bytes()).simple());
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {SEEN: event.last_timestamp.to_string()},
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": key.kind.as_str(),
            "namespace": key.namespace,
            "name": key.name,
            "uid": object.uid(),
        },
        "type": if event.severity == Severity::Warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "action": event.reason,
        "message": event.message,
        "count": event.count,
        "firstTimestamp": seconds(event.first_timestamp),
        "lastTimestamp": seconds(event.last_timestamp),
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "reportingInstance": MANAGER,
    })
}
