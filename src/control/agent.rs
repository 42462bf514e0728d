//! The daemon: engine, HTTP port, tokens and keys, put together, reloaded and stopped.

use super::api::{self, App};
use super::client::ClientOptions;
use super::database::DatabaseError;
use super::destination::catalog::Catalog;
use super::destination::uploads::Uploads;
use super::destination::{Destination, DestinationError, MainPin, Parts, Reach, local, upload_routes};
use super::http::{self, HttpLimits, HttpServer};
use super::main_role::Main;
use super::main_role::peers::HttpPeers;
use super::metrics::Metrics;
use super::profiles::{self, ProfilesError};
use super::root::{RootError, ServedRoot};
use super::settings::{AgentConfig, Role, StageRule};
use super::source::{self, Rule, Source, Stages};
use super::state::{StateDir, StateError};
use super::store::StoreError;
use super::third_party::Jobs;
use super::tls::{self, ClientTrust, ServerTls, TlsError, TlsFiles};
use super::tokens::{TokenError, TokenStore};
use super::transfer_log::TransferLog;
use super::url::{PeerUrl, UrlError};
use super::web;
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::{Engine, EngineConfig, TransferStatus};
use crate::ids::AgentId;
use crate::profile::{CpuMap, SharedProfiles};
use nix::fcntl::Flock;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, watch};

/// What the engine gets to checkpoint its transfers.
pub const SHUTDOWN: Duration = Duration::from_secs(8);
/// And what it gets on top if it does not keep to that: the agent has to be gone within 10 s.
const SHUTDOWN_SLACK: Duration = Duration::from_millis(700);
/// How long an unreachable peer is asked for new tickets.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// Tokens for other agents, in the state directory.
const PEERS: &str = "peers";

