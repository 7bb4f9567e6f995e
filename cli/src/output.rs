//! How objects are printed: as a table for people, or in a form for programs.

use anyhow::{Context, Result};
use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{Kind, name};
use crate::table;

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    /// A table with more columns.
    Wide,
    Json,
    Yaml,
    /// One object per line.
    Jsonl,
    /// KIND/NAME per line.
    Name,
}

/// Prints objects of one kind; a single one that was asked for by name comes without a list around it.
pub(crate) fn print(
    kind: Kind,
    objects: &[Value],
    single: bool,
    format: Format,
    now: Timestamp,
) -> Result<String> {
    let whole = || {
        if single {
            objects[0].clone()
        } else {
            json!({"apiVersion": "v1", "kind": "List", "items": objects})
        }
    };
    Ok(match format {
        Format::Table | Format::Wide => table::of(kind, objects, format == Format::Wide, now),
        Format::Json => format!("{:#}\n", whole()),
        Format::Yaml => serde_yaml::to_string(&whole()).context("the object can't be written as YAML")?,
        Format::Jsonl => objects.iter().map(|object| format!("{object}\n")).collect(),
        Format::Name => objects.iter().map(|object| format!("{}/{}\n", kind.lower(), name(object))).collect(),
    })
}
