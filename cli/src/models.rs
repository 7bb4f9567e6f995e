//! `tandem models`: the weights that hosts keep.

mod talk;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use bytesize::ByteSize;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use tandem_control_api::models_request::Ask;
use tandem_control_api::{
    ModelsImport, ModelsList, ModelsPrune, ModelsPull, ModelsRequest, ModelsVerify, StoredFile,
};

use crate::connection::Connection;
use crate::object::{Usage, text};
use crate::output::{Format, for_programs, write};
use crate::span::since;
use crate::table::{or_dash, plain, size};

use talk::{Answer, Listener};

/// Characters of a digest that tell it apart from others at a glance.
const SHORT: usize = 12;
/// Bound on the wait for a host's list.
const LISTS: Duration = Duration::from_secs(60);
/// Bound on the wait for the next word on something that takes its time.
const WORKS: Duration = Duration::from_secs(15 * 60);

/// What to do with weights.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the files that hosts keep, and why each can't be collected.
    List(ListOptions),
    /// Fetch a model onto hosts before any deployment wants it.
    Pull(PullOptions),
    /// Take files that lie on a host already, after hashing them.
    Import(ImportOptions),
    /// Read files from disk and compare them with their digests.
    Verify(VerifyOptions),
    /// Delete files that nothing needs, those used longest ago first.
    Prune(PruneOptions),
}

/// Whose files.
#[derive(Args)]
struct Hosts {
    /// A host; repeat it for several. Without it, every connected host.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
}

/// Whose files, and in which form.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem models list\n  tandem models list --host mac-a -o json")]
pub(crate) struct ListOptions {
    #[command(flatten)]
    of: Hosts,
    /// Form of output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Which model, and where to.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem models pull hf://unsloth/Kimi-K2.5-GGUF@main --quant UD-Q2_K_XL\n  \
                  tandem models pull hf://acme/private --quant Q8_0 --host mac-a --secret hub/token"
)]
pub(crate) struct PullOptions {
    /// Where the model is, as spec.model.source says it.
    source: String,
    /// Which of its quants; not needed where the source names a file.
    #[arg(long)]
    quant: Option<String>,
    #[command(flatten)]
    to: Hosts,
    /// The secret that opens a private source, and its key; of the namespace of --namespace.
    #[arg(long, value_name = "NAME/KEY")]
    secret: Option<String>,
}

/// Which files, and of which host.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem models import ~/.cache/huggingface/hub --host mac-a\n  \
                        tandem models import /Volumes/usb/kimi --host mac-a --copy")]
pub(crate) struct ImportOptions {
    /// A file or folder on that host.
    path: String,
    /// The host.
    #[arg(long)]
    host: String,
    /// Copy the files, because they won't stay where they are. Without it, they are referred to.
    #[arg(long)]
    copy: bool,
}

/// Which files.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tandem models verify\n  tandem models verify --host mac-a 3f5a…  # as `models list -o name` has it"
)]
pub(crate) struct VerifyOptions {
    #[command(flatten)]
    of: Hosts,
    /// Digests of the files; all, if none is said.
    #[arg(value_name = "SHA256", value_parser = digest)]
    files: Vec<String>,
}

/// How much goes.
#[derive(Args)]
#[command(after_help = "Examples:\n  tandem models prune --keep 500GB --dry-run\n  \
                        tandem models prune --host mac-a --keep 1.5TiB\n  tandem models prune --all\n\n\
                        What a copy uses, and the last copies of what a deployment wants, stay in any case.")]
#[group(id = "much", required = true, multiple = false, args = ["keep", "all"])]
pub(crate) struct PruneOptions {
    #[command(flatten)]
    of: Hosts,
    /// Delete until a host keeps at most so much, as 500GB or 1.5TiB.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep: Option<u64>,
    /// Delete everything that may go.
    #[arg(long)]
    all: bool,
    /// Say what would go, and delete nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(connection: Connection, command: &Command) -> Result<ExitCode> {
    match command {
        Command::List(options) => list(connection, options).await,
        Command::Pull(options) => {
            let ask = Ask::Pull(pull(options, &connection.namespace)?);
            work(connection, &options.to.hosts, ask, told).await
        }
        Command::Import(options) => {
            let ask = Ask::Import(ModelsImport { path: options.path.clone(), copy: options.copy });
            work(connection, std::slice::from_ref(&options.host), ask, told).await
        }
        Command::Verify(options) => {
            let ask = Ask::Verify(ModelsVerify { sha256: options.files.clone() });
            work(connection, &options.of.hosts, ask, told).await
        }
        Command::Prune(options) => {
            let PruneOptions { keep, all, dry_run, .. } = *options;
            let ask = Ask::Prune(ModelsPrune { keep_bytes: keep.unwrap_or(0), all, dry_run });
            let line = if dry_run { would_go } else { told };
            work(connection, &options.of.hosts, ask, line).await
        }
    }
}

fn request(hosts: &[String], ask: Ask) -> ModelsRequest {
    ModelsRequest { request: String::new(), hosts: hosts.to_vec(), ask: Some(ask) }
}

