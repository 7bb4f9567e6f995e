//! One worker process: it loads a model, computes attempts on a thread of its own, and serves them over gRPC to
//! gateways, or over HTTP to whoever asks a worker that serves alone.

mod attempts;
mod decoding;
pub mod loading;
pub mod model_text;
pub mod replica;
mod request;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
pub mod serve;
pub mod service;
pub mod standalone;
pub mod text;
pub mod tokenize;
pub mod verified;
pub mod warm;
pub mod worker;
