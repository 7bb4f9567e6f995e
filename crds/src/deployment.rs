//! `InferenceDeployment`: a model, its quant and its redundancy. People write the spec, the operator the status.
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns repeat their type, which the lint takes for a slip"
)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::host::TransferStatus;

/// A model that shall keep answering.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "inference.tandem.dev",
    version = "v1alpha1",
    kind = "InferenceDeployment",
    namespaced,
    shortname = "infd",
    category = "tandem",
    status = "InferenceDeploymentStatus",
    derive = "PartialEq",
    doc = "A model that shall keep answering: what to serve, and how many hosts may fail.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    selectable = ".spec.model.name",
    selectable = ".spec.quant",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.name"),
    printcolumn(name = "Quant", type_ = "string", json_path = ".spec.quant"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Cover", type_ = "string", json_path = ".status.cover"),
    printcolumn(
        name = "Redundant",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Redundant')].status"
    ),
    printcolumn(name = "Lane", type_ = "string", json_path = ".spec.placement.lane", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct InferenceDeploymentSpec {
    /// Which model.
    pub model: Model,
    /// Which quantisation of it, by the usual names of GGUF files, such as `Q4_K_M` or `UD-Q2_K_XL`. It picks the files
    /// of the source.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-validations" = [{
            "rule": r"self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')",
            "messageExpression": r#""quant '" + self + "' can't be part of a file name; write it as the GGUF files do, such as Q4_K_M or UD-Q2_K_XL""#,
            "message": "quant can't be part of a file name; write it as the GGUF files do, such as Q4_K_M or UD-Q2_K_XL"
        }])
    )]
    pub quant: String,
    /// How long sequences may be, and how many fit at once.
    pub context: Context,
    /// What shall survive.
    #[serde(default)]
    pub redundancy: Redundancy,
    /// Where copies may run.
    #[serde(default)]
    pub placement: Placement,
    /// Sampling for requests that don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// Copies that remain after `redundancy.hostFailures` hosts vanished; 0 runs nothing. On-call and autoscalers own it
    /// through the scale subresource, so keep it out of Git: an apply without it keeps the scaled count.
    #[serde(default = "one")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self >= 0 && self <= 64",
        "message": "replicas is out of range; use 0 (runs nothing) to 64"
    }]))]
    pub replicas: u32,
}

