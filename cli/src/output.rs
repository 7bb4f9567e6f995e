//! How objects are printed: as a table for people, or in a form for programs.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{Kind, name};
use crate::table;

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Table,
    /// A table with more columns.
    Wide,
    /// One indented JSON text.
    Json,
    /// YAML, as `apply` takes it.
    Yaml,
    /// One object per line, as JSON.
    Jsonl,
    /// KIND/NAME per line.
    Name,
}

impl Format {
    /// Whether it is for people.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Objects of one kind; a single one that was asked for by name comes without a list around it.
pub(crate) fn render(
    kind: Kind,
    objects: &[Value],
    single: bool,
    format: Format,
    everywhere: bool,
) -> Result<String> {
    match format {
        Format::Table | Format::Wide => {
            Ok(table::of(kind, objects, format == Format::Wide, everywhere, Timestamp::now()))
        }
        _ => for_programs(objects, single, format, |object| format!("{}/{}", kind.lower(), name(object))),
    }
}

/// Any form but a table.
pub(crate) fn for_programs(
    objects: &[Value],
    single: bool,
    format: Format,
    label: impl Fn(&Value) -> String,
) -> Result<String> {
    let whole = match objects {
        [object] if single => object.clone(),
        _ => json!({"apiVersion": "v1", "kind": "List", "items": objects}),
    };
    Ok(match format {
        Format::Json => format!("{whole:#}\n"),
        Format::Yaml => serde_yaml::to_string(&whole).context("the object can't be written as YAML")?,
        Format::Jsonl => objects.iter().map(|object| format!("{object}\n")).collect(),
        Format::Name | Format::Table | Format::Wide => {
            objects.iter().map(|object| label(object) + "\n").collect()
        }
    })
}

/// Writes to standard output at once. A reader that went away (`| head`) is no error.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("the output can't be written")
        }
        _ => Ok(()),
    }
}

/// A remark on standard error, faint where that is a terminal and colours are welcome.
pub(crate) fn faint(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !std::io::stderr().is_terminal() { text.to_owned() } else { format!("\x1b[2m{text}\x1b[0m") }
}
