//! Errors as OpenAI's clients know them.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tandem_gateway_core::Refusal;

/// Tells the official SDKs not to try again by themselves.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<Duration>,
    /// The same request would end the same way.
    hopeless: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ErrorBody {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// `{"error": {…}}`: the body of an error answer, and the last chunk of a stream that could not go on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ErrorEnvelope {
    error: ErrorBody,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind, param: None, code: None };
        Self { status, body, retry_after: None, hopeless: false }
    }

    /// 400: a field holds what it can't.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(message).with_param(Some(param.into()))
    }

    /// 400.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::status(StatusCode::BAD_REQUEST, message)
    }

    /// Another status whose cause is the request.
    pub(crate) fn status(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 404, naming what there is.
    pub(crate) fn model_not_found(model: &str, known: &[String]) -> Self {
        let model: String = model.chars().take(100).collect();
        let known = match known {
            [] => "no model is served here yet".to_owned(),
            known => format!("there is {}", known.join(", ")),
        };
        Self::status(StatusCode::NOT_FOUND, format!("the model `{model}` does not exist; {known}"))
            .with_param(Some("model".to_owned()))
            .with_code("model_not_found")
    }

    fn with_param(mut self, param: Option<String>) -> Self {
        self.body.param = param;
        self
    }

    fn with_code(mut self, code: &'static str) -> Self {
        self.body.code = Some(code);
        self
    }

    fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// For a stream whose headers are out.
    pub(crate) fn envelope(self) -> ErrorEnvelope {
        ErrorEnvelope { error: self.body }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Invalid { param, .. } => Self::invalid(message).with_param(param),
            Refusal::ContextLengthExceeded(_) => Self::invalid(message).with_code("context_length_exceeded"),
            Refusal::ModelNotFound(_) => Self::status(StatusCode::NOT_FOUND, message)
                .with_param(Some("model".to_owned()))
                .with_code("model_not_found"),
            Refusal::Unauthenticated(_) => {
                Self::status(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
            }
            Refusal::Limited { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
                    .with_code("rate_limit_exceeded")
                    .after(retry_after)
            }
            Refusal::Overloaded { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
                    .with_code("overloaded")
                    .after(retry_after)
            }
            Refusal::Unavailable { retry_after, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
                    .with_code("unavailable")
                    .after(retry_after)
            }
            Refusal::Poisonous => Self {
                hopeless: true,
                ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
                    .with_code("workers_died")
            },
            Refusal::DeadlineExceeded(_) => Self {
                hopeless: true,
                ..Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message)
                    .with_code("deadline_exceeded")
            },
            Refusal::Internal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry_after, hopeless) = (self.status, self.retry_after, self.hopeless);
        let mut response = (status, Json(self.envelope())).into_response();
        if let Some(after) = retry_after {
            let seconds = after.as_secs().max(1) + u64::from(after.subsec_nanos() > 0 && after.as_secs() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if hopeless {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
