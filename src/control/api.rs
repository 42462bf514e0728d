//! The routes of the HTTP port. Every one but `/healthz` asks for a token (`/metrics` not on loopback); what a token
//! may do beneath which path is checked before the file system is touched.

use super::bridge::TransferEngine;
use super::http::Connection;
use super::messages::{
    HandTicket, PartialOptions, StatusReply, ThirdPartyRequest, TicketRequest, TransferView, WirePath,
};
use super::metrics::{self, Metrics};
use super::problem::Problem;
use super::root::ServedRoot;
use super::settings::{Role, StageRule};
use super::source::{Readable, Rule};
use super::third_party::{self, Jobs, MAX_SOURCES};
use super::tokens::{Principal, Right, TokenStore};
use super::url::decode;
use crate::engine::error::Class;
use crate::engine::handle::TransferStatus;
use crate::engine::is_reserved_name;
use crate::engine::probe::{DURATION_MAX_MS, DURATION_MIN_MS, ProbeSpec};
use crate::engine::spec::{Access, DestinationSpec, Grant, SourceSpec, Steer, TransferOptions, Verify};
use crate::ids::AgentId;
use crate::limits::{MAX_ROOTS, MAX_STREAMS, TICKET_TTL_SECS};
use crate::relpath::RelPath;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use nix::errno::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Instant;

/// A request's body. A ticket for [`MAX_ROOTS`] paths of 250 bytes fits.
pub const BODY_MAX: usize = 1 << 20;

/// What the routes know.
pub struct App {
    /// Who we are.
    pub agent: AgentId,
    /// What we do.
    pub roles: Vec<Role>,
    /// What we serve.
    pub root: Arc<ServedRoot>,
    /// Who does it.
    pub engine: Arc<dyn TransferEngine>,
    /// Who may ask.
    pub tokens: Arc<TokenStore>,
    /// Where the data port listens.
    pub data: SocketAddr,
    /// Told instead of it, if there are any.
    pub advertise: Vec<SocketAddr>,
    /// For requests that do not say.
    pub verify: Verify,
    /// The policy: `false` lets a client that says off go without.
    pub encrypt: bool,
    /// Transfers at once.
    pub max_sessions: usize,
    /// Since when.
    pub started: Instant,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Third-party transfers.
    pub jobs: Jobs,
    /// Which files need a recall, and so are not opened by request.
    pub stage_rule: Rule,
}

pub(super) type Answer = Result<Response, Problem>;
type Shared = State<Arc<App>>;

/// The routes over `app`.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/v1/status", get(status))
        .route("/v1/tickets", post(tickets))
        .route("/v1/transfers", get(transfers).post(start_transfer))
        .route("/v1/transfers/{id}", get(transfer).patch(steer).delete(cancel))
        .route("/v1/transfers/{id}/tickets", post(hand_ticket))
        .route("/v1/stat", get(stat))
        .route("/metrics", get(metrics))
        .fallback(|| async { Problem::not_found("there is nothing here: see /v1/status, /v1/tickets, /v1/transfers") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, Class::Permanent, "this path does not take that method")
        })
        .with_state(app)
}

pub(super) fn reply(status: StatusCode, body: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(body).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, Class::Permanent, "the answer cannot be written")
    })?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((status, headers, bytes).into_response())
}

pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let too_large =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, Class::Permanent, "a request's body is at most 1 MiB");
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > BODY_MAX as u64) {
        return Err(too_large());
    }
    let limited = http_body_util::Limited::new(request.into_body(), BODY_MAX);
    let bytes: Bytes = match http_body_util::BodyExt::collect(limited).await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Err(_) => return Err(Problem::bad("the request's body was cut off")),
    };
    serde_json::from_slice(&bytes).map_err(|error| Problem::bad(format!("the request's body: {error}")))
}

impl App {
    pub(super) fn principal(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        let missing = || {
            let detail = "this needs one header `Authorization: Bearer TOKEN`: see --token-file";
            Problem::new(StatusCode::UNAUTHORIZED, Class::Denied, detail)
        };
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().and_then(|v| v.to_str().ok()).ok_or_else(missing)?;
        if values.next().is_some() {
            return Err(missing());
        }
        let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        Ok(self.tokens.authenticate(token)?)
    }

