//! The way to a collector.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData, SpanExporter as Exporter,
};
use thiserror::Error;
use tokio::runtime::Runtime;
use tonic::transport::Uri;

/// Spans that may wait for the collector; more are dropped.
const QUEUE: usize = 2048;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long a span waits for others to be sent with.
const TOGETHER: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch, and for all that is left when the process ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where traces go, on a command line.
#[derive(Clone, Debug, Default, Args)]
pub struct TraceFlags {
    /// Send traces to this OpenTelemetry collector, by OTLP over gRPC, such as http://127.0.0.1:4317 [default: off]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
}

impl TraceFlags {
    /// The collector that is named, if one is. `service` is what this program is called there, `instance` which one of them it is.
    ///
    /// # Errors
    /// When it is not named by a URL.
    pub fn collector(&self, service: &'static str, instance: &str) -> Result<Option<Collector>, BadEndpoint> {
        let named = self.otlp_endpoint.as_deref().map(str::trim).filter(|endpoint| !endpoint.is_empty());
        named.map(|endpoint| Collector::at(endpoint, service, instance)).transpose()
    }
}

/// A collector that can't be sent to.
#[derive(Debug, Error)]
#[error("--otlp-endpoint {endpoint} is no address of a collector: {why}; name it as http://HOST:PORT")]
pub struct BadEndpoint {
    endpoint: String,
    why: String,
}

/// A collector, and the thread that sends to it. Dropped, it sends what is left, for at most two seconds.
pub struct Collector {
    provider: SdkTracerProvider,
    /// Its connections live here, so that they hang on nothing that the program does. None once it is dropped.
    runtime: Option<Runtime>,
}

impl Collector {
    /// Nothing is connected yet: a collector that is away may come later.
    ///
    /// # Errors
    /// When the endpoint is no URL with `http` or `https`, a host and a port.
    pub fn at(endpoint: &str, service: &'static str, instance: &str) -> Result<Self, BadEndpoint> {
        let bad = |why: String| BadEndpoint { endpoint: endpoint.to_owned(), why };
        let url: Uri = endpoint.parse().map_err(|_| bad("it is no URL".to_owned()))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
            return Err(bad("it does not begin with http:// or https:// and a host".to_owned()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let inside = runtime.enter();
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(PATIENCE);
        let exporter = exporter.build().map_err(|error| bad(error.to_string()))?;
        drop(inside);
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(TOGETHER)
            .build();
        let exporter = Told { exporter, endpoint: endpoint.to_owned(), away: AtomicBool::new(false) };
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        let provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
        Ok(Self { provider, runtime: Some(runtime) })
    }

    pub(crate) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("tandem")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last traces are not sent");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Says once that a collector is away, and once that it is back.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    endpoint: String,
    away: AtomicBool,
}

impl<E: Exporter> Exporter for Told<E> {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let sent = self.exporter.export(batch);
        async move {
            let sent = sent.await;
            let was_away = self.away.swap(sent.is_err(), Ordering::Relaxed);
            match &sent {
                Err(error) if !was_away => {
                    tracing::warn!(collector = self.endpoint, %error, "traces can't be sent and are dropped");
                }
                Ok(()) if was_away => tracing::info!(collector = self.endpoint, "traces are sent again"),
                Ok(()) | Err(_) => {}
            }
            sent
        }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
