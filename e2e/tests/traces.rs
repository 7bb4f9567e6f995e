//! One change, told to a collector by the processes that carry it out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::time::Duration;

use tandem_e2e::{DEPLOYMENT, Layout, Programs, Site, deploy, until};
use tandem_servers::{Heard, SpanCollector};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);

/// The parent that was heard, too.
fn parent(all: &[Heard], of: &Heard) -> Option<Heard> {
    let is = |heard: &&Heard| {
        heard.span.span_id == of.span.parent_span_id && heard.span.trace_id == of.span.trace_id
    };
    all.iter().find(is).cloned()
}

fn named<'a>(all: &'a [Heard], name: &str) -> impl Iterator<Item = &'a Heard> {
    all.iter().filter(move |heard| heard.span.name == name)
}

/// A worker that got ready, and all that it is a part of, the innermost first.
fn way_to_ready(all: &[Heard]) -> Option<Vec<Heard>> {
    named(all, "worker gets ready").find_map(|first| {
        let mut way = vec![first.clone()];
        while let Some(next) = parent(all, way.last()?) {
            way.push(next);
        }
        way.last()?.span.parent_span_id.is_empty().then_some(way)
    })
}

#[test]
fn a_new_deployment_is_one_trace_from_what_wakes_the_operator_to_the_worker_that_is_ready() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ear = runtime.block_on(SpanCollector::start()).unwrap();
    let url = ear.url();
    let layout = Layout { hosts: 0, gateways: 0 };
    let mut site = Site::start_with(Programs::find().unwrap(), layout, &["--otlp-endpoint", &url]).unwrap();
    site.join_host_with("mac-a", &["--otlp-endpoint", &url]).unwrap();
    site.wait_for("infh/mac-a", "Ready", LIMIT).unwrap();
    deploy(&site, 0).unwrap();
    site.wait_for(DEPLOYMENT, "Ready", LIMIT).unwrap();

    let mut way = Vec::new();
    let heard = until(LIMIT, || {
        way = way_to_ready(&ear.heard()).unwrap_or_default();
        Ok(!way.is_empty())
    });
    heard.unwrap_or_else(|error| panic!("{error:#}: {:#?}", ear.heard()));
    let told: Vec<(&str, &str)> =
        way.iter().map(|heard| (heard.service.as_str(), heard.span.name.as_str())).collect();
    assert_eq!(
        told,
        [
            ("tandem-agent", "worker gets ready"),
            ("tandem-agent", "bring up workload"),
            ("tandem-agent", "obey spec"),
            ("tandem-operator", "apply spec"),
            ("tandem-operator", "pass"),
        ]
    );
    let pass = way.last().unwrap();
    // The deployment itself, or what was found out about its model since.
    let by = pass.text("woken.by");
    assert!(["Inference", "model "].iter().any(|what| by.starts_with(what)), "{by}");
    assert_eq!(way[3].text("object"), "InferenceHost mac-a");
    assert_eq!(way[2].text("host"), "mac-a");
    // What else belongs to it.
    let all = ear.heard();
    for (name, parent) in [("observe", pass), ("plan", pass), ("lint", pass), ("start process", &way[1])] {
        let found = named(&all, name).find(|heard| heard.span.parent_span_id == parent.span.span_id);
        let found = found.unwrap_or_else(|| panic!("{name} is not told of"));
        assert_eq!(found.span.trace_id, pass.span.trace_id, "{name}");
    }
}
