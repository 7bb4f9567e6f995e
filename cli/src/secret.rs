//! `tandem secret`: values that deployments refer to. They go in here and never come out again.

use std::collections::HashMap;
use std::io::{IsTerminal, Read};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use console::Term;
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_control_api::{DeleteSecretRequest, ListSecretsRequest, SecretSummary, SetSecretRequest};

use crate::connection::Connection;
use crate::object::{Usage, text};
use crate::output::{Format, for_programs, write};
use crate::span::since;
use crate::table::plain;

/// Longest value that is read; an operator takes less.
const LONGEST: u64 = 1 << 20;

/// What to do with secrets.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Add or replace values of a secret, and make it if there is none.
    Set(SetOptions),
    /// List secrets and the keys of their values. The values are never shown.
    List(ListOptions),
    /// Delete a secret with all its values.
    #[command(after_help = "Example:\n  tandem secret delete hub")]
    Delete {
        /// The secret.
        name: String,
    },
}

/// Which values.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem secret set hub token    # asks for the value\n  \
                  echo \"$HF_TOKEN\" | tandem secret set hub token\n  \
                  tandem secret set bucket --from-file reader=/run/secrets/bucket\n\n\
                  What a value looks like:\n  \
                  hf://     the hub's token\n  \
                  s3://     ACCESS-KEY:SECRET-KEY or ACCESS-KEY:SECRET-KEY:SESSION-TOKEN\n  \
                  oci://    NAME:PASSWORD or a token\n  \
                  https://  NAME:PASSWORD or a token\n\n\
                  In a manifest: spec.model.credentials: {secretRef: {name: hub, key: token}}")]
pub(crate) struct SetOptions {
    /// The secret.
    name: String,
    /// KEY to be asked for the value, or to read it from standard input; KEY=VALUE where others can't read the command line.
    #[arg(value_name = "KEY[=VALUE]")]
    values: Vec<String>,
    /// Read a value from a file.
    #[arg(long = "from-file", value_name = "KEY=PATH")]
    files: Vec<String>,
}

/// Whose secrets.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem secret list\n  tandem secret list -A -o json")]
pub(crate) struct ListOptions {
    /// Form of output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Secrets of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

pub(crate) async fn run(connection: Connection, command: &Command) -> Result<()> {
    match command {
        Command::Set(options) => set(connection, options).await,
        Command::List(options) => list(connection, options).await,
        Command::Delete { name } => delete(connection, name).await,
    }
}

async fn set(mut connection: Connection, options: &SetOptions) -> Result<()> {
    let values = values(options)?;
    let namespace = connection.namespace.clone();
    let request = SetSecretRequest { namespace, name: options.name.clone(), values };
    let answer = connection.secrets.set(request).await;
    let summary = answer.map_err(|status| connection.explain(&status))?.into_inner();
    write(&format!("secret/{} set: {}\n", summary.name, summary.keys.join(", ")))
}

async fn list(mut connection: Connection, options: &ListOptions) -> Result<()> {
    let everywhere = options.all_namespaces;
    let namespace = if everywhere { String::new() } else { connection.namespace.clone() };
    let answer = connection.secrets.list(ListSecretsRequest { namespace }).await;
    let secrets = answer.map_err(|status| connection.explain(&status))?.into_inner().secrets;
    if options.output.is_table() {
        if secrets.is_empty() {
            let place =
                if everywhere { String::new() } else { format!(" in namespace {}", connection.namespace) };
            eprintln!("There is no secret{place}. Make one with `tandem secret set NAME KEY`.");
            return Ok(());
        }
        return write(&table(&secrets, everywhere, Timestamp::now()));
    }
    let objects: Vec<Value> = secrets.iter().map(object).collect();
    let label = |object: &Value| format!("secret/{}", text(object, &["name"]));
    write(&for_programs(&objects, false, options.output, label)?)
}

async fn delete(mut connection: Connection, name: &str) -> Result<()> {
    let request = DeleteSecretRequest { namespace: connection.namespace.clone(), name: name.to_owned() };
    connection.secrets.delete(request).await.map_err(|status| connection.explain(&status))?;
    write(&format!("secret/{name} deleted\n"))
}

fn table(secrets: &[SecretSummary], everywhere: bool, now: Timestamp) -> String {
    let mut header = vec!["NAME", "KEYS", "CHANGED"];
    if everywhere {
        header.insert(0, "NAMESPACE");
    }
    let row = |secret: &SecretSummary| {
        let changed = Timestamp::from_second(secret.changed_at).map(|then| since(then, now));
        let changed = changed.unwrap_or_else(|_| "-".to_owned());
        let mut cells = vec![secret.name.clone(), secret.keys.join(","), changed];
        if everywhere {
            cells.insert(0, secret.namespace.clone());
        }
        cells
    };
    plain(&header, secrets.iter().map(row))
}

fn object(secret: &SecretSummary) -> Value {
    let changed = Timestamp::from_second(secret.changed_at).ok().map(|at| at.to_string());
    json!({"namespace": secret.namespace, "name": secret.name, "keys": secret.keys, "changedAt": changed})
}

/// The values that a command line means. One of them may come from standard input.
fn values(options: &SetOptions) -> Result<HashMap<String, String>> {
    let mut values = HashMap::new();
    let mut put = |key: &str, value: String| {
        let twice = values.insert(key.to_owned(), value).is_some();
        let usage = || Usage(format!("two values are given for {key}: say one"));
        if twice { Err(usage()) } else { Ok(()) }
    };
    for file in &options.files {
        let (key, path) = file
            .split_once('=')
            .ok_or_else(|| Usage(format!("`{file}` names no file: say --from-file KEY=PATH")))?;
        let opened = std::fs::File::open(path).with_context(|| format!("{path} can't be opened"))?;
        put(key, read(opened).with_context(|| format!("{path} can't be read"))?)?;
    }
    let mut asked = Vec::new();
    for value in &options.values {
        match value.split_once('=') {
            Some((key, value)) => put(key, value.to_owned())?,
            None => asked.push(value),
        }
    }
    let terminal = std::io::stdin().is_terminal();
    if asked.len() > 1 && !terminal {
        let usage = "standard input holds one value: say the other keys with --from-file KEY=PATH";
        return Err(Usage(usage.to_owned()).into());
    }
    for key in asked {
        let value = if terminal {
            ask(key)?
        } else {
            read(std::io::stdin().lock()).context("standard input can't be read")?
        };
        put(key, value)?;
    }
    if values.is_empty() {
        return Err(Usage("which value? Say KEY, KEY=VALUE or --from-file KEY=PATH".to_owned()).into());
    }
    Ok(values)
}

/// Asks for a value without showing it.
fn ask(key: &str) -> Result<String> {
    let term = Term::stderr();
    if !term.is_term() {
        let usage = format!("there is no terminal to ask on: pass the value of {key} on standard input");
        return Err(Usage(usage).into());
    }
    term.write_str(&format!("Value of {key}: ")).context("the terminal can't be written")?;
    term.read_secure_line().context("the terminal can't be read")
}

/// A text without the end of its last line.
fn read(from: impl Read) -> Result<String> {
    let mut text = String::new();
    from.take(LONGEST).read_to_string(&mut text)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}
