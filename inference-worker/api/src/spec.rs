//! What an agent tells a worker process, by files: its [`WorkerSpec`] in, its [`WorkerEndpoint`] and exit code out.

mod stamp;

use std::{fmt, net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use stamp::FileStamp;

/// Rows of prompts in one step of a worker: long enough to be worth the weights that are read for it, short enough that
/// those who decode do not wait long.
pub const PREFILL_ROWS: usize = 128;

/// The most rows in one step of a worker that computes `max_sequences` at once: what its memory plan has to allow for,
/// whoever draws it.
#[must_use]
pub fn batch_rows(max_sequences: NonZeroU32) -> usize {
    PREFILL_ROWS + max_sequences.get() as usize
}

/// [`WorkerSpec::max_sequences`] where nothing asks for another number.
pub const USUAL_MAX_SEQUENCES: NonZeroU32 = NonZeroU32::new(16).expect("16 is not zero");

/// Everything that one `inference-worker replica` needs to know, as JSON in a file.
///
/// A field that this version does not know is refused by its name, so that a worker never half-obeys a newer agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSpec {
    /// Which workload of its host this process is; repeated in every health report.
    pub workload: String,
    /// Start number of the workload. A host runs only the highest it has seen.
    pub epoch: u64,
    /// The name that clients ask for.
    pub model: String,
    /// `namespace/name` of the deployment. A client may ask for `namespace/model` as well.
    pub deployment: String,
    /// The GGUF shards, in shard order; at least one.
    pub files: Vec<WeightFile>,
    /// Longest sequence, prompt and output together.
    pub context_tokens: NonZeroU32,
    /// Tokens whose KV all sequences share; at least `context_tokens`.
    pub pool_tokens: NonZeroU32,
    /// How keys and values are stored.
    #[serde(default)]
    pub kv_cache: KvCache,
    /// Which arithmetic.
    #[serde(default)]
    pub numerics: Numerics,
    /// Threads that compute; absent: one per core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroU32>,
    /// Sequences computed at once; more wait in a bounded queue.
    #[serde(default = "usual_max_sequences")]
    pub max_sequences: NonZeroU32,
    /// The deployment's sampling parameters for requests that don't say.
    #[serde(default, skip_serializing_if = "SamplingDefaults::is_empty")]
    pub sampling: SamplingDefaults,
    /// Where to listen. Port 0 takes a free one, which `endpoint_file` then names.
    pub listen: SocketAddr,
    /// Directory with this worker's certificate, key and the authorities it trusts, as `tandem-pki` lays it out.
    pub credentials_dir: PathBuf,
    /// Where the worker writes its [`WorkerEndpoint`], atomically, once it listens.
    pub endpoint_file: PathBuf,
}

/// One shard of the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFile {
    /// Absolute path.
    pub path: PathBuf,
    /// What the file must hash to. The worker hashes it before anything parses it, unless `verified` still holds.
    pub sha256: Sha256Hex,
    /// The file's marks when somebody on this host hashed it and found `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<FileStamp>,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvCache {
    /// Two bytes a value.
    #[default]
    F16,
    /// Four bytes a value; what `Reference` numerics use.
    F32,
}

/// Which arithmetic a worker computes with; part of its `numerics_id`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Numerics {
    /// 8-bit activations: the contract that makes takeovers exact.
    #[default]
    Exact,
    /// f32 activations, to be held against an oracle. Slow.
    Reference,
}

/// Sampling parameters of a deployment, each used where a request does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a listening worker writes to its `endpoint_file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerEndpoint {
    /// Where it listens; the host part is the one it was told to bind.
    pub address: SocketAddr,
    /// Its process.
    pub pid: u32,
}

/// How an `inference-worker replica` ends, as its exit code. A signal's death has none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerExit {
    /// 0: told to stop, by SIGTERM or the end of its standard input, and drained.
    Stopped,
    /// 1: an error that a restart may cure, such as a port in use or a disk that does not answer.
    Failed,
    /// 2: the spec or the command line can't be used. A restart with the same spec ends the same way.
    BadSpec,
    /// 3: a weight file is missing, does not have its sha256, or is not a model this worker can run.
    BadWeights,
    /// 4: the memory plan does not fit this machine.
    OutOfMemory,
    /// 5: the decode thread panicked. The streams of its last step may have caused it.
    Crashed,
}

