//! The OpenAI HTTP API over anything that can generate: a gateway with many replicas, or one worker in process.
//!
//! [`router`] parses requests, opens one event stream per choice on a [`Backend`], and folds committed tokens into
//! text. Dropping a stream is how a choice is cancelled: the client went away, or a stop string was met. [`serve`] runs
//! it on a socket with bounds on headers, bodies, connections and readers that don't read.

mod answer;
mod backend;
mod chat;
mod choice;
mod completion;
mod error;
mod fields;
mod gate;
mod json;
mod logprobs;
mod request;
mod routes;
mod serve;

pub use backend::{Backend, EventStream, Model, single_attempt};
pub use gate::{Gate, Open, Visitor};
pub use routes::{Bounds, router};
pub use serve::{Entrance, Limits, serve};
pub use tandem_gateway_core::{Event, FinishReason, Prompt, Refusal, Seam, Token};
