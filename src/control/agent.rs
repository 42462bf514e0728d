//! The daemon: engine, HTTP port, tokens and keys, put together, reloaded and stopped.

use super::api::{self, App};
use super::http::{self, HttpLimits, HttpServer};
use super::metrics::Metrics;
use super::profiles::{self, ProfilesError};
use super::root::{RootError, ServedRoot};
use super::settings::AgentConfig;
use super::state::{StateDir, StateError};
use super::third_party::Jobs;
use super::tls::{self, ServerTls, TlsError, TlsFiles};
use super::tokens::{TokenError, TokenStore};
use super::transfer_log::TransferLog;
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::{Engine, EngineConfig, TransferStatus};
use crate::ids::AgentId;
use crate::profile::SharedProfiles;
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
    /// Where data streams arrive.
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
    tls: Arc<RwLock<ServerTls>>,
    app: Arc<App>,
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
        // Checked when the settings were resolved.
        arena_bytes: usize::try_from(config.memory).unwrap_or(usize::MAX),
        engine: config.engine,
        data_listen: Some(config.data),
        advertise,
        agent,
        block: crate::limits::DEFAULT_BLOCK,
        retry_for: RETRY_FOR,
        profiles: SharedProfiles::default(),
    }
}

impl Agent {
    /// Checks root and state, starts the engine, binds HTTP. Blocking calls are few and short; it returns when the
    /// agent answers.
    pub async fn start(config: &AgentConfig) -> Result<Self, AgentError> {
        let root = Arc::new(ServedRoot::open(&config.root)?);
        let state = StateDir::open(&config.state)?;
        keys_outside(&root, &state, config.tls.as_ref())?;
        let lock = state.lock_for_agent()?;
        let agent = state.agent_id()?;
        let tokens = TokenStore::new(&state);
        let token_file = tokens.ensure_admin(&state)?;
        let tls_files = match &config.tls {
            Some(files) => files.clone(),
            None => tls::ensure_self_signed(&state)?,
        };
        let server_tls = tls::load_server(&tls_files)?;
        let log = Arc::new(TransferLog::open(config.transfer_log.clone()).map_err(AgentError::TransferLog)?);
        let profiles = SharedProfiles::new(profiles::load(config.profiles.as_deref(), None)?);
        let advertise = resolve(&config.advertise_data)?;

        let bind_error = |source| AgentError::Bind { address: config.http, source };
        let listener = http::bind(config.http).map_err(bind_error)?;
        let http = listener.local_addr().map_err(bind_error)?;
        let engine_config =
            EngineConfig { profiles: profiles.clone(), ..engine_config(config, agent, advertise.clone()) };
        let engine = Engine::start(engine_config)?;
        let data = engine.data_address().unwrap_or(config.data);
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
        });
        let ready = Ready {
            http,
            data,
            fingerprint: server_tls.fingerprint.to_string(),
            agent,
            token_file,
            pid: std::process::id(),
        };
        let tls = Arc::new(RwLock::new(server_tls));
        let (stop, stopping) = watch::channel(false);
        let server = HttpServer {
            router: api::router(app.clone()),
            tls: tls.clone(),
            insecure_http: config.insecure_http,
            limits: HttpLimits::default(),
        };
        let serving = tokio::spawn(server.serve(listener, stopping));
        warn_of(config);
        Ok(Self {
            ready,
            engine,
            tls_files,
            tls,
            app,
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
        match tls::load_server(&self.tls_files) {
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
