//! `/v1/requests` and `/v1/items`.

use super::web::{Answer, Poll, Shared, bytes, invalid, name, parse, query, reply, version, wait};
use super::{App, check, policy, resolve};
use crate::control::access::Role;
use crate::control::http::Patience;
use crate::control::model::item::AgentEndpoint;
use crate::control::model::name::{AgentName, DatasetName, ItemId, RequestId};
use crate::control::model::page::{Page, PageQuery};
use crate::control::model::request::{
    Decision, RequestFilter, RequestPatch, RequestSpec, RequestView, Selection, SourceChoice,
};
use crate::control::model::states::{ItemState, RequestState};
use crate::control::problem::Problem;
use crate::control::store::{Actor, Idempotency, StoreError};
use crate::control::tokens::Principal;
use crate::engine::error::Class;
use aws_lc_rs::digest::{Context, SHA256};
use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Of a destination's answer to a probe.
const PROBE: Duration = Duration::from_secs(5);
/// Bytes of an `Idempotency-Key`.
const MAX_KEY: usize = 255;

type Who = Extension<Principal>;

fn actor(who: &Principal) -> Actor {
    Actor { name: who.name.clone() }
}

/// A request with its ETag.
fn view(status: StatusCode, request: &RequestView) -> Answer {
    let mut response = reply(status, request)?;
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", request.version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// The request, if `who` may see it; what it may not see is not there.
async fn seen(app: &App, who: &Principal, id: &str) -> Result<RequestView, Problem> {
    let request = app.store.request(name::<RequestId>(id)?).await?;
    match who.sees(&request) {
        true => Ok(request),
        false => Err(StoreError::NotFound("request").into()),
    }
}

async fn steered(app: &App, who: &Principal, id: &str) -> Result<RequestView, Problem> {
    let request = seen(app, who, id).await?;
    who.steers(&request)?;
    Ok(request)
}

/// The version of `If-Match`: 428 without one, 412 if it is not the request's.
fn matched(headers: &HeaderMap, request: &RequestView) -> Result<u64, Problem> {
    let seen = version(headers, header::IF_MATCH)?.ok_or_else(|| {
        let detail = "this needs the header `If-Match` with the request's ETag, so that nothing unseen is changed";
        Problem::new(StatusCode::PRECONDITION_REQUIRED, Class::Permanent, detail)
    })?;
    match seen == request.version {
        true => Ok(seen),
        false => Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            Class::Interrupted,
            format!("the request has changed (it is at \"{}\"): look again", request.version),
        )),
    }
}

fn unavailable(why: String) -> Problem {
    Problem { kind: Some("destination-unavailable"), ..Problem::busy(why) }
}

/// Every destination is registered as one, its lease holds and its HTTP port answers.
async fn probe(app: &Arc<App>, destinations: &[AgentName]) -> Result<(), Problem> {
    let mut probes = JoinSet::new();
    for destination in destinations {
        let agent = match app.store.agent(destination.clone()).await {
            Ok(agent) => agent,
            Err(StoreError::NotFound(_)) => {
                return Err(invalid(format!("`destinations`: no agent `{destination}` is registered")));
            }
            Err(error) => return Err(error.into()),
        };
        let registration = agent.registration;
        if !registration.roles.iter().any(|role| role == "destination") {
            return Err(invalid(format!("`destinations`: the agent `{destination}` is no destination")));
        }
        if !agent.alive {
            return Err(unavailable(format!(
                "the destination `{destination}` has not been heard of lately: try later"
            )));
        }
        let (app, url, fingerprint) = (app.clone(), registration.url, registration.fingerprint);
        let endpoint = AgentEndpoint { name: destination.clone(), url, fingerprint };
        probes.spawn(async move {
            let name = endpoint.name.clone();
            match tokio::time::timeout(PROBE, app.peers.probe(endpoint)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("the destination `{name}` cannot be reached: {error}")),
                Err(_) => Err(format!("the destination `{name}` did not answer within {} s", PROBE.as_secs())),
            }
        });
    }
    while let Some(probed) = probes.join_next().await {
        probed.map_err(|_| unavailable("a probe was given up: try again".into()))?.map_err(unavailable)?;
    }
    Ok(())
}

