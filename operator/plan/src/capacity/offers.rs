//! What would fit where a deployment doesn't, and what would hold its promise.

use serde::Serialize;
use tandem_crds::{Context, DeviceKind};

use super::{Fleet, LimitKind, ModelFacts, Need, OptionReport, Question, hosts};
use crate::size::human;

/// Pools and contexts are offered in whole steps of this many tokens.
const STEP: u64 = 1024;
/// No shorter context is offered: nobody would want it.
const LEAST_CONTEXT: u64 = 4096;

/// Nobody joins more machines to one copy.
const MOST_HOSTS: usize = 16;

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// For programs.
    pub offer: OfferKind,
    /// Pool or context in tokens, or hosts or devices, as the kind has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// A quant's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    /// For people.
    pub sentence: String,
}

/// What kind of way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OfferKind {
    /// `context.poolTokens` lower.
    SmallerPool,
    /// `context.tokens` lower, too.
    ShorterContext,
    /// Another quant.
    SmallerQuant,
    /// More hosts of the kind.
    MoreHosts,
    /// Over several devices or hosts, which this release can't.
    Sharded,
    /// There is no quant that would fit, as far as is known.
    Nothing,
}

pub(super) fn offers(
    facts: &ModelFacts,
    question: &Question<'_>,
    need: &Need,
    fleet: &Fleet,
    option: &OptionReport,
) -> Vec<Offer> {
    let mut offers = Vec::new();
    if !option.fits {
        let is_by_memory = option.limits.iter().any(|limit| limit.limit == LimitKind::DeviceMemory);
        if !is_by_memory {
            return offers;
        }
        offers.extend(fewer_tokens(facts, question, need, option.room_bytes));
        match smaller_quant(facts, question, need, option.room_bytes) {
            Some(smaller) => offers.push(smaller),
            None if offers.is_empty() => offers.push(nothing(facts)),
            None => {}
        }
        offers.extend(sharded(question, need, fleet, option.device));
        return offers;
    }
    if option.hosts_missing > 0 {
        let missing = option.hosts_missing;
        offers.push(Offer {
            offer: OfferKind::MoreHosts,
            number: Some(missing.into()),
            quant: None,
            sentence: format!(
                "{missing} more such host{} to keep {} through {} lost host{}",
                plural(missing),
                if question.spec.replicas == 1 {
                    "a copy".to_owned()
                } else {
                    format!("{} copies", question.spec.replicas)
                },
                question.spec.redundancy.host_failures,
                plural(question.spec.redundancy.host_failures),
            ),
        });
    }
    offers
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A smaller pool, else a shorter context with a pool of its length.
fn fewer_tokens(facts: &ModelFacts, question: &Question<'_>, need: &Need, room: u64) -> Option<Offer> {
    let (pool, tokens) = fitting_tokens(facts, question, need.weights_bytes, need, room)?;
    let offer = if tokens == u64::from(question.spec.context.tokens) {
        OfferKind::SmallerPool
    } else {
        OfferKind::ShorterContext
    };
    Some(Offer {
        offer,
        number: Some(pool),
        quant: None,
        sentence: format!("{} would fit", settings(question, pool, tokens)),
    })
}

fn settings(question: &Question<'_>, pool: u64, tokens: u64) -> String {
    if tokens == u64::from(question.spec.context.tokens) {
        format!("context.poolTokens {pool}")
    } else {
        format!("context.tokens {tokens}, with a pool as long,")
    }
}

/// The largest pool that fits beside so many bytes of weights, and the longest context that it holds.
fn fitting_tokens(
    facts: &ModelFacts,
    question: &Question<'_>,
    weights: u64,
    need: &Need,
    room: u64,
) -> Option<(u64, u64)> {
    let context = &question.spec.context;
    let spare = room.checked_sub(weights)?;
    let most = (spare / need.kv_bytes_per_token.max(1)).min(context.pool().into()) / STEP * STEP;
    let tokens = u64::from(context.tokens);
    // Working memory takes some of the room, and grows with the pool's pages a little: tried from above, in few steps.
    let beside =
        |asked: &Context| facts.need(asked).map(|need| need.kv_bytes.saturating_add(need.arena_bytes));
    let tries =
        (0..64).map(|step| most.saturating_sub(step * STEP)).take_while(|pool| *pool >= LEAST_CONTEXT);
    tries.map(|pool| (pool, pool.min(tokens))).find(|(pool, tokens)| {
        let (Ok(pool), Ok(tokens)) = (u32::try_from(*pool), u32::try_from(*tokens)) else { return false };
        let asked = Context { tokens, pool_tokens: Some(pool), kv_cache: context.kv_cache };
        beside(&asked).is_ok_and(|beside| beside <= spare)
    })
}

/// The largest quant that fits, with the context as it is if any fits so, else with a shorter one.
fn smaller_quant(facts: &ModelFacts, question: &Question<'_>, need: &Need, room: u64) -> Option<Offer> {
    let beside = need.kv_bytes.saturating_add(need.arena_bytes);
    let smaller = || facts.others().iter().filter(|other| other.bytes < need.file_bytes);
    let offer = |quant: &str, bytes, how: &str| Offer {
        offer: OfferKind::SmallerQuant,
        number: Some(bytes),
        quant: Some(quant.to_owned()),
        sentence: format!("{quant} ({}){how} would fit", human(bytes)),
    };
    if let Some(other) = smaller().find(|other| other.bytes.saturating_add(beside) <= room) {
        return Some(offer(&other.quant, other.bytes, ""));
    }
    smaller().find_map(|other| {
        let (pool, tokens) = fitting_tokens(facts, question, other.bytes, need, room)?;
        Some(offer(&other.quant, other.bytes, &format!(" with {}", settings(question, pool, tokens))))
    })
}

fn nothing(facts: &ModelFacts) -> Offer {
    let smallest = facts.others().last();
    let sentence = smallest.map_or("no smaller quant is known".to_owned(), |smallest| {
        format!(
            "not even {} ({}) would fit, the smallest that is known",
            smallest.quant,
            human(smallest.bytes)
        )
    });
    Offer { offer: OfferKind::Nothing, number: None, quant: None, sentence }
}

/// The fewest devices of one host, else of several, whose rooms add up: each holds a part of the weights and of the cache, and
/// working memory of its own.
fn sharded(question: &Question<'_>, need: &Need, fleet: &Fleet, kind: DeviceKind) -> Option<Offer> {
    let parts = need.weights_bytes.saturating_add(need.kv_bytes);
    let count = |rooms: &mut Vec<u64>| {
        rooms.sort_unstable_by_key(|room| std::cmp::Reverse(*room));
        let mut sum = 0_u64;
        rooms.iter().position(|room| {
            sum = sum.saturating_add(room.saturating_sub(need.arena_bytes));
            sum >= parts
        })
    };
    let rooms = |host| hosts::rooms(host, question, kind);
    let in_one = fleet.hosts.iter().filter_map(|host| count(&mut rooms(host))).min();
    let over = |devices: usize, places: String| Offer {
        offer: OfferKind::Sharded,
        number: Some(devices as u64),
        quant: None,
        sentence: format!("it would fit sharded over {places}, which is not supported yet"),
    };
    if let Some(last) = in_one {
        return Some(over(last + 1, format!("{} {} devices of one host", last + 1, hosts::word(kind))));
    }
    // Hosts in whole: the devices of one stand together.
    let mut whole: Vec<u64> = fleet
        .hosts
        .iter()
        .map(|host| rooms(host).iter().map(|room| room.saturating_sub(need.arena_bytes)).sum())
        .collect();
    let roomiest = whole.iter().copied().max().unwrap_or(0);
    whole.iter_mut().for_each(|room| *room = room.saturating_add(need.arena_bytes));
    if let Some(last) = count(&mut whole) {
        return Some(over(last + 1, format!("{} hosts", last + 1)));
    }
    // More of them than there are.
    let hosts = usize::try_from(parts.div_ceil(roomiest.max(1))).ok().filter(|hosts| *hosts <= MOST_HOSTS)?;
    Some(over(hosts, format!("{hosts} such hosts")))
}
