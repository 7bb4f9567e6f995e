//! How long a client waits when what serves its stream dies: the real engine, real processes, one machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tandem_e2e::{Client, Completion, DEPLOYMENT, Layout, Programs, Site, Token, deploy, story};
use tokio::runtime::Runtime;

use super::quantiles::Quantiles;
use crate::programs;

/// Tokens of each stream.
const TOKENS: usize = 480;
/// The fault comes when the client has seen so many, drawn anew for each run.
const FAULT_AT: std::ops::RangeInclusive<u64> = 5..=100;
/// Every host holds a copy, so that two serve while the one that died starts again.
const HOSTS: usize = 3;
/// Different texts; each is streamed once undisturbed, to compare with.
const TEXTS: u64 = 4;
/// Faults in a row that came too late, because the worker had made the whole text already, before the machine is called
/// unfit to measure on.
const TOO_LATE: u32 = 5;
/// Bound on the return of a host that was started again.
const BACK: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Options {
    /// Streams for each kind of fault.
    #[arg(long, default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Draws where faults fall.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one last line of JSON with the figures.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    WorkerKilled,
    HostKilled,
    WorkerFrozen,
}

const FAULTS: [Fault; 3] = [Fault::WorkerKilled, Fault::HostKilled, Fault::WorkerFrozen];

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Self::WorkerKilled => "worker SIGKILL",
            Self::HostKilled => "whole host SIGKILL",
            Self::WorkerFrozen => "worker SIGSTOP",
        }
    }

    /// Strikes the host that serves.
    fn strike(self, site: &mut Site, host: usize, worker: Pid) -> Result<()> {
        match self {
            Self::WorkerKilled => Ok(kill(worker, Signal::SIGKILL)?),
            Self::HostKilled => site.hosts[host].kill(),
            Self::WorkerFrozen => Ok(kill(worker, Signal::SIGSTOP)?),
        }
    }
}

/// What came of all streams that met one kind of fault.
#[derive(Serialize)]
struct Row {
    fault: Fault,
    /// From the fault to the first token that another worker made, at the client.
    #[serde(flatten)]
    recovery: Quantiles,
    runs: usize,
    seams: usize,
    tokens_lost: usize,
    tokens_doubled: usize,
    /// Streams not counted, because the worker had made the whole text before the fault: drawn again.
    too_late: u32,
    /// Streams whose ids and log probabilities equal those of the undisturbed run.
    exact: usize,
}

#[derive(Serialize)]
struct Figures {
    seed: u64,
    tokens_per_stream: usize,
    wall_s: f64,
    rows: Vec<Row>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    programs::build()?;
    let site = Site::start(Programs::in_dir(&programs::dir()?), Layout { hosts: HOSTS, gateways: 1 })?;
    let mut bench = Bench::new(site)?;
    let mut outcomes: Vec<Vec<Outcome>> = FAULTS.iter().map(|_| Vec::new()).collect();
    let mut draw = Draw(options.seed);
    for run in 0..options.runs {
        for (fault, outcomes) in FAULTS.into_iter().zip(&mut outcomes) {
            let outcome = bench.disturbed(fault, &mut draw).with_context(|| {
                format!("run {run} of `{}`\n{}", fault.words(), bench.site.last_words(15))
            })?;
            eprintln!("▸ {} {run}: {:.1} ms", fault.words(), outcome.recovery.as_secs_f64() * 1e3);
            outcomes.push(outcome);
        }
    }
    let rows = FAULTS.into_iter().zip(&outcomes).map(|(fault, outcomes)| row(fault, outcomes));
    let figures = Figures {
        seed: options.seed,
        tokens_per_stream: TOKENS,
        rows: rows.collect::<Result<_>>()?,
        wall_s: start.elapsed().as_secs_f64().round(),
    };
    print(&figures);
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    let wrong =
        figures.rows.iter().any(|row| row.exact < row.runs || row.tokens_lost + row.tokens_doubled > 0);
    ensure!(!wrong, "a stream differs from that of an undisturbed run");
    Ok(())
}

struct Outcome {
    recovery: Duration,
    seams: usize,
    lost: usize,
    doubled: usize,
    too_late: u32,
    exact: bool,
}

struct Bench {
    site: Site,
    client: Client,
    runtime: Runtime,
    calm: Vec<Completion>,
}

impl Bench {
    fn new(site: Site) -> Result<Self> {
        deploy(&site, HOSTS as u64 - 1)?;
        let (client, runtime) = (site.client(0)?, Runtime::new()?);
        let calm = (0..TEXTS).map(|seed| runtime.block_on(client.chat(&story(TOKENS, seed), |_| Ok(()))));
        let calm = calm.collect::<Result<_>>()?;
        Ok(Self { site, client, runtime, calm })
    }

