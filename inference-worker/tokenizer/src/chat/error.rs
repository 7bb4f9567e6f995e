//! Why a conversation can't become a prompt.

use thiserror::Error;

/// What is wrong with a template, or with what it was asked to render.
#[derive(Debug, Error)]
pub enum ChatError {
    /// The file's template is not one.
    #[error("the model's chat template can't be compiled")]
    Compile(#[source] minijinja::Error),
    /// The file's metadata or vocabulary don't allow for a template.
    #[error("the model's file can't be used for chat")]
    Metadata(#[from] tandem_gguf::MetadataError),
    /// The template failed.
    #[error("the model's chat template failed on this conversation")]
    Render(#[source] minijinja::Error),
    /// The template refused the conversation, in its own words.
    #[error("the model's chat template refuses this conversation: {message}")]
    Refused {
        /// What it says.
        message: String,
    },
    /// The prompt came out longer than any context.
    #[error("the prompt is longer than {limit} bytes")]
    TooLong {
        /// The most that is rendered.
        limit: usize,
    },
    /// Something that isn't a message.
    #[error("message {index} is not an object with a role")]
    NotAMessage {
        /// Its position, from 0.
        index: usize,
    },
    /// A role that could be made to spell a control token.
    #[error("message {index} has the unknown role {role:?}; known: {known}")]
    UnknownRole {
        /// Its position, from 0.
        index: usize,
        /// The role.
        role: String,
        /// The roles that are accepted.
        known: String,
    },
    /// Content that isn't text.
    #[error("message {index} has a content part of type {kind:?}; this model takes only text")]
    UnsupportedPart {
        /// The message's position, from 0.
        index: usize,
        /// The part's type.
        kind: String,
    },
    /// Values nested so deep that walking them would be a risk.
    #[error("the request nests values more than {limit} levels deep")]
    TooDeep {
        /// The most that is accepted.
        limit: usize,
    },
    /// A template argument that would replace something else.
    #[error("the template argument `{name}` is reserved")]
    ReservedArgument {
        /// Its name.
        name: String,
    },
    /// The template has no place for tools.
    #[error("this model's chat template does not know tools; leave `tools` away")]
    ToolsUnsupported,
    /// The request uses every character that could mark its text.
    #[error(
        "the request uses so many different private-use characters that its text can't be kept apart from the template's"
    )]
    NoMarkLeft,
    /// The vocabulary's control tokens can't be searched for.
    #[error("the control tokens can't be compiled into a search: {reason}")]
    ControlTokens {
        /// What the search says.
        reason: String,
    },
}
