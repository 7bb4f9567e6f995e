//! The OpenAI HTTP API over anything that can generate: a gateway with many replicas, or one worker in process.
//!
//! [`router`] parses requests, opens one event stream per choice on a [`Backend`], and folds committed tokens into
//! text. Dropping a stream is how a choice is cancelled: the client went away, or a stop string was met.

mod backend;

pub use backend::{Backend, EventStream, Model, single_attempt};
pub use tandem_gateway_core::{Event, FinishReason, Prompt, Refusal, Seam, Token};
