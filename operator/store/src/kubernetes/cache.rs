//! What every reader of this process shares: one watch for each kind and place, however many ask.
//!
//! It is behind the API server by as long as a change takes to arrive, but never behind what this process itself has written
//! or read: whoever asks waits until that has arrived, and if it does not, the server itself is asked. Who writes by what it
//! says is held to the version that it says, as ever. When the server no longer keeps the changes since, everything is listed
//! anew, and readers are told the difference.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::api::Api;
use super::watch::{follow, number};
use crate::error::StoreError;
use crate::object::{Key, Kind, Object, Selector, Version};
use crate::watch::WatchEvent;

/// How long a reader waits for what this process has written, before it asks the server.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Changes that one reader may leave unread before it has to begin anew.
const UNREAD: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A kind, in one namespace or in the whole cluster.
pub(super) type Place = (Kind, Option<String>);

/// Every place that somebody has asked for. Ends with this value.
pub(super) struct Cache {
    api: Api,
    shelves: Mutex<BTreeMap<Place, Kept>>,
}

struct Kept {
    shelf: Arc<Shelf>,
    keeper: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Cache {
    pub(super) fn new(api: Api) -> Self {
        Self { api, shelves: Mutex::default() }
    }

    /// What is kept of a place, from now on.
    pub(super) fn shelf(&self, place: &Place) -> Arc<Shelf> {
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = shelves.entry(place.clone()).or_insert_with(|| {
            let shelf = Arc::new(Shelf::default());
            let keeper = tokio::spawn(keep(self.api.clone(), place.clone(), Arc::clone(&shelf)));
            Kept { shelf, keeper }
        });
        Arc::clone(&kept.shelf)
    }

    fn over(&self, key: &Key) -> Vec<Arc<Shelf>> {
        let shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |(kind, namespace): &Place| {
            *kind == key.kind && namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
        };
        shelves.iter().filter(|(place, _)| holds(place)).map(|(_, kept)| Arc::clone(&kept.shelf)).collect()
    }

    /// This process has written or read this version: no reader may see an older one from now on.
    pub(super) fn seen(&self, object: &Object) {
        for shelf in self.over(&object.key) {
            let mut state = shelf.lock();
            state.owes.version = state.owes.version.max(number(&object.version));
        }
    }

    /// This process has removed this object.
    pub(super) fn removed(&self, object: &Object) {
        for shelf in self.over(&object.key) {
            shelf.lock().owes.removed.insert(object.key.clone(), object.uid().to_owned());
        }
    }
}

/// The objects of one place, and who follows them.
pub(super) struct Shelf {
    state: Mutex<State>,
    /// Grows with every change of the state.
    progress: watch::Sender<u64>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { state: Mutex::default(), progress: watch::Sender::new(0) }
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Object>,
    /// Everything up to here is in `objects`; none before the first list.
    at: Option<Version>,
    owes: Owed,
    readers: Vec<Reader>,
}

/// What this process knows to have happened, and what has to have arrived before anybody reads.
#[derive(Clone, Default, PartialEq)]
struct Owed {
    version: u64,
    /// Uids, by key.
    removed: BTreeMap<Key, String>,
}

struct Reader {
    selector: Selector,
    outbox: mpsc::Sender<Result<WatchEvent, StoreError>>,
    /// Room for saying that it fell behind.
    last_word: mpsc::OwnedPermit<Result<WatchEvent, StoreError>>,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything that this process has written is here. False: it takes too long, ask the server.
    pub(super) async fn current(&self) -> bool {
        let mut progress = self.progress.subscribe();
        let current = async { progress.wait_for(|_| self.lock().is_current()).await.is_ok() };
        timeout(CATCH_UP, current).await.unwrap_or(false)
    }

    /// The objects that are meant, in order, and up to when.
    pub(super) fn objects(&self, selector: &Selector) -> (Vec<Object>, Version) {
        self.lock().objects(selector)
    }

