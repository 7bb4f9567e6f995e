//! `control.proto`: what agents, gateways and the CLI say to an operator.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in control.proto"
)]
mod generated {
    tonic::include_proto!("tandem.control.v1alpha1");
}
pub use generated::*;

mod shown;

/// The newest version of this protocol that this release speaks.
pub const PROTOCOL_HIGHEST: u32 = 1;
/// The oldest version that this release still speaks: two behind the newest, from the first on.
pub const PROTOCOL_LOWEST: u32 = if PROTOCOL_HIGHEST > 3 { PROTOCOL_HIGHEST - 2 } else { 1 };

impl Protocol {
    /// What this release speaks.
    #[must_use]
    pub fn own(features: &[&str]) -> Self {
        Self {
            lowest: PROTOCOL_LOWEST,
            highest: PROTOCOL_HIGHEST,
            features: features.iter().map(|&feature| feature.to_owned()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// A sentence that says which side to upgrade, when there is none.
    pub fn agree(theirs: Option<&Self>) -> Result<u32, String> {
        let Some(theirs) = theirs else {
            return Err("the first message carries no protocol range: upgrade the sender".to_owned());
        };
        let newest = theirs.highest.min(PROTOCOL_HIGHEST);
        if newest >= theirs.lowest.max(PROTOCOL_LOWEST) {
            return Ok(newest);
        }
        let (older, newer) =
            if theirs.highest < PROTOCOL_LOWEST { ("sender", "operator") } else { ("operator", "sender") };
        Err(format!(
            "the sender ({}) speaks protocol {} to {}, this operator ({}) {PROTOCOL_LOWEST} to {PROTOCOL_HIGHEST}: \
             upgrade the {older}, it is too far behind the {newer}",
            theirs.version,
            theirs.lowest,
            theirs.highest,
            env!("CARGO_PKG_VERSION"),
        ))
    }
}

impl From<agent_message::Message> for AgentMessage {
    fn from(message: agent_message::Message) -> Self {
        Self { message: Some(message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_agree_on_the_newest_and_others_say_whom_to_upgrade() {
        let range = |lowest, highest| Protocol { lowest, highest, ..Protocol::own(&[]) };
        assert_eq!(Protocol::agree(Some(&Protocol::own(&[]))), Ok(PROTOCOL_HIGHEST));
        assert_eq!(
            Protocol::agree(Some(&range(PROTOCOL_HIGHEST, PROTOCOL_HIGHEST + 5))),
            Ok(PROTOCOL_HIGHEST)
        );
        let newer = range(PROTOCOL_HIGHEST + 1, PROTOCOL_HIGHEST + 2);
        assert!(Protocol::agree(Some(&newer)).unwrap_err().contains("upgrade the operator"));
        assert!(Protocol::agree(Some(&range(0, 0))).unwrap_err().contains("upgrade the sender"));
        assert!(Protocol::agree(None).is_err());
    }
}