    pub(super) fn has(&self, role: Role) -> Result<(), Problem> {
        if self.roles.contains(&role) {
            return Ok(());
        }
        let detail = format!("this agent has not the role {role}: ask another, or change its `roles`");
        Err(Problem::new(StatusCode::CONFLICT, Class::Permanent, detail))
    }

    async fn running(&self) -> usize {
        self.engine.transfers().await.iter().filter(|t| t.report.is_none()).count()
    }

    pub(super) async fn has_room(&self) -> Result<(), Problem> {
        match self.running().await < self.max_sessions {
            true => Ok(()),
            false => Err(Problem::full(format!(
                "this agent runs its {} transfers already: try again later",
                self.max_sessions
            ))),
        }
    }

    /// This end's say in encryption. Policy on: on, whatever the client says. Policy off: off, unless it says on.
    pub(super) fn encryption(&self, wish: Option<bool>) -> Option<bool> {
        Some(self.encrypt || wish == Some(true))
    }

    fn options(&self, partial: PartialOptions, wish: Option<bool>) -> Result<TransferOptions, Problem> {
        let mut options = partial.resolve(self.verify).map_err(Problem::bad)?;
        options.encrypt = self.encryption(wish.or(options.encrypt));
        Ok(options)
    }

    /// The data addresses for whoever came in over `connection`.
    pub(super) fn data_addresses(&self, connection: &Connection) -> Vec<SocketAddr> {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        let ip = if self.data.ip().is_unspecified() { connection.local.ip() } else { self.data.ip() };
        // Our number of an interface means nothing to the client.
        vec![match SocketAddr::new(ip, self.data.port()) {
            SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
            v4 => v4,
        }]
    }

    /// Which rights a ticket needs, and the grant it stands for.
    fn grant(&self, principal: &Principal, request: TicketRequest) -> Result<Grant, Problem> {
        let access = match request {
            TicketRequest::Read { paths, recursive, encrypt } => {
                self.has(Role::Source)?;
                if paths.is_empty() || paths.len() > MAX_ROOTS {
                    return Err(Problem::bad(format!("`paths` lists 1 to {MAX_ROOTS} paths")));
                }
                let roots = paths
                    .iter()
                    .map(|path| self.authorised(principal, Right::Read, path))
                    .collect::<Result<Vec<_>, _>>()?;
                self.all_online(&roots)?;
                let encrypt = self.encryption(encrypt);
                Access::Read(SourceSpec { base: self.root.path().to_owned(), roots, recursive, encrypt, rows: None })
            }
            TicketRequest::Write { path, becomes, options, encrypt } => {
                self.has(Role::Destination)?;
                let path = self.authorised(principal, Right::Write, &path)?;
                let options = self.options(options, encrypt)?;
                Access::Write(DestinationSpec { base: self.root.path().to_owned(), path, becomes, options, rows: None })
            }
            TicketRequest::Probe { agent_sends, streams, duration_ms, options } => {
                let (role, right) =
                    if agent_sends { (Role::Source, Right::Read) } else { (Role::Destination, Right::Write) };
                self.has(role)?;
                // Who may move files that way may find out how fast; no path is touched.
                principal.check(right, principal.prefixes.first().unwrap_or(&RelPath::default()))?;
                if !(1..=MAX_STREAMS).contains(&streams) {
                    return Err(Problem::bad(format!("`streams` is 1 to {MAX_STREAMS}")));
                }
                if !(DURATION_MIN_MS..=DURATION_MAX_MS).contains(&duration_ms) {
                    return Err(Problem::bad(format!("`duration_ms` is {DURATION_MIN_MS} to {DURATION_MAX_MS}")));
                }
                let options = self.options(options, None)?;
                Access::Probe(ProbeSpec { agent_sends, streams, duration_ms, options })
            }
        };
        Ok(Grant { principal: principal.name.clone(), access, ttl_secs: TICKET_TTL_SECS })
    }

    /// Opening a file on tape would recall it by accident: there is no ticket for one. Blocks as long as a stat does.
    fn all_online(&self, roots: &[RelPath]) -> Result<(), Problem> {
        if self.stage_rule.0 == StageRule::Online {
            return Ok(());
        }
        let offline = |root: &&RelPath| {
            matches!(self.stage_rule.look(&self.root, root), Ok(Readable::Offline { .. } | Readable::Recalling { .. }))
        };
        match roots.iter().find(offline) {
            None => Ok(()),
            Some(path) => Err(Problem::busy(format!("/{path} is on tape: recall it with POST /v1/files:stage first"))),
        }
    }

