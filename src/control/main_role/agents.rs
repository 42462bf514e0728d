//! `/v1/agents`: the registry, sessions with their heartbeats, claims and reports.

use super::check;
use super::choose::choose_all;
use super::web::{Answer, Poll, Shared, body, bytes_up_to, name, parse, query, reply, wait};
use crate::control::access::Role;
use crate::control::model::agent::{AgentRegistration, MAX_SESSION_ITEMS, OpenSession, Renewal};
use crate::control::model::item::{Claim, ItemReport, MAX_CLAIM};
use crate::control::model::name::{AgentName, SessionKey};
use crate::control::problem::Problem;
use crate::control::tokens::Principal;
use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

/// Bytes of an opening: [`MAX_SESSION_ITEMS`] ids of 40 bytes.
const MAX_OPEN: usize = MAX_SESSION_ITEMS * 40 + 4096;
/// Bytes that a heartbeat's progress may name.
const MAX_PROGRESS: usize = 10_000;

type Who = Extension<Principal>;

fn own(who: &Principal, text: &str) -> Result<AgentName, Problem> {
    let agent = name(text)?;
    who.speaks_for(&agent)?;
    Ok(agent)
}

/// `POST /v1/agents`
pub async fn register(State(app): Shared, Extension(who): Who, request: Request) -> Answer {
    let registration: AgentRegistration = body(request).await?;
    if !who.is(Role::Operator) {
        who.speaks_for(&registration.name)?;
    }
    check::registration(&registration)?;
    reply(StatusCode::CREATED, &app.store.register(registration).await?)
}

/// `GET /v1/agents`
pub async fn list(State(app): Shared) -> Answer {
    reply(StatusCode::OK, &app.store.agents().await?)
}

/// `GET /v1/agents/{name}`
pub async fn get(State(app): Shared, Path(agent): Path<String>) -> Answer {
    reply(StatusCode::OK, &app.store.agent(name(&agent)?).await?)
}

/// `DELETE /v1/agents/{name}`
pub async fn remove(State(app): Shared, Path(agent): Path<String>) -> Answer {
    app.store.remove_agent(name(&agent)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Body of `POST /v1/agents/{name}/drain`.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Whether the agent is given nothing new.
    pub draining: bool,
}

/// `POST /v1/agents/{name}/drain`
pub async fn drain(State(app): Shared, Path(agent): Path<String>, request: Request) -> Answer {
    let agent = name(&agent)?;
    let Drain { draining } = body(request).await?;
    reply(StatusCode::OK, &app.store.drain(agent, draining).await?)
}

/// `POST /v1/agents/{name}/session`
pub async fn open(State(app): Shared, Extension(who): Who, Path(agent): Path<String>, request: Request) -> Answer {
    let agent = own(&who, &agent)?;
    let open: OpenSession = parse(&bytes_up_to(request, MAX_OPEN).await?)?;
    let session = app.store.open_session(agent, open).await?;
    app.heard(session.session);
    reply(StatusCode::OK, &session)
}

/// `PUT /v1/agents/{name}/session`
pub async fn renew(State(app): Shared, Extension(who): Who, Path(agent): Path<String>, request: Request) -> Answer {
    let agent = own(&who, &agent)?;
    let renewal: Renewal = body(request).await?;
    if renewal.progress.len() > MAX_PROGRESS || !renewal.status.load.is_finite() {
        return Err(super::web::invalid("`progress` names at most 10000 items, and `status.load` is a number"));
    }
    let session = renewal.session;
    let renewed = app.store.renew(agent, renewal).await?;
    app.heard(session);
    reply(StatusCode::OK, &renewed)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimQuery {
    wait: Option<String>,
}

/// `POST /v1/agents/{name}/claims`
pub async fn claim(State(app): Shared, Extension(who): Who, Path(agent): Path<String>, request: Request) -> Answer {
    let agent = own(&who, &agent)?;
    let ClaimQuery { wait: text } = query(request.uri())?;
    let wait = wait(text.as_deref())?;
    let claim: Claim = body(request).await?;
    if claim.limit == 0 || claim.limit > MAX_CLAIM {
        return Err(super::web::invalid(format!("`limit` is 1 to {MAX_CLAIM}")));
    }
    let mut poll = Poll::new(&app, wait).await?;
    // Asked first, whatever there is to claim: a repeated number gets what it got.
    let mut given = app.store.claim(agent.clone(), claim.clone(), Vec::new()).await?;
    loop {
        if given.is_empty() {
            let chosen = choose_all(&app.store.claimable(agent.clone(), claim.clone()).await?);
            if !chosen.is_empty() {
                given = app.store.claim(agent.clone(), claim.clone(), chosen).await?;
            }
        }
        if !given.is_empty() || !poll.again(&app).await? {
            app.metrics.claimed(given.len());
            return reply(StatusCode::OK, &given);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionQuery {
    session: SessionKey,
}

/// `GET /v1/agents/{name}/assignments`
pub async fn assignments(State(app): Shared, Extension(who): Who, Path(agent): Path<String>, uri: Uri) -> Answer {
    let agent = own(&who, &agent)?;
    let SessionQuery { session } = query(&uri)?;
    reply(StatusCode::OK, &app.store.assignments(agent, session).await?)
}

/// Body of `POST /v1/agents/{name}/reports`.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reports {
    /// The session that claimed.
    pub session: SessionKey,
    /// In order.
    pub reports: Vec<ItemReport>,
}

/// `POST /v1/agents/{name}/reports`
pub async fn report(State(app): Shared, Extension(who): Who, Path(agent): Path<String>, request: Request) -> Answer {
    let agent = own(&who, &agent)?;
    let Reports { session, reports } = body(request).await?;
    check::reports(&reports)?;
    let outcomes = app.store.report(agent, session, reports).await?;
    app.metrics.reported(&outcomes);
    reply(StatusCode::OK, &outcomes)
}
