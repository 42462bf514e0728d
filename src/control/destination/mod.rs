//! Work that an agent takes for itself from main's queue: pulls as a destination, pushes as a source. Everything is
//! written to a queue of its own before it acts and before it forgets; main may be away at any time.
//!
//! - `session` registers, keeps the lease, tells reports; `claims` takes work in
//! - `probe` asks sources whether files are there; holds live here
//! - `run` transfers, and what becomes of each file; `queue` and `catalog` what is durable
//! - [`uploads`] files that plain clients bring; [`local`] what other agents ask of us

pub mod catalog;
mod claims;
pub mod local;
mod probe;
pub mod queue;
mod run;
mod session;
pub mod upload_routes;
pub mod uploads;

#[cfg(test)]
mod tests;

use super::api::App;
use super::client::{CallError, ClientOptions, PeerClient};
use super::database::DatabaseError;
use super::model::item::AgentEndpoint;
use super::model::name::{AgentName, ItemId, RequestId, SessionKey};
use super::settings::ServiceConfig;
use super::source::Source;
use super::tls::{Fingerprint, OwnTls, ServerTls};
use super::url::PeerUrl;
use crate::engine::error::{Class, TransferError};
use crate::engine::spec::Snapshot;
use catalog::Catalog;
use hyper::Method;
use queue::Queue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uploads::Uploads;

/// Pause after something failed that is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Nothing is begun for so long when there is no room, doubled each time.
const FULL: Duration = Duration::from_secs(30);
/// The longest.
const FULL_MAX: Duration = Duration::from_secs(900);

/// See [`FULL`].
#[derive(Debug, Clone, Copy, Default)]
struct Full {
    until: Option<Instant>,
    pause: Duration,
}

/// A peer that does not answer.
#[derive(Debug, Clone, Copy)]
struct Away {
    since: Instant,
    tries: u32,
}

/// An open session, while its lease holds by our own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    session: SessionKey,
    epoch: u64,
    until: Instant,
    draining: bool,
}

/// Why a running transfer is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Main wants it cancelled, and to hear so.
    Cancelled,
    /// Somebody else has it.
    Lost,
}

/// A transfer that runs, as the heartbeat and the stop lists see it.
#[derive(Debug)]
struct Running {
    items: Vec<(ItemId, u64)>,
    request: RequestId,
    /// Where it goes, with a slash: one at a time may have a directory for itself.
    directory: String,
    group: bool,
    cancel: Option<Arc<watch::Sender<bool>>>,
    snapshot: Option<watch::Receiver<Snapshot>>,
    stop: HashMap<ItemId, Stop>,
    ended: bool,
}

impl Running {
    fn cancel(&mut self) {
        self.ended = true;
        if let Some(cancel) = &self.cancel {
            cancel.send_replace(true);
        }
    }
}

/// How to reach the others.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Main.
    pub main: PeerUrl,
    /// Its pin.
    pub main_fingerprint: MainPin,
    /// The token for it.
    pub main_token_file: PathBuf,
    /// Tokens for other agents: a file for each, by its name (`_` for `/`).
    pub peer_tokens: PathBuf,
    /// Our own certificate, as it is now: whoever shows it is this agent.
    pub tls: Arc<RwLock<ServerTls>>,
    /// The token for this agent itself.
    pub own_token_file: PathBuf,
    /// Plain HTTP off loopback.
    pub insecure_http: bool,
    /// The authority of agents that are not pinned, and what is shown to all of them.
    pub authority: Option<OwnTls>,
}

/// How main is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MainPin {
    /// It is this agent.
    Itself,
    /// By this certificate.
    Pinned(Fingerprint),
    /// By where it is: only over loopback, or when plain HTTP is allowed.
    Place,
}

impl Reach {
    fn own(&self) -> Fingerprint {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).fingerprint
    }

    fn main(&self) -> Result<PeerClient, TransferError> {
        let pin = match self.main_fingerprint {
            // Nobody else has our port on loopback: a handshake with ourselves would prove nothing.
            MainPin::Itself if self.main.host.parse().is_ok_and(super::http::is_loopback) => None,
            MainPin::Itself => Some(self.own()),
            MainPin::Pinned(pin) => Some(pin),
            MainPin::Place => None,
        };
        self.client(self.main.clone(), pin, self.main_token_file.clone())
    }

    fn client(&self, url: PeerUrl, pin: Option<Fingerprint>, token: PathBuf) -> Result<PeerClient, TransferError> {
        let options = ClientOptions {
            token_file: Some(token),
            fingerprint: pin,
            known_peers: None,
            insecure_http: self.insecure_http,
            tls: self.authority.clone(),
            patience: None,
        };
        PeerClient::new(url, options)
    }

    /// Another agent, as main described it.
    fn peer(&self, peer: &AgentEndpoint) -> Result<PeerClient, TransferError> {
        let bad = |e: String| TransferError::new(Class::Permanent, e).at(&peer.name);
        let url = PeerUrl::parse(peer.url.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let pin = peer.fingerprint.as_deref().map(str::parse).transpose();
        let pin = pin.map_err(|e: super::tls::BadFingerprint| bad(e.to_string()))?;
        // Agents register as they like: none gets a token that was not put there for it.
        let file = self.peer_tokens.join(peer.name.as_str().replace('/', "_"));
        let token = match file.is_file() {
            true => file,
            false if pin == Some(self.own()) => self.own_token_file.clone(),
            false => {
                let what = format!(
                    "there is no token for the agent `{}`: put one that it gave into {} (mode 0600)",
                    peer.name,
                    file.display()
                );
                return Err(TransferError::new(Class::Denied, what));
            }
        };
        self.client(url, pin, token)
    }
}