    pub(super) fn authorised(&self, principal: &Principal, right: Right, path: &WirePath) -> Result<RelPath, Problem> {
        let path =
            path.rel_path().map_err(|e| Problem::bad(format!("the path {}: {e}", crate::relpath::escape(&path.0))))?;
        principal.check(right, &path)?;
        if path.components().any(is_reserved_name) {
            return Err(Problem::denied(
                "`.longhaul` directories and part files are the agents' own: nobody reads or writes them by request",
            ));
        }
        Ok(path)
    }
}

async fn healthz() -> Answer {
    reply(StatusCode::OK, &json!({"status": "ok"}))
}

async fn status(State(app): Shared, headers: HeaderMap) -> Answer {
    app.principal(&headers)?;
    let root = app.root.clone();
    // A network file system may take its time.
    let root = tokio::task::spawn_blocking(move || root.facts()).await.unwrap_or_default();
    let reply_body = StatusReply {
        agent: app.agent,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        roles: app.roles.iter().map(Role::to_string).collect(),
        root,
        engine: app.engine.facts().into_iter().collect(),
        uptime_seconds: app.started.elapsed().as_secs(),
        sessions: app.running().await,
    };
    reply(StatusCode::OK, &reply_body)
}

async fn tickets(State(app): Shared, Extension(connection): Extension<Connection>, request: Request) -> Answer {
    let principal = app.principal(request.headers())?;
    let grant = app.grant(&principal, body(request).await?)?;
    app.has_room().await?;
    let mut ticket = app.engine.issue(grant).await?;
    ticket.data = app.data_addresses(&connection);
    reply(StatusCode::CREATED, &ticket)
}

async fn stat(State(app): Shared, request: Request) -> Answer {
    let principal = app.principal(request.headers())?;
    let query = request.uri().query().and_then(|q| q.strip_prefix("path=")).filter(|q| !q.contains('&'));
    let path = query.and_then(|q| decode(q.as_bytes())).ok_or_else(|| {
        Problem::bad("ask for /v1/stat?path=PATH, everything but letters, digits, `-._~/` percent-encoded")
    })?;
    let path = app.authorised(&principal, Right::Read, &WirePath(path))?;
    let (root, shown) = (app.root.clone(), format!("/{path}"));
    match tokio::task::spawn_blocking(move || root.stat(&path)).await {
        Ok(Ok(found)) => reply(StatusCode::OK, &found),
        Ok(Err(Errno::ENOENT)) => Err(Problem::not_found(format!("{shown} is not there"))),
        Ok(Err(Errno::ENOTDIR | Errno::ELOOP)) => Err(Problem::not_found(format!(
            "{shown} is not there: a directory on the way is a file or a symbolic link, which is not followed"
        ))),
        Ok(Err(Errno::EACCES | Errno::EPERM)) => {
            Err(Problem::denied(format!("the agent's user may not look at {shown}")))
        }
        Ok(Err(errno)) => Err(Problem::busy(format!("{shown} cannot be looked at: {}", errno.desc()))),
        Err(_) => Err(Problem::busy("the agent is stopping")),
    }
}

fn may_see(principal: &Principal, owner: &str) -> bool {
    principal.is_unlimited() || principal.name == owner
}

async fn transfers(State(app): Shared, headers: HeaderMap) -> Answer {
    let principal = app.principal(&headers)?;
    let all = app.engine.transfers().await;
    let views: Vec<TransferView> =
        all.into_iter().filter(|t| may_see(&principal, &t.principal)).map(TransferView::from).collect();
    let jobs = app.jobs.list();
    let third: Vec<TransferView> =
        jobs.iter().filter(|j| may_see(&principal, &j.principal)).map(|j| j.view()).collect();
    reply(StatusCode::OK, &json!({"transfers": views, "third_party": third}))
}

fn no_transfer() -> Problem {
    Problem::not_found("no such transfer is known here, or it is another token's")
}

async fn transfer(State(app): Shared, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let principal = app.principal(&headers)?;
    if let Some(job) = app.jobs.get(&id).filter(|job| may_see(&principal, &job.principal)) {
        return reply(StatusCode::OK, &job.view());
    }
    match found(&app, &principal, &id).await {
        Some(found) => reply(StatusCode::OK, &TransferView::from(found)),
        None => Err(no_transfer()),
    }
}

