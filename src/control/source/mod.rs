//! The role source over HTTP: a file as a ticket or as bytes, with its state on the way there (204 while it is on tape),
//! lists of what lies below a prefix, and bulk recalls. A file that needs a recall is never opened: that would be one.

mod body;
mod hook;
mod list;
mod rule;
mod stages;

#[cfg(test)]
mod tests;

pub use rule::{Readable, Rule};
pub use stages::{Asked, RecallState, StageError, StageView, Stages};

use super::api::{Answer, App, body as read_body, reply};
use super::destination::catalog::Catalog;
use super::http::Connection;
use super::messages::WirePath;
use super::model::name::{Lfn, StageId};
use super::problem::Problem;
use super::settings::Role;
use super::tokens::{Principal, Right};
use super::url::decode;
use crate::engine::error::Class;
use crate::engine::spec::{Access, Grant, SourceSpec};
use crate::relpath::RelPath;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// What `Accept` says to get a ticket instead of the bytes.
pub const TICKET_TYPE: &str = "application/vnd.longhaul.ticket+json";
/// The stage of a 204.
pub const STAGE_ID: &str = "longhaul-stage-id";
/// Its state: `queued`, `recalling` or `ready-soon`; of a HEAD, which recalls nothing, `offline`.
pub const STAGE_STATE: &str = "longhaul-stage-state";
/// Files of one bulk stage.
pub const MAX_STAGE_FILES: usize = 1000;
/// Plain downloads at once; each holds a thread of the blocking pool while its client reads.
const MAX_READERS: usize = 32;
/// The longest `?wait=`; the port gives a request up after 30 s.
const MAX_WAIT: Duration = Duration::from_secs(25);
/// How often a waiting request looks at the rule, which may change without us.
const LOOK: Duration = Duration::from_millis(500);
/// When all readers are busy, or transfers.
const BUSY_SECS: u64 = 5;
/// A ticket's life in seconds; as of `POST /v1/tickets`.
const TICKET_TTL_SECS: u64 = crate::limits::TICKET_TTL_SECS;

/// What the routes know.
pub struct Source {
    /// Root, tokens, engine.
    pub app: Arc<App>,
    /// Which files need a recall.
    pub rule: Rule,
    /// Recalls; `None` when no file ever needs one.
    pub stages: Option<Arc<Stages>>,
    /// What this agent has or had.
    pub catalog: Option<Arc<Catalog>>,
    readers: Arc<Semaphore>,
}

type Shared = State<Arc<Source>>;

impl Source {
    /// The role over `app`.
    pub fn new(app: Arc<App>, rule: Rule, stages: Option<Arc<Stages>>, catalog: Option<Arc<Catalog>>) -> Self {
        Self { app, rule, stages, catalog, readers: Arc::new(Semaphore::new(MAX_READERS)) }
    }
}

/// The routes over `source`.
pub fn router(source: Arc<Source>) -> Router {
    Router::new()
        .route("/v1/files/{*path}", get(data))
        .route("/v1/list", get(list::list))
        .route("/v1/files:stage", post(stage))
        .route("/v1/stages/{id}", get(stage_view).delete(stage_cancel))
        .with_state(source)
}

/// `a=b&c=d`, percent-decoded.
pub(super) fn query(request: &Request) -> Result<Vec<(String, String)>, Problem> {
    let bad = || Problem::bad("the query cannot be read: NAME=VALUE&…, percent-encoded UTF-8");
    let text = |part: &str| String::from_utf8(decode(part.as_bytes())?).ok();
    let pairs = request.uri().query().unwrap_or_default().split('&').filter(|p| !p.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((text(name)?, text(value)?))
        })
        .collect::<Option<_>>()
        .ok_or_else(bad)
}

/// What a client says about the file it wants.
#[derive(Debug, Default)]
struct Wanted {
    bytes: Option<u64>,
    digest: Option<String>,
    wait: Duration,
}

