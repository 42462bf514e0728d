//! Sessions of browsers: in memory only, so that a restart of main asks for the token again. A session is never more than its
//! token: expiry and revocation are looked up with every use.

use crate::control::http::Connection;
use crate::control::main_role::routes::bearer;
use crate::control::problem::Problem;
use crate::control::state;
use crate::control::tokens::{Principal, TokenStore, TokenText};
use crate::engine::error::Class;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sessions at once; the one that was used longest ago makes room.
pub const MAX_SESSIONS: usize = 1000;
/// A session ends after so long without use.
pub const IDLE: Duration = Duration::from_secs(2 * 3600);
/// And after so long in any case.
pub const LIFE: Duration = Duration::from_secs(12 * 3600);
/// The header that a mutation needs beside the cookie.
pub const CSRF_HEADER: &str = "x-longhaul-csrf";

struct Session {
    token: TokenText,
    csrf: String,
    opened: Instant,
    used: Instant,
}

/// A session as its browser may know it.
#[derive(Debug)]
pub struct Opened {
    /// Whose.
    pub who: Principal,
    /// For [`CSRF_HEADER`].
    pub csrf: String,
}

/// The sessions of one main. Keyed by the SHA-256 of their ids: a look-up's time tells nothing of an id.
pub struct Sessions {
    tokens: Arc<TokenStore>,
    open: Mutex<HashMap<[u8; 32], Session>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

fn key(id: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, id.as_bytes()).as_ref());
    out
}

fn random() -> Result<String, Problem> {
    let fail = |_| Problem::busy("this host gives no random numbers: try again");
    Ok(hex::encode(state::random::<32>().map_err(fail)?))
}

fn logged_out() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        Class::Denied,
        "you are not logged in, or your session has ended: log in again",
    )
}

/// Where a browser is, as far as a cookie is concerned. Cookies know no ports: the name has it, so that two mains of one host
/// do not log each other out.
pub struct Place {
    /// That it dialled.
    pub port: u16,
    /// Whether its connection is encrypted.
    pub tls: bool,
}

impl Place {
    /// Of the connection below `request`.
    pub fn of(request: &Request) -> Self {
        let connection = request.extensions().get::<Connection>();
        Self { port: connection.map_or(0, |c| c.local.port()), tls: connection.is_some_and(|c| c.tls) }
    }

    fn name(&self) -> String {
        format!("{}longhaul-{}", if self.tls { "__Host-" } else { "" }, self.port)
    }

    /// The `Set-Cookie` that begins a session.
    pub fn cookie(&self, id: &str) -> String {
        let secure = if self.tls { "; Secure" } else { "" };
        format!("{}={id}; Path=/; HttpOnly; SameSite=Strict{secure}", self.name())
    }

    /// The one that ends it.
    pub fn gone(&self) -> String {
        format!("{}; Max-Age=0", self.cookie(""))
    }

    fn id<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let name = self.name();
        let pairs = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
        let mut ids =
            pairs.filter_map(|pair| pair.trim().split_once('=')).filter(|(n, _)| *n == name).map(|(_, id)| id);
        let id = ids.next().filter(|id| id.len() == 64)?;
        // Two of one name: somebody planted one.
        ids.next().is_none().then_some(id)
    }
}

/// Refuses what another site's page makes a browser send. A browser names the origin with everything but plain GETs.
pub fn same_origin(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let one = |name: header::HeaderName| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().and_then(|v| v.to_str().ok());
        values.next().is_none().then_some(value).flatten()
    };
    let scheme = if Place::of(request).tls { "https" } else { "http" };
    let same = match (one(header::ORIGIN), one(header::HOST)) {
        (Some(origin), Some(host)) => origin.eq_ignore_ascii_case(&format!("{scheme}://{host}")),
        _ => false,
    };
    let foreign = headers.get("sec-fetch-site").is_some_and(|v| v != "same-origin");
    match same && !foreign {
        true => Ok(()),
        false => Err(Problem::denied(
            "this came from another site, or from no site at all: use the page that this port serves",
        )),
    }
}

impl Sessions {
    /// None yet.
    pub fn new(tokens: Arc<TokenStore>) -> Arc<Self> {
        Arc::new(Self { tokens, open: Mutex::default() })
    }

    /// Begins one with `token`. Its id is told once, in the cookie.
    pub fn open(&self, token: &str) -> Result<(String, Opened), Problem> {
        let bad = || {
            Problem::new(
                StatusCode::UNAUTHORIZED,
                Class::Denied,
                "that is no token: paste the whole line of a token file",
            )
        };
        let token = TokenText::parse(token).ok_or_else(bad)?;
        let who = self.tokens.authenticate(token.expose())?;
        if who.roles.is_empty() {
            let detail =
                format!("the token `{}` has no role at main: ask for one with the role viewer or more", who.name);
            return Err(Problem::denied(detail));
        }
        let (id, csrf, now) = (random()?, random()?, Instant::now());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| session.lives(now));
        if open.len() >= MAX_SESSIONS
            && let Some(oldest) = open.iter().min_by_key(|(_, s)| s.used).map(|(k, _)| *k)
        {
            open.remove(&oldest);
        }
        open.insert(key(&id), Session { token, csrf: csrf.clone(), opened: now, used: now });
        Ok((id, Opened { who, csrf }))
    }

    /// The session of `request`, if its token still counts.
    pub fn current(&self, request: &Request) -> Result<Opened, Problem> {
        let (token, csrf) = self.find(request).ok_or_else(logged_out)?;
        match self.tokens.authenticate(token.expose()) {
            Ok(who) => Ok(Opened { who, csrf }),
            Err(error) => {
                self.close(request);
                Err(error.into())
            }
        }
    }

    /// Ends the session of `request`, if it has one.
    pub fn close(&self, request: &Request) {
        if let Some(id) = Place::of(request).id(request.headers()) {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(id));
        }
    }

    /// Gives a request with a session its token. A mutation needs the page's origin and the session's [`CSRF_HEADER`] as well.
    /// Requests with a token of their own, or with no session, go on as they are.
    pub fn admit(&self, request: &mut Request) -> Result<(), Problem> {
        if request.headers().contains_key(header::AUTHORIZATION) {
            return Ok(());
        }
        let Some((token, csrf)) = self.find(request) else { return Ok(()) };
        if !request.method().is_safe() {
            same_origin(request)?;
            let sent = request.headers().get(CSRF_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
            if verify_slices_are_equal(sent, csrf.as_bytes()).is_err() {
                return Err(Problem::denied("this change lacks the session's X-Longhaul-CSRF: reload the page"));
            }
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| logged_out())?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
        debug_assert!(bearer(request.headers()).is_ok());
        Ok(())
    }

    /// Lets a session have been open, and unused, for so long already.
    #[cfg(test)]
    pub fn age(&self, id: &str, open: Duration, unused: Duration) {
        let mut all = self.open.lock().unwrap();
        let session = all.get_mut(&key(id)).unwrap();
        session.opened -= open;
        session.used -= unused;
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.open.lock().unwrap().len()
    }

    fn find(&self, request: &Request) -> Option<(TokenText, String)> {
        let id = Place::of(request).id(request.headers())?;
        let now = Instant::now();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let session = open.get_mut(&key(id)).filter(|session| session.lives(now))?;
        session.used = now;
        Some((session.token.clone(), session.csrf.clone()))
    }
}

impl Session {
    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.used) < IDLE && now.duration_since(self.opened) < LIFE
    }
}