/// The last of that id: a resume has the same.
async fn found(app: &App, principal: &Principal, id: &str) -> Option<TransferStatus> {
    let mine = |t: &TransferStatus| {
        may_see(principal, &t.principal) && t.transfer.is_some_and(|known| known.to_string() == id)
    };
    app.engine.transfers().await.into_iter().rfind(mine)
}

async fn start_transfer(State(app): Shared, Extension(connection): Extension<Connection>, request: Request) -> Answer {
    let principal = app.principal(request.headers())?;
    let asked: ThirdPartyRequest = body(request).await?;
    app.has(Role::Destination)?;
    let path = app.authorised(&principal, Right::Write, &asked.path)?;
    if asked.sources.is_empty() || asked.sources.len() > MAX_SOURCES {
        return Err(Problem::bad(format!("`sources` lists 1 to {MAX_SOURCES} sources")));
    }
    for source in &asked.sources {
        third_party::check_ticket(&source.ticket, connection.peer.ip()).map_err(Problem::denied)?;
    }
    let options = app.options(asked.options, None)?;
    app.has_room().await?;
    let to = DestinationSpec { base: app.root.path().to_owned(), path, becomes: asked.becomes, options, rows: None };
    let random = |_| Problem::busy("the agent has no random numbers");
    let job = app.jobs.start(app.engine.clone(), &principal.name, asked.sources, to).map_err(random)?;
    let id = job.ok_or_else(|| Problem::full("too many third-party transfers run: try again later"))?.view().id;
    let id = id.unwrap_or_default();
    let mut response = reply(StatusCode::ACCEPTED, &super::messages::Started { id: id.clone() })?;
    if let Ok(location) = format!("/v1/transfers/{id}").parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn hand_ticket(
    State(app): Shared,
    Path(id): Path<String>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Answer {
    let principal = app.principal(request.headers())?;
    let handed: HandTicket = body(request).await?;
    let job = app.jobs.get(&id).filter(|job| may_see(&principal, &job.principal)).ok_or_else(no_transfer)?;
    third_party::check_ticket(&handed.ticket, connection.peer.ip()).map_err(Problem::denied)?;
    match job.hand(handed.source, handed.ticket) {
        true => reply(StatusCode::OK, &json!({})),
        false => Err(Problem::new(StatusCode::CONFLICT, Class::Permanent, "no source of that number wants a ticket")),
    }
}

async fn cancel(State(app): Shared, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let principal = app.principal(&headers)?;
    if let Some(job) = app.jobs.get(&id).filter(|job| may_see(&principal, &job.principal)) {
        job.cancel();
        return reply(StatusCode::ACCEPTED, &job.view());
    }
    found(&app, &principal, &id).await.ok_or_else(no_transfer)?;
    let detail = "this agent only serves that transfer: stop it where it was started";
    Err(Problem::new(StatusCode::CONFLICT, Class::Permanent, detail))
}

/// What is asked for counts from the next message between the ends on; the answer shows what was in force before.
async fn steer(State(app): Shared, Path(id): Path<String>, request: Request) -> Answer {
    let principal = app.principal(request.headers())?;
    let change: Steer = body(request).await?;
    change.check().map_err(|(key, why)| Problem::bad(format!("`{key}`: {why}")))?;
    if change.is_empty() {
        return Err(Problem::bad("nothing is to be changed: name `rate`, `streams` or `priority`"));
    }
    let ended = || Problem::new(StatusCode::CONFLICT, Class::Permanent, "the transfer has ended: nothing was changed");
    if let Some(job) = app.jobs.get(&id).filter(|job| may_see(&principal, &job.principal)) {
        return if job.steer(&change) { reply(StatusCode::ACCEPTED, &job.view()) } else { Err(ended()) };
    }
    let found = found(&app, &principal, &id).await.ok_or_else(no_transfer)?;
    match found.transfer {
        Some(id) if app.engine.steer(id, change).await => reply(StatusCode::ACCEPTED, &TransferView::from(found)),
        _ => Err(ended()),
    }
}

async fn metrics(State(app): Shared, Extension(connection): Extension<Connection>, headers: HeaderMap) -> Answer {
    if !connection.is_loopback() {
        app.principal(&headers)?;
    }
    let text = app.metrics.render(app.running().await);
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

#[cfg(test)]
mod tests;