impl Wanted {
    fn read(request: &Request) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        for (name, value) in query(request)? {
            match name.as_str() {
                "bytes" => wanted.bytes = Some(value.parse().map_err(|_| Problem::bad("`bytes` is a number"))?),
                "digest" => wanted.digest = Some(value),
                "wait" => wanted.wait = wait(&value)?,
                _ => return Err(Problem::bad("the query takes `bytes`, `digest` and `wait`")),
            }
        }
        Ok(wanted)
    }
}

/// `30s` or `30`: seconds, capped.
pub(super) fn wait(text: &str) -> Result<Duration, Problem> {
    let secs = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| Problem::bad("`wait` is like 30s"))?;
    Ok(Duration::from_secs(secs).min(MAX_WAIT))
}

/// The file of `/v1/files/…/data`: decoded segment by segment, so that `%2F` cannot make two of one.
fn named(request: &Request) -> Result<Lfn, Problem> {
    let path = request.uri().path();
    let inner = path.strip_prefix("/v1/files/").and_then(|p| p.strip_suffix("/data"));
    let inner = inner.ok_or_else(|| Problem::not_found("ask for /v1/files/PATH/data"))?;
    let mut text = String::with_capacity(inner.len() + 1);
    for part in inner.split('/') {
        let part = decode(part.as_bytes()).and_then(|p| String::from_utf8(p).ok()).filter(|p| !p.contains('/'));
        text.push('/');
        text.push_str(&part.ok_or_else(|| Problem::bad("a segment of the path is not percent-encoded UTF-8"))?);
    }
    text.parse().map_err(|e: super::model::name::NameError| Problem::bad(e.to_string()))
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Problem::busy("the agent is stopping"))
}

fn problem_of(errno: Errno, shown: &str) -> Problem {
    match errno {
        Errno::ENOENT => Problem::not_found(format!("{shown} is not there")),
        Errno::ENOTDIR | Errno::ELOOP => Problem::not_found(format!(
            "{shown} is not there: a name on the way is a file or a symbolic link, which is not followed"
        )),
        Errno::EISDIR | Errno::ENXIO => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            Class::Permanent,
            format!("{shown} is no regular file: ask for the files in it, see /v1/list"),
        ),
        Errno::EACCES | Errno::EPERM => Problem::denied(format!("the agent's user may not read {shown}")),
        errno => Problem::busy(format!("{shown} cannot be read: {}", errno.desc())),
    }
}

fn gone(lfn: &Lfn) -> Problem {
    Problem::new(
        StatusCode::GONE,
        Class::OtherSource,
        format!("{lfn} was here and is not any more: take it from another source"),
    )
}

fn changed(lfn: &Lfn, what: &str) -> Problem {
    let detail = format!("{lfn} has {what} here: it is not the file that was asked for");
    Problem::new(StatusCode::PRECONDITION_FAILED, Class::OtherSource, detail)
}

/// Back-pressure: nothing is wrong, come later.
fn later(detail: &str) -> Response {
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, Class::Retry, detail);
    with_header(problem.into_response(), header::RETRY_AFTER.as_str(), &BUSY_SECS.to_string())
}

