//! `tandem agent`: the agent and its runner as services of this machine.

mod preflight;
mod service;

use std::env;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use tandem_pki::{Credentials, JoinToken, Name, fetch_pinned_ca};

use crate::output::write;
use preflight::{Facts, Operator};
use service::{Platform, Service, Settings};

/// What to do with the agent of this machine.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check that the machine is fit, then install and start agent and runner (systemd, or launchd on a Mac).
    Install(Options),
    /// Stop and remove the services. Data and weights stay.
    Uninstall,
}

/// How the agent is to run.
#[derive(Args)]
#[command(
    after_help = "Example, with a token from `tandem join-token` on a machine that has the admin credential:\n  \
                        sudo TANDEM_JOIN_TOKEN=… tandem agent install --operator https://10.0.0.5:7443"
)]
pub(crate) struct Options {
    /// https://HOST:PORT of an operator.
    #[arg(long, env = "TANDEM_OPERATOR")]
    operator: String,
    /// Single-use token; not needed where the agent has joined before.
    #[arg(long, env = "TANDEM_JOIN_TOKEN", hide_env_values = true)]
    join_token: Option<String>,
    /// Name of this host; without it, the machine's.
    #[arg(long)]
    name: Option<String>,
    /// At which address gateways and other hosts reach this one; without it, the agent finds it.
    #[arg(long)]
    address: Option<String>,
    /// Where credentials, weights and logs are kept.
    #[arg(long, default_value = "/var/lib/tandem")]
    data_dir: PathBuf,
    /// Also run a gateway, listening here.
    #[arg(long, value_name = "ADDRESS:PORT")]
    gateway_listen: Option<SocketAddr>,
    /// The agent's program; without it, the one beside this.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only print what would be written.
    #[arg(long)]
    print: bool,
}

pub(crate) async fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Install(options) => install(options).await,
        Command::Uninstall => uninstall(),
    }
}

