//! How fast weights arrive, held against `dd` and `curl` in the same run, and what a source sends when several hosts want
//! them: real agents and a hub in this process, all on loopback.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tandem_e2e::{BULK_FILE, BULK_QUANT, Layout, Programs, Site, bulk_manifest, bulk_model};
use tandem_gguf::{GgmlType, Writer};
use tandem_hub::{Content, Door, Hub, Options as HubOptions};
use tokio::runtime::Runtime;

use crate::programs;

/// Bound on one transfer.
const LONGEST: Duration = Duration::from_secs(600);
/// The repository of the large file, and that of the model which several hosts serve.
const LARGE: &str = "bench/large";
const SHARED: &str = "bench/shared";

#[derive(Args)]
pub(crate) struct Options {
    /// Size of the file that one host fetches, in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..=65_536))]
    mebibytes: u64,
    /// How often each way is measured, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How many hosts want the same file, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    hosts: Vec<usize>,
    /// What the hub sends in all while several hosts want a file, in MiB a second.
    #[arg(long, default_value_t = 64)]
    hub_mebibytes_per_second: u64,
    /// Print one last line of JSON with the figures.
    #[arg(long)]
    json: bool,
}

/// Megabytes a second of one way, run by run.
#[derive(Serialize)]
struct Rates {
    way: &'static str,
    megabytes_per_second: Vec<f64>,
    median: f64,
}

/// What several hosts took from the hub.
#[derive(Serialize)]
struct Spread {
    hosts: usize,
    bytes: u64,
    hub_bytes_over_file: f64,
    seconds: f64,
}

#[derive(Serialize)]
struct Figures {
    bytes: u64,
    rates: Vec<Rates>,
    /// Our median over that of the slower of disk and network.
    of_the_slower_of_disk_and_network: f64,
    of_curl: f64,
    /// Most memory that the agent ever held, before and after the transfers, in bytes.
    agent_peak_before: u64,
    agent_peak_after: u64,
    spread: Vec<Spread>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = Runtime::new()?;
    let programs = || -> Result<Programs> { Ok(Programs::in_dir(&programs::dir()?)) };
    let bytes = options.mebibytes << 20;
    let hub = runtime.block_on(Hub::start(HubOptions::default())).context("no hub")?;
    let mut site =
        Site::start_with(programs()?, Layout { hosts: 1, gateways: 0 }, &["--mirror", &mirror(&hub)])?;
    let mut one = One::new(&mut site, &hub, bytes)?;
    let agent_peak_before = one.peak()?;
    let mut agent_peak_after = 0;
    let (mut disk, mut network, mut curl, mut ours) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=options.runs {
        disk.push(one.dd()?);
        network.push(one.curl(None)?);
        curl.push(one.curl(Some(&one.scratch))?);
        ours.push(one.pull()?);
        agent_peak_after = one.peak()?.max(agent_peak_after);
        one.begin_again()?;
        let last = |way: &[f64]| way.last().copied().unwrap_or_default();
        let (d, n, c, o) = (last(&disk), last(&network), last(&curl), last(&ours));
        eprintln!("▸ run {run}: dd {d:.0}, curl to nowhere {n:.0}, curl to disk {c:.0}, tandem {o:.0} MB/s");
    }
    drop(site);
    let spread = options.hosts.iter().map(|hosts| spread(&runtime, programs()?, *hosts, options));
    let spread = spread.collect::<Result<Vec<_>>>()?;
    let rates = [("dd", disk), ("curl > /dev/null", network), ("curl", curl), ("tandem", ours)];
    let rates = rates.map(|(way, rates)| Rates { way, median: median(&rates), megabytes_per_second: rates });
    let [disk, network, curl, ours] = &rates;
    let figures = Figures {
        bytes,
        of_the_slower_of_disk_and_network: round(ours.median / disk.median.min(network.median)),
        of_curl: round(ours.median / curl.median),
        agent_peak_before,
        agent_peak_after,
        spread,
        rates: rates.into(),
    };
    print(&figures);
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    }
    Ok(())
}

fn mirror(hub: &Hub) -> String {
    format!("hf://={}", hub.url(Door::Hub))
}

/// One host that fetches one large file, and what it is held against.
struct One<'a> {
    site: &'a mut Site,
    url: String,
    bytes: u64,
    scratch: PathBuf,
}

impl<'a> One<'a> {
    fn new(site: &'a mut Site, hub: &Hub, bytes: u64) -> Result<Self> {
        let path = site.dir().join("large.gguf");
        large_file(&path, bytes)?;
        let content = Content::file(&path).context("the large file can't be read")?;
        let bytes = content.len();
        hub.publish(LARGE, [(BULK_FILE, content)]);
        let url = format!("{}{LARGE}/{BULK_FILE}", hub.url(Door::Web));
        let scratch = site.dir().join("scratch");
        Ok(Self { site, url, bytes, scratch })
    }