fn with_header(mut response: Response, name: &'static str, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Asks for the recall of what is not there yet, and says so. Who only looks (HEAD) recalls nothing.
async fn not_ready(source: &Source, lfn: &Lfn, path: &RelPath, look: bool) -> Answer {
    if look {
        return Ok(with_header(StatusCode::NO_CONTENT.into_response(), STAGE_STATE, "offline"));
    }
    let Some(stages) = source.stages.clone() else {
        return Err(Problem::busy(format!("{lfn} is offline, and this agent has no stage_command to recall it")));
    };
    let files = vec![(lfn.clone(), path.clone())];
    let asked = blocking(move || stages.ask(&files)).await?.map_err(|e| e.problem())?;
    let state = asked.files.first().map_or(RecallState::Queued, |(_, state)| *state);
    let mut response = StatusCode::NO_CONTENT.into_response();
    for (name, value) in [
        ("retry-after", asked.retry_after_secs.to_string()),
        (STAGE_ID, asked.stage.to_string()),
        (STAGE_STATE, state.header().to_owned()),
        ("cache-control", "no-store".to_owned()),
    ] {
        response = with_header(response, name, &value);
    }
    Ok(response)
}

async fn data(State(source): Shared, Extension(connection): Extension<Connection>, request: Request) -> Answer {
    let principal = source.app.principal(request.headers())?;
    source.app.has(Role::Source)?;
    let lfn = named(&request)?;
    let wanted = Wanted::read(&request)?;
    let look = request.method() == Method::HEAD;
    let known = match (&source.catalog, lfn.clone()) {
        (Some(catalog), lfn) => {
            let catalog = catalog.clone();
            blocking(move || catalog.get(&lfn)).await?.map_err(|e| e.problem())?
        }
        (None, _) => None,
    };
    // By its name in the catalog, or else by its path.
    let at = known.as_ref().map_or(&lfn, |known| &known.path);
    let path = source.app.authorised(&principal, Right::Read, &WirePath(at.as_str().as_bytes().to_vec()))?;
    let until = Instant::now() + wanted.wait;
    let found = loop {
        let (looking, file) = (source.clone(), path.clone());
        match blocking(move || looking.rule.look(&looking.app.root, &file)).await? {
            Ok(Readable::Online) => break Ok(()),
            Ok(Readable::Offline { .. } | Readable::Recalling { .. }) => {
                let answer = not_ready(&source, &lfn, &path, look).await?;
                if Instant::now() + LOOK > until {
                    return Ok(answer);
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(errno) => break Err(errno),
        }
    };
    let opened = match found {
        Ok(()) => {
            let (app, file) = (source.app.clone(), path.clone());
            blocking(move || app.root.open_file(&file)).await?
        }
        Err(errno) => Err(errno),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(Errno::ENOENT) if known.is_some() => return Err(gone(&lfn)),
        Err(errno) => return Err(problem_of(errno, lfn.as_str())),
    };
    let expected = wanted.bytes.or(known.as_ref().map(|known| known.bytes));
    if expected.is_some_and(|bytes| bytes != opened.bytes) {
        return Err(changed(&lfn, &format!("{} bytes", opened.bytes)));
    }
    // The digest is of the file that the catalog knows: of another size, it is another file.
    let digest = known.filter(|known| known.bytes == opened.bytes).and_then(|known| known.digest);
    if let (Some(wanted), Some(known)) = (&wanted.digest, &digest)
        && wanted != known
    {
        return Err(changed(&lfn, &format!("the digest {known}")));
    }
    let accepts = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok());
    if accepts.is_some_and(|v| v.split(',').any(|kind| kind.trim() == TICKET_TYPE)) {
        return ticket(&source, &principal, path, &connection).await;
    }
    let Ok(place) = source.readers.clone().try_acquire_owned() else {
        return Ok(later("as many downloads run here as may: try again, or use tickets"));
    };
    Ok(body::answer(look, request.headers(), opened, digest.as_deref(), place))
}

async fn ticket(source: &Source, principal: &Principal, path: RelPath, connection: &Connection) -> Answer {
    if source.app.has_room().await.is_err() {
        return Ok(later("this agent runs as many transfers as it may"));
    }
    let encrypt = source.app.encryption(None);
    let base = source.app.root.path().to_owned();
    let access = Access::Read(SourceSpec { base, roots: vec![path], recursive: false, encrypt, rows: None });
    let grant = Grant { principal: principal.name.clone(), access, ttl_secs: TICKET_TTL_SECS };
    let mut ticket = source.app.engine.issue(grant).await?;
    ticket.data = source.app.data_addresses(connection);
    let response = reply(StatusCode::OK, &ticket)?;
    Ok(with_header(response, "content-type", TICKET_TYPE))
}

/// The body of `POST /v1/files:stage`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// 1 to [`MAX_STAGE_FILES`] files.
    pub lfns: Vec<Lfn>,
}

/// How one file of a bulk stage stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedFile {
    /// The file.
    pub lfn: Lfn,
    /// `online`, `queued`, `recalling`, `failed`, `missing`, `gone`, `unreadable`.
    pub state: String,
    /// Bytes, when it is online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The answer to [`StageRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReply {
    /// The stage of those that are not online; absent when all are.
    #[serde(default)]
    pub stage: Option<StageId>,
    /// `online` when all are; else `recalling`.
    pub state: String,
    /// When to ask again.
    pub retry_after_secs: u64,
    /// One by one, in the order of the request.
    pub files: Vec<StagedFile>,
}

