//! The agent: one task that owns what is known of this host, and changes it event by event.

mod conditions;
mod obey;
mod processes;
mod weights;
mod work;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result};
use tandem_agent_core::{
    Credentials, Health, Ledger, Observation, Observed, Plan, Process, reconcile, report,
};
use tandem_control_api::{PROTOCOL_HIGHEST, PROTOCOL_LOWEST};
use tandem_crds::{InferenceHostSpec, InferenceHostStatus, Link, ProtocolRange};
use tandem_pki::Identity;
use tandem_sources::Sha256Hex;
use tandem_traces::{Span, Traces};
use tandem_weights::{FetchOptions, Fetcher, Peer, Sent, Store, StoreOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::error::chain;
use crate::event::Event;
use crate::gateway::{Gateway, Step};
use crate::home::{self, Home};
use crate::keeper::{Keeper, Stock, Wrong};
use crate::links::links;
use crate::machine::{Facts, Machine};
use crate::metrics::{self, Metrics};
use crate::models::Models;
use crate::operator::{Operators, member};
use crate::runner::Client;
use crate::session::Session;
use crate::settings::{RunArgs, Settings};
use crate::supervisor::Supervisor;
use crate::supply::Supply;
use crate::upkeep::Upkeep;
use conditions::Conditions;
use weights::Work;

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
    // Ends after all that is traced, and sends what is left.
    let collector = settings.traces.collector("tandem-agent", settings.name.as_str())?;
    let home = Arc::new(Home::open(&settings.data_dir)?);
    tracing::info!(
        name = %settings.name, data = %home.root().display(), address = settings.address,
        "tandem-agent {} starts; SIGTERM ends it alone and workers go on, SIGTERM to the pid in {} then ends these",
        env!("CARGO_PKG_VERSION"), home.runner().join("runner.pid").display()
    );
    let ledger = read_ledger(&home.ledger())?;
    let (credentials, joined) = member(&settings, &home.identity()).await?;
    let operators = Arc::new(Operators::new(settings.operators.clone(), credentials));
    let mut machine = Machine::new(home.root().to_owned(), settings.memory_limit)?;
    let facts = machine.measure(&[]);
    let store = open_store(&settings, &home, &facts)?;
    let (events, inbox) = mpsc::channel(INBOX);
    let (report, reports) = watch::channel(String::new());
    let term = Arc::new(AtomicU64::new(ledger.term()));
    let metrics = Arc::new(Metrics::new());
    let port = match settings.metrics {
        Some(address) => Some(metrics::Port::open(address, metrics.clone()).await?),
        None => None,
    };
    let (handed, supply) = watch::channel(Supply::default());
    let (told, peers) = watch::channel(Vec::new());
    let fetcher = Fetcher::new(
        store.clone(),
        FetchOptions {
            connections: settings.weights.connections,
            bytes_per_second: settings.weights.bytes_per_second,
            credentials: Some(operators.credentials_from_now_on()),
            ..FetchOptions::default()
        },
    );
    let keeper = Arc::new(Keeper::new(fetcher, home.weights(), metrics.clone()));
    let listen = settings.weights.listen.unwrap_or(settings.worker_listen());
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("--weights-listen {listen} can't be used"))?;
    let weights_port = listener.local_addr()?.port();
    let served = metrics.served.clone();
    let sent: Sent = Arc::new(move |bytes| {
        served.inc_by(bytes);
    });
    let giving = tandem_weights::serve(
        listener,
        store,
        operators.credentials_from_now_on(),
        sent,
        std::future::pending(),
    );
    let _giving = AbortOnDropHandle::new(tokio::spawn(giving));
    let session = Session {
        operators: operators.clone(),
        home: home.clone(),
        supply: handed,
        peers: told,
        metrics: metrics.clone(),
        models: Arc::new(Models {
            settings: settings.clone(),
            keeper: keeper.clone(),
            supply: supply.clone(),
            peers: peers.clone(),
        }),
        term: term.clone(),
        report: reports,
        events: events.clone(),
    };
    let supervisor = Supervisor::new(&home, settings.external_runner, events.clone());
    let gateway_identity = Identity::Gateway(settings.name.clone());
    let mut agent = Agent {
        runner: Client::new(&home.runner_socket()),
        gateway: settings
            .gateway
            .is_some()
            .then(|| Gateway::new(&home, &gateway_identity, &operators.credentials().ca_pem)),
        ledger,
        spec: None,
        waiting: None,
        observed: Observed { memory_bytes: facts.device.available_bytes, workloads: BTreeMap::new() },
        extra: BTreeMap::new(),
        runner_there: false,
        trouble: None,
        machine,
        links: links(&settings.address, &settings.weights.links),
        facts,
        supply,
        metrics,
        started: Instant::now(),
        stock: Stock::default(),
        damaged: BTreeMap::new(),
        conditions: Conditions::default(),
        works: 0,
        looking: None,
        collecting: None,
        checking: None,
        weights_port,
        peers,
        keeper,
        settings,
        home,
        operators,
        term,
        report,
        events,
        traces: Traces::to(collector.as_ref()),
    };
    agent.read_spec();
    if joined {
        agent.rejoined();
    }
    let upkeep = Upkeep {
        operators: agent.operators.clone(),
        settings: agent.settings.clone(),
        home: agent.home.clone(),
    };
    let _upkeep = AbortOnDropHandle::new(tokio::spawn(upkeep.run()));
    let _session = AbortOnDropHandle::new(tokio::spawn(session.run()));
    let _figures = port.map(|port| AbortOnDropHandle::new(tokio::spawn(port.serve())));
    let _supervisor = AbortOnDropHandle::new(tokio::spawn(supervisor.run()));
    agent.run(inbox).await
}