/// The roles' active half.
pub struct Destination {
    name: AgentName,
    app: Arc<App>,
    reach: Reach,
    service: ServiceConfig,
    /// As others reach us.
    url: String,
    queue: Arc<Queue>,
    catalog: Arc<Catalog>,
    /// What lies here, and how it is recalled: for pushes.
    source: Arc<Source>,
    uploads: Option<Arc<Uploads>>,
    lease: watch::Sender<Option<Lease>>,
    running: Mutex<HashMap<u64, Running>>,
    /// Peers that are being asked.
    asked: Mutex<HashSet<String>>,
    /// Peers that do not answer, and since when.
    away: Mutex<HashMap<String, Away>>,
    /// Nothing can be placed here before then.
    full: Mutex<Full>,
    /// There may be something to ask sources about.
    probe: Notify,
    /// There may be something to transfer.
    start: Notify,
    /// There may be something to tell.
    tell: Notify,
    ended: std::sync::atomic::AtomicU64,
    failed: std::sync::atomic::AtomicU64,
}

/// What [`Destination::new`] needs beside the settings.
pub struct Parts {
    /// Root, engine, roles.
    pub app: Arc<App>,
    /// How to reach the others.
    pub reach: Reach,
    /// As others reach us.
    pub url: String,
    /// `queue.db`.
    pub queue: PathBuf,
    /// Our own.
    pub catalog: Arc<Catalog>,
    /// Our other half.
    pub source: Arc<Source>,
    /// Of a destination.
    pub uploads: Option<Arc<Uploads>>,
}

/// Why the active half does not start.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// Its own database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Main's token or pin.
    #[error(transparent)]
    Main(#[from] TransferError),
}

impl Destination {
    /// Opens the queue; nothing is dialled.
    pub fn new(name: AgentName, service: ServiceConfig, parts: Parts) -> Result<Arc<Self>, DestinationError> {
        let Parts { app, reach, url, queue, catalog, source, uploads } = parts;
        // A token that cannot be read is known at once.
        reach.main()?;
        let queue = Arc::new(Queue::open(&queue)?);
        Ok(Arc::new(Self {
            name,
            app,
            reach,
            service,
            url,
            queue,
            catalog,
            source,
            uploads,
            lease: watch::Sender::new(None),
            running: Mutex::default(),
            asked: Mutex::default(),
            away: Mutex::default(),
            full: Mutex::default(),
            probe: Notify::new(),
            start: Notify::new(),
            tell: Notify::new(),
            ended: Default::default(),
            failed: Default::default(),
        }))
    }

    /// Starts its loops; they end when `stop` turns true.
    pub fn spawn(self: &Arc<Self>, stop: watch::Receiver<bool>) {
        let spawn = |task: super::bridge::Boxed<'static, ()>| {
            let mut stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = task => {}
                    _ = stop.wait_for(|&stop| stop) => {}
                }
            });
        };
        let this = self.clone();
        spawn(Box::pin(async move { this.tidy_old().await }));
        spawn(Box::pin(self.clone().keep_session()));
        spawn(Box::pin(self.clone().claim_work()));
        spawn(Box::pin(self.clone().probe_sources()));
        spawn(Box::pin(self.clone().start_transfers()));
        spawn(Box::pin(self.clone().tell_reports()));
        spawn(Box::pin(self.clone().tell_uploads()));
    }

    /// Something of main.
    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, CallError> {
        let main = self.reach.main().map_err(CallError::Unreachable)?;
        main.json(method, path, body).await
    }

    /// How long nothing is begun because there is no room; `None`: there may be.
    fn full_for(&self) -> Option<Duration> {
        let until = self.full.lock().unwrap_or_else(PoisonError::into_inner).until?;
        until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Something was placed.
    fn has_room(&self) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = Full::default();
    }

    /// Something could not be placed. One pause for all that fail together; each longer than the one before.
    fn is_full(&self) -> Duration {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if full.until.is_none_or(|until| until <= now) {
            full.pause = (full.pause * 2).clamp(FULL, FULL_MAX);
            full.until = Some(now + full.pause);
            tracing::error!(pause = ?full.pause, "there is no room below the root: nothing is begun until then");
        }
        full.pause
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease, if it holds now.
    fn holds(&self) -> Option<Lease> {
        self.lease.borrow().filter(|lease| Instant::now() < lease.until)
    }

    /// Waits until there is a lease that holds.
    async fn wait_lease(&self) -> Lease {
        let mut lease = self.lease.subscribe();
        loop {
            if let Some(lease) = self.holds() {
                return lease;
            }
            // The sender is ours: it does not close. A lease that has run out is replaced.
            let _ = lease.changed().await;
        }
    }

    /// Work with the queue, off the runtime's threads.
    async fn queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Queue) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Option<T> {
        let queue = self.queue.clone();
        match tokio::task::spawn_blocking(move || work(&queue)).await {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                // Nothing is acted on that is not kept.
                tracing::error!(%error, "the queue failed; tried again");
                tokio::time::sleep(PAUSE).await;
                None
            }
            Err(_) => None,
        }
    }
}
