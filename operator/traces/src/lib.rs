//! Traces for an OpenTelemetry collector, of the few things that take long enough to be asked about: from what wakes an operator to
//! the worker that is ready. Off, unless a collector is named; then everything here is a look at an empty option.
//!
//! ```text
//! let collector = flags.collector("tandem-operator")?;       // None without --otlp-endpoint
//! let traces = Traces::to(collector.as_ref());
//! let pass = traces.begin("pass", since);                    // a trace; its spans end when they are dropped
//! let apply = pass.child("apply");
//! send(spec, apply.traceparent());                           // to another process, which calls `traces.go_on(…)`
//! drop(collector);                                           // sends what is left, for at most two seconds
//! ```
//!
//! Nobody waits for a collector: spans go into a queue of a bounded length and are dropped when it is full, and a thread of its own
//! sends them.

mod collector;
mod span;

pub use collector::{BadEndpoint, Collector, TraceFlags};
pub use span::{Span, Traces};
