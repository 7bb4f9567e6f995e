//! A collector that hears spans by OTLP over gRPC, and keeps them for whoever asks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A span, and the service that sent it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The resource's `service.name`.
    pub service: String,
    /// As it was sent.
    pub span: Span,
}

impl Heard {
    /// The attribute of this name, if it is a text; else nothing.
    #[must_use]
    pub fn text(&self, attribute: &str) -> String {
        text(&self.span.attributes, attribute)
    }
}

#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<Heard>>>);

/// A collector on loopback. Ends with this value.
pub struct SpanCollector {
    ear: Ear,
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl SpanCollector {
    /// Listens.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port")?;
        let address = listener.local_addr().context("no address")?;
        let ear = Ear::default();
        let server = Server::builder().add_service(TraceServiceServer::new(ear.clone()));
        let server = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming(TcpIncoming::from(listener)).await {
                eprintln!("the collector ended: {error}");
            }
        });
        Ok(Self { ear, address, _server: AbortOnDropHandle::new(server) })
    }

    /// Where it listens, as `http://HOST:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything up to now, in the order in which it came.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        self.ear.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl TraceService for Ear {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for sent in request.into_inner().resource_spans {
            let service = text(&sent.resource.unwrap_or_default().attributes, "service.name");
            let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let heard = spans.map(|span| Heard { service: service.clone(), span });
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(heard);
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