/// Which model, and where its weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// What clients ask for. `<namespace>/<name>` always reaches this deployment, the bare name reaches the oldest
    /// deployment that has it. Immutable.
    #[schemars(
        length(min = 1, max = 63),
        extend("x-kubernetes-validations" = [
            {
                "rule": r"self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')",
                "messageExpression": r#""model.name '" + self + "' can't be used in a request; use letters, digits, '.', '_' and '-', with a letter or digit at both ends""#,
                "message": "model.name can't be used in a request; use letters, digits, '.', '_' and '-', with a letter or digit at both ends"
            },
            {
                "rule": "self == oldSelf",
                "messageExpression": r#""model.name is immutable, since clients ask for it: keep '" + oldSelf + "', or create another InferenceDeployment named for '" + self + "' and delete this one once its clients have moved""#,
                "message": "model.name is immutable, since clients ask for it: create another InferenceDeployment and delete this one once its clients have moved"
            }
        ])
    )]
    pub name: String,
    /// Where the GGUF files are: `hf://owner/repository@revision` (`main` when absent), `https://host/directory/`, `s3://bucket/prefix`,
    /// `oci://registry/repository:tag`, or `file:///directory`, the same on every host. Hubs and registries know their files'
    /// digests; elsewhere a `SHA256SUMS` lies beside the files, or `files` lists them. Resolved once, into `status.model`.
    #[schemars(
        length(min = 1, max = 2048),
        extend("x-kubernetes-validations" = [
            {
                "rule": "['hf', 'https', 's3', 'oci', 'file'].exists(scheme, self.startsWith(scheme + '://'))",
                "messageExpression": r#"(self.contains('://') ? self.split('://')[0] + ":// is not a kind of source" : "'" + self + "' is not a URL") + "; use hf://, https://, s3://, oci:// or file://""#,
                "message": "this is not a kind of source; use hf://, https://, s3://, oci:// or file://"
            },
            {
                "rule": r"!self.startsWith('file://') || (self.startsWith('file:///') && self.size() > 8)",
                "message": "a file:// source needs an absolute path after the two slashes, such as file:///srv/models/tiny-kimi"
            },
            {
                "rule": r"!self.startsWith('https://') || self.matches('^https://[A-Za-z0-9.\\[\\]:_-]+(/.*)?$')",
                "message": "an https:// source needs a host, without user or password, such as https://models.example.com/tiny-kimi/"
            },
            {
                "rule": r"!self.startsWith('hf://') || self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._%][^@?#]*)?(/[^@?#]*)?$')",
                "message": "an hf:// source is hf://owner/repository or hf://owner/repository@revision, such as hf://unsloth/Kimi-K2.5-GGUF@main, perhaps with a folder or file of it behind a '/'"
            },
            {
                "rule": r"!self.startsWith('s3://') || self.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?$')",
                "message": "an s3:// source is s3://bucket/prefix"
            },
            {
                "rule": r"!self.startsWith('oci://') || self.matches('^oci://[A-Za-z0-9.:-]+/[a-z0-9._/-]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})?$')",
                "message": "an oci:// source is oci://registry/repository:tag or oci://registry/repository@sha256:digest"
            },
            {
                "rule": r"!self.matches('[\\\\\\s]') && !self.matches('(^|/)[.][.](/|$)')",
                "message": "a source has no backslashes, spaces or '..'; write the directory's plain URL"
            }
        ])
    )]
    pub source: String,
    /// The files with their digests, in shard order, where the source offers no `SHA256SUMS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub files: Vec<ListedFile>,
    /// What a private source asks for. It goes to hosts in their session with the operator, and is never written into an
    /// object or onto a disk there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// Where a credential is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// A secret of the deployment's own namespace.
    pub secret_ref: SecretRef,
}

/// One value of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The secret's name. `tandem secret set` makes one.
    #[schemars(
        length(min = 1, max = 253),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')",
            "message": "a secret's name is a DNS name: a-z, 0-9, '.' and '-', with a letter or digit at both ends"
        }])
    )]
    pub name: String,
    /// Which of its values.
    #[schemars(
        length(min = 1, max = 253),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[A-Za-z0-9._-]+$')",
            "message": "a secret's key has letters, digits, '.', '_' and '-'"
        }])
    )]
    pub key: String,
}

/// A file of the source that a manifest vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedFile {
    /// Its path below the source.
    #[schemars(
        length(min = 1, max = 512),
        extend("x-kubernetes-validations" = [{
            "rule": r"self.endsWith('.gguf') && self.matches('^[A-Za-z0-9_][A-Za-z0-9._/-]*$') && !self.contains('..') && !self.contains('//')",
            "messageExpression": r#""'" + self + "' is not the path of a GGUF file below the source; write it as tiny-kimi-Q8_0.gguf or Q8_0/tiny-kimi-00001-of-00002.gguf""#,
            "message": "this is not the path of a GGUF file below the source; write it as tiny-kimi-Q8_0.gguf"
        }])
    )]
    pub name: String,
    /// What it must hash to: 64 lowercase hexadecimal digits.
    #[schemars(
        length(max = 128),
        extend("x-kubernetes-validations" = [{
            "rule": "self.matches('^[0-9a-f]{64}$')",
            "message": "a sha256 is 64 lowercase hexadecimal digits, as sha256sum prints them"
        }])
    )]
    pub sha256: String,
}

