//! What a deployment would need and where it would fit, before anybody buys a machine. Pure: facts about a model, a spec and
//! hosts in, a report out, whose field names and units programs may rely on. Nothing here is known of a cluster's other
//! deployments but what the hosts' specs say.

mod explain;
mod facts;
mod hosts;
mod offers;
mod speed;

use serde::Serialize;
use tandem_crds::{DeviceKind, InferenceDeploymentSpec, InferenceHost, KvCache, Standby};

pub use explain::rules_of_thumb;
pub use facts::{Known, ModelFacts, OtherQuant};
pub use offers::{Offer, OfferKind};
pub use speed::{Ready, Speed};

use crate::survive::{missing_hosts, survivors};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// For the report.
    pub deployment: &'a str,
    /// What shall run.
    pub spec: &'a InferenceDeploymentSpec,
    /// Kinds of device to look at; none: every kind that the hosts have.
    pub kinds: &'a [DeviceKind],
    /// How fast a host downloads, in bytes a second.
    pub download_bytes_per_second: u64,
}

/// Hosts that would work together.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// What to call it.
    pub name: String,
    /// Its machines.
    pub hosts: Vec<InferenceHost>,
}

/// The answer. All sizes are bytes, all times seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `namespace/name`.
    pub deployment: String,
    /// What clients ask for.
    pub model: String,
    /// As the manifest has it.
    pub source: String,
    /// As the manifest has it.
    pub quant: String,
    /// Longest sequence.
    pub context_tokens: u32,
    /// Tokens of all sequences together.
    pub pool_tokens: u32,
    /// Type of the cache.
    pub kv_cache: KvCache,
    /// Hosts that may vanish.
    pub host_failures: u32,
    /// Copies that remain then.
    pub replicas: u32,
    /// Where the size is known from, in words.
    pub known_from: String,
    /// What a copy takes; absent where nothing can run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need: Option<Need>,
    /// Why no host whatsoever runs it in this release.
    pub limits: Vec<Limit>,
    /// One for each fleet.
    pub fleets: Vec<FleetReport>,
}

/// What a copy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Need {
    /// Whether the number is the engine's own plan of the very files, or rests on the catalogue.
    pub exactness: Exactness,
    /// Tensors.
    pub weights_bytes: u64,
    /// Pool of keys and values.
    pub kv_bytes: u64,
    /// One token in it.
    pub kv_bytes_per_token: u64,
    /// Working memory.
    pub arena_bytes: u64,
    /// Sum of weights, pool and working memory.
    pub total_bytes: u64,
    /// What is downloaded, and takes room on a disk.
    pub file_bytes: u64,
    /// Weights that one token of one sequence reads.
    pub active_bytes_per_token: u64,
}

/// How good a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Exactness {
    /// To the byte, what a worker takes.
    Exact,
    /// Near.
    Estimated,
}

/// What stands against a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// For programs.
    pub limit: LimitKind,
    /// How much is missing, where that is a matter of bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_bytes: Option<u64>,
    /// For people.
    pub sentence: String,
}

/// By what a copy is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LimitKind {
    /// A device's memory.
    DeviceMemory,
    /// Room for the files.
    Disk,
    /// The manifest's selector.
    HostSelector,
    /// Nothing in this release computes on such devices.
    NoBackEnd,
    /// The kernels lack types of the model's tensors.
    TypeNotSupported,
    /// The engine doesn't know the architecture, or this form of it.
    ArchitectureNotSupported,
    /// The context is longer than the model's.
    ContextTooLong,
}

/// One fleet's answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetReport {
    /// Its name.
    pub fleet: String,
    /// Its machines.
    pub hosts: usize,
    /// For each kind of device.
    pub options: Vec<OptionReport>,
}

/// Copies on one kind of device of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OptionReport {
    /// The kind.
    pub device: DeviceKind,
    /// The roomiest device's name.
    pub device_name: String,
    /// How many of the kind there are.
    pub devices: usize,
    /// What the roomiest device takes, less the margin.
    pub room_bytes: u64,
    /// Of the copy's size there.
    pub exactness: Exactness,
    /// Whether memory and disk take a copy.
    pub fits: bool,
    /// Whether this release would run it.
    pub runs: bool,
    /// What stands against it.
    pub limits: Vec<Limit>,
    /// Hosts that take a copy.
    pub hosts_that_fit: usize,
    /// What would answer after `hostFailures`: `Hot`, `Warm ~N s` or `None`.
    pub cover: String,
    /// Hosts that the promise lacks.
    pub hosts_missing: u32,
    /// Decoding of one stream, where a copy fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<Speed>,
    /// Until a first copy serves, where one fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// What would fit, or hold the promise.
    pub offers: Vec<Offer>,
}

