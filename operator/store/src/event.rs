//! What happened to an object, in a bounded ring that adds up repetitions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::object::Key;

/// How many different events an object keeps.
pub const MAX_PER_OBJECT: usize = 64;
/// How many different messages of one reason an object keeps, so that one noisy reason doesn't push out the others.
pub const MAX_PER_REASON: usize = 8;
/// Longest message, in characters; Kubernetes' own limit.
const MAX_MESSAGE: usize = 1024;

/// Whether a person should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody may have to act.
    Warning,
}

/// Something that happened just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventNote {
    /// To which object.
    pub about: Key,
    /// Whether a person should look.
    pub severity: Severity,
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Something that happened, once or more often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Whether a person should look.
    #[serde(rename = "type")]
    pub severity: Severity,
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// How often.
    pub count: u64,
    /// When first,
    pub first_timestamp: Timestamp,
    /// and when last.
    pub last_timestamp: Timestamp,
}

/// Adds a note to an object's events, which stay in order of their last occurrence.
pub(crate) fn add(events: &mut Vec<Event>, note: &EventNote, now: Timestamp) {
    let message: String = note.message.chars().take(MAX_MESSAGE).collect();
    let repeated = events.iter().position(|event| event.reason == note.reason && event.message == message);
    let event = match repeated {
        Some(at) => {
            let before = events.remove(at);
            Event {
                count: before.count.saturating_add(1),
                last_timestamp: now,
                severity: note.severity,
                ..before
            }
        }
        None => Event {
            severity: note.severity,
            reason: note.reason.clone(),
            message,
            count: 1,
            first_timestamp: now,
            last_timestamp: now,
        },
    };
    events.push(event);
    if events.iter().filter(|event| event.reason == note.reason).count() > MAX_PER_REASON
        && let Some(oldest) = events.iter().position(|event| event.reason == note.reason)
    {
        events.remove(oldest);
    }
    if events.len() > MAX_PER_OBJECT {
        events.remove(0);
    }
}
