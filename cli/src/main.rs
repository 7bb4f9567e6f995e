//! `tandem`: what a person says to Tandem. As `kubectl-tandem` it is kubectl's plugin of the same words.

mod admins;
mod agent;
mod apply;
mod authority;
mod backup;
mod chat;
mod config;
mod connection;
mod describe;
mod dial;
mod events;
mod get;
mod hosts;
mod keys;
mod logs;
mod manifests;
mod models;
mod near;
mod object;
mod output;
mod plan;
mod plugin;
mod progress;
mod quants;
mod secret;
mod span;
mod status;
mod table;
mod token;
mod wait;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::connection::Connection;
use crate::object::{Target, Usage};

/// Keep large language models answering on machines that you own.
#[derive(Parser)]
#[command(name = "tandem", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Start with:\n  tandem apply -f examples/tiny.yaml\n  tandem get infd -w\n  tandem chat tiny-kimi"
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// Configuration file; the operator writes one to DATA-DIR/admin/tandem.yaml on its first start.
    #[arg(long, env = "TANDEM_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Namespace of deployments.
    #[arg(short, long, env = "TANDEM_NAMESPACE", default_value = "default", global = true)]
    namespace: String,
}

#[derive(Subcommand)]
enum Command {
    /// Create or change objects from manifests.
    Apply(apply::Options),
    /// List objects, or show one; with --watch, every change.
    Get(get::Options),
    /// Tell one object's story: conditions with their reasons, placements, cover, events.
    Describe(Target),
    /// Delete objects by name or by manifest.
    Delete(apply::DeleteOptions),
    /// Say what a deployment would need and where it would fit, without a cluster.
    Plan(plan::Options),
    /// List a repository's quants, what each would need and where it fits.
    Quants(quants::Options),
    /// Set how many copies of a deployment answer.
    Scale(apply::ScaleOptions),
    /// Wait until a condition holds, or an object is gone.
    Wait(wait::Options),
    /// The whole on one screen: operator, hosts, gateways, deployments, and what is wrong.
    Status,
    /// List, cordon, drain and revoke hosts.
    #[command(subcommand)]
    Hosts(hosts::Command),
    /// List, fetch, import, verify and prune the weights that hosts keep.
    #[command(subcommand)]
    Models(models::Command),
    /// Set, list and delete secrets, such as tokens of private hubs.
    #[command(subcommand)]
    Secret(secret::Command),
    /// Make, list and delete API keys of clients.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Show the cluster's certificate authority, and replace it.
    #[command(subcommand)]
    Authority(authority::Command),
    /// List, make and revoke admins.
    #[command(subcommand)]
    Admins(admins::Command),
    /// Make a single-use token with which a host or a gateway joins.
    JoinToken(token::Options),
    /// Talk to a model through a gateway.
    Chat(chat::Options),
    /// Print what workers log.
    Logs(logs::Options),
    /// Write everything that the control plane keeps into a file, the authority included.
    Backup(backup::BackupOptions),
    /// Put a backup into an empty store, on a machine with tandem-operator.
    Restore(backup::RestoreOptions),
    /// Install the agent as a service of this machine.
    #[command(subcommand)]
    Agent(agent::Command),
    /// Print a completion script for a shell.
    #[command(after_help = "Examples:\n  source <(tandem completion bash)\n  \
                            tandem completion fish > ~/.config/fish/completions/tandem.fish")]
    Completion {
        /// The shell to complete for.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    tandem_pki::install_tls_provider();
    let arguments = match Arguments::from_arg_matches(&plugin::command().get_matches()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// 2 for a command line that can't be meant, as clap has it, and 1 for all else.
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Global { config, namespace } = arguments.global;
    let connect = || Connection::open(config.as_deref(), namespace.clone());
    match arguments.command {
        Command::Completion { shell } => output::write(&plugin::completion(shell))?,
        Command::Agent(command) => return agent::run(&command).await,
        Command::Apply(options) => return apply::apply(connect()?, &options).await,
        Command::Delete(options) => return apply::delete(connect()?, &options).await,
        Command::Scale(options) => apply::scale(connect()?, &options).await?,
        Command::Get(options) => get::run(connect()?, &options).await?,
        Command::Describe(target) => describe::run(connect()?, &target).await?,
        Command::Plan(options) => plan::run(&connect, &namespace, &options).await?,
        Command::Quants(options) => quants::run(&options).await?,
        Command::Wait(options) => wait::run(connect()?, &options).await?,
        Command::Status => status::run(connect()?).await?,
        Command::Models(command) => return models::run(connect()?, &command).await,
        Command::Secret(command) => secret::run(connect()?, &command).await?,
        Command::Keys(command) => keys::run(connect()?, &command).await?,
        Command::Authority(command) => authority::run(config.as_deref(), &connect, &command).await?,
        Command::Admins(command) => admins::run(connect()?, config.as_deref(), &command).await?,
        Command::Hosts(command) => hosts::run(connect()?, &command).await?,
        Command::Backup(options) => backup::backup(connect()?, &options).await?,
        Command::Restore(options) => backup::restore(&options)?,
        Command::JoinToken(options) => token::run(connect()?, &options).await?,
        Command::Chat(options) => chat::run(&connect, &options).await?,
        Command::Logs(options) => logs::run(connect()?, &options).await?,
    }
    Ok(ExitCode::SUCCESS)
}
