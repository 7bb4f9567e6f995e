//! `tandem join-token`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use tandem_control_api::{JoinTokenRequest, Role};

use crate::connection::Connection;
use crate::output::write;
use crate::span;

/// For whom and how long.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  TANDEM_JOIN_TOKEN=$(tandem join-token) tandem-agent run --operator https://10.0.0.5:7443\n  \
                        tandem join-token --role gateway --name edge-1 --ttl 10m"
)]
pub(crate) struct Options {
    /// Who may join with it.
    #[arg(long, value_enum, default_value = "host")]
    role: Joiner,
    /// Bind the token to this name; without it, the first to use it chooses.
    #[arg(long)]
    name: Option<String>,
    /// How long it may be used, as 30s, 10m or 1h; at most a week.
    #[arg(long, default_value = "1h", value_parser = span::parse)]
    ttl: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Joiner {
    Host,
    Gateway,
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    if options.ttl.is_zero() {
        bail!("a token that may be used for no time is of no use: give a longer --ttl");
    }
    let role = match options.role {
        Joiner::Host => Role::Host,
        Joiner::Gateway => Role::Gateway,
    };
    let request = JoinTokenRequest {
        role: role.into(),
        name: options.name.clone().unwrap_or_default(),
        ttl_seconds: options.ttl.as_secs().try_into().unwrap_or(u32::MAX),
    };
    let answer = connection.fleet.create_join_token(request).await;
    let token = answer.map_err(|status| connection.explain(&status))?.into_inner().token;
    write(&format!("{token}\n"))?;
    if std::io::stdout().is_terminal() {
        eprint!("{}", hint(options, &token, &connection.operator));
    }
    Ok(())
}

/// What to do with it, as a command that can be pasted on the other machine.
fn hint(options: &Options, token: &str, operator: &str) -> String {
    let command = match (options.role, options.name.as_deref()) {
        (Joiner::Host, None) => format!("tandem-agent run --operator {operator}"),
        (Joiner::Host, Some(name)) => format!("tandem-agent run --operator {operator} --name {name}"),
        (Joiner::Gateway, name) => format!(
            "tandem-gateway --operator {operator} --name {} --data-dir /var/lib/tandem/gateway",
            name.unwrap_or("gateway-1")
        ),
    };
    let span = span::text(options.ttl);
    format!("\nIt works once, within {span}. On the other machine:\n  TANDEM_JOIN_TOKEN={token} {command}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_a_command_with_the_name_that_the_token_is_bound_to() {
        let options = |role, name: Option<&str>| Options {
            role,
            name: name.map(Into::into),
            ttl: Duration::from_secs(600),
        };
        let said = hint(&options(Joiner::Host, Some("mac-a")), "T", "https://op:7443");
        assert_eq!(
            said.lines().last(),
            Some("  TANDEM_JOIN_TOKEN=T tandem-agent run --operator https://op:7443 --name mac-a")
        );
        assert!(said.contains("within 10m"));
        assert!(
            hint(&options(Joiner::Gateway, None), "T", "O")
                .contains("tandem-gateway --operator O --name gateway-1")
        );
    }
}
