//! Errors of the HTTP port: RFC 9457 documents with one sentence that says what happened and what to do. No stack, no
//! file content, no secret.

use super::messages::ProblemBody;
use super::tokens::TokenError;
use crate::engine::error::{Class, TransferError};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The kind of a problem that passes as soon as others are done: see [`Problem::full`].
pub const FULL: &str = "full";
/// Before the kind of a problem.
pub const URN: &str = "urn:longhaul:problem:";
/// Seconds after which a client may try again when this side is busy.
const RETRY_AFTER_SECS: &str = "2";
/// The same where all it takes is that others end.
const RETRY_AFTER_FULL_SECS: &str = "1";

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What the caller should do.
    pub class: Class,
    /// One sentence.
    pub detail: String,
    /// Its type, where the class's word says too little.
    pub kind: Option<&'static str>,
}

impl Problem {
    /// A problem.
    pub fn new(status: StatusCode, class: Class, detail: impl Into<String>) -> Self {
        Self { status, class, detail: detail.into(), kind: None }
    }

    /// 400 or 422: the request cannot be meant.
    pub fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Class::Permanent, detail)
    }

    /// 403.
    pub fn denied(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Class::Denied, detail)
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Class::NotFound, detail)
    }

    /// 503, with Retry-After.
    pub fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Class::Retry, detail)
    }
}

impl Problem {
    /// 503, with Retry-After: this agent is at a limit of its own and has done nothing; worth waiting for.
    pub fn full(detail: impl Into<String>) -> Self {
        Self { kind: Some(FULL), ..Self::busy(detail) }
    }
}

impl From<TransferError> for Problem {
    fn from(error: TransferError) -> Self {
        let status = match error.class {
            Class::Denied => StatusCode::FORBIDDEN,
            Class::NotFound => StatusCode::NOT_FOUND,
            Class::Retry => StatusCode::SERVICE_UNAVAILABLE,
            Class::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            Class::Reconnect => StatusCode::BAD_GATEWAY,
            Class::Interrupted => StatusCode::CONFLICT,
            Class::Poisoned => StatusCode::INTERNAL_SERVER_ERROR,
            Class::Permanent | Class::OtherSource | Class::Verification => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.class, error.to_string())
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Denied { .. } => Self::denied(error.to_string()),
            TokenError::NoPlace => Self::full(super::http::NO_PLACE),
            TokenError::Unknown | TokenError::Expired(_) | TokenError::Revoked(_) => {
                Self::new(StatusCode::UNAUTHORIZED, Class::Denied, error.to_string())
            }
            error => {
                // Where the token file lies on this host is for its own log only.
                tracing::error!(%error, "tokens cannot be checked: everybody is denied");
                let detail = "this agent cannot read its tokens and denies everybody: see its log";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, Class::Retry, detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let after = if self.kind == Some(FULL) { RETRY_AFTER_FULL_SECS } else { RETRY_AFTER_SECS };
        let body = ProblemBody {
            kind: format!("{URN}{}", self.kind.unwrap_or(self.class.word())),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            class: self.class.word().to_owned(),
        };
        let mut response = (self.status, serde_json::to_vec(&body).unwrap_or_default()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"longhaul\""));
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(after));
            }
            _ => {}
        }
        response
    }
}
