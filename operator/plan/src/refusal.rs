//! Why a deployment can't have what it asks for, by the resource that limits it, and what would fit.

use crate::input::Model;
use crate::parse::{Presence, Wanted, World};
use crate::place::{copies, mismatch};
use crate::size::human;
use crate::survive::{missing_hosts, most_failures, survivors};

/// A refusal, in part or in whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// For programs.
    pub(crate) reason: &'static str,
    /// For people: what limits, and what to change.
    pub(crate) sentence: String,
}

pub(crate) fn unknown_size() -> Refusal {
    Refusal {
        reason: "SizeUnknown",
        sentence:
            "what a copy takes is not known, so none is placed; use files whose GGUF headers can be read"
                .to_owned(),
    }
}

/// No worker would load it.
pub(crate) fn lacks_kernels(types: &[String]) -> Refusal {
    Refusal {
        reason: "TypeNotSupported",
        sentence: format!(
            "this release's kernels lack {}, of which the files hold tensors; use a quant without {}",
            types.join(", "),
            if types.len() == 1 { "it" } else { "them" }
        ),
    }
}

/// What a refusal is explained from.
pub(crate) struct Case<'a> {
    pub(crate) world: &'a World<'a>,
    pub(crate) wanted: &'a Wanted<'a>,
    /// Bytes of one copy.
    pub(crate) need: u64,
    /// Copies that hosts could have, of those that could have any.
    pub(crate) limits: &'a [u32],
    /// Hosts that it may be on, in order.
    pub(crate) matching: &'a [usize],
    /// Which hosts take new copies.
    pub(crate) open: &'a [bool],
    /// Bytes that each host has left.
    pub(crate) free: &'a [u64],
}

pub(crate) fn explain(case: &Case) -> Refusal {
    let hosts = &case.world.hosts;
    if hosts.is_empty() {
        return refuse(
            "NoHosts",
            "no host has joined; make a token with `tandem join-token` and start an agent with it",
        );
    }
    let Some(first) = case.matching.first() else {
        let reason = mismatch(&hosts[0], case.wanted.spec).unwrap_or_default();
        let sentence =
            format!("no host matches placement.hostSelector ({reason}); label a host or change the selector");
        return refuse("NoHostMatches", &sentence);
    };
    let open: Vec<usize> = case.matching.iter().copied().filter(|host| case.open[*host]).collect();
    let holding = case.limits.iter().any(|limit| *limit > 0);
    if open.is_empty() && !holding {
        let sentence = format!(
            "none of {} takes new copies ({}); uncordon one or add a host",
            count(case.matching.len(), "matching host"),
            why_closed(case.world, *first)
        );
        return refuse("NoHostOpen", &sentence);
    }
    if !holding { too_large(case, &open) } else { too_few(case) }
}

fn refuse(reason: &'static str, sentence: &str) -> Refusal {
    Refusal { reason, sentence: sentence.to_owned() }
}

fn why_closed(world: &World, host: usize) -> String {
    let host = &world.hosts[host];
    let name = host.name;
    match host.presence {
        Presence::Silent { .. } => format!("{name} is silent"),
        Presence::Absent => format!("{name} has never reported"),
        Presence::Known if host.is_draining() => format!("{name} is being drained"),
        Presence::Known => format!("{name} is cordoned"),
    }
}

/// Not even one copy fits anywhere.
fn too_large(case: &Case, open: &[usize]) -> Refusal {
    let need = human(case.need);
    let Some(best) = open.iter().copied().max_by_key(|host| (case.free[*host], std::cmp::Reverse(*host)))
    else {
        return refuse("DoesNotFit", &format!("a copy needs {need}; add a host with that much free"));
    };
    let name = case.world.hosts[best].name;
    let free = case.free[best];
    let offer = smaller_pool(case, free).map_or_else(
        || "use a smaller quant".to_owned(),
        |tokens| format!("lower context.poolTokens to {tokens}"),
    );
    let held = held_by_others(case, open);
    let sentence = format!(
        "a copy needs {need}, the largest free host {name} has {}{held}: {offer}, or add a host",
        human(free)
    );
    refuse("DoesNotFit", &sentence)
}

