//! What a thousand hosts ask of one operator: a real operator, and hosts that speak as agents do and compute nothing.

mod host;
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::{Value, json};
use tandem_control_api::{ApplyRequest, JoinTokenRequest, ListRequest, Role};
use tandem_e2e::{Programs, model_file};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use self::host::{Host, Site, Told};
use self::operator::{Home, Moment, Operator};
use super::quantiles::Quantiles;
use crate::programs;

/// Hosts that join at once.
const JOIN_AT_ONCE: usize = 16;
/// Specs that may wait to be looked at.
const TOLD: usize = 1 << 16;
/// Bound on everything that is waited for.
const LONGEST: Duration = Duration::from_secs(600);
/// Nothing else than the lease was written for so long: this is rest.
const CALM: Duration = Duration::from_secs(10);
/// How soon a copy of a host that died is placed elsewhere.
const REPLACE_AFTER: Duration = Duration::from_secs(1);
/// The operator's own: a host that is silent for longer is unknown.
const SILENT_AFTER: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Options {
    /// Hosts.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(4..=5000))]
    hosts: u32,
    /// Deployments that they serve while the rest is measured, with two copies each.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5000))]
    deployments: u32,
    /// Where the truth lives.
    #[arg(long, value_enum, default_value = "embedded")]
    store: Home,
    /// How long rest is measured, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=3600))]
    rest_seconds: u64,
    /// Deployments that are applied one by one, each until its host is told.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    changes: u32,
    /// Sessions that end one by one, each until another host is told to take the copy.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    deaths: u32,
    /// Print one last line of JSON with the figures.
    #[arg(long)]
    json: bool,
}

/// What is at rest, over `seconds`.
#[derive(Serialize)]
struct Rest {
    seconds: f64,
    /// Of one core, in percent.
    cpu_percent: f64,
    rss_mib: f64,
    /// But for the lease's.
    writes: u64,
    passes: f64,
    mean_pass_ms: f64,
    mean_plan_ms: f64,
}

#[derive(Serialize)]
struct Figures {
    store: Home,
    hosts: u32,
    deployments: u32,
    /// All joined, one after the other as far as the operator lets them.
    joined_s: f64,
    /// From the first Hello: all welcomed, all objects Ready, all told the leader's term.
    welcomed_s: f64,
    ready_s: f64,
    told_s: f64,
    /// From the first apply until all copies are told to hosts.
    placed_s: f64,
    rest: Rest,
    /// From an apply until the host has the spec.
    change: Quantiles,
    /// From the end of a session until another host has the spec. Of it are waited by intent: the operator's patience or the
    /// deployment's, whichever is longer, counted from the host's last report.
    death: Quantiles,
    waited_by_intent_s: f64,
    /// From the operator's SIGKILL, and a start at once, until every host is told the next term.
    restart_s: f64,
    cpu_seconds_in_all: f64,
    peak_rss_mib: f64,
    /// Before the operator was killed.
    sessions_lost: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        options.deaths <= options.changes,
        "give at most as many --deaths as --changes: each ends the host of one"
    );
    tandem_pki::install_tls_provider();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("not enough files can be opened")?;
    let figures = Runtime::new()?.block_on(measure(options))?;
    print(&figures);
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}

async fn measure(options: &Options) -> Result<Figures> {
    let operator = Operator::start(Programs::in_dir(&programs::dir()?), options.store).await?;
    let (told, inbox) = mpsc::channel(TOLD);
    let site = Site {
        url: operator.url.as_str().into(),
        told,
        welcomed: watch::Sender::new(0),
        lost: watch::Sender::new(0),
    };
    let mut bench = Bench { operator, site, inbox, hosts: Vec::new() };
    match bench.figures(options).await {
        Ok(figures) => Ok(figures),
        Err(error) => {
            Err(error.context(format!("the operator's last words:\n{}", bench.operator.last_words())))
        }
    }
}

struct Bench {
    operator: Operator,
    site: Site,
    inbox: mpsc::Receiver<Told>,
    hosts: Vec<Host>,
}

