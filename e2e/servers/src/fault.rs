//! A proxy in front of an API server that misbehaves as told.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt as _;
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Largest request that is passed on.
const LARGEST: usize = 4 << 20;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answered with this status instead of the API server, and with how long to wait, in seconds.
    Refuse(u16, u32),
    /// A watch that the server says is too old, after it began.
    Gone,
    /// A watch that begins and never says a word.
    Stall,
    /// The connection ends without an answer.
    Cut,
    /// Passed on when [`FaultProxy::release`] is called.
    Hold,
    /// Passed on after this time, as over a long line.
    Delay(Duration),
}

/// Which requests: method and path with query.
type Matches = Box<dyn Fn(&str, &str) -> bool + Send>;

struct Rule {
    fault: Fault,
    matches: Matches,
    /// How often it may still strike.
    left: usize,
}

struct Inner {
    client: kube::Client,
    rules: Mutex<Vec<Rule>>,
    struck: watch::Sender<usize>,
    released: watch::Sender<bool>,
    /// Ends every connection that is open.
    cut: Mutex<CancellationToken>,
}

/// A proxy in front of an API server. It speaks plain HTTP on loopback, and as one user of the API server's.
pub struct FaultProxy {
    inner: Arc<Inner>,
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl FaultProxy {
    /// Listens, and passes everything on.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(client: kube::Client) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port")?;
        let address = listener.local_addr().context("no address")?;
        let inner = Arc::new(Inner {
            client,
            rules: Mutex::default(),
            struck: watch::Sender::new(0),
            released: watch::Sender::new(false),
            cut: Mutex::default(),
        });
        let router = axum::Router::new().fallback(pass).with_state(Arc::clone(&inner));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the fault proxy ended: {error}");
            }
        });
        Ok(Self { inner, address, _server: AbortOnDropHandle::new(server) })
    }

    /// A kubeconfig that leads here.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "user", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
            "current-context": "test",
        })
        .to_string()
    }

    /// From now on this happens to that many requests that match by method, and by path with query.
    pub fn strike(&self, fault: Fault, times: usize, matches: impl Fn(&str, &str) -> bool + Send + 'static) {
        let rule = Rule { fault, matches: Box::new(matches), left: times };
        self.inner.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Ready when this many requests have been struck, in all.
    pub async fn struck(&self, times: usize) {
        let mut struck = self.inner.struck.subscribe();
        // The sender lives as long as this.
        drop(struck.wait_for(|struck| *struck >= times).await);
    }

    /// Passes on what is held, and holds nothing more.
    pub fn release(&self) {
        self.inner.released.send_replace(true);
    }

    /// Ends every answer that is under way, watches above all.
    pub fn cut_all(&self) {
        let mut cut = self.inner.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *cut).cancel();
    }
}

impl Inner {
    fn fault(&self, method: &str, uri: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && (rule.matches)(method, uri))?;
        rule.left -= 1;
        let fault = rule.fault.clone();
        self.struck.send_modify(|struck| *struck += 1);
        Some(fault)
    }
}

async fn pass(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let uri = parts.uri.path_and_query().map_or("/", |uri| uri.as_str()).to_owned();
    // Read whole first: who is held is held with all that it said.
    let Ok(bytes) = axum::body::to_bytes(body, LARGEST).await else { return status(413, 0) };
    match inner.fault(parts.method.as_str(), &uri) {
        Some(Fault::Refuse(code, seconds)) => return status(code, seconds),
        Some(Fault::Gone) => {
            let event = json!({"type": "ERROR", "object": status_json(410, 0)});
            return Response::new(Body::from(format!("{event}\n")));
        }
        Some(Fault::Stall) => {
            return Response::new(Body::from_stream(futures::stream::pending::<
                Result<Vec<u8>, std::io::Error>,
            >()));
        }
        Some(Fault::Cut) => return Response::new(broken()),
        Some(Fault::Hold) => {
            let mut released = inner.released.subscribe();
            drop(released.wait_for(|released| *released).await);
        }
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        None => {}
    }
    let cut = inner.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut onward = http::Request::new(kube::client::Body::from(bytes.to_vec()));
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = uri.parse().unwrap_or_default();
    for name in [http::header::CONTENT_TYPE, http::header::ACCEPT] {
        if let Some(value) = parts.headers.get(&name) {
            onward.headers_mut().insert(name, value.clone());
        }
    }
    match inner.client.send(onward).await {
        Ok(answer) => {
            let (parts, body) = answer.into_parts();
            let frames =
                http_body_util::BodyDataStream::new(body).map(|frame| frame.map_err(std::io::Error::other));
            let cut = async move { cut.cancelled().await };
            let rest = frames.take_until(cut);
            let mut response = Response::new(Body::from_stream(rest));
            *response.status_mut() = parts.status;
            if let Some(kind) = parts.headers.get(http::header::CONTENT_TYPE) {
                response.headers_mut().insert(http::header::CONTENT_TYPE, kind.clone());
            }
            response
        }
        Err(_) => status(502, 0),
    }
}

/// An answer that breaks off before its first byte.
fn broken() -> Body {
    let error = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    Body::from_stream(futures::stream::iter([Err::<Vec<u8>, _>(error)]))
}

fn status_json(code: u16, seconds: u32) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Expired",
        "message": "as the test asked for", "details": {"retryAfterSeconds": seconds},
    })
}

fn status(code: u16, seconds: u32) -> Response {
    let mut response = Response::new(Body::from(status_json(code, seconds).to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
