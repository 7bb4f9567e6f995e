//! `tandem get`: objects now, or every change of them.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::connection::Connection;
use crate::events;
use crate::object::{Kind, Target, name};
use crate::output::{Format, render, write};
use crate::span;
use crate::table::{self, Columns, Shown};
use crate::watch::{Change, Watch};

/// What to print and how.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem get infd\n  tandem get infd/tiny-kimi -o yaml\n  tandem get hosts -o wide\n  \
                        tandem get infd -w\n  tandem get events\n  tandem get events infd/tiny-kimi"
)]
pub(crate) struct Options {
    /// infd, infh or events, alone or with a name: KIND NAME or KIND/NAME.
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
    #[arg(long, value_parser = span::parse, requires = "watch")]
    timeout: Option<Duration>,
}

pub(crate) async fn run(mut connection: Connection, options: &Options) -> Result<()> {
    if matches!(options.target[0].as_str(), "events" | "event" | "ev") {
        if options.watch {
            return Err(events::refuse_watch().into());
        }
        return events::run(connection, &options.target[1..], options.all_namespaces, options.output).await;
    }
    let target = Target::from_words(&options.target);
    let (kind, name) = target.parse()?;
    if options.watch {
        let following = follow(&connection, kind, name, options);
        return match options.timeout {
            // A watch that was to end then has done what it should.
            Some(limit) => timeout_at(Instant::now() + limit, following).await.unwrap_or(Ok(())),
            None => following.await,
        };
    }
    let objects = match name {
        Some(name) => vec![connection.get(kind, name).await?],
        None => connection.list(kind, options.all_namespaces).await?,
    };
    if objects.is_empty() && options.output.is_table() {
        let place = if kind.namespaced() && !options.all_namespaces {
            format!(" in namespace {}", connection.namespace)
        } else {
            String::new()
        };
        eprintln!("There is no {}{place}.", kind.name());
        return Ok(());
    }
    write(&render(kind, &objects, name.is_some(), options.output, options.all_namespaces)?)
}

async fn follow(connection: &Connection, kind: Kind, name: Option<&str>, options: &Options) -> Result<()> {
    let request = connection.list_request(kind, name, options.all_namespaces);
    let mut watch = Watch::open(connection, request).await?;
    let mut rows = Rows::new(kind, options);
    loop {
        let change = watch.next().await?;
        if matches!(change, Change::Again) {
            eprintln!("note: the operator was away; all that exists follows again");
        }
        if options.output.is_table() {
            write(&rows.lay(change))?;
        } else {
            write(&one(kind, change, options.output)?)?;
        }
    }
}

/// A change in a form for programs. What is gone carries the time at which that was seen.
fn one(kind: Kind, change: Change, format: Format) -> Result<String> {
    let object = match change {
        Change::Seen(object) => object,
        Change::Gone(mut object) => {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.entry("deletionTimestamp").or_insert_with(|| Timestamp::now().to_string().into());
            }
            object
        }
        Change::Complete | Change::Again => return Ok(String::new()),
    };
    let separator = if format == Format::Yaml { "---\n" } else { "" };
    Ok(format!("{separator}{}", render(kind, &[object], true, format, false)?))
}

/// A table that grows: what exists at first as a whole, then one line for every change.
struct Rows {
    shown: Shown,
    columns: Columns,
    /// What exists, until all of it is known.
    first: Option<Vec<Value>>,
}

impl Rows {
    fn new(kind: Kind, options: &Options) -> Self {
        Self {
            shown: Shown {
                kind,
                wide: options.output == Format::Wide,
                everywhere: options.all_namespaces,
                moving: false,
            },
            columns: Columns::default(),
            first: Some(Vec::new()),
        }
    }

    fn lay(&mut self, change: Change) -> String {
        let kind = self.shown.kind;
        let moves = |object: &Value| table::progress(kind, object).is_some();
        match (change, &mut self.first) {
            (Change::Seen(object), Some(first)) => {
                first.push(object);
                String::new()
            }
            (Change::Complete, Some(first)) => {
                self.shown.moving = first.iter().any(moves);
                let rows = first.iter().map(|object| self.shown.row(object, Timestamp::now()));
                let text = self.columns.lay(&self.shown.header(), rows);
                self.first = None;
                text
            }
            (Change::Seen(object), None) => {
                // The first weights on their way bring a column of their own.
                let begins = !self.shown.moving && moves(&object);
                self.shown.moving |= begins;
                let header = if begins { self.shown.header() } else { Vec::new() };
                self.columns.lay(&header, [self.shown.row(&object, Timestamp::now())])
            }
            (Change::Gone(object), _) => format!("{}/{} is gone\n", kind.lower(), name(&object)),
            (Change::Complete | Change::Again, _) => String::new(),
        }
    }
}