/// Answers for every fleet.
#[must_use]
pub fn capacity(facts: &ModelFacts, question: &Question<'_>, fleets: &[Fleet]) -> Report {
    let spec = question.spec;
    let sized = facts.need(&spec.context);
    let mut limits = facts.lacking_limit(&spec.context).into_iter().collect::<Vec<_>>();
    let need = match sized {
        Ok(need) => Some(need),
        Err(limit) => {
            limits.push(limit);
            None
        }
    };
    let answer = |fleet: &Fleet| FleetReport {
        fleet: fleet.name.clone(),
        hosts: fleet.hosts.len(),
        options: need.map_or_else(Vec::new, |need| options(facts, question, &need, &limits, fleet)),
    };
    Report {
        deployment: question.deployment.to_owned(),
        model: spec.model.name.clone(),
        source: spec.model.source.clone(),
        quant: spec.quant.clone(),
        context_tokens: spec.context.tokens,
        pool_tokens: spec.context.pool(),
        kv_cache: spec.context.kv_cache,
        host_failures: spec.redundancy.host_failures,
        replicas: spec.replicas,
        known_from: facts.known_from(),
        need,
        fleets: fleets.iter().map(answer).collect(),
        limits,
    }
}

fn options(
    facts: &ModelFacts,
    question: &Question<'_>,
    need: &Need,
    general: &[Limit],
    fleet: &Fleet,
) -> Vec<OptionReport> {
    let mut kinds: Vec<DeviceKind> =
        fleet.hosts.iter().flat_map(hosts::devices).map(|device| device.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds.retain(|kind| question.kinds.is_empty() || question.kinds.contains(kind));
    // Accelerators first: they are why the machine was bought.
    kinds.reverse();
    kinds.into_iter().map(|kind| option(facts, question, need, general, fleet, kind)).collect()
}

fn option(
    facts: &ModelFacts,
    question: &Question<'_>,
    need: &Need,
    general: &[Limit],
    fleet: &Fleet,
    kind: DeviceKind,
) -> OptionReport {
    let spec = question.spec;
    let seats: Vec<hosts::Seat> =
        fleet.hosts.iter().filter_map(|host| hosts::seat(host, question, need, kind)).collect();
    let copies: Vec<u32> = seats.iter().map(|seat| seat.copies.min(spec.replicas.max(1))).collect();
    let (failures, replicas) = (spec.redundancy.host_failures, spec.replicas.max(1));
    let best = seats.iter().max_by_key(|seat| (seat.copies, seat.room));
    let fits = copies.iter().any(|copies| *copies > 0);
    let mut limits = general.to_vec();
    if !fits && let Some(best) = best {
        limits.extend(best.limits.iter().cloned());
    }
    if kind != DeviceKind::Cpu {
        limits.push(Limit {
            limit: LimitKind::NoBackEnd,
            missing_bytes: None,
            sentence: format!("this release computes on CPUs only, not with {}", hosts::word(kind)),
        });
    }
    let device = best.map(|seat| seat.device);
    let ready = best.filter(|_| fits).map(|seat| speed::ready(question, need, seat.host));
    let covered = fits && survivors(copies.iter().copied(), failures) >= replicas;
    let cover = match (covered && failures > 0, spec.redundancy.standby, &ready) {
        (false, ..) => "None".to_owned(),
        (true, Standby::Hot, _) => "Hot".to_owned(),
        (true, Standby::Warm, ready) => {
            format!("Warm ~{} s", ready.as_ref().map_or(0, |ready| ready.load_seconds))
        }
    };
    let mut report = OptionReport {
        device: kind,
        device_name: device.map(|device| device.name.clone()).unwrap_or_default(),
        devices: fleet.hosts.iter().flat_map(hosts::devices).filter(|device| device.kind == kind).count(),
        room_bytes: best.map_or(0, |seat| seat.room),
        exactness: if kind == DeviceKind::Cpu { need.exactness } else { Exactness::Estimated },
        fits,
        runs: fits && limits.is_empty(),
        limits,
        hosts_that_fit: copies.iter().filter(|copies| **copies > 0).count(),
        cover,
        hosts_missing: missing_hosts(&copies, failures, replicas),
        tokens_per_second: device.filter(|_| fits).and_then(|device| speed::of(facts, spec, need, device)),
        ready,
        offers: Vec::new(),
    };
    report.offers = offers::offers(facts, question, need, fleet, &report);
    report
}
