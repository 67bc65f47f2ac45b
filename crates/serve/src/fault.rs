//! What a request is answered with when it cannot be: a status, and the error object that OpenAI's clients read.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field at fault.
    pub(crate) param: Option<String>,
    pub(crate) code: &'static str,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// 400 about one field.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        let fault = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Self { param: Some(param.to_owned()), ..fault }
    }

    /// What the library says of a request. Its words name settings, never files.
    pub(crate) fn of(error: &tessera_runtime::Error) -> Self {
        use tessera_core::Error as Core;
        let core = match error {
            tessera_runtime::Error::Core(core) => core,
            error if error.is_usage() => {
                return Self::new(StatusCode::BAD_REQUEST, "invalid_request", error.to_string());
            }
            tessera_runtime::Error::Chat(error) => {
                return Self::field("messages", error.to_string());
            }
            _ => return Self::inside(),
        };
        let code = match core {
            Core::ContextFull { .. } => "context_length_exceeded",
            Core::Setting { .. } => "invalid_value",
            Core::UnknownMethod { .. } => "unknown_method",
            Core::Method { .. } => "invalid_method",
            Core::Constraint { .. } => "invalid_constraint",
            _ => return Self::inside(),
        };
        Self::new(StatusCode::BAD_REQUEST, code, core.to_string())
    }

    /// 500, without what happened: that is for the log.
    pub(crate) fn inside() -> Self {
        let message =
            "the model failed on this request. Next: try again; the server's log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// 503 while there is no model yet.
    pub(crate) fn loading() -> Self {
        let message = "the model is still loading. Next: try again in a moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", message)
    }

    /// The error object.
    pub(crate) fn body(&self) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

impl From<tessera_core::Error> for Fault {
    fn from(error: tessera_core::Error) -> Self {
        Self::of(&error.into())
    }
}

impl From<tessera_runtime::Error> for Fault {
    fn from(error: tessera_runtime::Error) -> Self {
        Self::of(&error)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