/// Why an agent does not start or reload.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Keys and tokens would be served to clients.
    #[error("the state directory {} lies beneath the root {}: clients could fetch its keys; name another with --state", state.display(), root.display())]
    StateInRoot {
        /// The state directory.
        state: PathBuf,
        /// The root.
        root: PathBuf,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The tokens.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP port.
    #[error("cannot listen on {address} for HTTP: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// An address to advertise.
    #[error("cannot resolve {name} of `advertise_data`: {source}")]
    Advertise {
        /// What was typed.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The transfer log.
    #[error("cannot write the transfer log: {0}")]
    TransferLog(io::Error),
    /// The profiles.
    #[error(transparent)]
    Profiles(#[from] ProfilesError),
    /// An own database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// CPUs that are not to be had.
    #[error("cpus {cpus}: {why}")]
    Cpus {
        /// What was asked for.
        cpus: CpuMap,
        /// Why not.
        why: String,
    },
    /// The address of main.
    #[error(transparent)]
    MainUrl(#[from] UrlError),
    /// The queue, or the token for main.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// Main's store.
    #[error("main cannot start: {0}")]
    Main(#[from] StoreError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] TransferError),
}

impl AgentError {
    /// The exit code of `longhaul agent`.
    pub fn exit_code(&self) -> u8 {
        let io = |error: &io::Error| match error.kind() {
            io::ErrorKind::NotFound => Class::NotFound,
            io::ErrorKind::PermissionDenied => Class::Denied,
            io::ErrorKind::AddrInUse => Class::Retry,
            _ => Class::Permanent,
        };
        let class = match self {
            AgentError::Root(RootError::Missing { .. }) => Class::NotFound,
            AgentError::Root(RootError::Denied { .. }) => Class::Denied,
            AgentError::State(StateError::Busy { .. }) => Class::Retry,
            AgentError::State(StateError::Io { source, .. })
            | AgentError::Tokens(TokenError::State(StateError::Io { source, .. }))
            | AgentError::Tls(TlsError::State(StateError::Io { source, .. }))
            | AgentError::Bind { source, .. }
            | AgentError::TransferLog(source) => io(source),
            AgentError::Advertise { .. } => Class::Retry,
            AgentError::Engine(error) => error.class,
            _ => Class::Permanent,
        };
        class.exit_code()
    }
}

/// The line that says that an agent is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where data streams arrive; port 0: nowhere, this agent is main alone.
    pub data: SocketAddr,
    /// Of the TLS certificate, for `--peer-fingerprint`.
    pub fingerprint: String,
    /// Who it is.
    pub agent: AgentId,
    /// Where the admin token lies, once made.
    pub token_file: PathBuf,
    /// Of the process.
    pub pid: u32,
}

/// A running agent. Needs a tokio runtime around it; see [`Agent::stop`].
#[derive(Debug)]
pub struct Agent {
    ready: Ready,
    engine: Engine,
    tls_files: TlsFiles,
    clients: Option<ClientTrust>,
    tls: Arc<RwLock<ServerTls>>,
    app: Arc<App>,
    main: Option<Main>,
    log: Arc<TransferLog>,
    /// The directory that was named, and what was read.
    profiles: (Option<PathBuf>, SharedProfiles),
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
    _lock: Flock<File>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "App({})", self.agent)
    }
}

/// What the engine is started with for `config`.
pub fn engine_config(config: &AgentConfig, agent: AgentId, advertise: Vec<SocketAddr>) -> EngineConfig {
    EngineConfig {
        workers: config.workers,
        cpus: config.cpus.clone(),
        // Checked when the settings were resolved.
        arena_bytes: usize::try_from(config.memory).unwrap_or(usize::MAX),
        engine: config.engine,
        data_listen: config.root.is_some().then_some(config.data),
        advertise,
        agent,
        block: crate::limits::DEFAULT_BLOCK,
        retry_for: RETRY_FOR,
        profiles: SharedProfiles::default(),
        marking: config.marking.clone(),
        synthetic: config.synthetic,
    }
}

impl Agent {
    /// Checks root and state, starts the engine, binds HTTP. Blocking calls are few and short; it returns when the
    /// agent answers.
    pub async fn start(config: &AgentConfig) -> Result<Self, AgentError> {
        let given = config.root.as_deref().map(ServedRoot::open).transpose()?;
        let state = StateDir::open(&config.state)?;
        let root = Arc::new(given.map_or_else(|| ServedRoot::nothing(&state), Ok)?);
        keys_outside(&root, &state, config.tls.as_ref())?;
        let lock = state.lock_for_agent()?;
        let agent = state.agent_id()?;
        let tokens = Arc::new(TokenStore::new(&state));
        let token_file = tokens.ensure_admin(&state)?;
        let tls_files = match &config.tls {
            Some(files) => files.clone(),
            None => tls::ensure_self_signed(&state)?,
        };
        let clients = config.clients();
        let server_tls = tls::load_server_for(&tls_files, clients.as_ref())?;
        let log = Arc::new(TransferLog::open(config.transfer_log.clone()).map_err(AgentError::TransferLog)?);
        let profiles = SharedProfiles::new(profiles::load(config.profiles.as_deref(), None)?);
        let advertise = resolve(&config.advertise_data)?;

        if let Some(cpus) = &config.cpus {
            crate::engine::cpus::check(cpus).map_err(|why| AgentError::Cpus { cpus: cpus.clone(), why })?;
        }
        let bind_error = |source| AgentError::Bind { address: config.http, source };
        let listener = http::bind(config.http).map_err(bind_error)?;
        let http = listener.local_addr().map_err(bind_error)?;
        let engine_config =
            EngineConfig { profiles: profiles.clone(), ..engine_config(config, agent, advertise.clone()) };
        let engine = Engine::start(engine_config)?;
        let data = engine.data_address().unwrap_or(SocketAddr::new(config.data.ip(), 0));
        let metrics = Arc::new(Metrics::default());
        tokio::spawn(follow(engine.handle().ended(), log.clone(), metrics.clone()));

        let app = Arc::new(App {
            agent,
            roles: config.roles.clone(),
            root,
            engine: Arc::new(engine.handle()),
            tokens,
            data,
            advertise,
            verify: config.verify,
            encrypt: config.encrypt,
            max_sessions: config.max_sessions,
            started: Instant::now(),
            metrics,
            jobs: Jobs::default(),
            stage_rule: Rule(config.service.stage_rule),
        });
        let ready = Ready {
            http,
            data,
            fingerprint: server_tls.fingerprint.to_string(),
            agent,
            token_file,
            pid: std::process::id(),
        };
        let own = server_tls.fingerprint;
        let tls = Arc::new(RwLock::new(server_tls));
        let (stop, stopping) = watch::channel(false);
        let mut router = api::router(app.clone()).merge(service(config, &state, &app, &ready, &tls, &stopping)?);
        let main = match config.roles.contains(&Role::Main) {
            false => None,
            true => {
                let own = Some(own);
                let token_file = Some(ready.token_file.clone());
                let insecure_http = config.insecure_http;
                let tls = config.own_tls();
                let options = ClientOptions { token_file, insecure_http, tls, ..ClientOptions::default() };
                let peers = HttpPeers { options, own, tokens: state.file(PEERS) };
                let main = Main::start(&state, config.leases, app.tokens.clone(), peers, stopping.clone())?;
                app.metrics.attach(main.app().metrics.clone());
                router = router.merge(web::with_page(main.router(), app.tokens.clone()));
                Some(main)
            }
        };
        let server =
            HttpServer { router, tls: tls.clone(), insecure_http: config.insecure_http, limits: HttpLimits::default() };
        let serving = tokio::spawn(server.serve(listener, stopping));
        warn_of(config);
        Ok(Self {
            ready,
            engine,
            tls_files,
            clients,
            tls,
            app,
            main,
            log,
            stop,
            serving,
            profiles: (config.profiles.clone(), profiles),
            _lock: lock,
        })
    }

    /// The ready line.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// What the engine's probes found.
    pub fn facts(&self) -> Vec<(String, String)> {
        self.engine.handle().facts()
    }

    /// Reads tokens, certificate and profiles again and reopens the transfer log. Whatever cannot be read stays as it
    /// was (tokens: denies everybody) and comes back as an error. Transfers do not notice.
    pub fn reload(&self) -> Vec<AgentError> {
        let mut errors = Vec::new();
        match self.app.tokens.reload() {
            Ok(count) => tracing::info!(count, "tokens are read again"),
            Err(error) => errors.push(error.into()),
        }
        match tls::load_server_for(&self.tls_files, self.clients.as_ref()) {
            Ok(new) => {
                tracing::info!(fingerprint = %new.fingerprint, "the certificate is read again");
                *self.tls.write().unwrap_or_else(PoisonError::into_inner) = new;
            }
            Err(error) => errors.push(error.into()),
        }
        match profiles::load(self.profiles.0.as_deref(), None) {
            Ok(new) => {
                tracing::info!(count = new.names().len(), "profiles are read again");
                self.profiles.1.set(new);
            }
            Err(error) => errors.push(error.into()),
        }
        if let Err(error) = self.log.reopen() {
            errors.push(AgentError::TransferLog(error));
        }
        errors
    }

    /// Takes no more requests, checkpoints every transfer and stops; back within 9.7 s whatever the engine does.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let handle = self.engine.handle();
        if tokio::time::timeout(SHUTDOWN + SHUTDOWN_SLACK, handle.shutdown(SHUTDOWN)).await.is_err() {
            tracing::error!("the engine did not stop in time; what was not checkpointed is sent again on resume");
            // Joining its threads could take for ever; the process ends anyway.
            let _ = std::mem::ManuallyDrop::new(self.engine);
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), self.serving).await;
        if let Some(main) = self.main {
            main.end().await;
        }
    }
}

