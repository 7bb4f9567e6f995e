//! What would fit where a deployment doesn't, and what would hold its promise.

use serde::Serialize;
use tandem_crds::{Context, DeviceKind};

use super::{Fleet, ModelFacts, Need, OptionReport, Question, hosts};
use crate::size::human;

/// Pools and contexts are offered in whole steps of this many tokens.
const STEP: u64 = 1024;
/// No shorter context is offered: nobody would want it.
const LEAST_CONTEXT: u64 = 4096;

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
        offers.extend(tokens(facts, question, need, option.room_bytes));
        offers.extend(smaller_quant(facts, need, option.room_bytes));
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
fn tokens(facts: &ModelFacts, question: &Question<'_>, need: &Need, room: u64) -> Option<Offer> {
    let context = &question.spec.context;
    // Working memory grows with the pool's pages a little, so the largest number is checked and not computed.
    let fits = |tokens: u64, pool: u64| {
        let (Ok(tokens), Ok(pool)) = (u32::try_from(tokens), u32::try_from(pool)) else { return false };
        let asked = Context { tokens, pool_tokens: Some(pool), kv_cache: context.kv_cache };
        facts.need(&asked).is_ok_and(|need| need.total_bytes <= room)
    };
    let spare = room.checked_sub(need.weights_bytes)?;
    let most = spare / need.kv_bytes_per_token.max(1) / STEP * STEP;
    let down = |least: u64, from: u64| {
        (0..64).map(move |step| from.saturating_sub(step * STEP)).take_while(move |tokens| *tokens >= least)
    };
    let tokens = u64::from(context.tokens);
    let pool = down(tokens, most.min(context.pool().into())).find(|pool| fits(tokens, *pool));
    if let Some(pool) = pool {
        return Some(Offer {
            offer: OfferKind::SmallerPool,
            number: Some(pool),
            quant: None,
            sentence: format!("context.poolTokens {pool} would fit"),
        });
    }
    let shorter = down(LEAST_CONTEXT, most.min(tokens)).find(|tokens| fits(*tokens, *tokens))?;
    Some(Offer {
        offer: OfferKind::ShorterContext,
        number: Some(shorter),
        quant: None,
        sentence: format!("context.tokens {shorter}, with a pool as long, would fit"),
    })
}

fn smaller_quant(facts: &ModelFacts, need: &Need, room: u64) -> Option<Offer> {
    let beside = need.kv_bytes.saturating_add(need.arena_bytes);
    let fits = |bytes: u64| bytes.saturating_add(beside) <= room;
    let other = facts.others().iter().find(|other| other.bytes < need.file_bytes && fits(other.bytes))?;
    Some(Offer {
        offer: OfferKind::SmallerQuant,
        number: Some(other.bytes),
        quant: Some(other.quant.clone()),
        sentence: format!("{} ({}) would fit", other.quant, human(other.bytes)),
    })
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
    whole.iter_mut().for_each(|room| *room = room.saturating_add(need.arena_bytes));
    let last = count(&mut whole)?;
    Some(over(last + 1, format!("{} hosts", last + 1)))
}
