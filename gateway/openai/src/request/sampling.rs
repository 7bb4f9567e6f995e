//! How to sample, as OpenAI and llama.cpp name it.

use serde_json::Value;
use tandem_worker_api::{LogitBias, Sampling};

use crate::error::ApiError;
use crate::fields::Fields;

/// More than any use has, and a bound on what every token costs.
const MAX_BIASES: usize = 1024;

pub(super) fn parse(fields: &mut Fields) -> Result<Sampling, ApiError> {
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_k: top_k(fields)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        logit_bias: logit_bias(fields)?,
    })
}

/// Any 64 bits; negative ones too.
pub(super) fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    match value.as_i64().map(i64::cast_unsigned).or(value.as_u64()) {
        Some(seed) => Ok(Some(seed)),
        None => Err(fields.wrong("seed", "a whole number of 64 bits", &value)),
    }
}

/// Some clients say -1 for off.
fn top_k(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    match fields.take("top_k") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => match value.as_u64().and_then(|k| u32::try_from(k).ok()) {
            Some(k) => Ok(Some(k)),
            None => Err(fields.wrong("top_k", "a whole number, 0 for off", &value)),
        },
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<LogitBias>, ApiError> {
    let biases = fields.object("logit_bias")?.unwrap_or_default();
    let wrong = || {
        ApiError::field(
            "logit_bias",
            format!("`logit_bias` must map up to {MAX_BIASES} token ids to numbers from -100 to 100"),
        )
    };
    if biases.len() > MAX_BIASES {
        return Err(wrong());
    }
    let mut biases = biases
        .iter()
        .map(|(id, bias)| Some(LogitBias { id: id.parse().ok()?, bias: bias_of(bias)? }))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(wrong)?;
    biases.sort_by_key(|bias| bias.id);
    if biases.windows(2).any(|pair| pair[0].id == pair[1].id) {
        return Err(wrong());
    }
    Ok(biases)
}

fn bias_of(value: &Value) -> Option<f32> {
    #[allow(clippy::cast_possible_truncation, reason = "logits are f32; the range is checked after")]
    value.as_f64().map(|bias| bias as f32).filter(|bias| (-100.0..=100.0).contains(bias))
}
