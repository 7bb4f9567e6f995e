//! The port that figures and probes are read from.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::prometheus_text;
use tandem_openai::{Backend as _, Limits, serve};
use thiserror::Error;
use tokio::net::TcpListener;

use crate::access::Access;
use crate::backend::Gateway;

/// Readers are few, and read at once.
const LIMITS: Limits = Limits {
    connections: 8,
    headers_within: Duration::from_secs(10),
    read_within: Duration::from_secs(10),
    grace: Duration::from_secs(1),
};

/// Figures can't be served.
#[derive(Debug, Error)]
#[error("can't listen on {address}: stop what listens there, or pass another --metrics-listen")]
pub struct MetricsError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

struct Seen {
    gateway: Arc<Gateway>,
    access: Arc<Access>,
}

/// Serves `/metrics`, `/livez` (this process runs) and `/readyz` (it knows where to send requests) in a task of its own, for as long as
/// this process lives: a gateway that lets its last streams finish is watched, too. Where it listens.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve_metrics(
    listen: SocketAddr,
    gateway: Arc<Gateway>,
    access: Arc<Access>,
) -> Result<SocketAddr, MetricsError> {
    let failed = |source| MetricsError { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Seen { gateway, access }));
    tokio::spawn(serve(listener, router, LIMITS, std::future::pending::<()>()));
    Ok(address)
}

async fn metrics(State(seen): State<Arc<Seen>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], seen.gateway.figures(&seen.access))
}

async fn ready(State(seen): State<Arc<Seen>>) -> Response {
    match seen.gateway.ready() {
        Ok(()) => "ok".into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()).into_response(),
    }
}