/// What `who` asks for lies within its scopes; an agent's token asks for its own agent only.
async fn may_ask(app: &App, who: &Principal, spec: &RequestSpec) -> Result<(), Problem> {
    if !who.is(Role::Submitter) {
        for destination in &spec.destinations {
            who.speaks_for(destination)?;
        }
    }
    let outside = || Problem::denied(format!("the token `{}` is for other datasets than the one asked for", who.name));
    match &spec.select {
        Selection::Files(files) if !who.is_unscoped() => {
            for lfn in files {
                let file = app.store.file(lfn.clone()).await?;
                if !who.covers(file.dataset.as_ref()) {
                    return Err(outside());
                }
            }
            Ok(())
        }
        select if who.covers_selection(select) => Ok(()),
        _ => Err(outside()),
    }
}

fn key(headers: &HeaderMap, who: &Principal, uri: &Uri, body: &[u8]) -> Result<Option<Idempotency>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let bad = || Problem::bad(format!("an `Idempotency-Key` is 1 to {MAX_KEY} printable characters"));
    let key = value.to_str().map_err(|_| bad())?;
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(bad());
    }
    let mut hash = Context::new(&SHA256);
    for part in [b"POST\n", uri.path().as_bytes(), b"\n", body] {
        hash.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    Ok(Some(Idempotency { key: key.to_owned(), owner: who.name.clone(), body: digest }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateQuery {
    #[serde(default)]
    preflight: bool,
}

/// `POST /v1/requests`
pub async fn create(State(app): Shared, Extension(who): Who, request: Request) -> Answer {
    let asked: CreateQuery = query(request.uri())?;
    let (headers, uri) = (request.headers().clone(), request.uri().clone());
    let body = bytes(request).await?;
    let spec: RequestSpec = parse(&body)?;
    let key = key(&headers, &who, &uri, &body)?;
    // What was acknowledged once is so again, whatever time it is, whoever is away and whatever the token may now.
    if let Some(key) = key.clone().filter(|_| !asked.preflight)
        && let Some(before) = app.store.replay(key).await?
    {
        return created(&before, true);
    }
    check::spec(&spec, app.store.now().await?)?;
    may_ask(&app, &who, &spec).await?;
    if let SourceChoice::Agents(sources) = &spec.source {
        for source in sources {
            match app.store.agent(source.clone()).await {
                Ok(agent) if agent.registration.roles.iter().any(|role| role == "source") => {}
                Ok(_) => return Err(invalid(format!("`source`: the agent `{source}` is no source"))),
                Err(StoreError::NotFound(_)) => {
                    return Err(invalid(format!("`source`: no agent `{source}` is registered")));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    probe(&app, &spec.destinations).await?;
    if asked.preflight {
        return reply(StatusCode::OK, &serde_json::json!({"destinations": spec.destinations}));
    }
    let made = app.store.create_request(actor(&who), spec, key).await?;
    app.wake_resolver.notify_one();
    created(&made.request, made.replayed)
}

fn created(request: &RequestView, replayed: bool) -> Answer {
    let mut response = view(StatusCode::CREATED, request)?;
    if let Ok(location) = format!("/v1/requests/{}", request.id).parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// `POST /v1/requests/{id}/manifest`
pub async fn manifest(
    State(app): Shared,
    Extension(who): Who,
    Path(id): Path<String>,
    Extension(patience): Extension<Patience>,
    request: Request,
) -> Answer {
    let found = steered(&app, &who, &id).await?;
    if found.spec.select != Selection::Manifest || found.state != RequestState::Resolving {
        let detail = "a manifest is taken by a request with `\"select\": \"manifest\"` that is still resolving";
        return Err(Problem::new(StatusCode::CONFLICT, Class::Permanent, detail));
    }
    let _permit = app
        .uploads
        .clone()
        .try_acquire_owned()
        .map_err(|_| Problem::busy("this agent reads as many manifests as it can already: try again later"))?;
    view(StatusCode::OK, &resolve::manifest(&app, found, request.into_body(), patience).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<RequestState>,
    owner: Option<String>,
    destination: Option<AgentName>,
    dataset: Option<DatasetName>,
    label: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/requests`
pub async fn list(State(app): Shared, Extension(who): Who, uri: Uri) -> Answer {
    let ListQuery { state, owner, destination, dataset, label, cursor, limit } = query(&uri)?;
    let filter = RequestFilter { state, owner, destination, dataset, label };
    let mut page = app.store.requests(filter, PageQuery { cursor, limit }).await?;
    page.items.retain(|request| who.sees(request));
    reply(StatusCode::OK, &page)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetQuery {
    wait: Option<String>,
}

/// `GET /v1/requests/{id}`
pub async fn get(
    State(app): Shared,
    Extension(who): Who,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let GetQuery { wait: text } = query(&uri)?;
    let known = version(&headers, header::IF_NONE_MATCH)?;
    let mut poll = Poll::new(&app, if known.is_some() { wait(text.as_deref())? } else { Duration::ZERO }).await?;
    loop {
        let found = seen(&app, &who, &id).await?;
        if known != Some(found.version) {
            return view(StatusCode::OK, &found);
        }
        if !poll.again(&app).await? {
            let mut response = view(StatusCode::NOT_MODIFIED, &found)?;
            *response.body_mut() = axum::body::Body::empty();
            response.headers_mut().remove(header::CONTENT_TYPE);
            return Ok(response);
        }
    }
}

/// `PATCH /v1/requests/{id}`
pub async fn patch(State(app): Shared, Extension(who): Who, Path(id): Path<String>, request: Request) -> Answer {
    let found = steered(&app, &who, &id).await?;
    let version = matched(request.headers(), &found)?;
    let patch: RequestPatch = super::web::body(request).await?;
    check::patch(&patch, app.store.now().await?)?;
    view(StatusCode::OK, &app.store.patch_request(found.id, version, patch).await?)
}

/// `DELETE /v1/requests/{id}`
pub async fn delete(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    let found = steered(&app, &who, &id).await?;
    app.store.delete_request(found.id, actor(&who)).await?;
    Ok(axum::response::IntoResponse::into_response(StatusCode::NO_CONTENT))
}

/// `POST /v1/requests/{id}/approval`
pub async fn approval(State(app): Shared, Extension(who): Who, Path(id): Path<String>, request: Request) -> Answer {
    let found = seen(&app, &who, &id).await?;
    if !who.covers_selection(&found.spec.select) {
        return Err(Problem::denied(format!("the token `{}` approves for other datasets", who.name)));
    }
    let version = matched(request.headers(), &found)?;
    let decision: Decision = super::web::body(request).await?;
    let long = decision.comment.as_ref().is_some_and(|c| c.len() > check::MAX_WORDS);
    if long || decision.digest.len() != 64 {
        return Err(invalid("`digest` is the request's, 64 hex digits; `comment` is at most 4096 bytes"));
    }
    // What waits for nobody the store refuses.
    if found.state == RequestState::PendingApproval {
        policy::may_decide(&found, &who.name)?;
    }
    view(StatusCode::OK, &app.store.decide(found.id, actor(&who), version, decision).await?)
}

/// `POST /v1/requests/{id}/pause`
pub async fn pause(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    let id = steered(&app, &who, &id).await?.id;
    view(StatusCode::OK, &app.store.pause(id, actor(&who), true).await?)
}

/// `POST /v1/requests/{id}/resume`
pub async fn resume(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    let id = steered(&app, &who, &id).await?.id;
    view(StatusCode::OK, &app.store.pause(id, actor(&who), false).await?)
}

/// `POST /v1/requests/{id}/cancel`
pub async fn cancel(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    let id = steered(&app, &who, &id).await?.id;
    let cancelled = app.store.cancel(id, actor(&who)).await?;
    app.wake_sweeper.notify_one();
    view(StatusCode::OK, &cancelled)
}

/// `POST /v1/requests/{id}/retry-failed`
pub async fn retry_failed(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    let id = steered(&app, &who, &id).await?.id;
    view(StatusCode::OK, &app.store.retry_failed(id, actor(&who)).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemsQuery {
    state: Option<ItemState>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/requests/{id}/items`
pub async fn items(State(app): Shared, Extension(who): Who, Path(id): Path<String>, uri: Uri) -> Answer {
    let ItemsQuery { state, cursor, limit } = query(&uri)?;
    let id = seen(&app, &who, &id).await?.id;
    let page: Page<_> = app.store.items(id, state, PageQuery { cursor, limit }).await?;
    reply(StatusCode::OK, &page)
}

async fn seen_item(app: &App, who: &Principal, id: &str) -> Result<crate::control::model::item::ItemView, Problem> {
    let item = app.store.item(name::<ItemId>(id)?).await?;
    match who.sees(&app.store.request(item.request).await?) {
        true => Ok(item),
        false => Err(StoreError::NotFound("item").into()),
    }
}

/// `GET /v1/items/{id}`
pub async fn item(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    reply(StatusCode::OK, &seen_item(&app, &who, &id).await?)
}

/// `GET /v1/items/{id}/attempts`
pub async fn attempts(State(app): Shared, Extension(who): Who, Path(id): Path<String>) -> Answer {
    let item = seen_item(&app, &who, &id).await?;
    reply(StatusCode::OK, &app.store.attempts(item.id).await?)
}
