//! `tandem get`: objects now, or every change of them.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde_json::Value;
use tandem_control_api::object_event::Type;
use tokio::time::{Instant, timeout_at};

use crate::connection::Connection;
use crate::object::{Kind, Target};
use crate::output::{Format, print};
use crate::table;

/// What to print and how.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem get infd\n  tandem get infd/tiny-kimi -o yaml\n  tandem get hosts -o wide\n  \
                        tandem get infd -w\n  tandem get events infd/tiny-kimi"
)]
pub(crate) struct Options {
    /// infd, infh or events, alone or as KIND/NAME.
    #[arg(value_name = "KIND[/NAME]", num_args = 1..=2, required = true)]
    target: Vec<String>,
    /// Form of output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Go on printing every change.
    #[arg(short, long)]
    watch: bool,
    /// Deployments of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// End a watch after this long, as 30s or 5m.
    #[arg(long, value_parser = crate::wait::duration)]
    timeout: Option<Duration>,
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    if options.target[0] == "events" {
        return events(connection, options).await;
    }
    let target = Target::from_words(&options.target);
    let (kind, name) = target.parse()?;
    if options.watch {
        return watch(connection, kind, name, options).await;
    }
    let objects = match name {
        Some(name) => vec![connection.get(kind, name).await?],
        None => connection.list(kind, None, options.all_namespaces).await?,
    };
    if objects.is_empty() && matches!(options.output, Format::Table | Format::Wide) {
        let place = if kind.namespaced() && !options.all_namespaces {
            format!(" in namespace {}", connection.namespace)
        } else {
            String::new()
        };
        eprintln!("There is no {}{place}.", kind.name());
        return Ok(());
    }
    write(&print(kind, &objects, name.is_some(), options.output, Timestamp::now())?)
}

async fn watch(mut connection: Connection, kind: Kind, name: Option<&str>, options: &Options) -> Result<()> {
    let request = connection.list_request(kind, name, options.all_namespaces);
    let mut changes =
        connection.objects.watch(request).await.map_err(|status| connection.explain(status))?.into_inner();
    let end = options.timeout.map(|limit| Instant::now() + limit);
    let mut header = true;
    loop {
        let next = match end {
            Some(end) => match timeout_at(end, changes.message()).await {
                Ok(next) => next,
                Err(_) => return Ok(()),
            },
            None => changes.message().await,
        };
        let Some(event) = next.map_err(|status| connection.explain(status))? else {
            bail!("the operator ended the watch: ask again");
        };
        if event.r#type() == Type::Bookmark {
            continue;
        }
        let object: Value = serde_json::from_str(&event.json).context("the operator sent no JSON")?;
        let mut text = print(kind, &[object], true, options.output, Timestamp::now())?;
        if matches!(options.output, Format::Table | Format::Wide) {
            if !header {
                text = text.lines().skip(1).map(|line| line.to_owned() + "\n").collect();
            }
            header = false;
        }
        write(&text)?;
    }
}

async fn events(mut connection: Connection, options: &Options) -> Result<()> {
    let Some(word) = options.target.get(1) else {
        bail!("events of what? Say `tandem get events infd/NAME`")
    };
    let target = Target::from_words(std::slice::from_ref(word));
    let (kind, name) = target.one()?;
    let events = fetch_events(&mut connection, kind, name).await?;
    write(&events_table(&events, Timestamp::now()))
}

/// An object's events, oldest first.
pub(crate) async fn fetch_events(connection: &mut Connection, kind: Kind, name: &str) -> Result<Vec<Value>> {
    let reference = connection.reference(kind, name);
    let request = tandem_control_api::EventsRequest { r#ref: Some(reference) };
    let answer = connection.objects.events(request).await.map_err(|status| connection.explain(status))?;
    answer
        .into_inner()
        .json
        .iter()
        .map(|json| serde_json::from_str(json).context("the operator sent no JSON"))
        .collect()
}

/// Events as `describe` and `get events` show them.
pub(crate) fn events_table(events: &[Value], now: Timestamp) -> String {
    let rows = events.iter().map(|event| {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let age =
            ["lastTimestamp", "eventTime", "time"].iter().find_map(|key| event[*key].as_str()?.parse().ok());
        let count = event["count"].as_u64().filter(|count| *count > 1).map(|count| format!(" (x{count})"));
        vec![
            age.map_or_else(|| "-".to_owned(), |then| table::since(then, now)) + &count.unwrap_or_default(),
            text("type"),
            text("reason"),
            text("message"),
        ]
    });
    table::plain(&["AGE", "TYPE", "REASON", "MESSAGE"], rows)
}

/// A reader that went away (`| head`) is no error.
pub(crate) fn write(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("the output can't be written")
        }
        _ => Ok(()),
    }
}
