//! Every worker that the route table names, watched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
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
use crate::table::{ReplicaRoute, Table};

/// The workers, and how they are.
pub struct Fleet {
    credentials: watch::Receiver<Credentials>,
    bounds: Bounds,
    clock: Clock,
    changed: watch::Sender<u64>,
    /// An operator sends tables.
    led: AtomicBool,
    /// `None` until a table came, from an operator or from the last run.
    table: RwLock<Option<Arc<Table>>>,
    watched: Mutex<HashMap<Arc<str>, Watched>>,
    looking: AbortHandle,
}

struct Watched {
    replica: Arc<Replica>,
    task: AbortHandle,
    deployment: Arc<str>,
    /// The table names it.
    listed: bool,
}

impl Watched {
    fn wanted(&self) -> bool {
        self.listed || self.replica.in_use()
    }
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
                    fleet.watched().retain(|_, known| {
                        known.replica.look();
                        known.wanted()
                    });
                }
            });
            Self {
                credentials,
                bounds,
                clock: Clock::start(),
                changed: watch::Sender::new(0),
                led: AtomicBool::new(false),
                table: RwLock::new(None),
                watched: Mutex::default(),
                looking: looking.abort_handle(),
            }
        })
    }

    /// Makes this the table: begins to watch new workers, and lets go of those that left. One that left while attempts run
    /// on it gets nothing new, and is watched until they are over.
    pub fn apply(&self, table: Table) {
        let table = Arc::new(table);
        let mut watched = self.watched();
        watched.values_mut().for_each(|known| known.listed = false);
        for route in &table.routes {
            for replica in &route.replicas {
                let known = watched
                    .entry(replica.name.clone())
                    .or_insert_with(|| self.watch(replica.clone(), route.deployment.clone()));
                known.listed = true;
                known.replica.reroute(replica);
            }
        }
        watched.retain(|_, known| known.wanted());
        drop(watched);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Some(table);
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn watch(&self, route: ReplicaRoute, deployment: Arc<str>) -> Watched {
        let (credentials, changed) = (self.credentials.clone(), self.changed.clone());
        let replica = Arc::new(Replica::new(route, credentials, self.bounds, self.clock, changed));
        let task = tokio::spawn(replica.clone().watch()).abort_handle();
        Watched { replica, task, deployment, listed: true }
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
        self.watched()
            .values()
            .filter(|known| &*known.deployment == deployment)
            .map(|known| {
                let view = known.replica.view();
                conduct::Replica { draining: view.draining || !known.listed, ..view }
            })
            .collect()
    }

    pub(crate) fn replica(&self, name: &str) -> Option<Arc<Replica>> {
        self.watched().get(name).map(|watched| watched.replica.clone())
    }

    /// An operator is heard, or no longer.
    pub(crate) fn set_led(&self, led: bool) {
        self.led.store(led, Ordering::Relaxed);
    }

    pub(crate) fn is_led(&self) -> bool {
        self.led.load(Ordering::Relaxed)
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
