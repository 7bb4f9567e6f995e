//! The agent: one task that owns what is known of this host, and changes it event by event.

mod processes;
mod work;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tandem_agent_core::{
    Credentials, Health, Ledger, Observation, Observed, Plan, Process, Weights, reconcile, report,
};
use tandem_control_api::{PROTOCOL_HIGHEST, PROTOCOL_LOWEST};
use tandem_crds::{Condition, ConditionStatus, InferenceHostSpec, InferenceHostStatus, ProtocolRange};
use tandem_pki::{Identity, Name};
use tandem_weights::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::gateway::{Gateway, Step};
use crate::home::{self, Home};
use crate::machine::{Facts, Machine};
use crate::operator::{Operators, member};
use crate::runner::{Client, Listed};
use crate::session::{Session, chain};
use crate::settings::{RunArgs, Settings};
use crate::supervisor::Supervisor;

/// Events that may wait for the agent.
const INBOX: usize = 256;
/// How often progress is looked at, and what failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often the machine is measured.
const MEASURE: Duration = Duration::from_secs(10);
/// Plans that are made of one observation; each workload takes a few steps at once at most.
const MOST_STEPS: usize = 16;
/// How long an agent that has just started may take to hear the workers that it finds, before it reports.
const FINDING_OUT: Duration = Duration::from_secs(3);
/// How often certificates are looked at.
const RENEW: Duration = Duration::from_secs(3600);

/// What happens to a host.
pub(crate) enum Event {
    /// The operator's newest word.
    Spec(Box<InferenceHostSpec>),
    /// What the runner holds.
    Children(Vec<Listed>),
    /// It holds nothing any more.
    RunnerGone,
    Fetched {
        id: String,
        epoch: u64,
        result: Result<(), String>,
    },
    /// Files were hashed again; true when they are as they should be.
    Verified {
        id: String,
        epoch: u64,
        result: Result<bool, String>,
    },
    Certified {
        id: String,
        result: Result<(), String>,
    },
    StartFailed {
        id: String,
        epoch: u64,
        why: String,
    },
    Health {
        id: String,
        epoch: u64,
        port: Option<u16>,
        health: Health,
    },
}

/// Runs until SIGTERM or SIGINT. Workers go on.
///
/// # Errors
/// When the command line, the data folder or the join token can't be used.
pub async fn run(args: RunArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = start(args) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }?;
    tracing::info!("the agent ends; its runner and workers go on");
    Ok(())
}

async fn start(args: RunArgs) -> Result<()> {
    let settings = Arc::new(Settings::of(args)?);
    let home = Arc::new(Home::open(&settings.data_dir)?);
    tracing::info!(
        name = %settings.name, data = %home.root().display(), address = settings.address,
        "tandem-agent {} starts; SIGTERM ends it alone and workers go on, SIGTERM to the pid in {} then ends these",
        env!("CARGO_PKG_VERSION"), home.runner().join("runner.pid").display()
    );
    let ledger = read_ledger(&home.ledger())?;
    let store = Store::open(&home.weights())?;
    let credentials = member(&settings, &home.identity()).await?;
    let operators = Arc::new(Operators::new(settings.operators.clone(), credentials));
    let (events, inbox) = mpsc::channel(INBOX);
    let (report, reports) = watch::channel(String::new());
    let term = Arc::new(AtomicU64::new(ledger.term()));
    let session = Session {
        operators: operators.clone(),
        home: home.clone(),
        term: term.clone(),
        report: reports,
        events: events.clone(),
    };
    let supervisor = Supervisor::new(&home, settings.external_runner, events.clone());
    let mut machine = Machine::new(home.root().to_owned(), settings.memory_limit)?;
    let facts = machine.measure(&[]);
    let gateway_identity = Identity::Gateway(settings.name.clone());
    let mut agent = Agent {
        runner: Client::new(&home.runner_socket()),
        gateway: settings.gateway.is_some().then(|| Gateway::new(&home, &gateway_identity)),
        ledger,
        spec: None,
        waiting: None,
        observed: Observed { memory_bytes: facts.device.available_bytes, workloads: BTreeMap::new() },
        extra: BTreeMap::new(),
        runner_there: false,
        trouble: None,
        machine,
        facts,
        started: Instant::now(),
        downloads: Arc::new(Semaphore::new(1)),
        settings,
        home,
        store,
        operators,
        term,
        report,
        events,
    };
    agent.read_spec();
    let _session = AbortOnDropHandle::new(tokio::spawn(session.run()));
    let _supervisor = AbortOnDropHandle::new(tokio::spawn(supervisor.run()));
    agent.run(inbox).await
}

