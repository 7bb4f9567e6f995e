//! Conversations to prompts: the model's Jinja template, filled in and tokenised.

mod error;
mod input;
mod json;
mod list_literals;
mod marks;
mod mutable_list;
mod template;

pub use error::ChatError;
pub use input::ChatInput;
pub use template::{ChatTemplate, RenderedPrompt};
