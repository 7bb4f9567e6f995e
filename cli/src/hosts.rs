//! `tandem hosts`: list, cordon, drain, revoke.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::Value;
use tandem_control_api::{CordonRequest, DrainHostRequest, RevokeRequest, Role};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::object::{Kind, items, text};
use crate::output::{Format, render, write};
use crate::span;
use crate::wait::spinner;
use crate::watch::{Change, Watch};

/// What to do with hosts.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List hosts with their devices and what runs there.
    List {
        /// Form of output.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Place nothing new on a host. What runs stays.
    Cordon {
        /// The host.
        host: String,
    },
    /// Let a host take work again.
    Uncordon {
        /// The host.
        host: String,
    },
    /// Cordon a host and move what runs there: each copy is ready elsewhere before it ends here.
    Drain {
        /// The host.
        host: String,
        /// How long to wait until it is empty, as 30s or 5m.
        #[arg(long, default_value = "10m", value_parser = span::parse)]
        timeout: Duration,
    },
    /// Trust no certificate of a host any more, nor of its workers and its gateway.
    ///
    /// Its session ends, gateways and other hosts cut their connections to it, and its copies are replaced elsewhere. A machine
    /// joins again under the name with a token made for it; the agent's pod of a node does so by itself.
    Revoke {
        /// The host.
        host: String,
        /// It is a gateway that has joined by itself.
        #[arg(long)]
        gateway: bool,
    },
}

pub(crate) async fn run(mut connection: Connection, command: &Command) -> Result<()> {
    match command {
        Command::List { output } => {
            let hosts = connection.list(Kind::Host, true).await?;
            if hosts.is_empty() && output.is_table() {
                eprintln!(
                    "No host has joined yet. Make a token with `tandem join-token` and start an agent with it."
                );
                return Ok(());
            }
            write(&render(Kind::Host, &hosts, false, *output, false)?)
        }
        Command::Cordon { host } => cordon(connection, host, true).await,
        Command::Uncordon { host } => cordon(connection, host, false).await,
        Command::Drain { host, timeout } => drain(connection, host, *timeout).await,
        Command::Revoke { host, gateway } => revoke(connection, host, *gateway).await,
    }
}

async fn cordon(mut connection: Connection, host: &str, unschedulable: bool) -> Result<()> {
    let request = CordonRequest { host: host.to_owned(), unschedulable };
    if let Err(status) = connection.fleet.cordon(request).await {
        let reference = connection.reference(Kind::Host, host);
        return Err(connection.explain_about(&reference, &status).await);
    }
    write(&format!("inferencehost/{host} {}\n", if unschedulable { "cordoned" } else { "uncordoned" }))
}

async fn revoke(mut connection: Connection, name: &str, gateway: bool) -> Result<()> {
    let (role, kind) = if gateway { (Role::Gateway, "gateway") } else { (Role::Host, "host") };
    let request = RevokeRequest { role: role.into(), name: name.to_owned(), force: false };
    let revoked = connection.fleet.revoke(request).await.map_err(|status| connection.explain(&status))?;
    let serials = revoked.into_inner().serials.len();
    write(&format!(
        "{kind}/{name} revoked: {serials} certificate{} no longer trusted\n\
         To let a machine take the name: tandem join-token --role {kind} --name {name}\n",
        if serials == 1 { " is" } else { "s are" }
    ))
}

async fn drain(mut connection: Connection, host: &str, limit: Duration) -> Result<()> {
    if let Err(status) = connection.fleet.drain(DrainHostRequest { host: host.to_owned() }).await {
        let reference = connection.reference(Kind::Host, host);
        return Err(connection.explain_about(&reference, &status).await);
    }
    let bar = spinner()?;
    bar.set_message(format!("draining {host}"));
    let mut left = Vec::new();
    let emptied = timeout(limit, empty(&connection, host, &bar, &mut left)).await;
    bar.finish_and_clear();
    match emptied {
        Ok(result) => result?,
        Err(_) => bail!(
            "{host} still runs {} after {}. It stays cordoned and goes on draining; `tandem status` says what keeps it, \
             `tandem hosts uncordon {host}` calls it off",
            left.join(", "),
            span::text(limit)
        ),
    }
    write(&format!("inferencehost/{host} drained\n"))
}

async fn empty(connection: &Connection, host: &str, bar: &ProgressBar, left: &mut Vec<String>) -> Result<()> {
    let request = connection.list_request(Kind::Host, Some(host), true);
    let mut watch = Watch::open(connection, request).await?;
    loop {
        match watch.next().await? {
            Change::Seen(object) => {
                *left = running(&object);
                if left.is_empty() {
                    return Ok(());
                }
                bar.set_message(format!("{} still on {host}", left.join(", ")));
            }
            Change::Gone(_) => return Ok(()),
            Change::Complete | Change::Again => {}
        }
    }
}

/// Ids of what shall run on a host or has not ended there yet.
fn running(host: &Value) -> Vec<String> {
    let seen = items(&host["status"], "workloads").iter().filter(|workload| workload["state"] != "Stopped");
    let all = items(&host["spec"], "workloads").iter().chain(seen);
    let mut ids: Vec<String> = all.map(|workload| text(workload, &["id"]).to_owned()).collect();
    ids.sort();
    ids.dedup();
    ids
}
