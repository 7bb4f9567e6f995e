//! Errors, as logs and conditions tell them.

use std::error::Error;
use std::fmt::Write;

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let before = text.clone();
        // Some errors repeat their source; a line needn't.
        let cause = error.to_string();
        if !before.contains(&cause) {
            write!(text, ": {cause}").expect("writing to a string does not fail");
        }
        source = error.source();
    }
    text
}