/// A ledger that can't be read stops the agent: it must neither be overwritten nor be done without.
fn read_ledger(path: &Path) -> Result<Ledger> {
    match home::read(path).with_context(|| format!("{} can't be read", path.display()))? {
        Some(bytes) => Ledger::parse(&bytes).with_context(|| format!("{} is not used", path.display())),
        None => Ok(Ledger::new()),
    }
}

struct Agent {
    settings: Arc<Settings>,
    home: Arc<Home>,
    store: Store,
    operators: Arc<Operators>,
    runner: Client,
    gateway: Option<Gateway>,
    ledger: Ledger,
    /// What is obeyed; none before the first word of an operator.
    spec: Option<InferenceHostSpec>,
    /// A spec that could not be written down yet, and so is not obeyed.
    waiting: Option<InferenceHostSpec>,
    observed: Observed,
    extra: BTreeMap<String, Extra>,
    runner_there: bool,
    /// Why state can't be written, since when.
    trouble: Option<(String, Timestamp)>,
    machine: Machine,
    facts: Facts,
    started: Instant,
    /// One file at a time: disks and links are shared anyway, and equal files come once.
    downloads: Arc<Semaphore>,
    term: Arc<AtomicU64>,
    report: watch::Sender<String>,
    events: mpsc::Sender<Event>,
}

/// What the agent holds about a workload besides what is observed.
#[derive(Default)]
struct Extra {
    /// Which epoch weights, credentials and failures are of.
    epoch: u64,
    /// The fetch or verification under way.
    work: Option<AbortOnDropHandle<()>>,
    /// Bytes verified of all files, while they are fetched.
    fetched: Arc<AtomicU64>,
    /// Listens to the process with this id.
    listener: Option<(u32, AbortOnDropHandle<()>)>,
    ready_since: Option<Duration>,
    /// Why its process was ended without its asking.
    killed: Option<String>,
    /// Times that this epoch was started.
    starts: u32,
    /// In a row.
    fetch_failures: u32,
    /// In a row.
    certify_failures: u32,
}

