//! Trials of the path to an agent, one after the other: what `probe` plans, and the network's part of `bench`.

use super::fail::Fail;
use crate::control::client::{PeerClient, PeerTickets};
use crate::control::messages::{PartialOptions, TicketRequest};
use crate::engine::error::TransferError;
use crate::engine::handle::{Engine, EngineConfig, EngineHandle};
use crate::engine::probe::{ProbeSpec, Trial};
use crate::engine::spec::{EngineChoice, Synthetic};
use crate::ids::AgentId;
use crate::limits::DEFAULT_BLOCK;
use crate::profile::{Marking, SharedProfiles};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Buffers of the client's engine: its workers have nothing to do here.
const ARENA: usize = 8 << 20;

/// The client's end of trials with one agent.
pub struct Trials {
    runtime: Runtime,
    // Its threads end with it.
    _engine: Engine,
    handle: EngineHandle,
    client: Arc<PeerClient>,
}

impl Trials {
    /// Starts what is needed here; dials nothing.
    ///
    /// # Errors
    /// No threads, or no memory.
    pub fn start(client: PeerClient) -> Result<Self, Fail> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| Fail::new(1, format!("cannot start the program's threads: {error}")))?;
        let engine = Engine::start(EngineConfig {
            workers: Some(1),
            cpus: None,
            arena_bytes: ARENA,
            engine: EngineChoice::Epoll,
            data_listen: None,
            advertise: Vec::new(),
            agent: AgentId([0; 16]),
            block: DEFAULT_BLOCK,
            retry_for: Duration::ZERO,
            profiles: SharedProfiles::default(),
            marking: Marking::default(),
            synthetic: Synthetic::Off,
        })?;
        Ok(Self { runtime, handle: engine.handle(), _engine: engine, client: Arc::new(client) })
    }

    /// One trial. Blocks as long as it takes.
    ///
    /// # Errors
    /// The agent is not there, refuses, or the path breaks.
    pub fn run(&self, spec: ProbeSpec) -> Result<Trial, TransferError> {
        let request = TicketRequest::Probe {
            agent_sends: spec.agent_sends,
            streams: spec.streams,
            duration_ms: spec.duration_ms,
            options: PartialOptions::from(&spec.options),
        };
        let tickets = PeerTickets::new(self.client.clone(), request);
        self.runtime.block_on(self.handle.probe(spec, Arc::new(tickets)))
    }

    /// Ends the threads in order.
    pub fn end(self) {
        self.runtime.block_on(self.handle.shutdown(Duration::from_secs(1)));
    }
}
