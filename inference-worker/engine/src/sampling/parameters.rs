//! Reads a request's sampling parameters: in range, or a sentence that names the field and what it may be.

use std::ops::RangeInclusive;

use tandem_worker_api as api;
use thiserror::Error;

/// Most entries of a `logit_bias`.
const MAX_BIASES: usize = 1024;

/// Sampling parameters of one request. Every value is finite and in its range.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    pub(super) temperature: f32,
    pub(super) top_k: usize,
    pub(super) top_p: f64,
    pub(super) min_p: f64,
    pub(super) repetition_penalty: f32,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
    /// Ascending by id, each id once.
    pub(super) logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    /// Draws from the model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

/// A sampling parameter that can't be used; for the client.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{message}")]
pub struct BadParameter {
    /// The request's field.
    pub parameter: &'static str,
    /// What is wrong with it, and what it may be.
    pub message: String,
}

impl Sampling {
    /// The most likely token each time, the lower id of equals.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Reads `asked`, for a vocabulary of `vocab_size` tokens. What it does not say is as in `defaults`, else neutral.
    ///
    /// # Errors
    /// When a value is not finite or outside of its range.
    pub fn parse(
        asked: &api::Sampling,
        defaults: &api::SamplingDefaults,
        vocab_size: usize,
    ) -> Result<Self, BadParameter> {
        let neutral = Self::default();
        let pick = |name, asked: Option<f32>, default: Option<f32>, neutral: f32, range| {
            in_range(name, asked.or(default).unwrap_or(neutral), range)
        };
        let repetition_penalty = pick(
            "repetition_penalty",
            asked.repetition_penalty,
            defaults.repetition_penalty,
            neutral.repetition_penalty,
            0.01..=100.0,
        )?;
        Ok(Self {
            temperature: pick(
                "temperature",
                asked.temperature,
                defaults.temperature,
                neutral.temperature,
                0.0..=100.0,
            )?,
            top_k: asked.top_k.or(defaults.top_k).unwrap_or(0) as usize,
            top_p: pick("top_p", asked.top_p, defaults.top_p, 1.0, 0.0..=1.0)?.into(),
            min_p: pick("min_p", asked.min_p, defaults.min_p, 0.0, 0.0..=1.0)?.into(),
            repetition_penalty,
            presence_penalty: pick("presence_penalty", asked.presence_penalty, None, 0.0, -2.0..=2.0)?,
            frequency_penalty: pick("frequency_penalty", asked.frequency_penalty, None, 0.0, -2.0..=2.0)?,
            logit_bias: parse_biases(&asked.logit_bias, vocab_size)?,
        })
    }
}

fn in_range(parameter: &'static str, value: f32, range: RangeInclusive<f32>) -> Result<f32, BadParameter> {
    if range.contains(&value) {
        return Ok(value);
    }
    let message = format!("{parameter} is {value}; it must be from {} to {}", range.start(), range.end());
    Err(BadParameter { parameter, message })
}

fn parse_biases(biases: &[api::LogitBias], vocab_size: usize) -> Result<Vec<(u32, f32)>, BadParameter> {
    let refuse = |message| BadParameter { parameter: "logit_bias", message };
    if biases.len() > MAX_BIASES {
        let message = format!("logit_bias has {} entries; it may have at most {MAX_BIASES}", biases.len());
        return Err(refuse(message));
    }
    let mut parsed = Vec::with_capacity(biases.len());
    for entry in biases {
        if entry.id as usize >= vocab_size {
            return Err(refuse(format!(
                "logit_bias names token {}, but this model's ids end at {}",
                entry.id,
                vocab_size.saturating_sub(1)
            )));
        }
        parsed.push((entry.id, in_range("logit_bias", entry.bias, -100.0..=100.0)?));
    }
    parsed.sort_by_key(|&(id, _)| id);
    if let Some(pair) = parsed.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(refuse(format!("logit_bias names token {} twice; name it once", pair[0].0)));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(asked: &api::Sampling) -> Result<Sampling, BadParameter> {
        let defaults =
            api::SamplingDefaults { temperature: Some(0.5), min_p: Some(0.01), ..Default::default() };
        Sampling::parse(asked, &defaults, 100)
    }

    #[test]
    fn the_request_goes_before_the_defaults() {
        let sampling = parse(&api::Sampling { temperature: Some(0.0), ..Default::default() }).unwrap();
        assert_eq!(sampling.temperature, 0.0);
        assert_eq!(sampling.min_p, f64::from(0.01f32));
        assert_eq!(sampling.top_p, 1.0);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let bias = |id, bias| api::LogitBias { id, bias };
        let base = api::Sampling::default;
        for (asked, parameter) in [
            (api::Sampling { temperature: Some(-0.1), ..base() }, "temperature"),
            (api::Sampling { temperature: Some(f32::NAN), ..base() }, "temperature"),
            (api::Sampling { temperature: Some(f32::INFINITY), ..base() }, "temperature"),
            (api::Sampling { top_p: Some(1.5), ..base() }, "top_p"),
            (api::Sampling { min_p: Some(-1.0), ..base() }, "min_p"),
            (api::Sampling { repetition_penalty: Some(0.0), ..base() }, "repetition_penalty"),
            (api::Sampling { presence_penalty: Some(2.1), ..base() }, "presence_penalty"),
            (api::Sampling { frequency_penalty: Some(-2.1), ..base() }, "frequency_penalty"),
            (api::Sampling { logit_bias: vec![bias(100, 1.0)], ..base() }, "logit_bias"),
            (api::Sampling { logit_bias: vec![bias(1, 101.0)], ..base() }, "logit_bias"),
            (api::Sampling { logit_bias: vec![bias(1, 1.0), bias(1, 2.0)], ..base() }, "logit_bias"),
            (
                api::Sampling { logit_bias: (0..2000).map(|id| bias(id, 1.0)).collect(), ..base() },
                "logit_bias",
            ),
        ] {
            let error = parse(&asked).unwrap_err();
            assert_eq!(error.parameter, parameter, "{error}");
        }
    }

    #[test]
    fn a_sentence_says_what_may_be() {
        let error = parse(&api::Sampling { top_p: Some(1.5), ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), "top_p is 1.5; it must be from 0 to 1");
    }
}
