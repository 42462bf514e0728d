//! The role main: requests, approval, assignment, the registry of agents and the index of catalogs, over a [`Store`]. Nothing
//! authoritative lives here: what this process knows besides its store is who it heard lately and what it resolves.

pub mod agents;
pub mod catalog;
pub mod check;
pub mod choose;
pub mod events;
pub mod metrics;
pub mod openapi;
pub mod peers;
pub mod policy;
pub mod requests;
pub mod resolve;
pub mod routes;
pub mod start;
pub mod sweep;
mod web;

use super::model::name::{RequestId, SessionKey};
use super::store::Store;
use super::tokens::TokenStore;
use metrics::MainMetrics;
use peers::Peers;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

pub use routes::router;
pub use start::Main;

/// Event streams at once: a quarter of the port's connections, so that watchers do not shut workers out.
const STREAMS: usize = 256;
/// Manifests that are read at once.
const UPLOADS: usize = 8;
/// Requests that are resolved at once.
const RESOLVERS: usize = 4;

/// What main's routes and tasks know.
pub struct App {
    /// Where everything is.
    pub store: Arc<dyn Store>,
    /// Who may ask.
    pub tokens: Arc<TokenStore>,
    /// How agents are reached.
    pub peers: Arc<dyn Peers>,
    /// For `/metrics`: see [`super::metrics::Metrics::attach`].
    pub metrics: Arc<MainMetrics>,
    /// As the store gives them out.
    pub lease: Duration,
    heard: Mutex<Heard>,
    resolving: Mutex<BTreeSet<RequestId>>,
    wake_resolver: Notify,
    wake_sweeper: Notify,
    streams: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("main_role::App")
    }
}

impl App {
    /// Main over `store`. Nothing runs yet: see [`router`] and [`spawn`].
    pub fn new(
        store: Arc<dyn Store>,
        tokens: Arc<TokenStore>,
        peers: Arc<dyn Peers>,
        metrics: Arc<MainMetrics>,
        lease: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            tokens,
            peers,
            metrics,
            lease,
            heard: Mutex::new(Heard { others: Instant::now(), sessions: BTreeMap::new() }),
            resolving: Mutex::default(),
            wake_resolver: Notify::new(),
            wake_sweeper: Notify::new(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
        })
    }

    /// The one right to resolve `id` in this process, until it is dropped.
    fn take(self: &Arc<Self>, id: RequestId) -> Option<Resolving> {
        let mut taken = self.resolving.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(id).then(|| Resolving { app: self.clone(), id })
    }

    fn heard(&self, session: SessionKey) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).sessions.insert(session, Instant::now());
    }
}

/// When this process last heard of whom, by its monotonic clock.
struct Heard {
    /// Those that it never heard: from its own start, or from when it came back after it was stopped.
    others: Instant,
    sessions: BTreeMap<SessionKey, Instant>,
}

/// See [`App::take`].
struct Resolving {
    app: Arc<App>,
    id: RequestId,
}

impl Drop for Resolving {
    fn drop(&mut self) {
        self.app.resolving.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Main's tasks: resolver, sweeper, census. They end when `stop` turns true.
pub fn spawn(app: Arc<App>, stop: watch::Receiver<bool>) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(resolve::run(app.clone(), stop.clone())),
        tokio::spawn(sweep::run(app.clone(), stop.clone())),
        tokio::spawn(metrics::run(app, stop)),
    ]
}

#[cfg(test)]
mod tests;
