//! What was logged already, so that a state that lasts is one line and not one per look.

use std::collections::BTreeMap;

/// The newest text of each topic.
#[derive(Default)]
pub(super) struct Said(BTreeMap<&'static str, String>);

impl Said {
    /// Whether this is another text on the topic than the last one.
    pub(super) fn anew(&mut self, topic: &'static str, text: &str) -> bool {
        let before = self.0.insert(topic, text.to_owned());
        before.as_deref().unwrap_or_default() != text
    }
}
