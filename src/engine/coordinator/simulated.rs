//! Test builds only: what a simulator needs of the coordinator. Everything runs in the simulator's thread, on its clock,
//! in its network; the sessions above notice nothing.

use super::*;
use crate::engine::conn::SimulatedEnd;
use std::future::Future;
use std::io;
use std::pin::Pin;

/// The end of a new connection, when there is one.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn SimulatedEnd>>>>>;

/// Where connections are made.
pub trait Network {
    /// Connects to an address.
    fn connect(&self, addr: SocketAddr) -> Connecting;
}

/// The parts of a simulated host.
pub struct Parts {
    /// As started.
    pub config: EngineConfig,
    /// [`Pool::simulated`].
    pub pool: Pool,
    /// Its workers' boxes.
    pub workers: Vec<WorkerHandle>,
    /// Block buffers.
    pub arena: Arc<Arena>,
    /// What is known of the file systems.
    pub probes: Arc<ProbeCache>,
    /// Its network.
    pub network: Rc<dyn Network>,
    /// Set when it stops in good order.
    pub stopping: watch::Receiver<bool>,
}

impl Ctx {
    /// A coordinator's context over simulated parts.
    pub fn simulated(parts: Parts) -> Rc<Self> {
        let Parts { config, pool, workers, arena, probes, network, stopping } = parts;
        let (ended, _) = broadcast::channel(16);
        Rc::new(Self {
            config,
            pool,
            workers,
            arena,
            probes,
            engine: EngineFacts { engine: "simulated", ..EngineFacts::default() },
            bound: Bound::default(),
            commit: CommitIo::Pool("simulated".to_owned()),
            tickets: RefCell::default(),
            sessions: RefCell::default(),
            opening: RefCell::default(),
            fences: RefCell::default(),
            stopping,
            accepts_as: None,
            routes: RefCell::default(),
            keys: Cell::new(0),
            transfers: RefCell::default(),
            ended,
            unauthenticated: RefCell::default(),
            network: Some(network),
        })
    }

    /// Gives the sessions what the workers have told.
    pub fn hand_on_all(&self, events: &Mailbox<Event>) {
        while let Some(event) = events.take() {
            self.hand_on(event);
        }
    }
}