/// How long sequences may be, and how many fit at once. Both cost memory on every copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.poolTokens) || self.poolTokens >= self.tokens",
    "message": "poolTokens is less than tokens, so one longest sequence would not fit; raise poolTokens or lower tokens"
}]))]
pub struct Context {
    /// Longest sequence in tokens, prompt and answer together.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self >= 16 && self <= 4194304",
        "message": "context.tokens is out of range; use 16 to 4194304"
    }]))]
    pub tokens: u32,
    /// Tokens whose keys and values all sequences of a copy share; at least `tokens`, which is also what it is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self <= 67108864",
        "message": "context.poolTokens is out of range; use at most 67108864"
    }]))]
    pub pool_tokens: Option<u32>,
    /// How keys and values are stored.
    #[serde(default)]
    pub kv_cache: KvCache,
}

impl Context {
    /// Tokens in the pool: as stated, else one longest sequence.
    #[must_use]
    pub fn pool(&self) -> u32 {
        self.pool_tokens.unwrap_or(self.tokens)
    }
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum KvCache {
    /// Two bytes a value.
    #[default]
    F16,
    /// Four bytes a value.
    F32,
}

/// What shall survive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Redundancy {
    /// How many hosts may vanish, whichever they are, and `replicas` copies remain.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self >= 0 && self <= 8",
        "message": "hostFailures is out of range; use 0 to 8: each failure to survive costs at least one more host with a whole copy"
    }]))]
    pub host_failures: u32,
    /// How ready the copies are that cover a failure.
    pub standby: Standby,
    /// Seconds for which a silent host may come back before its copies are placed elsewhere.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self >= 0 && self <= 86400",
        "message": "replaceAfterSeconds is out of range; use 0 to 86400 (a day)"
    }]))]
    pub replace_after_seconds: u32,
}

impl Default for Redundancy {
    fn default() -> Self {
        Self { host_failures: 0, standby: Standby::Hot, replace_after_seconds: 60 }
    }
}

/// How ready the copies are that cover a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Standby {
    /// Loaded, and serving like every other copy.
    #[default]
    Hot,
    /// On disk and in the page cache of its host, checked there, and started when a failure calls for it. Its memory is reserved.
    /// `replicas` copies serve; when a host of one of them is silent for 5 s, a warm one is started in its place.
    Warm,
}

/// Where copies may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Kinds of device that may compute, any of them.
    #[schemars(length(min = 1, max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub accelerators: Vec<Accelerator>,
    /// Which hosts qualify; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selector: Option<HostSelector>,
    /// Who is placed first when more is asked than fits: lanes before age, then the oldest. Nothing that runs is stopped for it.
    pub lane: Lane,
}

impl Default for Placement {
    fn default() -> Self {
        Self { accelerators: vec![Accelerator::Cpu], host_selector: None, lane: Lane::default() }
    }
}

/// A kind of device that a deployment may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Accelerator {
    /// The processor, with its main memory.
    #[serde(rename = "CPU")]
    Cpu,
}

/// Who is placed first when more is asked than fits, in this order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Lane {
    /// What people wait for.
    #[default]
    Production,
    /// What may wait.
    Batch,
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Production => "Production",
            Self::Batch => "Batch",
        })
    }
}

/// Which hosts qualify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostSelector {
    /// Labels that a host must all have.
    #[schemars(
        extend("maxProperties" = 16),
        extend("x-kubernetes-validations" = [{
            "rule": "self.all(key, key.size() <= 317 && self[key].size() <= 63)",
            "message": "a label's key has at most 317 characters and its value 63; shorten them"
        }])
    )]
    pub match_labels: BTreeMap<String, String>,
}

