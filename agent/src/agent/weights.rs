//! A workload's files: fetched, looked at, hashed again, and mended; and what the host says of all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use tandem_agent_core::{Amounts, Observation, Process, Transfer, Weights};
use tandem_crds::WorkloadSpec;
use tandem_sources::{ResolvedFile, Sha256Hex, Source, TransferError};
use tandem_weights::{Changed, FetchError, FileState, Order, Progress};
use tandem_worker_api::WorkerExit;
use tokio_util::task::AbortOnDropHandle;

use super::work::tell;
use super::{Agent, Extra};
use crate::error::chain;
use crate::event::{Event, Missing};
use crate::keeper::{Stock, Wrong};
use crate::supply::Supply;
use crate::worker_spec::files;

/// How long after its start an agent waits for the operator's word before it fetches without.
const HEARS_SOON: Duration = Duration::from_secs(3);

/// A fetch or a look under way.
pub(super) struct Work {
    /// Tells its end from that of one before it.
    number: u64,
    _task: AbortOnDropHandle<()>,
    /// What it brings; none if it only looks.
    brings: Option<Brings>,
}

/// What a fetch brings, and how far it is.
struct Brings {
    source: String,
    files: Vec<tandem_crds::ResolvedFile>,
    /// The operator's word that it follows.
    supply: Supply,
    progress: Progress,
    transfer: Transfer,
}

impl Extra {
    /// What is under way goes on under another epoch, if that wants the same.
    pub(super) fn goes_on(&mut self, workload: &WorkloadSpec) -> Option<Work> {
        self.work.take().filter(|work| {
            let brings = work.brings.as_ref();
            brings.is_some_and(|brings| brings.source == workload.source && brings.files == workload.files)
        })
    }
}

