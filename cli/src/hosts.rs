//! `tandem hosts`: list, cordon, drain.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::Value;
use tandem_control_api::object_event::Type;
use tandem_control_api::{CordonRequest, DrainHostRequest};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::get::write;
use crate::object::Kind;
use crate::output::{Format, print};

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
        #[arg(long, default_value = "10m", value_parser = crate::wait::duration)]
        timeout: Duration,
    },
}

pub(crate) async fn run(mut connection: Connection, command: &Command) -> Result<()> {
    match command {
        Command::List { output } => {
            let hosts = connection.list(Kind::Host, None, true).await?;
            if hosts.is_empty() && matches!(output, Format::Table | Format::Wide) {
                eprintln!(
                    "No host has joined yet. Make a token with `tandem join-token` and start an agent with it."
                );
                return Ok(());
            }
            write(&print(Kind::Host, &hosts, false, *output, Timestamp::now())?)
        }
        Command::Cordon { host } => cordon(connection, host, true).await,
        Command::Uncordon { host } => cordon(connection, host, false).await,
        Command::Drain { host, timeout } => drain(connection, host, *timeout).await,
    }
}

async fn cordon(mut connection: Connection, host: &str, unschedulable: bool) -> Result<()> {
    let request = CordonRequest { host: host.to_owned(), unschedulable };
    connection.fleet.cordon(request).await.map_err(|status| connection.explain(status))?;
    println!("inferencehost/{host} {}", if unschedulable { "cordoned" } else { "uncordoned" });
    Ok(())
}

async fn drain(mut connection: Connection, host: &str, limit: Duration) -> Result<()> {
    connection
        .fleet
        .drain(DrainHostRequest { host: host.to_owned() })
        .await
        .map_err(|status| connection.explain(status))?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg} ({elapsed})").context("the template is constant")?,
    );
    bar.enable_steady_tick(Duration::from_millis(120));
    let emptied = timeout(limit, empty(&mut connection, host, &bar)).await;
    bar.finish_and_clear();
    match emptied {
        Ok(result) => result?,
        Err(_) => bail!(
            "{host} still runs something after {limit:?}: see `tandem describe infh/{host}`; it stays cordoned, and \
             goes on draining"
        ),
    }
    println!("inferencehost/{host} drained");
    Ok(())
}

async fn empty(connection: &mut Connection, host: &str, bar: &ProgressBar) -> Result<()> {
    let request = connection.list_request(Kind::Host, Some(host), true);
    let mut changes =
        connection.objects.watch(request).await.map_err(|status| connection.explain(status))?.into_inner();
    while let Some(event) = changes.message().await.map_err(|status| connection.explain(status))? {
        if event.r#type() == Type::Bookmark {
            continue;
        }
        let object: Value = serde_json::from_str(&event.json).context("the operator sent no JSON")?;
        let count = |part: &str| object[part]["workloads"].as_array().map_or(0, Vec::len);
        let left = count("spec").max(count("status"));
        if left == 0 {
            return Ok(());
        }
        bar.set_message(format!("{left} still on {host}"));
    }
    bail!("the operator ended the watch: run the same command again")
}