impl Bench {
    async fn figures(&mut self, options: &Options) -> Result<Figures> {
        let count = usize::try_from(options.hosts)?;
        say("hosts join");
        let begun = Instant::now();
        self.join(count).await?;
        let joined = begun.elapsed();

        say("hosts open their sessions");
        let begun = Instant::now();
        self.hosts.iter_mut().for_each(|host| host.start(&self.site));
        let mut welcomed = self.site.welcomed.subscribe();
        within("sessions", welcomed.wait_for(|welcomed| *welcomed >= count)).await??;
        let welcomed = begun.elapsed();
        self.all_ready(count).await?;
        let ready = begun.elapsed();
        let first_told = self.all_told(count, 0).await?.duration_since(begun);

        say("deployments are applied");
        let begun = Instant::now();
        let fleet: Vec<String> = (0..options.deployments).map(|n| format!("fleet-{n:04}")).collect();
        for name in &fleet {
            self.apply(name, 1).await?;
        }
        let placed = self.all_placed(&fleet).await?.duration_since(begun);

        say("rest");
        let rest = self.rest(options.rest_seconds).await?;
        say("changes");
        let (change, places) = self.changes(options.changes).await?;
        say("deaths");
        let death = self.deaths(options.deaths, &places).await?;
        let before = self.operator.moment().await?;
        let lost = *self.site.lost.borrow();
        say("the operator is killed and started again");
        let restart = self.restart(count).await?;
        let after = self.operator.moment().await?;
        Ok(Figures {
            store: options.store,
            hosts: options.hosts,
            deployments: options.deployments,
            joined_s: seconds(joined),
            welcomed_s: seconds(welcomed),
            ready_s: seconds(ready),
            told_s: seconds(first_told),
            placed_s: seconds(placed),
            rest,
            change,
            death,
            waited_by_intent_s: seconds(SILENT_AFTER.max(REPLACE_AFTER)),
            restart_s: seconds(restart),
            cpu_seconds_in_all: before.cpu_seconds + after.cpu_seconds,
            peak_rss_mib: mebibytes(before.rss_bytes.max(after.rss_bytes)),
            sessions_lost: lost,
        })
    }

    async fn join(&mut self, count: usize) -> Result<()> {
        let (site, ca, fleet) = (&self.site, self.operator.admin.ca_pem.as_str(), self.operator.fleet()?);
        let join = |index| {
            let mut fleet = fleet.clone();
            async move {
                let request =
                    JoinTokenRequest { role: Role::Host.into(), name: host::name(index), ttl_seconds: 0 };
                let token = fleet.create_join_token(request).await?.into_inner().token;
                Host::join(site, ca, index, token).await
            }
        };
        self.hosts = stream::iter((0..count).map(join)).buffered(JOIN_AT_ONCE).try_collect().await?;
        Ok(())
    }

    /// Waits until the objects of all hosts say Ready.
    async fn all_ready(&self, count: usize) -> Result<()> {
        let all = ListRequest { kind: "InferenceHost".into(), namespace: String::new(), name: String::new() };
        let mut changes = self.operator.objects()?.watch(all).await?.into_inner();
        let mut ready = BTreeSet::new();
        within("every host is Ready", async {
            while ready.len() < count {
                let event = changes.message().await?.context("the watch ended")?;
                let Ok(object) = serde_json::from_str::<Value>(&event.json) else { continue };
                let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if conditions
                    .iter()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
                {
                    ready.insert(name);
                }
            }
            Ok(())
        })
        .await?
    }

    /// When the last host was told a term above this one.
    async fn all_told(&mut self, count: usize, above: u64) -> Result<Instant> {
        let mut told = BTreeSet::new();
        self.until("every host is told the leader's term", |spec| {
            if spec.term > above {
                told.insert(spec.host);
            }
            told.len() == count
        })
        .await
        .map(|spec| spec.at)
    }

    /// When the last copy was told to a host: two of each.
    async fn all_placed(&mut self, names: &[String]) -> Result<Instant> {
        let mut hosts: BTreeMap<&str, BTreeSet<usize>> =
            names.iter().map(|name| (name.as_str(), BTreeSet::new())).collect();
        let mut missing = 2 * names.len();
        self.until("every copy is told to a host", |spec| {
            for name in &spec.deployments {
                let new = hosts.get_mut(name.as_str()).is_some_and(|hosts| hosts.insert(spec.host));
                missing = missing.saturating_sub(usize::from(new));
            }
            missing == 0
        })
        .await
        .map(|spec| spec.at)
    }

    /// Takes what hosts are told, up to what is waited for.
    async fn until(&mut self, what: &str, mut wanted: impl FnMut(&Told) -> bool) -> Result<Told> {
        within(what, async {
            loop {
                let told = self.inbox.recv().await.context("there are no hosts")?;
                if wanted(&told) {
                    return Ok(told);
                }
            }
        })
        .await?
    }

