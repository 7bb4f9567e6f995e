//! `tandem logs`: what workers print, through operator and agent.

use anyhow::{Result, bail};
use clap::Args;
use tandem_control_api::LogsRequest;

use crate::connection::Connection;
use crate::get::write;
use crate::object::{Kind, Target};

/// Whose logs.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem logs infd/tiny-kimi\n  tandem logs infd/tiny-kimi -f\n  tandem logs host/mac-a llm-kimi-0"
)]
pub(crate) struct Options {
    /// infd/NAME for every copy, or infh/HOST for one host.
    #[arg(value_name = "KIND/NAME")]
    target: String,
    /// One workload of the host; without it, all.
    workload: Option<String>,
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// How many lines of the past.
    #[arg(long, default_value_t = 100)]
    tail: u32,
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    let target = Target::from_words(std::slice::from_ref(&options.target));
    let (kind, name) = target.one()?;
    let mut request =
        LogsRequest { tail_lines: options.tail, follow: options.follow, ..LogsRequest::default() };
    match kind {
        Kind::Deployment => request.deployment = Some(connection.reference(kind, name)),
        Kind::Host => name.clone_into(&mut request.host),
    }
    options.workload.clone().unwrap_or_default().clone_into(&mut request.workload);
    let mut chunks =
        connection.fleet.logs(request).await.map_err(|status| connection.explain(status))?.into_inner();
    let mut any = false;
    while let Some(chunk) = chunks.message().await.map_err(|status| connection.explain(status))? {
        any |= !chunk.text.is_empty();
        for line in chunk.text.lines() {
            write(&format!("{}/{}: {line}\n", chunk.host, chunk.workload))?;
        }
    }
    if !any {
        bail!("nothing has been logged: see `tandem describe {}` for what runs where", options.target);
    }
    Ok(())
}
