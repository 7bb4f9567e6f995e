//! How long a plan takes, in full and after one change, and how that grows with hosts and deployments.

mod changes;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tandem_crds::{
    DeploymentRef, InferenceDeployment, InferenceHost, InferenceHostStatus, ResolvedFile, Sizing,
    WorkloadState,
};
use tandem_plan::{HostObservation, Model, Observation, Plan, Resolved, State, lint, plan};

/// One byte more or less changes no plan here: sizes are whole GiB.
const GIB: u64 = 1 << 30;
/// Plans until a fleet must hold still.
const MOST_PLANS: usize = 12;

#[derive(Args)]
pub(crate) struct Options {
    /// The largest fleet's hosts.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    hosts: u32,
    /// The largest fleet's deployments.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(50..=50_000))]
    deployments: u32,
    /// Plans of each kind, of which the median is told.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Print one last line of JSON with the figures.
    #[arg(long)]
    json: bool,
}

/// One size of fleet. Times are medians in milliseconds.
#[derive(Serialize)]
struct Row {
    hosts: u32,
    deployments: u32,
    copies: usize,
    /// Nothing runs yet: every copy is placed.
    first_ms: f64,
    /// All runs: the plan finds nothing to do.
    settled_ms: f64,
    /// A host of every hundred is lost, and its copies are placed elsewhere.
    loss_ms: f64,
    /// More is asked than fits: a tenth of the deployments are refused, with reasons.
    full_ms: f64,
    /// The linter's reading of the settled plan.
    lint_ms: f64,
    /// One change, where all runs.
    settled: changes::Row,
    /// One change, where a tenth of the deployments are refused.
    full: changes::Row,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let sizes = [20, 10, 5, 2, 1].map(|part| (options.hosts / part, options.deployments / part));
    let mut rows: Vec<Row> = Vec::new();
    println!("| hosts | deployments | copies | first ms | settled ms | 1 % lost ms | full ms | lint ms |");
    println!("|---|---|---|---|---|---|---|---|");
    for (hosts, deployments) in sizes {
        let row = measure(hosts, deployments, options.runs)?;
        println!(
            "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            row.hosts,
            row.deployments,
            row.copies,
            row.first_ms,
            row.settled_ms,
            row.loss_ms,
            row.full_ms,
            row.lint_ms
        );
        rows.push(row);
    }
    changes::print("all runs", &rows, |row| &row.settled);
    changes::print("a tenth is refused", &rows, |row| &row.full);
    if let (Some(small), Some(large)) = (rows.first(), rows.last()) {
        let size = f64::from(large.hosts) / f64::from(small.hosts);
        let growth = |of: fn(&Row) -> f64| of(large) / of(small) / size;
        println!(
            "\nFrom the smallest to the largest, against linear: first {:.2}, settled {:.2}, 1 % lost {:.2}, full {:.2}, lint {:.2}",
            growth(|row| row.first_ms),
            growth(|row| row.settled_ms),
            growth(|row| row.loss_ms),
            growth(|row| row.full_ms),
            growth(|row| row.lint_ms),
        );
    }
    if options.json {
        println!("{}", serde_json::to_string(&rows)?);
    }
    Ok(())
}

fn measure(hosts: u32, deployments: u32, runs: u32) -> Result<Row> {
    let mut fleet = Fleet::new(hosts, deployments)?;
    let first_ms = fleet.time(runs)?;
    fleet.settle()?;
    let settled_ms = fleet.time(runs)?;
    let settled = fleet.plan()?;
    let lint_ms = median(runs, || {
        let start = Instant::now();
        let findings = lint(&fleet.state, &fleet.seen, fleet.now, &settled);
        ensure!(findings.is_empty(), "the linter finds {findings:?}");
        Ok(start.elapsed())
    })?;
    let copies = fleet.state.hosts.iter().map(|host| host.spec.workloads.len()).sum();
    let settled = changes::measure(&fleet, runs)?;
    fleet.ask_too_much(deployments)?;
    fleet.settle()?;
    let full_ms = fleet.time(runs)?;
    let full = changes::measure(&fleet, runs)?;
    fleet.lose_one_in_a_hundred();
    let loss_ms = fleet.time(runs)?;
    Ok(Row { hosts, deployments, copies, first_ms, settled_ms, loss_ms, full_ms, lint_ms, settled, full })
}

fn median(runs: u32, mut run: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let mut times = (0..runs).map(|_| run()).collect::<Result<Vec<Duration>>>()?;
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e3)
}

/// Hosts of 2 to 9 units in twenty zones and four pools; deployments of 1 to 3 units and one host failure, a quarter of which name a pool.
struct Fleet {
    state: State,
    seen: Observation,
    now: Timestamp,
}

