//! Bridge 1, control to coordinator: commands in, snapshots and events out.

use super::coordinator;
use super::error::{Class, TransferError};
use super::probe::{ProbeSpec, Trial};
use super::spec::{
    DestinationSpec, EngineChoice, Grant, Marking, Report, Snapshot, SourceSpec, Steer, Synthetic, Ticket,
    TransferOptions,
};
use crate::ids::{AgentId, TransferId};
use crate::profile::{CpuMap, SharedProfiles};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// What an engine is started with.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Worker threads; `None`: one per core, at most 8.
    pub workers: Option<usize>,
    /// The CPUs that the engine's threads keep to, and whose NUMA nodes its buffers lie on. Those that are not to be had are
    /// no error: no thread is bound then, and every report says so. See [`super::cpus::check`].
    pub cpus: Option<CpuMap>,
    /// Block buffers in bytes, shared by all streams.
    pub arena_bytes: usize,
    /// Largest block in bytes, a power of two.
    pub block: u32,
    /// io_uring, epoll or as probed.
    pub engine: EngineChoice,
    /// Where the data port listens; `None` for a client that only dials.
    pub data_listen: Option<SocketAddr>,
    /// Addresses told in tickets instead of the listening one.
    pub advertise: Vec<SocketAddr>,
    /// Who we are.
    pub agent: AgentId,
    /// How long a client keeps asking for new tickets when its peer is gone.
    pub retry_for: Duration,
    /// Profiles for sessions whose options name none. A client fills its options itself and gives none here.
    pub profiles: SharedProfiles,
    /// How streams are marked whose options do not say.
    pub marking: Marking,
    /// Ends that touch no storage. The operator's word for the whole process: no peer can ask for it.
    pub synthetic: Synthetic,
}

/// Where a peer's data port probably is.
#[derive(Debug, Clone, Copy)]
pub struct DataPort {
    /// The address.
    pub addr: SocketAddr,
    /// How long the peer took to answer a dial of its HTTP port, µs.
    pub rtt_us: u32,
}

/// Fetches a fresh ticket, again after a peer's restart.
pub trait TicketSource: Send + Sync {
    /// One ticket, by HTTP.
    fn ticket(&self) -> Pin<Box<dyn Future<Output = Result<Ticket, TransferError>> + Send + '_>>;
    /// The peer's name for messages.
    fn peer(&self) -> String;
    /// While a ticket is fetched: where the peer's data port probably is, as soon as that is known. `None`: that will not be
    /// before the ticket is there.
    fn data_port(&self) -> Pin<Box<dyn Future<Output = Option<DataPort>> + Send + '_>> {
        Box::pin(std::future::ready(None))
    }
}

/// A running transfer.
#[derive(Debug)]
pub struct TransferWatch {
    /// Progress, at most ten times a second.
    pub snapshot: watch::Receiver<Snapshot>,
    /// The end.
    pub done: oneshot::Receiver<Report>,
    /// Set to `true` to checkpoint and stop.
    pub cancel: Arc<watch::Sender<bool>>,
    /// Changes it while it runs.
    pub steer: Arc<watch::Sender<Steer>>,
}

/// What an agent says about one transfer, while it runs and after.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TransferStatus {
    /// Its id, once the peer has said what it offers.
    pub transfer: Option<TransferId>,
    /// Whose ticket or command it was.
    pub principal: String,
    /// `source` or `destination`.
    pub role: &'static str,
    /// The peer's data address.
    pub peer: Option<SocketAddr>,
    /// Our side of it.
    pub local: Option<SocketAddr>,
    /// The path at this end, escaped.
    pub path: String,
    /// Progress.
    pub snapshot: Snapshot,
    /// Present when it has ended.
    pub report: Option<Report>,
}

/// A command to the coordinator; only this module makes them.
pub enum Request {
    /// See [`EngineHandle::issue`].
    Issue(Grant, oneshot::Sender<Result<Ticket, TransferError>>),
    /// See [`EngineHandle::pull`].
    Pull {
        /// On whose behalf.
        principal: String,
        /// Our end.
        to: DestinationSpec,
        /// The others.
        from: Vec<Arc<dyn TicketSource>>,
        /// The answer.
        reply: oneshot::Sender<Result<TransferWatch, TransferError>>,
    },
    /// See [`EngineHandle::push`].
    Push {
        /// On whose behalf.
        principal: String,
        /// Our end.
        from: SourceSpec,
        /// The other.
        to: Arc<dyn TicketSource>,
        /// Streams, window, congestion, rate.
        options: TransferOptions,
        /// The answer.
        reply: oneshot::Sender<Result<TransferWatch, TransferError>>,
    },
    /// See [`EngineHandle::local`].
    Local {
        /// From here.
        from: SourceSpec,
        /// To here.
        to: DestinationSpec,
        /// The answer.
        reply: oneshot::Sender<Result<TransferWatch, TransferError>>,
    },
    /// See [`EngineHandle::probe`].
    Probe {
        /// The trial.
        spec: ProbeSpec,
        /// The agent.
        from: Arc<dyn TicketSource>,
        /// The answer.
        reply: oneshot::Sender<Result<Trial, TransferError>>,
    },
    /// See [`EngineHandle::transfers`].
    Transfers(oneshot::Sender<Vec<TransferStatus>>),
    /// See [`EngineHandle::steer`].
    Steer(TransferId, Steer, oneshot::Sender<bool>),
    /// See [`EngineHandle::shutdown`].
    Shutdown(Duration, oneshot::Sender<()>),
}