/// The agent's part in the service: its routes, and its loops where it has a main.
fn service(
    config: &AgentConfig,
    state: &StateDir,
    app: &Arc<App>,
    ready: &Ready,
    tls: &Arc<RwLock<ServerTls>>,
    stop: &watch::Receiver<bool>,
) -> Result<axum::Router, AgentError> {
    let settings = &config.service;
    // Without a name it is in no service, and keeps no account.
    let catalog = match settings.name {
        Some(_) => Some(Arc::new(Catalog::open(&state.file("catalog.db"))?)),
        None => None,
    };
    let stages = match settings.stage_rule {
        StageRule::Online => None,
        StageRule::Sidecar => {
            let command = settings.stage_command.clone();
            let stages = Stages::open(&state.file("stages.db"), app.root.clone(), app.stage_rule, command)?;
            let stages = Arc::new(stages);
            let (running, mut stop) = (stages.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! { () = running.run() => {} _ = stop.wait_for(|&stop| stop) => {} }
            });
            Some(stages)
        }
    };
    let source = Arc::new(Source::new(app.clone(), app.stage_rule, stages, catalog.clone()));
    let mut router = source::router(source.clone());
    let (Some(name), Some(catalog)) = (settings.name.clone(), catalog) else { return Ok(router) };
    router = router.merge(local::router(Arc::new(local::Local { app: app.clone(), catalog: catalog.clone() })));
    let uploads = match config.roles.contains(&Role::Destination) {
        true => Some(Uploads::open(&state.file("uploads.db"), app.root.clone(), catalog.clone())?),
        false => None,
    };
    if let Some(uploads) = &uploads {
        router = router.merge(upload_routes::router(app.clone(), uploads.clone()));
    }
    let local = format!("lh://{}", dialable(ready.http));
    let main = match &settings.main {
        Some(main) => main.clone(),
        None if config.roles.contains(&Role::Main) => PeerUrl::parse(local.as_bytes())?,
        None => return Ok(router),
    };
    let main_fingerprint = match (&settings.main, settings.main_fingerprint) {
        (None, _) => MainPin::Itself,
        (Some(_), Some(pin)) => MainPin::Pinned(pin),
        (Some(_), None) => MainPin::Place,
    };
    let reach = Reach {
        main,
        main_fingerprint,
        main_token_file: settings.main_token_file.clone().unwrap_or_else(|| ready.token_file.clone()),
        peer_tokens: settings.peer_tokens.clone().unwrap_or_else(|| state.file(PEERS)),
        tls: tls.clone(),
        own_token_file: ready.token_file.clone(),
        insecure_http: config.insecure_http,
        authority: config.own_tls(),
    };
    let url = settings.advertise_http.as_ref().map_or(local, |url| format!("lh://{}", url.authority()));
    let queue = state.file("queue.db");
    let parts = Parts { app: app.clone(), reach, url, queue, catalog, source, uploads };
    if config.roles.iter().any(|role| *role != Role::Main) {
        Destination::new(name, settings.clone(), parts)?.spawn(stop.clone());
    }
    Ok(router)
}

