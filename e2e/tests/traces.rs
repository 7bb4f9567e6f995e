//! One change, told to a collector by the processes that carry it out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tandem_e2e::{DEPLOYMENT, Layout, Programs, Site, deploy, until};
use tonic::{Request, Response, Status};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);

/// What a collector has heard: spans, and the service that sent each.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Ear {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for sent in request.into_inner().resource_spans {
            let service = text(&sent.resource.unwrap_or_default().attributes, "service.name");
            let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

impl Ear {
    fn listen(&self, runtime: &tokio::runtime::Runtime) -> String {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        runtime.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        url
    }

    /// The parent that was heard, too.
    fn parent(&self, of: &Span) -> Option<(String, Span)> {
        let heard = self.0.lock().unwrap();
        let parent =
            heard.iter().find(|(_, span)| span.span_id == of.parent_span_id && span.trace_id == of.trace_id);
        parent.cloned()
    }

    fn named(&self, name: &str) -> Vec<(String, Span)> {
        self.0.lock().unwrap().iter().filter(|(_, span)| span.name == name).cloned().collect()
    }

    /// A worker that got ready, and all that it is a part of, the innermost first.
    fn way_to_ready(&self) -> Option<Vec<(String, Span)>> {
        self.named("worker gets ready").into_iter().find_map(|first| {
            let mut way = vec![first];
            while let Some(next) = self.parent(&way.last()?.1) {
                way.push(next);
            }
            way.last()?.1.parent_span_id.is_empty().then_some(way)
        })
    }
}

#[test]
fn a_new_deployment_is_one_trace_from_what_wakes_the_operator_to_the_worker_that_is_ready() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ear = Ear::default();
    let url = ear.listen(&runtime);
    let layout = Layout { hosts: 0, gateways: 0 };
    let mut site = Site::start_with(Programs::find().unwrap(), layout, &["--otlp-endpoint", &url]).unwrap();
    site.join_host_with("mac-a", &["--otlp-endpoint", &url]).unwrap();
    site.wait_for("infh/mac-a", "Ready", LIMIT).unwrap();
    deploy(&site, 0).unwrap();
    site.wait_for(DEPLOYMENT, "Ready", LIMIT).unwrap();

    let mut way = Vec::new();
    let heard = until(LIMIT, || {
        way = ear.way_to_ready().unwrap_or_default();
        Ok(!way.is_empty())
    });
    heard.unwrap_or_else(|error| panic!("{error:#}: {:#?}", ear.0.lock().unwrap()));
    let told: Vec<(&str, &str)> =
        way.iter().map(|(service, span)| (service.as_str(), span.name.as_str())).collect();
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
    let (_, pass) = way.last().unwrap();
    // The deployment itself, or what was found out about its model since.
    let by = text(&pass.attributes, "woken.by");
    assert!(["Inference", "model "].iter().any(|what| by.starts_with(what)), "{by}");
    assert_eq!(text(&way[3].1.attributes, "object"), "InferenceHost mac-a");
    assert_eq!(text(&way[2].1.attributes, "host"), "mac-a");
    // What else belongs to it.
    for (name, parent) in [("observe", pass), ("plan", pass), ("lint", pass), ("start process", &way[1].1)] {
        let mut named = ear.named(name).into_iter();
        let found = named.find(|(_, span)| span.parent_span_id == parent.span_id);
        let (_, span) = found.unwrap_or_else(|| panic!("{name} is not told of"));
        assert_eq!(span.trace_id, pass.trace_id, "{name}");
    }
}