    /// The same, and every change from then on.
    pub(super) fn follow(
        &self,
        selector: &Selector,
    ) -> (Vec<Object>, Version, BoxStream<'static, Result<WatchEvent, StoreError>>) {
        let (outbox, mut inbox) = mpsc::channel(UNREAD + 1);
        let last_word = outbox.clone().try_reserve_owned().expect("an empty channel has room");
        let mut state = self.lock();
        let (objects, at) = state.objects(selector);
        state.readers.retain(|reader| !reader.outbox.is_closed());
        state.readers.push(Reader { selector: selector.clone(), outbox, last_word });
        (objects, at, stream::poll_fn(move |context| inbox.poll_recv(context)).boxed())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.progress.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl State {
    fn is_current(&self) -> bool {
        self.at.as_ref().is_some_and(|at| number(at) >= self.owes.version) && self.owes.removed.is_empty()
    }

    fn objects(&self, selector: &Selector) -> (Vec<Object>, Version) {
        let meant = self.objects.values().filter(|object| selector.matches(&object.key)).cloned();
        (meant.collect(), self.at.clone().unwrap_or_else(|| Version(String::new())))
    }

    /// One change, as the server tells it.
    fn take(&mut self, event: WatchEvent) {
        match &event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.objects.insert(object.key.clone(), object.clone());
                self.at = Some(object.version.clone());
            }
            WatchEvent::Deleted(object) => {
                self.objects.remove(&object.key);
                self.at = Some(object.version.clone());
            }
            WatchEvent::Bookmark(version) => self.at = Some(version.clone()),
        }
        self.settle();
        self.tell(&event);
    }

    /// Everything, listed anew. What was owed when the list was asked for is in it.
    fn restock(&mut self, listed: Vec<Object>, version: &Version, owed: &Owed) {
        let new: BTreeMap<Key, Object> =
            listed.into_iter().map(|object| (object.key.clone(), object)).collect();
        let old = std::mem::take(&mut self.objects);
        let gone = |object: &Object| new.get(&object.key).is_none_or(|now| now.uid() != object.uid());
        for object in old.values().filter(|object| gone(object)) {
            self.tell(&WatchEvent::Deleted(Object { version: version.clone(), ..object.clone() }));
        }
        for object in new.values() {
            match old.get(&object.key) {
                Some(before) if gone(before) => self.tell(&WatchEvent::Added(object.clone())),
                Some(before) if before.version == object.version => {}
                Some(_) => self.tell(&WatchEvent::Modified(object.clone())),
                None => self.tell(&WatchEvent::Added(object.clone())),
            }
        }
        self.objects = new;
        self.at = Some(version.clone());
        // A store that was restored from a backup counts from an earlier number: what it lists is the truth all the same.
        if self.owes.version == owed.version {
            self.owes.version = 0;
        }
        self.owes.removed.retain(|key, uid| owed.removed.get(key) != Some(uid));
        self.settle();
    }

    fn settle(&mut self) {
        let objects = &self.objects;
        self.owes.removed.retain(|key, uid| objects.get(key).is_some_and(|object| object.uid() == uid));
    }