    /// A stream that its fault met in time.
    fn disturbed(&mut self, fault: Fault, draw: &mut Draw) -> Result<Outcome> {
        for too_late in 0..TOO_LATE {
            if let Some(outcome) = self.stream(fault, draw)? {
                return Ok(Outcome { too_late, ..outcome });
            }
        }
        bail!("{TOO_LATE} times in a row the worker had made the whole text before the fault")
    }

    /// One stream that meets one fault; then the host that met it starts anew.
    fn stream(&mut self, fault: Fault, draw: &mut Draw) -> Result<Option<Outcome>> {
        let text = draw.below(TEXTS);
        let at = FAULT_AT.start() + draw.below(FAULT_AT.end() - FAULT_AT.start() + 1);
        let site = &mut self.site;
        let mut struck: Option<(usize, Instant)> = None;
        let mut recovery = None;
        let seen = self.runtime.block_on(self.client.chat(&story(TOKENS, text), |so_far| {
            match struck {
                None if so_far.tokens.len() as u64 >= at => {
                    let host = site.serving_host(0, so_far)?;
                    let worker = *site.hosts[host].workers().first().context("the host has no worker")?;
                    struck = Some((host, Instant::now()));
                    fault.strike(site, host, worker)?;
                }
                Some((_, at)) if recovery.is_none() && !so_far.seams.is_empty() => {
                    recovery = Some(at.elapsed())
                }
                _ => {}
            }
            Ok(())
        }))?;
        let (host, _) = struck.context("the stream ended before its fault")?;
        self.renew(host)?;
        let Some(recovery) = recovery else { return Ok(None) };
        let calm = self.calm.get(usize::try_from(text)?).context("an unknown text")?;
        Ok(Some(Outcome {
            recovery,
            seams: seen.seams.len(),
            lost: lost(&calm.tokens, &seen.tokens),
            doubled: seen.tokens.len().saturating_sub(calm.tokens.len()),
            exact: calm.tokens == seen.tokens
                && calm.text == seen.text
                && seen.seams.iter().all(|seam| seam.exact),
            too_late: 0,
        }))
    }

    /// The same for every fault, so that no run inherits restarts, waits or a zombie from the one before.
    fn renew(&mut self, host: usize) -> Result<()> {
        self.site.hosts[host].kill()?;
        self.site.start_agent(host)?;
        let name = format!("infh/{}", self.site.hosts[host].name);
        let host = &self.site.hosts[host];
        self.site
            .watch(&name, BACK, |object| {
                // What is told of the worker before names another port.
                let told = &object["status"]["workloads"][0];
                told["state"] == "Ready"
                    && host.addresses().iter().any(|address| told["endpoint"] == **address)
            })
            .with_context(|| format!("{name} did not come back"))?;
        self.site.wait_for(DEPLOYMENT, "Redundant", BACK)
    }
}

/// Tokens of the calm run that the disturbed one lacks at their place.
fn lost(calm: &[Token], disturbed: &[Token]) -> usize {
    calm.len() - calm.iter().zip(disturbed).filter(|(a, b)| a.id == b.id).count()
}

fn row(fault: Fault, outcomes: &[Outcome]) -> Result<Row> {
    let recoveries: Vec<Duration> = outcomes.iter().map(|outcome| outcome.recovery).collect();
    let Some(recovery) = Quantiles::of(&recoveries) else { bail!("no stream met `{}`", fault.words()) };
    Ok(Row {
        fault,
        recovery,
        runs: outcomes.len(),
        seams: outcomes.iter().map(|outcome| outcome.seams).sum(),
        tokens_lost: outcomes.iter().map(|outcome| outcome.lost).sum(),
        tokens_doubled: outcomes.iter().map(|outcome| outcome.doubled).sum(),
        too_late: outcomes.iter().map(|outcome| outcome.too_late).sum(),
        exact: outcomes.iter().filter(|outcome| outcome.exact).count(),
    })
}

fn print(figures: &Figures) {
    println!("| fault | p50 ms | p90 ms | p99 ms | max ms | N | seams | lost | doubled | exact |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for row in &figures.rows {
        let Row { fault, recovery: q, runs, seams, tokens_lost, tokens_doubled, exact, .. } = row;
        println!(
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {runs} | {seams} | {tokens_lost} | {tokens_doubled} | {exact} of {runs} |",
            fault.words(),
            q.p50_ms,
            q.p90_ms,
            q.p99_ms,
            q.max_ms,
        );
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same faults for the same seed.
struct Draw(u64);

impl Draw {
    /// Below `bound`, which is small, so that the remainder is near enough to uniform.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
