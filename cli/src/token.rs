//! `tandem join-token`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tandem_control_api::{JoinTokenRequest, Role};

use crate::connection::Connection;

/// For whom and how long.
#[derive(Args)]
pub(crate) struct Options {
    /// Who may join with it.
    #[arg(long, value_enum, default_value = "host")]
    role: Joiner,
    /// Bind the token to this name; without it, the first to use it chooses.
    #[arg(long)]
    name: Option<String>,
    /// How long it may be used, as 30s, 10m or 1h; at most a day.
    #[arg(long, default_value = "1h", value_parser = crate::wait::duration)]
    ttl: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Joiner {
    Host,
    Gateway,
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    let (role, program) = match options.role {
        Joiner::Host => (Role::Host, "tandem-agent run"),
        Joiner::Gateway => (Role::Gateway, "tandem-gateway"),
    };
    let request = JoinTokenRequest {
        role: role.into(),
        name: options.name.clone().unwrap_or_default(),
        ttl_seconds: options.ttl.as_secs().try_into().unwrap_or(u32::MAX),
    };
    let answer =
        connection.fleet.create_join_token(request).await.map_err(|status| connection.explain(status))?;
    let token = answer.into_inner().token;
    println!("{token}");
    if std::io::stdout().is_terminal() {
        eprintln!(
            "\nIt works once, for {:?}. On the other machine:\n  TANDEM_JOIN_TOKEN={token} {program} --operator {}",
            options.ttl, connection.operator
        );
    }
    Ok(())
}