impl WorkerExit {
    /// The process exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Failed => 1,
            Self::BadSpec => 2,
            Self::BadWeights => 3,
            Self::OutOfMemory => 4,
            Self::Crashed => 5,
        }
    }

    /// Reads an exit code; `None` for one that no worker uses.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        [Self::Stopped, Self::Failed, Self::BadSpec, Self::BadWeights, Self::OutOfMemory, Self::Crashed]
            .into_iter()
            .find(|exit| i32::from(exit.code()) == code)
    }

    /// Whether starting again with the same spec can end otherwise.
    #[must_use]
    pub fn restart_may_help(self) -> bool {
        !matches!(self, Self::BadSpec | Self::BadWeights | Self::OutOfMemory)
    }
}

/// A worker spec that can't be used.
#[derive(Debug, Error)]
pub enum SpecError {
    /// Not JSON, or not of this shape.
    #[error("the worker spec does not parse")]
    Json(#[from] serde_json::Error),
    /// No weights.
    #[error("the worker spec lists no files; it needs the model's GGUF shards, in order")]
    NoFiles,
    /// An empty name.
    #[error("the worker spec's `{0}` is empty")]
    Empty(&'static str),
    /// A pool in which not even one longest sequence has room.
    #[error(
        "pool_tokens is {pool}, less than context_tokens, {context}; raise the pool or shorten the context"
    )]
    PoolTooSmall {
        /// Tokens in the pool.
        pool: u32,
        /// Tokens in the longest sequence.
        context: u32,
    },
}

impl WorkerSpec {
    /// Reads and checks a spec.
    ///
    /// # Errors
    /// When it is not JSON of this shape, or its values contradict each other.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_slice(json)?;
        if spec.files.is_empty() {
            return Err(SpecError::NoFiles);
        }
        for (name, value) in
            [("model", &spec.model), ("workload", &spec.workload), ("deployment", &spec.deployment)]
        {
            if value.is_empty() {
                return Err(SpecError::Empty(name));
            }
        }
        if spec.pool_tokens < spec.context_tokens {
            return Err(SpecError::PoolTooSmall {
                pool: spec.pool_tokens.get(),
                context: spec.context_tokens.get(),
            });
        }
        Ok(spec)
    }
}

/// A SHA-256, written as 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Hex([u8; 32]);

/// The text is not a SHA-256.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a sha256: 64 lowercase hexadecimal digits")]
pub struct NotASha256(String);

impl Sha256Hex {
    /// The hash itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Sha256Hex {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Sha256Hex {
    type Err = NotASha256;

    fn from_str(text: &str) -> Result<Self, NotASha256> {
        let refuse = || NotASha256(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = str::from_utf8(pair).map_err(|_| refuse())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Sha256Hex {
    type Error = NotASha256;

    fn try_from(text: String) -> Result<Self, NotASha256> {
        text.parse()
    }
}

impl From<Sha256Hex> for String {
    fn from(hash: Sha256Hex) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn usual_max_sequences() -> NonZeroU32 {
    USUAL_MAX_SEQUENCES
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{
        "workload": "llm-tiny-0", "epoch": 3, "model": "tiny", "deployment": "llm/tiny",
        "files": [{"path": "/w/a.gguf", "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}],
        "context_tokens": 512, "pool_tokens": 1024, "sampling": {"temperature": 1.0},
        "listen": "127.0.0.1:0", "credentials_dir": "/c", "endpoint_file": "/run/e.json"
    }"#;

    #[test]
    fn a_spec_survives_the_file() {
        let spec = WorkerSpec::parse(SPEC.as_bytes()).unwrap();
        assert_eq!(spec.kv_cache, KvCache::F16);
        assert_eq!(spec.max_sequences.get(), 16);
        assert_eq!(WorkerSpec::parse(&serde_json::to_vec(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn unknown_fields_and_contradictions_are_refused() {
        for (from, to, expected) in [
            ("\"epoch\": 3", "\"epoch\": 3, \"shard\": 1", "does not parse"),
            ("\"pool_tokens\": 1024", "\"pool_tokens\": 100", "pool_tokens is 100"),
            ("\"context_tokens\": 512", "\"context_tokens\": 0", "does not parse"),
            ("\"model\": \"tiny\"", "\"model\": \"\"", "`model` is empty"),
            ("e3b0", "E3B0", "does not parse"),
            ("e3b0", "+3b0", "does not parse"),
        ] {
            let error = WorkerSpec::parse(SPEC.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(expected), "{from} → {to}: {error}");
        }
    }

    #[test]
    fn exit_codes_are_read_back() {
        for exit in [WorkerExit::Stopped, WorkerExit::BadWeights, WorkerExit::Crashed] {
            assert_eq!(WorkerExit::from_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(WorkerExit::from_code(137), None);
    }
}
