//! Spans: what takes how long, and because of what.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

use crate::collector::Collector;

/// The field of a traceparent in what the propagator reads and writes.
const FIELD: &str = "traceparent";
/// Its length, as W3C has it: two, thirty-two, sixteen and two digits, with a hyphen between. The propagator takes less for one, too.
const LENGTH: usize = 55;

/// Begins traces, or goes on with those of other processes.
#[derive(Clone, Default)]
pub struct Traces(Option<SdkTracer>);

impl Traces {
    /// For this collector; none: off.
    #[must_use]
    pub fn to(collector: Option<&Collector>) -> Self {
        Self(collector.map(Collector::tracer))
    }

    /// Whether anybody wants to know.
    #[must_use]
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// A new trace, and its first span, which began then.
    #[must_use]
    pub fn begin(&self, name: &'static str, since: SystemTime) -> Span {
        let Some(tracer) = &self.0 else { return Span::none() };
        let builder = tracer.span_builder(name).with_start_time(since).with_kind(SpanKind::Internal);
        let span = tracer.build_with_context(builder, &Context::new());
        Span::of(tracer, Context::new().with_span(span))
    }

    /// A span of a trace that began elsewhere, in the span that this traceparent names. None if that is empty or isn't one.
    #[must_use]
    pub fn go_on(&self, traceparent: &str, name: &'static str) -> Span {
        let Some(tracer) = self.0.as_ref().filter(|_| traceparent.len() == LENGTH) else {
            return Span::none();
        };
        let fields = HashMap::from([(FIELD.to_owned(), traceparent.to_owned())]);
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &fields);
        if !parent.span().span_context().is_valid() {
            return Span::none();
        }
        let builder = tracer.span_builder(name).with_kind(SpanKind::Consumer);
        let span = tracer.build_with_context(builder, &parent);
        Span::of(tracer, Context::new().with_span(span))
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.are_on() { "Traces(on)" } else { "Traces(off)" })
    }
}

/// Something that takes time. It ends when it is dropped.
#[derive(Default)]
pub struct Span(Option<Live>);

struct Live {
    tracer: SdkTracer,
    context: Context,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.context.span().end();
    }
}

impl Span {
    /// One that nobody wants to know of.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    fn of(tracer: &SdkTracer, context: Context) -> Self {
        Self(Some(Live { tracer: tracer.clone(), context }))
    }

    /// Whether anybody wants to know.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A part of this one, which begins now.
    #[must_use]
    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Self {
        let Some(live) = &self.0 else { return Self::none() };
        let span = live.tracer.start_with_context(name, &live.context);
        Self::of(&live.tracer, Context::new().with_span(span))
    }

    /// A part of this one that is over.
    pub fn had(&self, name: &'static str, began: SystemTime, ended: SystemTime) {
        let Some(live) = &self.0 else { return };
        let builder = live.tracer.span_builder(name).with_start_time(began);
        live.tracer.build_with_context(builder, &live.context).end_with_timestamp(ended);
    }

    /// Notes something about it.
    pub fn note(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(live) = &self.0 {
            live.context.span().set_attribute(KeyValue::new(key, value));
        }
    }

    /// It has failed, and why.
    pub fn fail(&self, why: &str) {
        if let Some(live) = &self.0 {
            live.context.span().set_status(Status::error(why.to_owned()));
        }
    }

    /// What another process needs to go on with it: a W3C traceparent, empty if nobody wants to know.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let Some(live) = &self.0 else { return String::new() };
        let mut fields = HashMap::new();
        TraceContextPropagator::new().inject_context(&live.context, &mut fields);
        fields.remove(FIELD).unwrap_or_default()
    }
}