    async fn apply(&self, name: &str, host_failures: u32) -> Result<()> {
        let folder = model_file().parent().context("the model lies in a folder")?.display().to_string();
        let manifest = json!({
            "apiVersion": "inference.tandem.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": name, "namespace": "bench"},
            "spec": {
                "model": {"name": name, "source": format!("file://{folder}")},
                "quant": "Q4_K_M",
                "context": {"tokens": 1024},
                "redundancy": {
                    "hostFailures": host_failures,
                    "replaceAfterSeconds": REPLACE_AFTER.as_secs(),
                },
            },
        });
        let request = ApplyRequest { manifest_json: manifest.to_string(), ..ApplyRequest::default() };
        self.operator.objects()?.apply(request).await.with_context(|| format!("{name} is not taken"))?;
        Ok(())
    }

    async fn rest(&mut self, lasts: u64) -> Result<Rest> {
        within("rest", async {
            let mut before = self.operator.moment().await?;
            loop {
                sleep(CALM).await;
                let now = self.operator.moment().await?;
                if now.writes == before.writes {
                    return anyhow::Ok(());
                }
                before = now;
            }
        })
        .await??;
        let (begun, before) = (Instant::now(), self.operator.moment().await?);
        sleep(Duration::from_secs(lasts)).await;
        let (took, after) = (begun.elapsed().as_secs_f64(), self.operator.moment().await?);
        let grown = |of: fn(&Moment) -> f64| of(&after) - of(&before);
        let passes = grown(|moment| moment.passes);
        let mean = |total: f64| if passes > 0.0 { total * 1e3 / passes } else { 0.0 };
        Ok(Rest {
            seconds: took,
            cpu_percent: grown(|moment| moment.cpu_seconds) * 100.0 / took,
            rss_mib: mebibytes(after.rss_bytes),
            writes: after.writes - before.writes,
            passes,
            mean_pass_ms: mean(grown(|moment| moment.pass_seconds)),
            mean_plan_ms: mean(grown(|moment| moment.plan_seconds)),
        })
    }

    /// Applies deployments one by one; how long each took, and which host has it.
    async fn changes(&mut self, count: u32) -> Result<(Quantiles, Vec<(String, usize)>)> {
        let (mut took, mut places) = (Vec::new(), Vec::new());
        for n in 0..count {
            let name = format!("change-{n:04}");
            let begun = Instant::now();
            self.apply(&name, 0).await?;
            let told = self.until("a host is told", |spec| spec.deployments.contains(&name)).await?;
            took.push(told.at.duration_since(begun));
            places.push((name, told.host));
        }
        Ok((Quantiles::of(&took).context("nothing was measured")?, places))
    }

    /// Ends sessions one by one, of hosts that hold a deployment's only copy; how long each took.
    async fn deaths(&mut self, count: u32, places: &[(String, usize)]) -> Result<Quantiles> {
        let mut took = Vec::new();
        for (name, victim) in places.iter().take(usize::try_from(count)?) {
            let victim = *victim;
            let begun = Instant::now();
            self.hosts[victim].kill().await;
            let elsewhere = |spec: &Told| spec.host != victim && spec.deployments.contains(name);
            let told = self.until("another host is told", elsewhere).await?;
            took.push(told.at.duration_since(begun));
            self.hosts[victim].start(&self.site);
            self.until("the host is back", |spec| spec.host == victim).await?;
        }
        Quantiles::of(&took).context("nothing was measured")
    }

    async fn restart(&mut self, count: usize) -> Result<Duration> {
        let begun = Instant::now();
        self.operator.restart().await?;
        let term = self.operator.term().await?;
        let told = self.all_told(count, term - 1).await?;
        Ok(told.duration_since(begun))
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    match timeout(LONGEST, future).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("not so after {LONGEST:?}: {what}"),
    }
}

fn say(what: &str) {
    eprintln!("▸ {what}");
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100.0).round() / 100.0
}

fn mebibytes(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
}

fn print(figures: &Figures) {
    let Figures { rest, change, death, .. } = figures;
    println!("{} hosts, {} deployments, {:?}\n", figures.hosts, figures.deployments, figures.store);
    println!("| what | figure |\n|---|---|");
    let row = |what: &str, figure: String| println!("| {what} | {figure} |");
    row("all joined", format!("{:.1} s", figures.joined_s));
    row("all sessions welcomed, from the first Hello", format!("{:.1} s", figures.welcomed_s));
    row("all Ready", format!("{:.1} s", figures.ready_s));
    row("all told the leader's term", format!("{:.1} s", figures.told_s));
    row("all deployments applied and every copy told to its host", format!("{:.1} s", figures.placed_s));
    row("at rest: processor, of one core", format!("{:.1} %", rest.cpu_percent));
    row("at rest: memory (RSS)", format!("{:.0} MiB", rest.rss_mib));
    row("at rest: writes but for the lease's", format!("{} in {:.0} s", rest.writes, rest.seconds));
    row(
        "at rest: looks at the cluster",
        format!(
            "{} in {:.0} s, {:.1} ms each, of it {:.1} ms planning",
            rest.passes, rest.seconds, rest.mean_pass_ms, rest.mean_plan_ms
        ),
    );
    let quantiles =
        |q: &Quantiles| format!("p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", q.p50_ms, q.p99_ms, q.max_ms);
    row("from an apply to the host's spec", quantiles(change));
    row(
        "from a session's end to another host's spec",
        format!(
            "{}, of it {:.0} s from the last report by intent",
            quantiles(death),
            figures.waited_by_intent_s
        ),
    );
    row("operator killed and started: every host told the next term", format!("{:.1} s", figures.restart_s));
    row(
        "processor time in all; memory at the end",
        format!("{:.1} s; {:.0} MiB", figures.cpu_seconds_in_all, figures.peak_rss_mib),
    );
    row("sessions lost", figures.sessions_lost.to_string());
}