impl Agent {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Event>) -> Result<()> {
        let mut tick = interval(TICK);
        let mut measure = interval(MEASURE);
        let mut renew = interval(RENEW);
        for interval in [&mut tick, &mut measure, &mut renew] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let wake = self.advance().await;
            let wake = wake.map(|at| self.started + at);
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.happen(event).await,
                    None => return Ok(()),
                },
                _ = tick.tick() => self.look_again(),
                _ = measure.tick() => self.measure(),
                _ = renew.tick() => self.renew(),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Does what there is to do, and reports. Returns when to do so again if nothing happens.
    async fn advance(&mut self) -> Option<Duration> {
        let now = self.now();
        let mut plan = Plan::default();
        // Without the runner nothing is known of processes; without a spec nothing is to be done.
        if let (Some(spec), true) = (self.spec.clone(), self.runner_there) {
            // What is done at once may make room for the next step; what fails at once is left to the next look.
            for _ in 0..MOST_STEPS {
                let next = reconcile(&spec, &self.observed, &self.ledger, now);
                if next == plan {
                    break;
                }
                plan = next;
                for action in &plan.actions {
                    self.act(&spec, action).await;
                }
            }
        }
        let gateway = self.advance_gateway(now).await;
        self.say(&plan);
        plan.wake.into_iter().chain(gateway).min()
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::Spec(spec) => self.obey(*spec),
            Event::Children(children) => self.children(children).await,
            Event::RunnerGone => self.runner_gone(),
            Event::Fetched { id, epoch, result } => self.fetched(&id, epoch, result),
            Event::Verified { id, epoch, result } => self.verified(&id, epoch, result),
            Event::Certified { id, result } => self.certified(&id, result),
            Event::StartFailed { id, epoch, why } => self.start_failed(&id, epoch, why),
            Event::Health { id, epoch, port, health } => self.heard(&id, epoch, port, health),
        }
    }

    /// What this host obeyed when it last ran, so that it serves on without an operator.
    fn read_spec(&mut self) {
        let read = || -> Result<Option<InferenceHostSpec>> {
            let Some(bytes) = home::read(&self.home.spec())? else { return Ok(None) };
            let spec: InferenceHostSpec = serde_json::from_slice(&bytes)?;
            self.ledger.clone().accept(&spec)?;
            Ok(Some(spec))
        };
        match read() {
            Ok(Some(spec)) => {
                tracing::info!(term = spec.term, generation = spec.generation, "goes on with the last spec");
                self.take_over(spec);
            }
            Ok(None) => {}
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "the last spec can't be used: what runs goes on, and an operator is waited for"
                );
            }
        }
    }

    /// Accepts a spec if the ledger does. It is written down before it is acted on.
    fn obey(&mut self, spec: InferenceHostSpec) {
        if self.spec.as_ref() == Some(&spec) && self.ledger.term() == spec.term {
            return;
        }
        if let Some(bad) = spec.workloads.iter().find_map(|workload| workload.id.parse::<Name>().err()) {
            tracing::error!(error = %bad, "a spec with such a workload is not obeyed");
            return;
        }
        let mut ledger = self.ledger.clone();
        if let Err(refused) = ledger.accept(&spec) {
            tracing::warn!(%refused, "a spec is not obeyed");
            return;
        }
        let json = serde_json::to_vec_pretty(&spec).expect("a spec is JSON");
        let written = home::replace(&self.home.ledger(), &ledger.to_json())
            .and_then(|()| home::replace(&self.home.spec(), &json));
        if let Err(error) = written {
            tracing::error!(%error, "a spec can't be written down, and is not obeyed before that");
            if self.trouble.is_none() {
                let why =
                    format!("the newest spec can't be written to {}: {error}", self.home.root().display());
                self.trouble = Some((why, Timestamp::now()));
            }
            self.waiting = Some(spec);
            return;
        }
        (self.trouble, self.waiting) = (None, None);
        tracing::info!(
            term = spec.term,
            generation = spec.generation,
            workloads = spec.workloads.len(),
            "obeys a spec"
        );
        self.ledger = ledger;
        self.term.store(self.ledger.term(), Ordering::SeqCst);
        self.take_over(spec);
    }

    fn take_over(&mut self, spec: InferenceHostSpec) {
        for workload in &spec.workloads {
            let extra = self.extra.entry(workload.id.clone()).or_default();
            if extra.epoch == workload.epoch {
                continue;
            }
            // Also ends what is under way for the epoch before; who listens to its process goes on.
            let listener = extra.listener.take();
            *extra = Extra { epoch: workload.epoch, listener, ..Extra::default() };
            let observation = self.observed.workloads.entry(workload.id.clone()).or_default();
            let fresh = Observation::default();
            observation.weights = fresh.weights;
            observation.credentials = fresh.credentials;
            (observation.failures, observation.failure, observation.restarts) = (0, None, 0);
        }
        self.spec = Some(spec);
    }

    fn heard(&mut self, id: &str, epoch: u64, port: Option<u16>, health: Health) {
        let now = self.now();
        let (Some(observation), Some(extra)) = (self.observed.workloads.get_mut(id), self.extra.get_mut(id))
        else {
            return;
        };
        let ours = match observation.process {
            Process::Running { epoch: running, .. } | Process::Stopping { epoch: running, .. } => {
                running == epoch
            }
            _ => false,
        };
        if !ours {
            return;
        }
        if let Some(port) = port {
            observation.endpoint = Some(self.settings.endpoint(port));
        }
        if let (Health::Ready { .. }, None) = (&health, extra.ready_since) {
            tracing::info!(workload = id, epoch, endpoint = observation.endpoint, "a worker is ready");
            extra.ready_since = Some(now);
        }
        observation.health = Some(health);
    }

    fn measure(&mut self) {
        let own: Vec<u32> =
            self.extra.values().filter_map(|extra| extra.listener.as_ref().map(|(pid, _)| *pid)).collect();
        let facts = self.machine.measure(&own);
        self.observed.memory_bytes = facts.device.available_bytes;
        if facts.differ(&self.facts) {
            self.facts = facts;
        }
    }

    /// Progress, and what failed for want of disk.
    fn look_again(&mut self) {
        for (id, observation) in &mut self.observed.workloads {
            if let (Weights::Fetching { done, .. }, Some(extra)) =
                (&mut observation.weights, self.extra.get(id))
            {
                *done = extra.fetched.load(Ordering::Relaxed);
            }
        }
        if let Some(spec) = self.waiting.take() {
            self.obey(spec);
        }
    }

    async fn advance_gateway(&mut self, now: Duration) -> Option<Duration> {
        let gateway = self.gateway.as_mut()?;
        match gateway.next(now) {
            Step::Certify => {
                gateway.credentials = Credentials::Requested;
                self.certify_gateway();
            }
            Step::Start if self.runner_there => {
                let start = gateway.start(&self.settings)?;
                gateway.starting = true;
                if let Err(error) = self.runner.start(start).await {
                    tracing::error!(error = chain(&error), "the gateway can't be started");
                    gateway.failed(now);
                }
            }
            Step::WaitUntil(time) => return Some(time),
            Step::Start | Step::Nothing => {}
        }
        None
    }

    fn say(&self, plan: &Plan) {
        if self.is_finding_out() {
            return;
        }
        let nothing = InferenceHostSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&nothing);
        let Facts { device, memory, disk } = &self.facts;
        let status = InferenceHostStatus {
            observed_generation: self.spec.as_ref().map(|spec| spec.generation),
            observed_term: self.spec.as_ref().map(|spec| spec.term),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: Some(ProtocolRange { lowest: PROTOCOL_LOWEST, highest: PROTOCOL_HIGHEST }),
            address: self.settings.address.clone(),
            labels: self.settings.labels.clone(),
            devices: vec![device.clone()],
            memory: Some(*memory),
            disk: *disk,
            links: Vec::new(),
            weights: None,
            workloads: report(spec, &self.observed, plan),
            gateway_url: self.gateway_url(),
            conditions: self.conditions(),
        };
        let json = serde_json::to_string(&status).expect("a status is JSON");
        self.report.send_if_modified(|before| {
            let changed = *before != json;
            *before = json;
            changed
        });
    }

    /// Just started, and not all that runs has been heard yet. A report now would call workers that serve unready, and
    /// take their streams away.
    fn is_finding_out(&self) -> bool {
        let unheard =
            |seen: &Observation| matches!(seen.process, Process::Running { .. }) && seen.health.is_none();
        let all_heard = self.runner_there && !self.observed.workloads.values().any(unheard);
        !all_heard && self.now() < FINDING_OUT && self.report.borrow().is_empty()
    }

    fn gateway_url(&self) -> Option<String> {
        let running = self.gateway.as_ref().is_some_and(|gateway| gateway.running);
        let settings = self.settings.gateway.as_ref().filter(|_| running)?;
        Some(settings.advertise.clone())
    }

    fn conditions(&self) -> Vec<Condition> {
        let Some((why, since)) = &self.trouble else { return vec![] };
        vec![Condition {
            type_: "Obedient".to_owned(),
            status: ConditionStatus::False,
            observed_generation: None,
            last_transition_time: *since,
            reason: "StateNotWritten".to_owned(),
            message: why.chars().take(1024).collect(),
        }]
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