/// The engine's threads. They stop when the last handle is gone; [`EngineHandle::shutdown`] first makes that orderly.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    data: Option<SocketAddr>,
}

/// Talks to a running engine from any thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    requests: mpsc::UnboundedSender<Request>,
    ended: broadcast::Sender<TransferStatus>,
    facts: Arc<Vec<(String, String)>>,
}

/// Ended transfers that a slow listener may be behind before it misses some.
const ENDED_BACKLOG: usize = 1024;

impl Engine {
    /// Starts coordinator, workers and pool.
    ///
    /// # Errors
    /// The data port is taken, there is no memory for buffers, or the engine that was asked for is refused here.
    pub fn start(config: EngineConfig) -> Result<Self, TransferError> {
        let (requests, inbox) = mpsc::unbounded_channel();
        let (ended, _) = broadcast::channel(ENDED_BACKLOG);
        let (tell, answer) = std::sync::mpsc::channel();
        let log = ended.clone();
        std::thread::Builder::new()
            .name("lh-coordinator".to_owned())
            .spawn(move || coordinator::run(config, inbox, log, tell))
            .map_err(|error| TransferError::new(Class::Permanent, format!("no thread for the engine: {error}")))?;
        let died = || TransferError::new(Class::Permanent, "the engine ended while it started");
        let started = answer.recv().map_err(|_| died())??;
        let handle = EngineHandle { requests, ended, facts: Arc::new(started.facts) };
        Ok(Self { handle, data: started.data })
    }

    /// A handle.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Where the data port really listens.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data
    }
}

fn stopped() -> TransferError {
    TransferError::new(Class::Retry, "the agent is shutting down: try again later")
}

impl EngineHandle {
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).ok()?;
        answer.await.ok()
    }

    /// Makes a single-use ticket for `grant`.
    pub async fn issue(&self, grant: Grant) -> Result<Ticket, TransferError> {
        self.ask(|reply| Request::Issue(grant, reply)).await.ok_or_else(stopped)?
    }

    /// Walk 2: fetches from one source, or from several equal ones, as `principal`. The spec becomes a transfer, and each
    /// [`TicketSource`] gets it a ticket.
    pub async fn pull(
        &self,
        principal: &str,
        to: DestinationSpec,
        from: Vec<Arc<dyn TicketSource>>,
    ) -> Result<TransferWatch, TransferError> {
        let principal = principal.to_owned();
        self.ask(|reply| Request::Pull { principal, to, from, reply }).await.ok_or_else(stopped)?
    }

    /// Uploads; the destination's verdict comes back. `options` are told to the peer through the ticket request; here
    /// streams, window, congestion and rate count.
    pub async fn push(
        &self,
        principal: &str,
        from: SourceSpec,
        to: Arc<dyn TicketSource>,
        options: TransferOptions,
    ) -> Result<TransferWatch, TransferError> {
        let principal = principal.to_owned();
        self.ask(|reply| Request::Push { principal, from, to, options, reply }).await.ok_or_else(stopped)?
    }

    /// Both ends here, over this engine's own loopback streams. The engine must listen.
    pub async fn local(&self, from: SourceSpec, to: DestinationSpec) -> Result<TransferWatch, TransferError> {
        self.ask(|reply| Request::Local { from, to, reply }).await.ok_or_else(stopped)?
    }

    /// One trial of the path to an agent whose ticket for it `from` gets.
    pub async fn probe(&self, spec: ProbeSpec, from: Arc<dyn TicketSource>) -> Result<Trial, TransferError> {
        self.ask(|reply| Request::Probe { spec, from, reply }).await.ok_or_else(stopped)?
    }

    /// Running transfers, and the last hundred ended ones.
    pub async fn transfers(&self) -> Vec<TransferStatus> {
        self.ask(Request::Transfers).await.unwrap_or_default()
    }

    /// Changes a running transfer; `false`: none of that id runs. At a source it is asked of the destination, which decides.
    pub async fn steer(&self, id: TransferId, steer: Steer) -> bool {
        self.ask(|reply| Request::Steer(id, steer, reply)).await.unwrap_or(false)
    }

    /// Every transfer that ends, for the transfer log.
    pub fn ended(&self) -> broadcast::Receiver<TransferStatus> {
        self.ended.subscribe()
    }

    /// What the probes found: queue, ring flags, arena, coordinator; as `name: value` lines for `--show-config`.
    pub fn facts(&self) -> Vec<(String, String)> {
        self.facts.to_vec()
    }

    /// Checkpoints every transfer, closes the sessions and stops; at most `within`.
    pub async fn shutdown(&self, within: Duration) {
        let _ = self.ask(|reply| Request::Shutdown(within, reply)).await;
    }
}