/// Most holders that a sentence names.
const MAX_NAMED: usize = 6;

/// Which other deployments hold what would have been enough, such as `; llm/other, which is older, holds 3.0 GiB on b`.
fn held_by_others(case: &Case, open: &[usize]) -> String {
    let mut named = Vec::new();
    let mut more = 0;
    let own = case.wanted.spec.placement.lane;
    let joins = case.world.joins;
    // All that runs there is at least what others hold; most hosts are too small even without any of it.
    let large = |host: &usize| case.free[*host].saturating_add(joins.taken[*host].0) >= case.need;
    for host in open.iter().copied().filter(|host| case.free[*host] < case.need && large(host)) {
        let tenants = || {
            let all = joins.tenants[host].iter().filter(|(_, bytes)| *bytes > 0);
            let all = all.map(|(other, bytes)| (&case.world.deployments[*other], *bytes));
            all.filter(|(other, _)| other.key != case.wanted.key)
        };
        let sum = tenants().fold(case.free[host], |sum, (_, bytes)| sum.saturating_add(bytes));
        if sum < case.need {
            continue;
        }
        for (other, bytes) in tenants() {
            if named.len() >= MAX_NAMED {
                more += 1;
                continue;
            }
            let lane = other.spec.placement.lane;
            let why = if lane < own {
                format!("is of lane {lane}, before {own}")
            } else if lane == own && other.created <= case.wanted.created {
                "is older".to_owned()
            } else {
                "runs already".to_owned()
            };
            let name = case.world.hosts[host].name;
            named.push(format!("; {}, which {why}, holds {} on {name}", other.key, human(bytes)));
        }
    }
    let mut held = named.concat();
    if more > 0 {
        held.push_str(&format!("; and {more} more hold room"));
    }
    held
}

/// The largest pool with which a copy would fit, if it still holds one longest sequence.
fn smaller_pool(case: &Case, free: u64) -> Option<u64> {
    let Model::Resolved(resolved) = case.wanted.model else { return None };
    let context = &case.wanted.spec.context;
    let rest = resolved.sizing.total_bytes.checked_sub(resolved.sizing.kv_bytes)?;
    let for_pool = free.checked_sub(rest)?;
    let tokens =
        u128::from(for_pool) * u128::from(context.pool()) / u128::from(resolved.sizing.kv_bytes.max(1));
    let tokens = u64::try_from(tokens).ok()? / 256 * 256;
    (tokens >= u64::from(context.tokens)).then_some(tokens)
}

/// Copies fit, but not enough of them on enough hosts.
fn too_few(case: &Case) -> Refusal {
    let redundancy = &case.wanted.spec.redundancy;
    let replicas = case.wanted.spec.replicas;
    let failures = redundancy.host_failures;
    let need = human(case.need);
    let missing = missing_hosts(case.limits, failures, replicas) as usize;
    let add = count(missing, "host");
    let able = case.limits.iter().filter(|limit| **limit > 0).count();
    let or = match (most_failures(case.limits, replicas), survivors(case.limits.iter().copied(), failures)) {
        (Some(fewer), _) if fewer < failures => format!(", or lower redundancy.hostFailures to {fewer}"),
        (_, 0) => String::new(),
        (_, possible) => format!(", or scale to {possible}"),
    };
    let open: Vec<usize> = (0..case.open.len()).filter(|host| case.open[*host]).collect();
    let held = held_by_others(case, &open);
    let sentence = if failures == 0 {
        let room = case.limits.iter().sum::<u32>();
        format!(
            "{} shall serve, there is room for {room}; a copy needs {need}{held}: add {add}{or}",
            copies(replicas)
        )
    } else {
        format!(
            "hostFailures {failures} with replicas {replicas} needs {} with {need} free, {}{held}: add {add}{or}",
            count(missing, "more host"),
            if able == 1 {
                "beside the 1 that has it".to_owned()
            } else {
                format!("beside the {able} that have it")
            }
        )
    };
    refuse(if failures == 0 { "NotEnoughRoom" } else { "NotEnoughHosts" }, &sentence)
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
