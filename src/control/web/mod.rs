//! The page that main serves at `/` and below `/ui/`: files that are part of the program, and sessions for browsers. Nothing here
//! reads or writes requests: the page speaks to the same API as everybody, under a session instead of a token.

pub mod session;

use super::problem::Problem;
use super::tokens::TokenStore;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde::{Deserialize, Serialize};
use session::{Opened, Sessions};
use std::sync::Arc;

/// What a page may load and do: its own files, and nothing from elsewhere.
pub const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'";
/// A login's body: a token and its JSON.
const LOGIN_MAX: usize = 4 << 10;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $kind:ident $file:literal),* $(,)?) => {
        /// Every file of the page: where, what, and its bytes.
        pub const FILES: &[(&str, &str, &str)] = &[$(($path, $kind, include_str!(concat!("assets/", $file)))),*];
    };
}

files! {
    "/" HTML "index.html",
    "/ui/page.css" CSS "page.css",
    "/ui/icon.svg" SVG "icon.svg",
    "/ui/app.js" JS "app.js",
    "/ui/api.js" JS "api.js",
    "/ui/dom.js" JS "dom.js",
    "/ui/words.js" JS "words.js",
    "/ui/live.js" JS "live.js",
    "/ui/actions.js" JS "actions.js",
    "/ui/requests.js" JS "requests.js",
    "/ui/request.js" JS "request.js",
    "/ui/board.js" JS "board.js",
    "/ui/agents.js" JS "agents.js",
    "/ui/catalog.js" JS "catalog.js",
}

/// `api` (main's routes, without a fallback) with the page beside it, whose sessions `api` then takes as well as tokens.
pub fn with_page(api: Router, tokens: Arc<TokenStore>) -> Router {
    let sessions = Sessions::new(tokens);
    let files = FILES.iter().fold(Router::new(), |router, &(path, kind, text)| router.route(path, file(kind, text)));
    let page = files
        .route("/ui/login", post(login))
        .route("/ui/logout", post(logout))
        .route("/ui/session", get(whoami))
        .with_state(sessions.clone())
        .layer(from_fn(headers));
    api.layer(from_fn_with_state(sessions, admit)).merge(page)
}

fn file(kind: &'static str, text: &'static str) -> MethodRouter<Arc<Sessions>> {
    get(move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text) })
}

/// On everything that a browser may show.
async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    harden(&mut response);
    response
}

fn harden(response: &mut Response) {
    let all = [
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in all {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

/// Lets a browser with a session use the API: a request with a valid cookie goes on with the session's token. One that brings a
/// token of its own is left alone. The token is then checked as any other, so that a revoked one ends its sessions at once.
async fn admit(State(sessions): State<Arc<Sessions>>, mut request: Request, next: Next) -> Response {
    let mut response = match sessions.admit(&mut request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    harden(&mut response);
    response
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
}

/// What the page knows of itself.
#[derive(Serialize)]
struct Whoami {
    name: String,
    roles: Vec<String>,
    datasets: Vec<String>,
    csrf: String,
    version: &'static str,
}

impl From<&Opened> for Whoami {
    fn from(opened: &Opened) -> Self {
        Self {
            name: opened.who.name.clone(),
            roles: opened.who.roles.iter().map(ToString::to_string).collect(),
            datasets: opened.who.datasets.iter().map(ToString::to_string).collect(),
            csrf: opened.csrf.clone(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

fn told(opened: &Opened) -> Response {
    let body = serde_json::to_vec(&Whoami::from(opened)).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// `POST /ui/login {token}`. JSON only: a form of another site cannot send it.
async fn login(State(sessions): State<Arc<Sessions>>, request: Request) -> Result<Response, Problem> {
    session::same_origin(&request)?;
    let json =
        request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
    if !json {
        return Err(Problem::bad("a login is JSON: {\"token\": ...}"));
    }
    let place = session::Place::of(&request);
    let bytes = axum::body::to_bytes(request.into_body(), LOGIN_MAX)
        .await
        .map_err(|_| Problem::bad("a login's body is at most 4 KiB"))?;
    // The parser's words may quote the token.
    let login: Login = serde_json::from_slice(&bytes).map_err(|_| Problem::bad("a login is JSON: {\"token\": ...}"))?;
    let (id, opened) = sessions.open(&login.token)?;
    let mut response = told(&opened);
    set_cookie(&mut response, &place.cookie(&id))?;
    Ok(response)
}

async fn logout(State(sessions): State<Arc<Sessions>>, mut request: Request) -> Result<Response, Problem> {
    sessions.admit(&mut request)?;
    sessions.close(&request);
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, &session::Place::of(&request).gone())?;
    Ok(response)
}

async fn whoami(State(sessions): State<Arc<Sessions>>, request: Request) -> Result<Response, Problem> {
    Ok(told(&sessions.current(&request)?))
}

fn set_cookie(response: &mut Response, cookie: &str) -> Result<(), Problem> {
    let value = HeaderValue::from_str(cookie).map_err(|_| Problem::bad("the cookie cannot be written"))?;
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(())
}

#[cfg(test)]
mod tests;
