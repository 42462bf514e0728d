//! `/v1/events`: what happened, in order, as a stream that resumes by id or as a poll.

use super::App;
use super::web::{Answer, Poll, Shared, query, reply, wait};
use crate::control::model::event::{Event, EventFilter};
use crate::control::model::name::RequestId;
use crate::control::problem::Problem;
use crate::control::tokens::Principal;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use hyper::body::Frame;
use serde::Deserialize;
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll as Polled};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Events of one look.
const BATCH: usize = 500;
/// Looks that one slow reader may be behind.
const AHEAD: usize = 4;
/// Between signs of life of a silent stream: proxies end what is silent for a minute.
const ALIVE: Duration = Duration::from_secs(15);
/// Milliseconds after which a client dials again.
const RETRY_MS: u32 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    subject: Option<String>,
    kind: Option<String>,
    after: Option<i64>,
    limit: Option<usize>,
    wait: Option<String>,
}

/// `GET /v1/events`
pub async fn events(State(app): Shared, Extension(who): Extension<Principal>, uri: Uri, headers: HeaderMap) -> Answer {
    let EventsQuery { subject, kind, after, limit, wait: text } = query(&uri)?;
    if !who.is_unscoped() {
        let id = subject.as_ref().and_then(|s| s.parse::<RequestId>().ok()).ok_or_else(|| {
            Problem::denied("a token with scopes follows one request it may see: name it with `subject=`")
        })?;
        if !who.sees(&app.store.request(id).await?) {
            return Err(crate::control::store::StoreError::NotFound("request").into());
        }
    }
    let filter = EventFilter { subject, kind };
    let accepts = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    if after.is_some() && !accepts.is_some_and(|a| a.contains("text/event-stream")) {
        return poll(&app, after.unwrap_or(0), filter, limit, wait(text.as_deref())?).await;
    }
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    let from = match last {
        Some(text) => text.trim().parse().map_err(|_| Problem::bad("`Last-Event-ID` is an event's id"))?,
        None => match after {
            Some(after) => after,
            None => app.store.last_event().await?,
        },
    };
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::busy("as many clients follow events as may: poll with ?after=N&wait=30s, or try again later")
    })?;
    let (lines, feed) = mpsc::channel(AHEAD);
    tokio::spawn(follow(app, from, filter, lines, permit));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::new(Feed(feed))).into_response())
}

async fn poll(app: &App, after: i64, filter: EventFilter, limit: Option<usize>, wait: Duration) -> Answer {
    let limit = limit.unwrap_or(BATCH).clamp(1, 2 * BATCH);
    let mut poll = Poll::new(app, wait).await?;
    loop {
        let found = app.store.events(after, filter.clone(), limit).await?;
        if !found.is_empty() || !poll.again(app).await? {
            return reply(StatusCode::OK, &found);
        }
    }
}

/// One event as a stream says it. JSON has no line breaks of its own, and kinds are words.
fn line(out: &mut String, event: &Event) {
    let data = serde_json::to_string(event).unwrap_or_default();
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    let _ = write!(out, "id: {}\nevent: {kind}\ndata: {data}\n\n", event.id);
}

async fn follow(
    app: Arc<App>,
    mut after: i64,
    filter: EventFilter,
    lines: mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
) {
    if lines.send(Bytes::from(format!("retry: {RETRY_MS}\n\n"))).await.is_err() {
        return;
    }
    let mut spoke = tokio::time::Instant::now();
    loop {
        // Taken before looking, so that what comes in between is not waited for.
        let Ok(last) = app.store.last_event().await else { return };
        let Ok(found) = app.store.events(after, filter.clone(), BATCH).await else { return };
        let mut text = String::new();
        for event in &found {
            line(&mut text, event);
            after = event.id;
        }
        if text.is_empty() && spoke.elapsed() >= ALIVE {
            text.push_str(": alive\n\n");
        }
        if !text.is_empty() {
            spoke = tokio::time::Instant::now();
            if lines.send(Bytes::from(text)).await.is_err() {
                return;
            }
        }
        if found.len() < BATCH {
            tokio::select! {
                () = lines.closed() => return,
                () = app.store.wait_event(last.max(after)) => {}
            }
        }
    }
}

/// A body out of a channel.
struct Feed(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
    }
}