/// An address that others on this host can dial: an unspecified one is told as loopback, until `advertise_http` says more.
fn dialable(http: SocketAddr) -> SocketAddr {
    match http {
        any if any.ip().is_unspecified() => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), any.port()),
        other => other,
    }
}

/// Says in the log what the operator has loosened.
fn warn_of(config: &AgentConfig) {
    if config.insecure_http {
        tracing::warn!("plain HTTP is allowed off loopback: tokens and tickets can be read on the way");
    }
    if !config.encrypt {
        tracing::warn!("encryption is off by policy: payload of clients that say off can be read on the way");
    }
    if config.synthetic.source() {
        tracing::warn!("this source is synthetic: clients get made-up bytes in place of what files hold");
    }
    if config.synthetic.destination() {
        tracing::warn!("this destination is synthetic: what clients send is verified and thrown away");
    }
}

fn keys_outside(root: &ServedRoot, state: &StateDir, files: Option<&TlsFiles>) -> Result<(), AgentError> {
    let secret = [Some(state.path()), files.map(|f| f.key.as_path())];
    for path in secret.into_iter().flatten() {
        let real = std::fs::canonicalize(path).map_err(|source| StateError::Io {
            doing: "find",
            path: path.to_owned(),
            source,
        })?;
        if real.starts_with(root.path()) {
            return Err(AgentError::StateInRoot { state: real, root: root.path().to_owned() });
        }
    }
    Ok(())
}

fn resolve(names: &[String]) -> Result<Vec<SocketAddr>, AgentError> {
    let mut found = Vec::new();
    for name in names {
        let addresses =
            name.to_socket_addrs().map_err(|source| AgentError::Advertise { name: name.clone(), source })?;
        found.extend(addresses);
    }
    found.truncate(super::third_party::MAX_ADDRESSES);
    Ok(found)
}

async fn follow(mut ended: broadcast::Receiver<TransferStatus>, log: Arc<TransferLog>, metrics: Arc<Metrics>) {
    loop {
        match ended.recv().await {
            Ok(status) => {
                metrics.ended(&status);
                if let Err(error) = log.write(&status) {
                    tracing::error!(%error, "the transfer log cannot be written");
                }
            }
            Err(broadcast::error::RecvError::Lagged(count)) => {
                metrics.lost(count);
                tracing::error!(count, "transfers ended faster than their log could be written");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests;