fn open_store(settings: &Settings, home: &Home, facts: &Facts) -> Result<Store> {
    let disk = facts.disk.map_or(u64::MAX, |disk| disk.total_bytes);
    let options = StoreOptions {
        adopt: settings.weights.adopt.clone(),
        budget_bytes: settings.weights.budget,
        spare_bytes: settings.weights.spare(disk),
    };
    Ok(Store::open(&home.weights(), options)?)
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
    keeper: Arc<Keeper>,
    peers: watch::Receiver<Vec<Peer>>,
    /// Where other hosts fetch weights from this one.
    weights_port: u16,
    /// What there was on disk when somebody last looked.
    stock: Stock,
    /// Files that were found damaged and are not mended yet.
    damaged: BTreeMap<Sha256Hex, Wrong>,
    conditions: Conditions,
    /// Fetches and looks so far.
    works: u64,
    looking: Option<AbortOnDropHandle<()>>,
    collecting: Option<AbortOnDropHandle<()>>,
    checking: Option<AbortOnDropHandle<()>>,
    operators: Arc<Operators>,
    runner: Client,
    gateway: Option<Gateway>,
    ledger: Ledger,
    /// What is obeyed; none before the first word of an operator.
    spec: Option<InferenceHostSpec>,
    /// A spec that could not be written down yet, and so is not obeyed, and the trace that it came of.
    waiting: Option<(InferenceHostSpec, String)>,
    observed: Observed,
    extra: BTreeMap<String, Extra>,
    runner_there: bool,
    /// Why state can't be written.
    trouble: Option<String>,
    machine: Machine,
    facts: Facts,
    links: Vec<Link>,
    supply: watch::Receiver<Supply>,
    metrics: Arc<Metrics>,
    started: Instant,
    term: Arc<AtomicU64>,
    report: watch::Sender<String>,
    events: mpsc::Sender<Event>,
    traces: Traces,
}

/// What the agent holds about a workload besides what is observed.
#[derive(Default)]
struct Extra {
    /// Which epoch weights, credentials and failures are of.
    epoch: u64,
    /// The fetch or verification under way.
    work: Option<Work>,
    /// The last fetch found no room.
    no_room: bool,
    /// There was room for it, when somebody looked last.
    had_room: bool,
    /// Listens to the process with this id.
    listener: Option<(u32, AbortOnDropHandle<()>)>,
    ready_since: Option<Duration>,
    /// When its process was started by this agent, until it is ready.
    started_at: Option<Duration>,
    /// Why its process was ended without its asking.
    killed: Option<String>,
    /// Times that this epoch was started.
    starts: u32,
    /// In a row.
    fetch_failures: u32,
    /// In a row.
    certify_failures: u32,
    /// From the word of an operator that begins this epoch until its worker is ready.
    trace: Span,
    /// The part of that in which the worker gets ready.
    getting_ready: Span,
}