async fn stage(State(source): Shared, request: Request) -> Answer {
    let principal = source.app.principal(request.headers())?;
    source.app.has(Role::Source)?;
    let asked: StageRequest = read_body(request).await?;
    if asked.lfns.is_empty() || asked.lfns.len() > MAX_STAGE_FILES {
        return Err(Problem::bad(format!("`lfns` lists 1 to {MAX_STAGE_FILES} files")));
    }
    let path = |lfn: &Lfn| source.app.authorised(&principal, Right::Read, &WirePath(lfn.as_str().into()));
    let files = asked.lfns.into_iter().map(|l| path(&l).map(|p| (l, p))).collect::<Result<Vec<_>, _>>()?;
    let reply_body = blocking(move || source.stage(files)).await??;
    reply(StatusCode::OK, &reply_body)
}

impl Source {
    /// Looks at every file and recalls what has to be. Blocks.
    pub fn stage(&self, files: Vec<(Lfn, RelPath)>) -> Result<StageReply, Problem> {
        let mut told = Vec::with_capacity(files.len());
        let mut offline = Vec::new();
        for (lfn, path) in files {
            let mut bytes = None;
            let state = match self.rule.look(&self.app.root, &path) {
                Ok(Readable::Online) => match self.app.root.stat(&path) {
                    Ok(stat) => {
                        bytes = Some(stat.size);
                        "online"
                    }
                    Err(_) => "unreadable",
                },
                Ok(Readable::Offline { .. } | Readable::Recalling { .. }) if self.stages.is_none() => "unreadable",
                Ok(Readable::Offline { .. } | Readable::Recalling { .. }) => {
                    offline.push((lfn.clone(), path));
                    "queued"
                }
                Err(Errno::ENOENT) => match &self.catalog {
                    Some(catalog) if catalog.get(&lfn).map_err(|e| e.problem())?.is_some() => "gone",
                    _ => "missing",
                },
                Err(_) => "unreadable",
            };
            told.push(StagedFile { lfn, state: state.to_owned(), bytes });
        }
        let Some(stages) = self.stages.as_ref().filter(|_| !offline.is_empty()) else {
            return Ok(StageReply { stage: None, state: "online".to_owned(), retry_after_secs: 0, files: told });
        };
        let asked = stages.ask(&offline).map_err(|e| e.problem())?;
        // In the same order as they were asked for.
        let mut states = asked.files.iter();
        for file in told.iter_mut().filter(|file| file.state == "queued") {
            if let Some((_, state)) = states.next() {
                file.state = state.word().to_owned();
            }
        }
        let retry_after_secs = asked.retry_after_secs;
        Ok(StageReply { stage: Some(asked.stage), state: "recalling".to_owned(), retry_after_secs, files: told })
    }
}

fn stage_of(source: &Source, id: &str, headers: &HeaderMap) -> Result<(Arc<Stages>, StageId), Problem> {
    source.app.principal(headers)?;
    let none = || Problem::not_found("there is no such stage");
    Ok((source.stages.clone().ok_or_else(none)?, id.parse().map_err(|_| none())?))
}

async fn stage_view(State(source): Shared, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let (stages, id) = stage_of(&source, &id, &headers)?;
    let view = blocking(move || stages.view(id)).await?.map_err(|e| e.problem())?;
    reply(StatusCode::OK, &view.ok_or_else(|| Problem::not_found("there is no such stage"))?)
}

async fn stage_cancel(State(source): Shared, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let (stages, id) = stage_of(&source, &id, &headers)?;
    blocking(move || stages.cancel(id)).await?.map_err(|e| e.problem())?;
    Ok((StatusCode::NO_CONTENT, Body::empty()).into_response())
}
