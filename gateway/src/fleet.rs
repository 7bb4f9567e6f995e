//! Every worker that the route table names, watched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tandem_gateway_core::conduct;
use tandem_gateway_core::health::{Bounds, Standing};
use tandem_pki::Credentials;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::replica::Replica;
use crate::table::Table;

/// The workers, and how they are.
pub struct Fleet {
    credentials: watch::Receiver<Credentials>,
    bounds: Bounds,
    clock: Clock,
    changed: watch::Sender<u64>,
    /// `None` until a table came, from an operator or from the last run.
    table: RwLock<Option<Arc<Table>>>,
    watched: Mutex<HashMap<Arc<str>, Watched>>,
    looking: AbortHandle,
}

struct Watched {
    replica: Arc<Replica>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

impl Fleet {
    /// A fleet without workers; new connections use the newest `credentials`. Must be called inside a runtime.
    #[must_use]
    pub fn new(credentials: watch::Receiver<Credentials>, bounds: Bounds) -> Arc<Self> {
        Arc::new_cyclic(|fleet| {
            let fleet: &std::sync::Weak<Self> = fleet;
            let watcher = fleet.clone();
            let looking = tokio::spawn(async move {
                let mut ticks = tokio::time::interval(bounds.step / 2);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    let Some(fleet) = watcher.upgrade() else { return };
                    for watched in fleet.watched().values() {
                        watched.replica.look();
                    }
                }
            });
            Self {
                credentials,
                bounds,
                clock: Clock::start(),
                changed: watch::Sender::new(0),
                table: RwLock::new(None),
                watched: Mutex::default(),
                looking: looking.abort_handle(),
            }
        })
    }

    /// Makes this the table: begins to watch new workers, and forgets those that left. Attempts that run on a worker that
    /// left go on until it ends them; while there are any it is watched, so that one that comes back is not a stranger.
    pub fn apply(&self, table: Table) {
        let table = Arc::new(table);
        let routes = || table.routes.iter().flat_map(|route| &route.replicas);
        let mut watched = self.watched();
        watched
            .retain(|name, kept| routes().any(|route| route.name == *name) || kept.replica.view().active > 0);
        for route in routes() {
            if let Some(known) = watched.get(&route.name) {
                known.replica.reroute(route);
                continue;
            }
            let (credentials, changed) = (self.credentials.clone(), self.changed.clone());
            let replica =
                Arc::new(Replica::new(route.clone(), credentials, self.bounds, self.clock, changed));
            let task = tokio::spawn(replica.clone().watch()).abort_handle();
            watched.insert(route.name.clone(), Watched { replica, task });
        }
        drop(watched);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Some(table);
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// The table, once there is one.
    #[must_use]
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least `count` workers are in good standing.
    pub async fn serving(&self, count: usize) {
        let mut changes = self.changes();
        let well = || self.watched().values().filter(|w| w.replica.view().standing == Standing::Well).count();
        while well() < count && changes.changed().await.is_ok() {}
    }

    /// A deployment's workers as they are now.
    pub(crate) fn view(&self, deployment: &str) -> Vec<conduct::Replica> {
        let Some(table) = self.table() else { return Vec::new() };
        let watched = self.watched();
        table
            .routes
            .iter()
            .filter(|route| &*route.deployment == deployment)
            .flat_map(|route| &route.replicas)
            .filter_map(|route| watched.get(&route.name))
            .map(|watched| watched.replica.view())
            .collect()
    }

    pub(crate) fn replica(&self, name: &str) -> Option<Arc<Replica>> {
        self.watched().get(name).map(|watched| watched.replica.clone())
    }

    /// Changes whenever a worker's standing or the table does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<Arc<str>, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