impl Agent {
    pub(super) fn fetch(&mut self, workload: &WorkloadSpec) {
        let id = workload.id.clone();
        if self.is_early() && !self.has_weights(workload) {
            let why = "waits for the operator to say how sources are reached";
            return self.weights_missing(&id, Missing::Waits(why.to_owned()));
        }
        let (orders, credential) = match self.orders(workload) {
            Ok(orders) => orders,
            Err(why) => return self.weights_missing(&id, Missing::Failed(why)),
        };
        let progress = Progress::new();
        let wanted: Vec<ResolvedFile> = orders.iter().map(|order| order.file.clone()).collect();
        progress.expect(&wanted);
        let total = progress.total();
        self.observed.workloads.entry(id.clone()).or_default().weights = Weights::Fetching { done: 0, total };
        tracing::info!(
            workload = id,
            epoch = workload.epoch,
            source = workload.source,
            files = orders.len(),
            credential,
            "fetches weights"
        );
        let (keeper, events) = (self.keeper.clone(), self.events.clone());
        let supply = self.supply.clone();
        let (counts, number) = (progress.clone(), self.next_number());
        let extra = self.extra.entry(id.clone()).or_default();
        if extra.fetch_failures > 0 {
            self.metrics.fetch_retries.inc();
        }
        let task = async move {
            let result = keeper.bring(orders, &counts).await;
            let result = result.map_err(|error| missing(&error, &supply.borrow()));
            tell(&events, Event::Fetched { id, number, result }).await;
        };
        let brings = Brings {
            source: workload.source.clone(),
            files: workload.files.clone(),
            supply: self.supply.borrow().clone(),
            progress,
            transfer: Transfer::default(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        extra.work = Some(Work { number, _task: task, brings: Some(brings) });
    }

    /// What to ask the fetcher for, and whether with a credential; or a sentence.
    fn orders(&self, workload: &WorkloadSpec) -> Result<(Vec<Order>, bool), String> {
        let source: Source = workload.source.parse().map_err(|error| chain(&error))?;
        let files = files(workload).map_err(|error| chain(&error))?;
        let supply = self.supply.borrow();
        let access = supply.access(&self.settings.access)?;
        let credential = supply.secret(&workload.deployment);
        let order = |file| Order {
            file,
            source: source.clone(),
            credential: credential.clone(),
            access: access.clone(),
            peers: self.peers.clone(),
            own_host: self.settings.name.to_string(),
        };
        Ok((files.into_iter().map(order).collect(), credential.is_some()))
    }

    pub(super) fn fetched(&mut self, id: &str, number: u64, result: Result<(), Missing>) {
        self.count_transfers();
        let Some((observation, extra)) = self.at_work(id, number) else { return };
        extra.work = None;
        match result {
            Ok(()) => {
                tracing::info!(workload = id, "the weights are here");
                (observation.weights, observation.transfer) = (Weights::Present, None);
                (extra.fetch_failures, extra.no_room) = (0, false);
            }
            Err(missing) => self.weights_missing(id, missing),
        }
        self.keeper.news.notify_one();
    }

    pub(super) fn weights_missing(&mut self, id: &str, missing: Missing) {
        let at = self.now();
        let extra = self.extra.entry(id.to_owned()).or_default();
        extra.fetch_failures = extra.fetch_failures.saturating_add(1);
        extra.no_room = matches!(missing, Missing::NoRoom(_));
        let failures = extra.fetch_failures;
        let observation = self.observed.workloads.entry(id.to_owned()).or_default();
        observation.transfer = None;
        observation.weights = match missing {
            Missing::Waits(why) => {
                tracing::warn!(workload = id, why, "the weights can't come yet");
                Weights::Waiting { why, at, failures }
            }
            Missing::NoRoom(why) | Missing::Failed(why) => {
                tracing::error!(workload = id, error = why, "the weights are not here");
                Weights::Failed { why, at, failures }
            }
        };
    }

    /// What can't come is tried again when the operator has a new word on how; what comes in another way than it says now
    /// starts anew, with what is here already.
    pub(super) fn supplied(&mut self) {
        let supply = self.supply.borrow().clone();
        for workload in self.spec.iter().flat_map(|spec| &spec.workloads) {
            let (Some(observation), Some(extra)) =
                (self.observed.workloads.get_mut(&workload.id), self.extra.get_mut(&workload.id))
            else {
                continue;
            };
            let other_way = |brings: &Brings| !supply.reaches_like(&brings.supply, &workload.deployment);
            let brings = extra.work.as_ref().and_then(|work| work.brings.as_ref());
            let again = match observation.weights {
                Weights::Waiting { .. } => true,
                Weights::Fetching { .. } => brings.is_some_and(other_way),
                _ => false,
            };
            if again {
                (extra.work, observation.weights, observation.transfer) = (None, Weights::Absent, None);
            }
        }
    }

    /// Just started, and no operator has said yet how sources are reached, as it soon will if there is one. A fetch that
    /// begins without its word may have to begin again with it.
    fn is_early(&self) -> bool {
        !self.supply.borrow().heard && self.now() < HEARS_SOON
    }

    /// Brings figures of running transfers up to date.
    pub(super) fn count_transfers(&mut self) {
        let now = self.now();
        for (id, observation) in &mut self.observed.workloads {
            let Some(work) = self.extra.get_mut(id).and_then(|extra| extra.work.as_mut()) else { continue };
            let (Some(brings), Weights::Fetching { done, .. }) = (&mut work.brings, &mut observation.weights)
            else {
                continue;
            };
            let amounts = Amounts {
                done: brings.progress.done(),
                total: brings.progress.total(),
                source: brings.progress.source_bytes(),
                peer: brings.progress.peer_bytes(),
            };
            *done = amounts.done;
            observation.transfer = Some(brings.transfer.look(now, amounts));
        }
    }

    /// Hashes a workload's files again.
    pub(super) fn verify(&mut self, workload: &WorkloadSpec) {
        let id = workload.id.clone();
        let Ok(files) = files(workload) else { return };
        self.observed.workloads.entry(id.clone()).or_default().weights = Weights::Verifying;
        let (keeper, events, number) = (self.keeper.clone(), self.events.clone(), self.next_number());
        tracing::warn!(workload = id, epoch = workload.epoch, "hashes weights again");
        let extra = self.extra.entry(id.clone()).or_default();
        let task = async move {
            let mut wrong = Vec::new();
            for file in &files {
                wrong.extend(keeper.verify(file.sha256, &file.name, &Progress::new()).await.err());
            }
            tell(&events, Event::Verified { id, number, wrong }).await;
        };
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        extra.work = Some(Work { number, _task: task, brings: None });
    }

    pub(super) fn verified(&mut self, id: &str, number: u64, wrong: Vec<Wrong>) {
        let Some((observation, extra)) = self.at_work(id, number) else { return };
        extra.work = None;
        if wrong.is_empty() {
            observation.weights = Weights::Present;
            // They are what the operator says they are; then no worker of this release can run them.
            if let Process::Exited { epoch, .. } = observation.process
                && doubted_by_worker(observation)
            {
                observation.process = Process::Exited { epoch, hopeless: true };
            }
        } else {
            lost(observation);
            self.damaged.extend(wrong.into_iter().map(|wrong| (wrong.sha256, wrong)));
        }
        self.keeper.news.notify_one();
    }

    /// Takes over what there is on disk: what is gone is fetched again, and what has changed is hashed.
    pub(super) fn stocked(&mut self, stock: Stock) {
        self.stock = stock;
        self.damaged
            .retain(|digest, _| self.stock.of(digest).is_none_or(|file| file.state != FileState::Verified));
        let wanted = self.wanted();
        self.damaged.retain(|digest, _| wanted.contains(digest));
        let workloads = self.spec.iter().flat_map(|spec| spec.workloads.clone()).collect::<Vec<_>>();
        for workload in &workloads {
            let Ok(files) = files(workload) else { continue };
            let Some(observation) = self.observed.workloads.get_mut(&workload.id) else { continue };
            if observation.weights != Weights::Present {
                continue;
            }
            // Asked again: what came since the look is no loss.
            let mut changes = files.iter().filter_map(|file| self.keeper.store.unchanged(&file.sha256).err());
            let Some(first) = changes.next() else { continue };
            tracing::error!(workload = workload.id, error = %first, "weights that were here are not any more");
            if matches!(first, Changed::Differs { .. })
                && changes.all(|c| matches!(c, Changed::Differs { .. }))
            {
                self.verify(workload);
            } else {
                lost(observation);
            }
        }
        self.check_kept();
        self.use_room(&workloads);
        if self.keeper.room(&self.stock, 0).excess() > 0 {
            self.make_room();
        }
    }

    /// Files that the operator wants here.
    pub(super) fn wanted(&self) -> BTreeSet<Sha256Hex> {
        let spec = self.spec.iter();
        let used = spec.clone().flat_map(|spec| &spec.workloads).flat_map(|workload| &workload.files);
        let digests = used.map(|file| &file.sha256).chain(spec.flat_map(|spec| &spec.keep_files));
        digests.filter_map(|digest| digest.parse().ok()).collect()
    }

    /// Hashes a file that is kept for others and has changed, one at a time.
    fn check_kept(&mut self) {
        if self.checking.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let kept =
            self.spec.iter().flat_map(|spec| &spec.keep_files).filter_map(|digest| digest.parse().ok());
        let changed = kept.filter_map(|digest| self.stock.of(&digest));
        let used: BTreeSet<&String> = self
            .spec
            .iter()
            .flat_map(|spec| &spec.workloads)
            .flat_map(|workload| workload.files.iter().map(|file| &file.sha256))
            .collect();
        let mut changed = changed.filter(|file| {
            matches!(file.state, FileState::Changed(_)) && !used.contains(&file.sha256.to_string())
        });
        let Some(file) = changed.next().cloned() else { return };
        let keeper = self.keeper.clone();
        let check = async move {
            if keeper.verify(file.sha256, &file.name, &Progress::new()).await.is_ok() {
                keeper.news.notify_one();
            }
        };
        self.checking = Some(AbortOnDropHandle::new(tokio::spawn(check)));
    }

    /// What found no room is tried again as soon as there is some; if that fails too, after the usual waits.
    fn use_room(&mut self, workloads: &[WorkloadSpec]) {
        for workload in workloads {
            let (Some(observation), Some(extra)) =
                (self.observed.workloads.get_mut(&workload.id), self.extra.get_mut(&workload.id))
            else {
                continue;
            };
            let Ok(files) = files(workload) else { continue };
            let has_room = self.keeper.has_room(&self.stock, self.stock.lacking(&files));
            let before = std::mem::replace(&mut extra.had_room, has_room);
            if has_room && !before && extra.no_room && matches!(observation.weights, Weights::Failed { .. }) {
                observation.weights = Weights::Absent;
            }
        }
    }

    fn make_room(&mut self) {
        if self.collecting.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let keeper = self.keeper.clone();
        let collect = async move {
            if let Err(error) = keeper.make_room(&[]).await {
                tracing::error!(error = chain(&error), "weights can't be removed to make room");
            }
        };
        self.collecting = Some(AbortOnDropHandle::new(tokio::spawn(collect)));
    }

    /// Whether all files of a workload are here, untouched.
    pub(super) fn has_weights(&self, workload: &WorkloadSpec) -> bool {
        files(workload).is_ok_and(|files| files.iter().all(|file| self.keeper.store.has(file)))
    }

    /// Looks at what there is on disk, unless somebody looks already.
    pub(super) fn take_stock(&mut self) {
        if self.looking.as_ref().is_some_and(|look| !look.is_finished()) {
            return;
        }
        let (keeper, events) = (self.keeper.clone(), self.events.clone());
        let look = async move {
            match keeper.stock().await {
                Ok(stock) => tell(&events, Event::Stocked(Box::new(stock))).await,
                Err(error) => tracing::error!(error = chain(&error), "the weights can't be looked at"),
            }
        };
        self.looking = Some(AbortOnDropHandle::new(tokio::spawn(look)));
    }

    fn at_work(&mut self, id: &str, number: u64) -> Option<(&mut Observation, &mut Extra)> {
        let at_work = |extra: &&mut Extra| extra.work.as_ref().is_some_and(|work| work.number == number);
        let extra = self.extra.get_mut(id).filter(at_work)?;
        Some((self.observed.workloads.get_mut(id)?, extra))
    }
}

/// The files are no good. A process that has them mapped computes with them, and may not go on.
fn lost(observation: &mut Observation) {
    use tandem_agent_core::Health;
    observation.weights = Weights::Absent;
    if matches!(observation.process, Process::Running { .. }) {
        let why = "its weights were damaged on disk while it used them; it starts again once they are mended";
        observation.health = Some(Health::Hung(why.to_owned()));
    }
}

fn doubted_by_worker(observation: &Observation) -> bool {
    let code = observation.last_exit.as_ref().and_then(|exit| exit.code);
    code.and_then(WorkerExit::from_code) == Some(WorkerExit::BadWeights)
}

fn missing(error: &FetchError, supply: &Supply) -> Missing {
    let why = chain(error);
    match error {
        FetchError::DiskFull { .. } | FetchError::OverBudget { .. } => Missing::NoRoom(why),
        FetchError::Source(TransferError::NeedsCredential { .. }) if !supply.heard => {
            Missing::Waits("waits for the operator to hand over the credential of its source".to_owned())
        }
        FetchError::Source(TransferError::NeedsCredential { .. } | TransferError::Denied { .. }) => {
            Missing::Waits(why)
        }
        FetchError::Source(TransferError::NotAllowed { .. }) => Missing::Waits(why),
        _ => Missing::Failed(why),
    }
}
