//! The endpoints.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;
use tandem_worker_api::GenerateRequest;

use crate::answer::{self, Envelope};
use crate::choice::Choice;
use crate::error::ApiError;
use crate::request::{self, Parsed};
use crate::{Backend, Gate, Model, Visitor};

/// What a request may cost before it is understood.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Largest body, in bytes.
    pub body: usize,
    /// A body must have arrived within this.
    pub body_within: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { body: 8 << 20, body_within: Duration::from_secs(30) }
    }
}

struct App {
    backend: Arc<dyn Backend>,
    gate: Arc<dyn Gate>,
    bounds: Bounds,
}

impl App {
    /// Who asks; before anything that they send is read.
    fn visitor(&self, headers: &HeaderMap) -> Result<Arc<dyn Visitor>, ApiError> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = shown.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        Ok(self.gate.admit(key)?)
    }
}

/// The endpoints over a backend: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` (this process
/// runs) and `/ready` (it can answer). Those under `/v1` are for whom the gate lets in.
pub fn router(backend: Arc<dyn Backend>, gate: Arc<dyn Gate>, bounds: Bounds) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        // A model's name may hold a slash: `namespace/name`.
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(App { backend, gate, bounds }))
}

async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let visitor = app.visitor(&headers)?;
    let body = read(body, app.bounds).await?;
    answer(&app, visitor, request::chat(&body)?).await
}

async fn completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let visitor = app.visitor(&headers)?;
    let body = read(body, app.bounds).await?;
    answer(&app, visitor, request::completion(&body)?).await
}

async fn read(body: Body, bounds: Bounds) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(bounds.body_within, Limited::new(body, bounds.body).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::status(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {} bytes", bounds.body),
        )),
        Ok(Err(_)) => Err(ApiError::invalid("the body could not be read to its end")),
        Err(_) => Err(ApiError::status(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", bounds.body_within.as_secs()),
        )),
    }
}

async fn answer(app: &App, visitor: Arc<dyn Visitor>, parsed: Parsed) -> Result<Response, ApiError> {
    let known = visitor.models(app.backend.models());
    let Some(asked) = known.iter().find(|offer| offer.id == parsed.model) else {
        return Err(ApiError::model_not_found(&parsed.model, &names(known)));
    };
    let model = asked.answers_to.clone();
    visitor.begin()?;
    let stream = hex::encode(rand::random::<[u8; 16]>());
    // One seed for all choices: draws are keyed by the choice as well. 53 bits survive every JSON reader.
    let seed = rand::random::<u64>() >> 11;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let started = try_join_all((0..parsed.choices).map(|choice| {
        let request =
            GenerateRequest { model: model.clone(), ..parsed.generate(&stream, choice, seed, created) };
        Choice::start(choice, app.backend.open(request), parsed.format.clone(), visitor.clone())
    }))
    .await?;
    let steps = stream::select_all(started.into_iter().map(|choice| choice.steps().boxed())).boxed();
    let envelope = Envelope {
        dialect: parsed.dialect,
        stream,
        created,
        model: parsed.model,
        choices: parsed.choices,
        include_usage: parsed.include_usage,
        logprobs: parsed.logprobs,
    };
    let mut response = if parsed.stream {
        answer::streamed(envelope, steps)
    } else {
        answer::whole(envelope, steps).await?
    };
    for (name, value) in visitor.left() {
        response.headers_mut().insert(name, value.into());
    }
    Ok(response)
}

fn names(models: Vec<Model>) -> Vec<String> {
    models.into_iter().map(|model| model.id).collect()
}

fn listed(model: &Model) -> serde_json::Value {
    let mut listed = json!({
        "id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by,
    });
    if model.context_tokens > 0 {
        listed["context_length"] = model.context_tokens.into();
    }
    listed
}

async fn models(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let data: Vec<_> = app.visitor(&headers)?.models(app.backend.models()).iter().map(listed).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

async fn model(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let known = app.visitor(&headers)?.models(app.backend.models());
    match known.iter().find(|model| model.id == id) {
        Some(model) => Ok(Json(listed(model)).into_response()),
        None => Err(ApiError::model_not_found(&id, &names(known))),
    }
}

async fn health() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.backend.ready()?;
    Ok(Json(json!({"status": "ready"})).into_response())
}

async fn nothing_here() -> ApiError {
    ApiError::status(
        StatusCode::NOT_FOUND,
        "there is nothing here; try /v1/chat/completions, /v1/completions or /v1/models",
    )
}

async fn wrong_method() -> ApiError {
    ApiError::status(
        StatusCode::METHOD_NOT_ALLOWED,
        "this endpoint does not take that method: completions are POST, the rest is GET",
    )
}