    fn rate(&self, start: Instant) -> f64 {
        (self.bytes as f64 / start.elapsed().as_secs_f64() / 1e6).round()
    }

    /// As fast as the disk takes it, zeros and all.
    fn dd(&self) -> Result<f64> {
        let start = Instant::now();
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "bs=1M", "conv=fdatasync", &format!("count={}", self.bytes >> 20)]);
        finish(command.arg(format!("of={}", self.scratch.display())))?;
        let rate = self.rate(start);
        fs::remove_file(&self.scratch)?;
        Ok(rate)
    }

    /// As fast as the hub sends it, to a file that is safe on disk, or to nowhere.
    fn curl(&self, to: Option<&Path>) -> Result<f64> {
        let start = Instant::now();
        let path = to.unwrap_or(Path::new("/dev/null"));
        finish(
            Command::new("curl")
                .args(["--silent", "--show-error", "--fail", "--output"])
                .arg(path)
                .arg(&self.url),
        )?;
        if to.is_some() {
            File::open(path)?.sync_all()?;
        }
        let rate = self.rate(start);
        if to.is_some() {
            fs::remove_file(path)?;
        }
        Ok(rate)
    }

    /// By an agent: fetched in pieces, hashed, safe on disk, known by its digest.
    fn pull(&self) -> Result<f64> {
        let source = format!("hf://{LARGE}");
        let start = Instant::now();
        self.site.tandem(&["models", "pull", &source, "--quant", BULK_QUANT])?;
        Ok(self.rate(start))
    }

    /// The same host without the file: what was pulled a moment ago is not pruned.
    fn begin_again(&mut self) -> Result<()> {
        let host = &mut self.site.hosts[0];
        host.kill()?;
        fs::remove_dir_all(host.data.join("weights"))?;
        let name = format!("infh/{}", host.name);
        self.site.start_agent(0)?;
        let without = |host: &Value| host["status"]["weights"]["files"].as_array().is_some_and(Vec::is_empty);
        self.site.watch(&name, LONGEST, without).with_context(|| format!("{name} does not come back"))?;
        Ok(())
    }

    fn peak(&self) -> Result<u64> {
        let pid = self.site.hosts[0].processes().first().copied().context("the host has no agent")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("only Linux tells")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = peak.and_then(|peak| peak.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(kibibytes.context("no VmHWM")? << 10)
    }
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{:?} can't be started", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{:?}: {}",
        command.get_program(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A GGUF file of about so many bytes: one tensor, of numbers that no disk can shorten.
fn large_file(path: &Path, bytes: u64) -> Result<()> {
    let mut state = 1_u64;
    let words = (0..bytes / 8).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()
    });
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama");
    writer.tensor("numbers", &[bytes / 4], GgmlType::I32, words.collect());
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&writer.finish()?)?;
    file.into_inner()?.sync_all().context("the large file can't be written")
}

/// Several hosts want one file at the same time.
fn spread(runtime: &Runtime, programs: Programs, hosts: usize, options: &Options) -> Result<Spread> {
    let limit = Some(options.hub_mebibytes_per_second << 20);
    let hub =
        runtime.block_on(Hub::start(HubOptions { bytes_per_second: limit, ..HubOptions::default() }))?;
    hub.publish(SHARED, [(BULK_FILE, Content::of(bulk_model().to_vec()))]);
    let site = Site::start_with(programs, Layout { hosts, gateways: 0 }, &["--mirror", &mirror(&hub)])?;
    let start = Instant::now();
    let manifest = bulk_manifest(&format!("hf://{SHARED}"), 1, hosts - 1);
    site.apply(&manifest.to_string())?;
    site.wait_for("infd/bulk", "Redundant", LONGEST)?;
    let seconds = round(start.elapsed().as_secs_f64());
    let bytes = bulk_model().len() as u64;
    let hub_bytes_over_file = round(hub.bytes_sent() as f64 / bytes as f64);
    eprintln!(
        "▸ {hosts} hosts: the hub sent {hub_bytes_over_file} times the file, all ready after {seconds} s"
    );
    Ok(Spread { hosts, bytes, hub_bytes_over_file, seconds })
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

fn print(figures: &Figures) {
    println!("| {} MB by | median MB/s | runs |\n|---|---|---|", figures.bytes / 1_000_000);
    for Rates { way, megabytes_per_second, median } in &figures.rates {
        println!("| {way} | {median:.0} | {megabytes_per_second:?} |");
    }
    println!(
        "\n{} of the slower of disk and network, {} of curl; the agent's peak memory went from {} to {} MB.\n",
        figures.of_the_slower_of_disk_and_network,
        figures.of_curl,
        figures.agent_peak_before / 1_000_000,
        figures.agent_peak_after / 1_000_000
    );
    println!("| hosts | hub's bytes ÷ file | seconds until all are ready |\n|---|---|---|");
    for Spread { hosts, hub_bytes_over_file, seconds, .. } in &figures.spread {
        println!("| {hosts} | {hub_bytes_over_file} | {seconds} |");
    }
}
