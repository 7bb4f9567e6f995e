//! Who may ask, for what, and how much.

use std::sync::Arc;

use tandem_gateway_core::Refusal;

use crate::Model;

/// Decides whom to let in.
pub trait Gate: Send + Sync + 'static {
    /// `key` is what the client shows as a bearer token, if it shows one.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`], with what to do.
    fn admit(&self, key: Option<&str>) -> Result<Arc<dyn Visitor>, Refusal>;
}

/// A client that was let in.
pub trait Visitor: Send + Sync + 'static {
    /// What it may ask for of what there is, under the names that it may use.
    fn models(&self, all: Vec<Model>) -> Vec<Model>;

    /// It asks for a completion.
    ///
    /// # Errors
    /// [`Refusal::Limited`] when it may not, right now.
    fn begin(&self) -> Result<(), Refusal>;

    /// Tokens were read or made for it. Called as they come, whether it hears the end or not.
    fn used(&self, prompt_tokens: u32, completion_tokens: u32);

    /// Headers that say what is left of its limits.
    fn left(&self) -> Vec<(&'static str, u64)>;
}

/// Lets everybody in to everything: for a program that serves whoever can reach it.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl Gate for Open {
    fn admit(&self, _: Option<&str>) -> Result<Arc<dyn Visitor>, Refusal> {
        Ok(Arc::new(Self))
    }
}

impl Visitor for Open {
    fn models(&self, all: Vec<Model>) -> Vec<Model> {
        all
    }

    fn begin(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn used(&self, _: u32, _: u32) {}

    fn left(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