async fn list(connection: Connection, options: &ListOptions) -> Result<ExitCode> {
    let mut files = Vec::new();
    let asked = request(&options.of.hosts, Ask::List(ModelsList {}));
    let failed = talk::talk(connection, asked, LISTS, |answer| {
        match answer {
            Answer::File(host, file) => files.push((host, file)),
            Answer::Failed(host, sentence) => eprintln!("error: host {host}: {sentence}"),
            Answer::Note(host, note) => eprintln!("{host}: {note}"),
            Answer::Progress(..) | Answer::Ended(_) => {}
        }
        Ok(())
    })
    .await?;
    files.sort_by(|a, b| (&a.0, &a.1.name, &a.1.sha256).cmp(&(&b.0, &b.1.name, &b.1.sha256)));
    if options.output.is_table() {
        if files.is_empty() && !failed {
            eprintln!(
                "No host keeps any weights yet: `tandem models pull` fetches some, a deployment does, too."
            );
        } else if !files.is_empty() {
            write(&table(&files, options.output == Format::Wide, Timestamp::now()))?;
        }
    } else {
        let objects: Vec<Value> = files.iter().map(|(host, file)| object(host, file)).collect();
        let label = |object: &Value| text(object, &["sha256"]).to_owned();
        write(&for_programs(&objects, false, options.output, label)?)?;
    }
    Ok(code(failed))
}

/// Asks for something that takes its time, with a bar for every host and a line for every file.
async fn work(
    connection: Connection,
    hosts: &[String],
    ask: Ask,
    line: fn(&str, &StoredFile) -> String,
) -> Result<ExitCode> {
    let mut listener = Listener::new()?;
    let failed =
        talk::talk(connection, request(hosts, ask), WORKS, |answer| listener.take(answer, line)).await?;
    let nothing = listener.finish();
    if nothing && !failed {
        eprintln!("Nothing was there to do.");
    }
    Ok(code(failed))
}

fn code(failed: bool) -> ExitCode {
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn told(host: &str, file: &StoredFile) -> String {
    format!("{host}: {} ({}) {}\n", label(file), size(file.bytes), or_dash(&file.state.to_lowercase()))
}

fn would_go(host: &str, file: &StoredFile) -> String {
    format!("{host}: {} ({}) would go\n", label(file), size(file.bytes))
}

/// A file's name where it has one, else its digest.
fn label(file: &StoredFile) -> &str {
    if file.name.is_empty() { &file.sha256 } else { &file.name }
}

fn pull(options: &PullOptions, namespace: &str) -> Result<ModelsPull, Usage> {
    let names_file = options.source.to_ascii_lowercase().ends_with(".gguf");
    if options.quant.is_none() && !names_file {
        return Err(Usage("which quant? Say --quant, such as `--quant Q4_K_M`".to_owned()));
    }
    let (secret_name, secret_key) = match &options.secret {
        None => Default::default(),
        Some(secret) => match secret.split_once('/') {
            Some((name, key)) if !name.is_empty() && !key.is_empty() => (name.to_owned(), key.to_owned()),
            _ => return Err(Usage(format!("`{secret}` names no value of a secret: say --secret NAME/KEY"))),
        },
    };
    Ok(ModelsPull {
        source: options.source.clone(),
        quant: options.quant.clone().unwrap_or_default(),
        secret_name,
        secret_key,
        namespace: namespace.to_owned(),
        ..ModelsPull::default()
    })
}

fn table(files: &[(String, StoredFile)], wide: bool, now: Timestamp) -> String {
    let mut header = vec!["HOST", "SHA256", "SIZE", "STATE", "USED", "NAME", "STAYS BECAUSE"];
    header.extend(["PATH"].iter().filter(|_| wide));
    let row = |(host, file): &(String, StoredFile)| {
        let digest =
            if wide { file.sha256.as_str() } else { file.sha256.get(..SHORT).unwrap_or(&file.sha256) };
        let used = Timestamp::from_second(file.last_used).ok().filter(|_| file.last_used > 0);
        let mut cells = vec![
            host.clone(),
            digest.to_owned(),
            size(file.bytes),
            or_dash(&file.state),
            used.map_or_else(|| "-".to_owned(), |then| since(then, now)),
            or_dash(&file.name),
            or_dash(&file.pinned),
        ];
        cells.extend(wide.then(|| or_dash(&file.path)));
        cells
    };
    plain(&header, files.iter().map(row))
}

fn object(host: &str, file: &StoredFile) -> Value {
    let used = Timestamp::from_second(file.last_used).ok().filter(|_| file.last_used > 0);
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    json!({
        "host": host, "sha256": file.sha256, "bytes": file.bytes, "name": file.name, "state": file.state,
        "path": some(&file.path), "lastUsed": used.map(|at| at.to_string()), "pinned": some(&file.pinned),
    })
}

fn bytes(text: &str) -> Result<u64, String> {
    let size = ByteSize::from_str(text).map_err(|_| "say a size as 500GB or 1.5TiB".to_owned())?;
    match size.as_u64() {
        0 => Err("to keep nothing, say --all".to_owned()),
        bytes => Ok(bytes),
    }
}

fn digest(text: &str) -> Result<String, String> {
    let digest = text.to_ascii_lowercase();
    let digest = digest.strip_prefix("sha256:").unwrap_or(&digest);
    if digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digest.to_owned());
    }
    Err("a sha256 has 64 hexadecimal digits: `tandem models list -o name` prints them".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(bytes("500GB"), Ok(500_000_000_000));
        assert_eq!(bytes("1.5TiB"), Ok(3 << 39));
        assert_eq!(bytes("2 GiB"), Ok(2 << 30));
        assert_eq!(bytes("1024"), Ok(1024));
        for bad in ["", "GB", "-1GB", "5 apples", "0", "1e3"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_are_whole() {
        let whole = "AB".repeat(32);
        assert_eq!(digest(&whole), Ok("ab".repeat(32)));
        assert_eq!(digest(&format!("sha256:{whole}")), Ok("ab".repeat(32)));
        for bad in ["", "abc", &"g".repeat(64)] {
            assert!(digest(bad).unwrap_err().contains("64"), "{bad}");
        }
    }
}