impl Fleet {
    fn new(hosts: u32, deployments: u32) -> Result<Self> {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse()?;
        let mut fleet =
            Self { state: State { term: 1, ..State::default() }, seen: Observation::default(), now };
        for number in 0..hosts {
            let mut host: InferenceHost = serde_json::from_value(json!({
                "apiVersion": tandem_crds::API_VERSION,
                "kind": "InferenceHost",
                "metadata": {
                    "name": format!("host-{number:05}"),
                    "labels": {
                        "topology.kubernetes.io/zone": format!("zone-{}", number % 20),
                        "pool": format!("pool-{}", number / 7 % 4)
                    }
                },
                "spec": {"term": 1}
            }))?;
            let available = u64::from(2 + number % 8) * GIB * 16 / 15 + 16;
            let report: InferenceHostStatus = serde_json::from_value(json!({
                "address": format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255),
                "devices": [{"id": "cpu", "kind": "CPU", "name": "", "memoryBytes": available, "availableBytes": available}],
                "weights": {"files": []}
            }))?;
            host.status = Some(report.clone());
            fleet.seen.hosts.insert(format!("host-{number:05}"), HostObservation::Known(Box::new(report)));
            fleet.state.hosts.push(host);
        }
        for number in 0..deployments {
            fleet.add(&format!("model-{number:05}"), u64::from(1 + number % 3), number % 4 == 0, number)?;
        }
        Ok(fleet)
    }

    fn add(&mut self, name: &str, units: u64, in_pool: bool, number: u32) -> Result<()> {
        let (deployment, model) = self.asked(name, units, in_pool, number)?;
        self.state.models.insert(key(&deployment), model);
        self.state.deployments.push(deployment);
        Ok(())
    }

    fn asked(
        &self,
        name: &str,
        units: u64,
        in_pool: bool,
        number: u32,
    ) -> Result<(InferenceDeployment, Model)> {
        let created = self.now + jiff::SignedDuration::from_secs(i64::from(number));
        let mut object = json!({
            "apiVersion": tandem_crds::API_VERSION,
            "kind": "InferenceDeployment",
            "metadata": {
                "name": name, "namespace": format!("team-{}", number % 50), "generation": 1,
                "creationTimestamp": created.to_string()
            },
            "spec": {
                "model": {"name": name, "source": "https://models.example.com/m/"},
                "quant": "Q4_K_M",
                "context": {"tokens": 4096},
                "redundancy": {"hostFailures": 1}
            }
        });
        if in_pool {
            object["spec"]["placement"] =
                json!({"hostSelector": {"matchLabels": {"pool": format!("pool-{}", number / 4 % 4)}}});
        }
        let deployment: InferenceDeployment = serde_json::from_value(object)?;
        let total = units * GIB;
        let resolved = Resolved {
            revision: format!("rev-{number}"),
            source: "https://models.example.com/m/".to_owned(),
            files: vec![ResolvedFile {
                name: "m-Q4_K_M.gguf".to_owned(),
                sha256: format!("{number:064x}"),
                bytes: total / 2,
            }],
            sizing: Sizing {
                weights_bytes: total / 2,
                kv_bytes: total / 4,
                arena_bytes: total / 4,
                total_bytes: total,
            },
            lacking: Vec::new(),
        };
        Ok((deployment, Model::Resolved(resolved)))
    }

    /// A tenth more deployments, each larger than any host.
    fn ask_too_much(&mut self, deployments: u32) -> Result<()> {
        (0..deployments / 10)
            .try_for_each(|number| self.add(&format!("large-{number:05}"), 64, false, deployments + number))
    }

    fn lose_one_in_a_hundred(&mut self) {
        let since = self.now - jiff::SignedDuration::from_secs(600);
        for (_, seen) in self.seen.hosts.iter_mut().step_by(100) {
            *seen = HostObservation::Unknown { since };
        }
    }

    fn plan(&self) -> Result<Plan> {
        plan(&self.state, &self.seen, self.now).context("no plan")
    }

    fn time(&self, runs: u32) -> Result<f64> {
        median(runs, || {
            let start = Instant::now();
            let plan = self.plan()?;
            let took = start.elapsed();
            std::hint::black_box(plan);
            Ok(took)
        })
    }

    /// Plans are carried out, and every copy gets ready, until nothing changes.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..MOST_PLANS {
            let plan = self.plan()?;
            for deployment in &mut self.state.deployments {
                deployment.status = plan.statuses.get(&key(deployment)).cloned();
            }
            if plan.specs.is_empty() {
                return Ok(());
            }
            for host in &mut self.state.hosts {
                let Some(name) = host.metadata.name.clone() else { continue };
                let Some(spec) = plan.specs.get(&name) else { continue };
                host.spec = spec.clone();
                let Some(HostObservation::Known(report)) = self.seen.hosts.get_mut(&name) else { continue };
                report.workloads = spec.workloads.iter().map(ready).collect::<Result<_>>()?;
                let files = spec.workloads.iter().flat_map(|workload| &workload.files);
                if let Some(weights) = &mut report.weights {
                    weights.files = files.map(|file| file.sha256.clone()).collect();
                }
                host.status = Some(report.as_ref().clone());
            }
        }
        anyhow::bail!("the fleet does not hold still after {MOST_PLANS} plans")
    }
}

fn ready(workload: &tandem_crds::WorkloadSpec) -> Result<tandem_crds::WorkloadStatus> {
    Ok(serde_json::from_value(json!({
        "id": workload.id, "epoch": workload.epoch, "state": WorkloadState::Ready,
        "endpoint": "10.0.0.1:7000", "serverName": format!("{}.workers.tandem.internal", workload.id),
        "numericsId": "exact"
    }))?)
}

fn key(deployment: &InferenceDeployment) -> DeploymentRef {
    DeploymentRef {
        namespace: deployment.metadata.namespace.clone().unwrap_or_default(),
        name: deployment.metadata.name.clone().unwrap_or_default(),
    }
}
