//! `tandem logs`: what workers print, through operator and agent.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tandem_control_api::{LogChunk, LogsRequest};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::object::{Kind, Target, Usage};
use crate::output::write;

/// Bound on the wait for the next piece of what was logged already.
const ANSWER: Duration = Duration::from_secs(15);
/// Longest line that is kept until its end comes, in bytes.
const LINE: usize = 1 << 20;

/// Whose logs.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem logs infd/tiny-kimi -f\n  tandem logs host/mac-a\n  \
                        tandem logs host/mac-a/default-tiny-kimi-0 --tail 1000")]
pub(crate) struct Options {
    /// infd/NAME for every copy, host/HOST for all that runs there, host/HOST/WORKLOAD for one of it.
    #[arg(value_name = "KIND/NAME")]
    target: String,
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// How many lines of the past.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    tail: u32,
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    let target = Target::from_words(std::slice::from_ref(&options.target));
    let (kind, name) = target.one()?;
    let reference = connection.reference(kind, name.split('/').next().unwrap_or_default());
    let request = request(&connection, kind, name, options)?;
    let mut chunks = match connection.fleet.logs(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            // What is not there and what runs nothing are told apart: only the first has a better name.
            connection.get(kind, &reference.name).await?;
            return Err(connection.explain(&status));
        }
    };
    let mut lines = Lines::default();
    loop {
        let next = if options.follow {
            chunks.message().await
        } else {
            timeout(ANSWER, chunks.message())
                .await
                .context("a host did not send all of its logs within 15 s")?
        };
        let Some(chunk) = next.map_err(|status| connection.explain(&status))? else { break };
        write(&lines.take(&chunk))?;
    }
    write(&lines.rest())?;
    if !lines.any {
        eprintln!("Nothing has been logged: `tandem describe {}` tells what runs where.", options.target);
    }
    Ok(())
}

fn request(connection: &Connection, kind: Kind, name: &str, options: &Options) -> Result<LogsRequest> {
    let mut request =
        LogsRequest { tail_lines: options.tail, follow: options.follow, ..LogsRequest::default() };
    match (kind, name.split_once('/')) {
        (Kind::Deployment, None) => request.deployment = Some(connection.reference(kind, name)),
        (Kind::Deployment, Some(_)) => {
            return Err(Usage("a copy is named by its host: say host/HOST/WORKLOAD".to_owned()).into());
        }
        (Kind::Host, None) => name.clone_into(&mut request.host),
        (Kind::Host, Some((host, workload))) => {
            host.clone_into(&mut request.host);
            workload.clone_into(&mut request.workload);
        }
    }
    Ok(request)
}

/// Puts lines together again, which chunks cut anywhere, and says whose they are.
#[derive(Default)]
struct Lines {
    any: bool,
    begun: BTreeMap<String, String>,
}

impl Lines {
    fn take(&mut self, chunk: &LogChunk) -> String {
        self.any |= !chunk.text.is_empty();
        let source = format!("{}/{}", chunk.host, chunk.workload);
        let begun = self.begun.entry(source.clone()).or_default();
        begun.push_str(&chunk.text);
        let whole = if chunk.end || begun.len() > LINE {
            begun.len()
        } else {
            begun.rfind('\n').map_or(0, |at| at + 1)
        };
        let rest = begun.split_off(whole);
        let text = std::mem::replace(begun, rest);
        text.lines().map(|line| format!("{source}: {line}\n")).collect()
    }

    /// What has no line end, once nothing more comes.
    fn rest(&mut self) -> String {
        let begun = std::mem::take(&mut self.begun).into_iter().filter(|(_, line)| !line.is_empty());
        begun.map(|(source, line)| format!("{source}: {line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let chunk = |workload: &str, text: &str, end| LogChunk {
            host: "a".into(),
            workload: workload.into(),
            text: text.into(),
            end,
            ..LogChunk::default()
        };
        let mut lines = Lines::default();
        assert_eq!(lines.take(&chunk("w", "one\ntw", false)), "a/w: one\n");
        assert_eq!(lines.take(&chunk("v", "other\n", false)), "a/v: other\n");
        assert_eq!(lines.take(&chunk("w", "o\nthree", true)), "a/w: two\na/w: three\n");
        assert_eq!(lines.take(&chunk("v", "cut", false)), "");
        assert_eq!(lines.rest(), "a/v: cut\n");
        assert!(lines.any && lines.rest().is_empty());
    }
}