impl Agent {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Event>) -> Result<()> {
        let mut tick = interval(TICK);
        let mut measure = interval(MEASURE);
        for interval in [&mut tick, &mut measure] {
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
                _ = self.supply.changed() => self.supplied(),
                () = self.keeper.news.notified() => self.take_stock(),
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
            Event::Spec { spec, traceparent } => self.obey(*spec, traceparent),
            Event::Children(children) => self.children(children).await,
            Event::RunnerGone => self.runner_gone(),
            Event::SessionEnded => self.confirm(false),
            Event::Rejoined => self.rejoined(),
            Event::Fetched { id, number, result } => self.fetched(&id, number, result),
            Event::Verified { id, number, wrong } => self.verified(&id, number, wrong),
            Event::Stocked(stock) => self.stocked(*stock),
            Event::Certified { id, result } => self.certified(&id, result),
            Event::StartFailed { id, epoch, why } => self.start_failed(&id, epoch, why),
            Event::Health { id, epoch, port, health } => self.heard(&id, epoch, port, health),
        }
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
        match (&health, extra.ready_since) {
            (Health::Ready { .. }, None) => {
                let took = extra.started_at.take().map(|at| now.saturating_sub(at));
                tracing::info!(
                    workload = id,
                    epoch,
                    endpoint = observation.endpoint,
                    ?took,
                    "a worker is ready"
                );
                (extra.getting_ready, extra.trace) = (Span::none(), Span::none());
                extra.ready_since = Some(now);
                if let Some(took) = took {
                    observation.last_start = Some(took);
                    note_start(&self.home, id, took);
                }
            }
            (Health::Warm { .. }, None) => {
                tracing::info!(workload = id, epoch, "a worker is warm");
                (extra.getting_ready, extra.trace) = (Span::none(), Span::none());
                extra.ready_since = Some(now);
            }
            _ => {}
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
        self.take_stock();
        self.links = links(&self.settings.address, &self.settings.weights.links);
    }

    /// Progress, and what failed for want of disk.
    fn look_again(&mut self) {
        self.count_transfers();
        if let Some((spec, traceparent)) = self.waiting.take() {
            self.obey(spec, traceparent);
        }
    }

    async fn advance_gateway(&mut self, now: Duration) -> Option<Duration> {
        let (dir, step) = self.gateway.as_ref().map(|gateway| (gateway.identity_dir(), gateway.next(now)))?;
        let identity = Identity::Gateway(self.settings.name.clone());
        // While it did not run, nobody told it whom to trust, nor renewed what it has.
        let step = match step {
            Step::Start if self.kept(&dir, &identity) != Credentials::Valid => Step::Certify,
            Step::Start => match self.operators.credentials().save_trust(&dir) {
                Ok(()) => Step::Start,
                Err(error) => {
                    tracing::error!(error = chain(&error), "the gateway can't be told whom to trust");
                    self.gateway.as_mut()?.failed(now);
                    return None;
                }
            },
            step => step,
        };
        let gateway = self.gateway.as_mut()?;
        match step {
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

    fn say(&mut self, plan: &Plan) {
        if self.is_finding_out() {
            return;
        }
        let conditions = self.conditions();
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
            links: self.links.clone(),
            weights: Some(self.stock.status(
                self.weights_port,
                self.keeper.store.options().budget_bytes,
                self.keeper.disk_rate(),
            )),
            workloads: report(spec, &self.observed, plan),
            gateway_url: self.gateway_url(),
            conditions,
        };
        let model_of = |id: &str| {
            let workload = spec.workloads.iter().find(|workload| workload.id == id);
            workload.map(|workload| workload.model.as_str())
        };
        self.metrics.reported(&status, model_of);
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
}

/// Kept for the next agent of this host. Lost, it is measured again.
fn note_start(home: &Home, id: &str, took: Duration) {
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    if let Err(error) = home::replace(&home.workload(id).last_start(), milliseconds.to_string().as_bytes()) {
        tracing::warn!(workload = id, %error, "what a start took can't be noted");
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