async fn install(options: &Options) -> Result<ExitCode> {
    let platform = Platform::here()?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => beside_this_program()?,
    };
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("{} is no path", path.display()));
    let settings = Settings {
        program: absolute(&program)?,
        operator: options.operator.clone(),
        name: host_name(options.name.as_deref())?,
        address: options.address.clone(),
        data_dir: absolute(&options.data_dir)?,
        joins: options.join_token.is_some() || (options.print && !has_joined(&options.data_dir)),
        gateway_listen: options.gateway_listen.map(|listen| listen.to_string()),
    };
    let services = service::services(platform, &settings);
    if options.print {
        for service in &services {
            write(&format!("# {}\n{}\n", service.path.display(), service.text))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let checks = preflight::check(&gather(options, platform, &settings).await);
    for check in &checks {
        eprintln!("{check}");
    }
    if checks.iter().any(|check| !check.holds) {
        bail!("nothing was installed: mend what is marked ✗ and run this again");
    }
    fs::create_dir_all(&settings.data_dir)
        .with_context(|| format!("{} can't be made", settings.data_dir.display()))?;
    if let Some(token) = &options.join_token {
        write_private(&settings.data_dir.join(service::TOKEN_FILE), token)?;
    }
    for service in &services {
        write_service(service)?;
    }
    for command in service::start_commands(platform, &services) {
        run_command(&command)?;
    }
    println!("Host {} is installed. Watch it join with `tandem hosts list`.", settings.name);
    Ok(ExitCode::SUCCESS)
}

fn uninstall() -> Result<ExitCode> {
    let platform = Platform::here()?;
    for command in service::stop_commands(platform) {
        // A service that was never there is as good as stopped.
        if let Err(error) = run_command(&command) {
            eprintln!("note: {error:#}");
        }
    }
    for path in service::paths(platform) {
        match fs::remove_file(&path) {
            Ok(()) => println!("removed {}", path.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("{} can't be removed", path.display())),
        }
    }
    println!(
        "The agent is uninstalled; its data is where it was. Remove the host with `tandem delete infh/NAME`."
    );
    Ok(ExitCode::SUCCESS)
}

async fn gather(options: &Options, platform: Platform, settings: &Settings) -> Facts {
    let token = options.join_token.as_deref().map(str::parse::<JoinToken>);
    let operator = match &token {
        Some(Ok(token)) => match fetch_pinned_ca(&options.operator, token.ca()).await {
            Ok(_) => Operator::Answers,
            Err(error) => Operator::Refused(error.to_string()),
        },
        _ => dial(&options.operator).await,
    };
    let joined = has_joined(&settings.data_dir);
    let existing = nearest_existing(&settings.data_dir);
    Facts {
        root: nix::unistd::geteuid().is_root(),
        service_manager: platform.present(),
        manager: platform.manager(),
        worker: settings.program.with_file_name("inference-worker"),
        worker_found: settings.program.with_file_name("inference-worker").is_file(),
        program_found: settings.program.is_file(),
        program: settings.program.clone(),
        data_dir: settings.data_dir.clone(),
        free_bytes: free_bytes(&existing),
        token: token.map(|token| token.map(drop).map_err(|error| error.to_string())),
        // Where an agent has run before, it may be its own gateway that holds the port.
        gateway: options.gateway_listen.map(|at| gateway(at, &settings.program, joined)),
        joined,
        operator,
    }
}

/// Whether an agent with this data folder has credentials.
fn has_joined(data_dir: &Path) -> bool {
    Credentials::exist(&data_dir.join("identity"))
}

/// Whether a gateway is there to be started, and can listen.
fn gateway(listen: SocketAddr, agent: &Path, joined: bool) -> Result<(), String> {
    let program = agent.with_file_name("tandem-gateway");
    if !program.is_file() {
        return Err(format!("install tandem-gateway beside the agent, at {}", program.display()));
    }
    match std::net::TcpListener::bind(listen) {
        Err(error) if !joined => Err(format!("{listen} can't be listened on ({error}): name another port")),
        _ => Ok(()),
    }
}

/// Without a token there is nothing to pin: a TCP connection shows at least that somebody is there.
async fn dial(operator: &str) -> Operator {
    let Some(authority) = operator.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')) else {
        return Operator::Refused(format!("`{operator}` is not an address: give it as https://HOST:PORT"));
    };
    let target = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:443") };
    match tokio::time::timeout(Duration::from_secs(5), tokio::net::TcpStream::connect(target)).await {
        Ok(Ok(_)) => Operator::Answers,
        Ok(Err(error)) => Operator::Refused(format!("no connection to {operator}: {error}")),
        Err(_) => {
            Operator::Refused(format!("no connection to {operator} within 5 s: is a firewall between?"))
        }
    }
}

#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_cast,
    reason = "counts of blocks are narrower on macOS than on Linux"
)]
fn free_bytes(path: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(path).ok()?;
    Some(u64::from(disk.blocks_available()) * disk.fragment_size() as u64)
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or_else(|| Path::new("/")).to_owned()
}

fn host_name(named: Option<&str>) -> Result<String> {
    let name = match named {
        Some(name) => name.to_owned(),
        None => {
            let own = nix::unistd::gethostname().context("the machine has no name: give one with --name")?;
            let own = own.to_string_lossy().to_ascii_lowercase();
            own.split('.').next().unwrap_or_default().replace('_', "-")
        }
    };
    Ok(name.parse::<Name>()?.to_string())
}

fn beside_this_program() -> Result<PathBuf> {
    let own =
        env::current_exe().context("this program can't tell where it is: name the agent with --program")?;
    Ok(own.with_file_name("tandem-agent"))
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} can't be written", path.display()))
}

fn write_service(service: &Service) -> Result<()> {
    fs::write(&service.path, &service.text)
        .with_context(|| format!("{} can't be written", service.path.display()))?;
    println!("wrote {}", service.path.display());
    Ok(())
}

fn run_command(words: &[String]) -> Result<()> {
    let status = Process::new(&words[0]).args(&words[1..]).status();
    let status = status.with_context(|| format!("{} can't be started", words[0]))?;
    if !status.success() {
        bail!("`{}` ended with {status}", words.join(" "));
    }
    Ok(())
}
