//! What the handlers share: answers, bodies, ids, queries, waits.

use super::App;
use crate::control::api::BODY_MAX;
use crate::control::problem::Problem;
use crate::control::store::StoreError;
use crate::engine::error::Class;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What handlers return.
pub type Answer = Result<Response, Problem>;
/// What handlers get.
pub type Shared = State<Arc<App>>;

/// The longest a poll waits, whatever it asks for: below the port's 30 s for a request, which so needs no exception.
pub const MAX_WAIT: Duration = Duration::from_secs(25);
/// Between two looks of one poll, so that a burst of events costs each poll at most ten looks a second.
const PAUSE: Duration = Duration::from_millis(100);

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (status, class) = match error {
            StoreError::NotFound(_) => (StatusCode::NOT_FOUND, Class::NotFound),
            StoreError::Conflict(_) => (StatusCode::CONFLICT, Class::Permanent),
            StoreError::StaleSession => (StatusCode::CONFLICT, Class::Interrupted),
            StoreError::KeyReused | StoreError::TooMuch(_) => (StatusCode::UNPROCESSABLE_ENTITY, Class::Permanent),
            StoreError::Unavailable(ref why) => {
                // What it says of files on this host is for its own log.
                tracing::error!(%why, "the store failed");
                return Self::busy("the store cannot do it now: nothing was lost; try again");
            }
        };
        Self::new(status, class, error.to_string())
    }
}

/// `body` as JSON.
pub fn reply(status: StatusCode, body: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(body).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, Class::Permanent, "the answer cannot be written")
    })?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((status, headers, bytes).into_response())
}

/// 422: understood, but it cannot be meant.
pub fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Class::Permanent, detail)
}

/// The whole body, at most [`BODY_MAX`].
pub async fn bytes(request: Request) -> Result<Bytes, Problem> {
    bytes_up_to(request, BODY_MAX).await
}

/// The whole body, at most `max` bytes.
pub async fn bytes_up_to(request: Request, max: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("this request's body is at most {} MiB", max >> 20);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, Class::Permanent, detail)
    };
    match Limited::new(request.into_body(), max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Problem::bad("the request's body was cut off")),
    }
}

/// A body from its bytes.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::bad(format!("the request's body: {error}")))
}

/// The body.
pub async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    parse(&bytes(request).await?)
}

/// An id or name of a path.
pub fn name<T: FromStr>(text: &str) -> Result<T, Problem>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| Problem::bad(error.to_string()))
}

/// The query.
pub fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    match Query::try_from_uri(uri) {
        Ok(Query(found)) => Ok(found),
        Err(error) => Err(Problem::bad(format!("the query: {}", error.body_text()))),
    }
}

/// `30s`, `30` or `500ms`; at most [`MAX_WAIT`].
pub fn wait(text: Option<&str>) -> Result<Duration, Problem> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let bad = || Problem::bad("`wait` is a time such as 30s or 500ms");
    let (digits, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1),
        (None, Some(digits)) => (digits, 1000),
        (None, None) => (text, 1000),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    Ok(Duration::from_millis(number.saturating_mul(unit)).min(MAX_WAIT))
}

/// The end of a poll.
pub struct Poll {
    until: Instant,
    seen: i64,
}

impl Poll {
    /// From now on.
    pub async fn new(app: &App, wait: Duration) -> Result<Self, Problem> {
        let seen = if wait.is_zero() { 0 } else { app.store.last_event().await? };
        Ok(Self { until: Instant::now() + wait, seen })
    }

    /// Waits until something may have changed; false: the time is over.
    pub async fn again(&mut self, app: &App) -> Result<bool, Problem> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let _ = tokio::time::timeout(left, app.store.wait_event(self.seen)).await;
        if Instant::now() >= self.until && app.store.last_event().await? == self.seen {
            // What only time has made ready is found by the next poll.
            return Ok(false);
        }
        tokio::time::sleep(PAUSE.min(left)).await;
        self.seen = app.store.last_event().await?;
        Ok(true)
    }
}

/// The version of an `If-Match` or `If-None-Match`; `None`: there is none.
pub fn version(headers: &HeaderMap, which: header::HeaderName) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(&which) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|v| v.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok());
    number.map(Some).ok_or_else(|| Problem::bad(format!("{which} is one ETag as this port gave it, such as \"7\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded() {
        assert_eq!(wait(Some("2s")).unwrap(), Duration::from_secs(2));
        assert_eq!(wait(Some("500ms")).unwrap(), Duration::from_millis(500));
        assert_eq!(wait(Some("99999999999999")).unwrap(), MAX_WAIT);
        assert_eq!(wait(None).unwrap(), Duration::ZERO);
        assert!(wait(Some("-1s")).is_err() && wait(Some("s")).is_err());
    }
}