    fn tell(&mut self, event: &WatchEvent) {
        let Some(object) = event.object() else { return };
        let behind = self.readers.extract_if(.., |reader| {
            reader.selector.matches(&object.key) && reader.outbox.try_send(Ok(event.clone())).is_err()
        });
        for reader in behind {
            // To one that has gone, nobody listens.
            reader.last_word.send(Err(StoreError::Expired { since: object.version.clone() }));
        }
    }
}

/// Lists, watches, and lists again when changes were missed, until the store is closed.
async fn keep(api: Api, place: Place, shelf: Arc<Shelf>) {
    let (kind, namespace) = place.clone();
    let backoff = ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times();
    let mut pauses = backoff.build();
    loop {
        let owed = shelf.lock().owes.clone();
        match super::list_place(&api, &place, None).await {
            Ok((objects, version)) => {
                pauses = backoff.build();
                shelf.change(|state| state.restock(objects, &version, &owed));
                let mut changes = follow(api.clone(), kind, namespace.clone(), None, version);
                loop {
                    match changes.next().await {
                        Some(Ok(event)) => shelf.change(|state| state.take(event)),
                        Some(Err(StoreError::Closed)) | None => return,
                        Some(Err(error)) => {
                            tracing::info!(%kind, %error, "changes were missed: everything is listed anew");
                            break;
                        }
                    }
                }
            }
            Err(StoreError::Closed) => return,
            Err(error) => tracing::warn!(%kind, %error, "the store can't be listed: it is tried again"),
        }
        sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, uid: &str, version: u64) -> Object {
        let json = serde_json::json!({"kind": "InferenceHost", "metadata": {"name": name, "uid": uid}});
        Object { key: Key::host(name), version: Version(version.to_string()), json }
    }

    fn all() -> Selector {
        Selector::all(Kind::InferenceHost)
    }

    fn stocked(objects: Vec<Object>) -> Shelf {
        let shelf = Shelf::default();
        shelf.lock().restock(objects, &Version("10".to_owned()), &Owed::default());
        shelf
    }

    #[tokio::test]
    async fn a_new_list_tells_readers_the_difference_and_no_more() {
        let shelf =
            stocked(vec![object("a", "1", 1), object("b", "2", 2), object("c", "3", 3), object("d", "4", 4)]);
        let (_, _, mut changes) = shelf.follow(&all());
        let listed =
            vec![object("a", "1", 1), object("b", "2", 12), object("c", "30", 13), object("e", "5", 14)];
        shelf.lock().restock(listed.clone(), &Version("20".to_owned()), &Owed::default());
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(changes.next().await.unwrap().unwrap());
        }
        let twenty = |object: Object| Object { version: Version("20".to_owned()), ..object };
        assert_eq!(
            told,
            [
                WatchEvent::Deleted(twenty(object("c", "3", 3))),
                WatchEvent::Deleted(twenty(object("d", "4", 4))),
                WatchEvent::Modified(object("b", "2", 12)),
                WatchEvent::Added(object("c", "30", 13)),
                WatchEvent::Added(object("e", "5", 14)),
            ]
        );
        assert_eq!(shelf.objects(&all()), (listed, Version("20".to_owned())));
        drop(shelf);
        assert!(changes.next().await.is_none());
    }

    #[tokio::test]
    async fn who_falls_behind_is_told_after_what_it_missed_nothing_of() {
        let shelf = stocked(Vec::new());
        let (_, _, behind) = shelf.follow(&all());
        for version in 0..=UNREAD as u64 {
            shelf.lock().take(WatchEvent::Added(object("a", "1", 11 + version)));
        }
        assert!(shelf.lock().readers.is_empty());
        let told: Vec<_> = behind.collect().await;
        assert_eq!(told.len(), UNREAD + 1);
        assert!(told[..UNREAD].iter().all(Result::is_ok));
        assert!(matches!(told[UNREAD], Err(StoreError::Expired { .. })));
    }

    #[test]
    fn nothing_is_read_before_what_was_written_has_arrived() {
        let mut state = State::default();
        assert!(!state.is_current());
        state.restock(vec![object("a", "1", 5)], &Version("10".to_owned()), &Owed::default());
        assert!(state.is_current());
        state.owes.version = 12;
        state.owes.removed.insert(Key::host("a"), "1".to_owned());
        state.take(WatchEvent::Deleted(object("a", "1", 11)));
        assert!(!state.is_current());
        state.take(WatchEvent::Added(object("b", "2", 12)));
        assert!(state.is_current());
        // The object of that name now is another one.
        state.owes.removed.insert(Key::host("b"), "1".to_owned());
        state.take(WatchEvent::Modified(object("b", "2", 13)));
        assert!(state.is_current());
        // A list that was asked for before the newest write does not hold it.
        let owed = state.owes.clone();
        state.owes.version = 30;
        state.restock(Vec::new(), &Version("20".to_owned()), &owed);
        assert!(!state.is_current());
        let owed = state.owes.clone();
        state.restock(Vec::new(), &Version("3".to_owned()), &owed);
        assert!(state.is_current());
    }
}
