//! Conditions: one sentence per question that a person or a tool asks of an object.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// At least one copy serves. Stays `True` through a host loss that was survived.
pub const READY: &str = "Ready";
/// `hostFailures` hosts may vanish now and `replicas` copies remain.
pub const REDUNDANT: &str = "Redundant";
/// Fewer copies than asked for, or a smaller quant.
pub const DEGRADED: &str = "Degraded";
/// A new generation is not applied yet; kstatus reads it as in progress.
pub const RECONCILING: &str = "Reconciling";
/// Only a person can help; kstatus reads it as failed.
pub const STALLED: &str = "Stalled";

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It can't be told.
    Unknown,
}

/// One answer, of the usual Kubernetes shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The question, in CamelCase. Lists of conditions are keyed by it.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub type_: String,
    /// The answer.
    pub status: ConditionStatus,
    /// `metadata.generation` that the answer is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time"))]
    pub last_transition_time: Timestamp,
    /// Why, as one CamelCase word for programs.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// Why, as a sentence for people. It says what to change where a change is needed.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// Finds the condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is there and `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}
