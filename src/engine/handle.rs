//! Bridge 1, control to coordinator: commands in, snapshots and events out.

use super::error::TransferError;
use super::spec::{DestinationSpec, EngineChoice, Grant, Report, Snapshot, SourceSpec, Ticket, TransferOptions};
use crate::ids::{AgentId, TransferId};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, oneshot, watch};

/// What an engine is started with.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Worker threads; `None`: one per core, at most 8.
    pub workers: Option<usize>,
    /// Block buffers in bytes, shared by all streams.
    pub arena_bytes: usize,
    /// io_uring, epoll or as probed.
    pub engine: EngineChoice,
    /// Where the data port listens; `None` for a client that only dials.
    pub data_listen: Option<SocketAddr>,
    /// Addresses told in tickets instead of the listening one.
    pub advertise: Vec<SocketAddr>,
    /// Who we are.
    pub agent: AgentId,
    /// How long a destination without streams waits for its peer to dial again.
    pub grace: Duration,
}

/// Fetches a fresh ticket, again after a peer's restart.
pub trait TicketSource: Send + Sync {
    /// One ticket, by HTTP.
    fn ticket(&self) -> Pin<Box<dyn Future<Output = Result<Ticket, TransferError>> + Send + '_>>;
    /// The peer's name for messages.
    fn peer(&self) -> String;
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

/// The engine's threads. Dropping it stops them; [`EngineHandle::shutdown`] first makes that orderly.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
}

/// Talks to a running engine from any thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {}

impl Engine {
    /// Starts coordinator, workers and pool.
    pub fn start(_config: EngineConfig) -> Result<Self, TransferError> {
        Ok(Self { handle: EngineHandle {} })
    }
    /// A handle.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
    /// Where the data port really listens.
    pub fn data_address(&self) -> Option<SocketAddr> {
        None
    }
}

impl EngineHandle {
    /// Makes a single-use ticket for `grant`.
    pub async fn issue(&self, _grant: Grant) -> Result<Ticket, TransferError> {
        Err(TransferError::new(super::error::Class::Permanent, "the engine is not there yet"))
    }
    /// Fetches from one source, or from several equal ones, as `principal`.
    pub async fn pull(
        &self,
        _principal: &str,
        _to: DestinationSpec,
        _from: Vec<Arc<dyn TicketSource>>,
    ) -> Result<TransferWatch, TransferError> {
        Err(TransferError::new(super::error::Class::Permanent, "the engine is not there yet"))
    }
    /// Uploads; the destination's verdict comes back. `options` are told to the peer through the ticket request; here
    /// streams, window, congestion and rate count.
    pub async fn push(
        &self,
        _principal: &str,
        _from: SourceSpec,
        _to: Arc<dyn TicketSource>,
        _options: TransferOptions,
    ) -> Result<TransferWatch, TransferError> {
        Err(TransferError::new(super::error::Class::Permanent, "the engine is not there yet"))
    }
    /// Both ends here, over this engine's own loopback streams.
    pub async fn local(&self, _from: SourceSpec, _to: DestinationSpec) -> Result<TransferWatch, TransferError> {
        Err(TransferError::new(super::error::Class::Permanent, "the engine is not there yet"))
    }
    /// Running transfers, and the last hundred ended ones.
    pub async fn transfers(&self) -> Vec<TransferStatus> {
        Vec::new()
    }
    /// Every transfer that ends, for the transfer log.
    pub fn ended(&self) -> broadcast::Receiver<TransferStatus> {
        broadcast::channel(16).1
    }
    /// What the probes found: queue, ring flags, arena, coordinator; as `name: value` lines for `--show-config`.
    pub fn facts(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    /// Checkpoints every transfer, closes the sessions and stops; at most `within`.
    pub async fn shutdown(&self, _within: Duration) {}
}
