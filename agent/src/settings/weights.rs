//! The part of the command line about weights: how much is kept, whose folders are used, how fast they come, by which networks.

use std::env;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bytesize::ByteSize;
use clap::Args;
use tandem_crds::Link;

use crate::links;

/// Left free of a large disk unless somebody says otherwise.
const SPARE: u64 = 10 << 30;
/// Left free of a small disk: this part of it.
const SPARE_PART: u64 = 20;
/// Connections that one download opens unless somebody says otherwise.
const CONNECTIONS: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not 0");
/// More would only take turns.
const MOST_CONNECTIONS: usize = 64;

/// How this host gets, keeps and shares weights.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Weights")]
pub(crate) struct WeightsArgs {
    /// Where other hosts of the cluster fetch weights from this one, over mutual TLS [default: any free port, on loopback if
    /// this host's address is there, else everywhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "TANDEM_WEIGHTS_LISTEN")]
    weights_listen: Option<SocketAddr>,
    /// What weights may take of the disk, such as 800GB or 2TiB. Above it, those that nothing needs are removed, the longest
    /// unused first [default: all but what --weights-spare leaves free]
    #[arg(long, value_name = "SIZE", env = "TANDEM_WEIGHTS_BUDGET")]
    weights_budget: Option<ByteSize>,
    /// What is left free of the disk [default: 10 GiB, or 5 % of a disk smaller than 200 GiB]
    #[arg(long, value_name = "SIZE", env = "TANDEM_WEIGHTS_SPARE")]
    weights_spare: Option<ByteSize>,
    /// Use weights that lie in this folder where they are, without a copy: Hugging Face's cache, LM Studio's models, Ollama's
    /// blobs or plain files. Repeat it for several; `auto` means the usual folders of the agent's user
    #[arg(long, value_name = "DIR|auto", env = "TANDEM_ADOPT", value_delimiter = ',')]
    adopt: Vec<PathBuf>,
    /// Fetch weights from sources and other hosts no faster than this many bytes a second in all, such as 50MB
    #[arg(long, value_name = "SIZE", env = "TANDEM_DOWNLOAD_LIMIT", value_parser = rate)]
    download_limit: Option<NonZeroU64>,
    /// Connections that downloads open at once
    #[arg(long, value_name = "N", env = "TANDEM_DOWNLOAD_CONNECTIONS", default_value_t = CONNECTIONS)]
    download_connections: NonZeroUsize,
    /// A network of this host, by the host's address in it: overrides the speed that the system says, or adds one that it does
    /// not know. Repeat it for several
    #[arg(long, value_name = "ADDRESS/PREFIX[=MEGABITS]", value_parser = links::given)]
    link: Vec<Link>,
}

/// The same, checked.
#[derive(Clone, Debug)]
pub(crate) struct WeightsSettings {
    /// None: where workers listen, too.
    pub(crate) listen: Option<SocketAddr>,
    /// Bytes.
    pub(crate) budget: Option<u64>,
    spare: Option<u64>,
    /// Folders that exist.
    pub(crate) adopt: Vec<PathBuf>,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) connections: usize,
    /// What a person says of this host's networks.
    pub(crate) links: Vec<Link>,
}

impl WeightsSettings {
    pub(crate) fn of(args: WeightsArgs) -> Result<Self> {
        ensure!(
            args.download_connections.get() <= MOST_CONNECTIONS,
            "--download-connections is at most {MOST_CONNECTIONS}"
        );
        let mut adopt = Vec::new();
        for given in &args.adopt {
            if given == Path::new("auto") {
                adopt.extend(usual_folders().into_iter().filter(|folder| folder.is_dir()));
                continue;
            }
            let folder = std::path::absolute(given)?;
            ensure!(folder.is_dir(), "{} is not a folder: mend --adopt", folder.display());
            adopt.push(folder);
        }
        adopt.dedup();
        Ok(Self {
            listen: args.weights_listen,
            budget: args.weights_budget.map(|size| size.as_u64()),
            spare: args.weights_spare.map(|size| size.as_u64()),
            adopt,
            bytes_per_second: args.download_limit.map(NonZeroU64::get),
            connections: args.download_connections.get(),
            links: args.link,
        })
    }

    /// What is left free of a disk of this size, in bytes.
    pub(crate) fn spare(&self, disk_bytes: u64) -> u64 {
        self.spare.unwrap_or_else(|| SPARE.min(disk_bytes / SPARE_PART))
    }
}

/// Where programs of this user keep models that they have fetched.
fn usual_folders() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let named =
        |variable: &str, inner: &str| env::var_os(variable).map(|path| PathBuf::from(path).join(inner));
    let below = |inner: &str| home.as_ref().map(|home| home.join(inner));
    let hub = named("HF_HUB_CACHE", "").or_else(|| named("HF_HOME", "hub"));
    [
        hub.or_else(|| below(".cache/huggingface/hub")),
        below(".lmstudio/models"),
        below(".cache/lm-studio/models"),
        named("OLLAMA_MODELS", "").or_else(|| below(".ollama/models")),
        // Of Ollama as a service on Linux.
        Some(PathBuf::from("/usr/share/ollama/.ollama/models")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let size: ByteSize = text.parse()?;
    NonZeroU64::new(size.as_u64()).ok_or_else(|| "a limit of 0 would fetch nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        weights: WeightsArgs,
    }

    fn settings(args: &[&str]) -> Result<WeightsSettings> {
        let line = Line::try_parse_from([&["agent"], args].concat())?;
        WeightsSettings::of(line.weights)
    }

    #[test]
    fn sizes_are_what_people_write() {
        let all =
            settings(&["--weights-budget", "1.5TB", "--download-limit", "50MiB/s", "--weights-spare", "7"]);
        let all = all.unwrap();
        assert_eq!(all.budget, Some(1_500_000_000_000));
        assert_eq!(all.bytes_per_second, Some(50 << 20));
        assert_eq!(all.spare(1 << 40), 7);
        for bad in [["--weights-budget", "much"], ["--download-limit", "0"], ["--download-connections", "65"]]
        {
            assert!(settings(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_large_disk_keeps_ten_gibibytes_free_and_a_small_one_a_part() {
        let plain = settings(&[]).unwrap();
        assert_eq!((plain.spare(1 << 42), plain.spare(100 << 30)), (10 << 30, 5 << 30));
    }

    #[test]
    fn only_folders_are_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(settings(&["--adopt", path, "--adopt", "auto"]).unwrap().adopt[0], dir.path());
        let missing = dir.path().join("missing");
        let refused = settings(&["--adopt", missing.to_str().unwrap()]).unwrap_err().to_string();
        assert!(refused.contains("is not a folder"), "{refused}");
    }
}
