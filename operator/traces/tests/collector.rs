//! Spans as a collector gets them, by real sockets and the real protocol.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::net::TcpListener;
use std::time::SystemTime;

use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use tandem_servers::SpanCollector;
use tandem_traces::{Collector, Span, Traces};

/// What a collector hears of what is done with it, the process's end included.
fn heard(does: impl FnOnce(&Traces)) -> Vec<Sent> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ear = runtime.block_on(SpanCollector::start()).unwrap();
    let collector = Collector::at(&ear.url(), "test", "one").unwrap();
    does(&Traces::to(Some(&collector)));
    drop(collector);
    ear.heard().into_iter().map(|heard| heard.span).collect()
}

fn one<'a>(spans: &'a [Sent], name: &str) -> &'a Sent {
    let mut named = spans.iter().filter(|span| span.name == name);
    let found = named.next().unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(named.next().is_none(), "{name} was sent twice");
    found
}

#[test]
fn a_trace_goes_through_two_processes() {
    let spans = heard(|traces| {
        let began = SystemTime::now();
        let pass = traces.begin("pass", began);
        pass.note("woken.by", "InferenceDeployment llm/kimi");
        pass.had("plan", began, SystemTime::now());
        let apply = pass.child("apply");
        let elsewhere = traces.go_on(&apply.traceparent(), "obey");
        elsewhere.child("start").fail("no such program");
    });
    let (pass, plan, apply) = (one(&spans, "pass"), one(&spans, "plan"), one(&spans, "apply"));
    let (obey, start) = (one(&spans, "obey"), one(&spans, "start"));
    assert!(pass.parent_span_id.is_empty());
    for (child, parent) in [(plan, pass), (apply, pass), (obey, apply), (start, obey)] {
        assert_eq!(child.parent_span_id, parent.span_id, "{} of {}", child.name, parent.name);
        assert_eq!(child.trace_id, pass.trace_id);
    }
    assert_eq!(pass.attributes[0].key, "woken.by");
    assert!(plan.start_time_unix_nano == pass.start_time_unix_nano);
    assert_eq!(start.status.as_ref().unwrap().message, "no such program");
}

#[test]
fn what_is_no_traceparent_is_not_gone_on_with() {
    let spans = heard(|traces| {
        for bad in ["", "x", "00-00000000000000000000000000000000-0000000000000000-01", "00-1-2-3"] {
            assert!(!traces.go_on(bad, "obey").is_on(), "{bad:?}");
        }
    });
    assert!(spans.is_empty(), "{spans:#?}");
}

#[test]
fn off_is_nothing() {
    let traces = Traces::default();
    let span = traces.begin("pass", SystemTime::now());
    span.note("woken.by", "nobody");
    assert!(!traces.are_on() && !span.is_on() && !span.child("plan").is_on());
    assert_eq!((span.traceparent(), Span::none().traceparent()), (String::new(), String::new()));
}

/// The collector takes the connection and never says a word. More spans come than wait in the queue, and the process ends.
#[test]
fn a_collector_that_never_answers_holds_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::at(&url, "test", "one").unwrap();
    let traces = Traces::to(Some(&collector));
    for _ in 0..10_000 {
        drop(traces.begin("pass", SystemTime::now()).child("plan"));
    }
    drop(collector);
}

#[test]
fn an_address_that_is_none_is_told_with_the_way_out() {
    for bad in ["collector:4317", "ftp://collector", "http://", "not a url"] {
        let error =
            Collector::at(bad, "test", "one").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(bad) && error.contains("http://HOST:PORT"), "{bad}: {error}");
    }
}
