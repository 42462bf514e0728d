//! Work that an agent takes for itself from main's queue: pulls as a destination, pushes as a source. Everything is
//! written to a queue of its own before it acts and before it forgets; main may be away at any time.
//!
//! - [`session`] registers, keeps the lease, tells reports; [`claims`] takes work in
//! - [`probe`] asks sources whether files are there; holds live here
//! - [`run`] transfers, and what becomes of each file; [`queue`] and [`catalog`] what is durable

pub mod catalog;
mod claims;
pub mod local;
mod probe;
pub mod queue;
mod run;
mod session;

#[cfg(test)]
mod tests;

use super::api::App;
use super::client::{ClientOptions, PeerClient};
use super::database::DatabaseError;
use super::model::item::AgentEndpoint;
use super::model::name::{AgentName, ItemId, SessionKey};
use super::settings::ServiceConfig;
use super::tls::Fingerprint;
use super::url::PeerUrl;
use crate::engine::error::{Class, TransferError};
use crate::engine::spec::Snapshot;
use catalog::Catalog;
use queue::Queue;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Pause after something failed that is tried again.
const PAUSE: Duration = Duration::from_secs(1);

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
    pub main_fingerprint: Option<Fingerprint>,
    /// The token for it.
    pub main_token_file: PathBuf,
    /// Tokens for other agents.
    pub peer_tokens: Option<PathBuf>,
    /// Plain HTTP off loopback.
    pub insecure_http: bool,
}

impl Reach {
    fn main(&self) -> Result<PeerClient, TransferError> {
        self.client(self.main.clone(), self.main_fingerprint, self.main_token_file.clone())
    }

    fn client(&self, url: PeerUrl, pin: Option<Fingerprint>, token: PathBuf) -> Result<PeerClient, TransferError> {
        let options = ClientOptions {
            token_file: Some(token),
            fingerprint: pin,
            known_peers: None,
            insecure_http: self.insecure_http,
        };
        PeerClient::new(url, options)
    }

    /// Another agent, as main described it.
    fn peer(&self, peer: &AgentEndpoint) -> Result<PeerClient, TransferError> {
        let bad = |e: String| TransferError::new(Class::Permanent, e).at(&peer.name);
        let url = PeerUrl::parse(peer.url.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let pin = peer.fingerprint.as_deref().map(str::parse).transpose();
        let pin = pin.map_err(|e: super::tls::BadFingerprint| bad(e.to_string()))?;
        // An agent's name may have slashes, its token's file has not.
        let own = self.peer_tokens.as_ref().map(|dir| dir.join(peer.name.as_str().replace('/', "_")));
        let token = own.filter(|path| path.exists()).unwrap_or_else(|| self.main_token_file.clone());
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
    fingerprint: String,
    main: PeerClient,
    queue: Arc<Queue>,
    catalog: Arc<Catalog>,
    lease: watch::Sender<Option<Lease>>,
    running: Mutex<HashMap<u64, Running>>,
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
    /// Of our certificate.
    pub fingerprint: String,
    /// `queue.db`.
    pub queue: PathBuf,
    /// Our own.
    pub catalog: Arc<Catalog>,
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
        let Parts { app, reach, url, fingerprint, queue, catalog } = parts;
        let main = reach.main()?;
        let queue = Arc::new(Queue::open(&queue)?);
        Ok(Arc::new(Self {
            name,
            app,
            reach,
            service,
            url,
            fingerprint,
            main,
            queue,
            catalog,
            lease: watch::Sender::new(None),
            running: Mutex::default(),
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
        spawn(Box::pin(self.clone().keep_session()));
        spawn(Box::pin(self.clone().claim_work()));
        spawn(Box::pin(self.clone().probe_sources()));
        spawn(Box::pin(self.clone().start_transfers()));
        spawn(Box::pin(self.clone().tell_reports()));
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