/// Sampling for requests that don't say. Fractions are strings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sampling {
    /// 0 is greedy; up to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [{
        "rule": r"self.matches('^[0-9]{1,2}([.][0-9]{1,6})?$') && double(self) <= 2.0",
        "messageExpression": r#""temperature is '" + self + "'; use a number from 0 to 2, in quotes, such as \"0.7\"""#,
        "message": "temperature is out of range; use a number from 0 to 2, in quotes"
    }]))]
    pub temperature: Option<String>,
    /// Only the likeliest `topP` of the probability; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [{
        "rule": r"self.matches('^[0-9]([.][0-9]{1,6})?$') && double(self) > 0.0 && double(self) <= 1.0",
        "messageExpression": r#""topP is '" + self + "'; use a number above 0 and up to 1, in quotes, such as \"0.95\"""#,
        "message": "topP is out of range; use a number above 0 and up to 1, in quotes"
    }]))]
    pub top_p: Option<String>,
    /// Only tokens at least `minP` as likely as the likeliest; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [{
        "rule": r"self.matches('^[0-9]([.][0-9]{1,6})?$') && double(self) < 1.0",
        "messageExpression": r#""minP is '" + self + "'; use a number from 0 up to, but not, 1, in quotes, such as \"0.01\"""#,
        "message": "minP is out of range; use a number from 0 up to, but not, 1, in quotes"
    }]))]
    pub min_p: Option<String>,
    /// Only the `topK` likeliest tokens; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self >= 0 && self <= 1000000",
        "message": "topK is out of range; use 0 (off) to 1000000"
    }]))]
    pub top_k: Option<u32>,
    /// Divides the logits of tokens that were there before; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [{
        "rule": r"self.matches('^[0-9]{1,2}([.][0-9]{1,6})?$') && double(self) > 0.0 && double(self) <= 10.0",
        "messageExpression": r#""repetitionPenalty is '" + self + "'; use a number above 0 and up to 10, in quotes, such as \"1.05\"""#,
        "message": "repetitionPenalty is out of range; use a number above 0 and up to 10, in quotes"
    }]))]
    pub repetition_penalty: Option<String>,
}

/// What the operator made of a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct InferenceDeploymentStatus {
    /// `metadata.generation` that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Counts what `spec.replicas` counts: ready copies less those that only cover failures.
    pub replicas: u32,
    /// Copies that the plan has placed.
    pub copies: u32,
    /// Copies that serve.
    pub ready_copies: u32,
    /// Copies that serve of those that shall, such as `2/2`, for tables.
    #[schemars(length(max = 32))]
    pub ready: String,
    /// Selects this deployment's workloads, for autoscalers.
    #[schemars(length(max = 256))]
    pub selector: String,
    /// Where clients reach the model: a gateway's URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// The weights, resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,
    /// Memory that one copy takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizing: Option<Sizing>,
    /// What would answer if `hostFailures` hosts vanished now: `Hot`, `Warm ~N s` or `None`. N is the time in which a silent host
    /// is noticed and what the slowest warm copy takes to serve, as its host has measured; `Warm, time not measured yet` before
    /// that.
    #[schemars(length(max = 64))]
    pub cover: String,
    /// Where the copies are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["workload"])
    )]
    pub placements: Vec<PlacementStatus>,
    /// The repair in progress; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// Ready, Redundant, Degraded, Reconciling, Stalled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// The weights, resolved once: hosts fetch exactly these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// Names the content: a digest over the files' digests.
    #[schemars(length(max = 128))]
    pub revision: String,
    /// Where the files are, with the source's revision pinned where it has one: what hosts fetch from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub source: String,
    /// The files in shard order.
    #[serde(default)]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub files: Vec<ResolvedFile>,
}

/// One shard, with what it must hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedFile {
    /// Path below the source.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// 64 lowercase hexadecimal digits.
    #[schemars(length(min = 64, max = 64))]
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
}

/// Memory that one copy takes, as the engine's static memory plan has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sizing {
    /// Tensors.
    pub weights_bytes: u64,
    /// Pool of keys and values, for `context.poolTokens`.
    pub kv_bytes: u64,
    /// Working memory of a step.
    pub arena_bytes: u64,
    /// Their sum: what a host must have free.
    pub total_bytes: u64,
}

/// Where one copy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// The copy's workload id.
    #[schemars(length(min = 1, max = 63))]
    pub workload: String,
    /// Its host.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Its start number.
    pub epoch: u64,
    /// How far it is: a workload state, `Assigned` before the host has reported it, `Unknown` while the host is silent.
    #[schemars(length(max = 32))]
    pub state: String,
    /// How its weights come, while they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferStatus>,
}

/// A repair in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// When redundancy was lost.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time"))]
    pub since: Timestamp,
    /// What was lost, and what happens next.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

fn one() -> u32 {
    1
}
