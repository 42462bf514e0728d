//! The start of the workers.

use super::WorkerHandle;
use crate::engine::cpus::Bound;
use crate::engine::error::{Class, TransferError};
use crate::engine::handle::EngineConfig;
use crate::engine::spec::EngineChoice;
use crate::engine::worker::mailbox::Mailbox;
use crate::engine::worker::{Event, Worker, WorkerStats};
use crate::sys::{Arena, EngineFacts, IoQueue as _, QueueChoice, bind_ring_threads, open_queue};
use std::sync::Arc;

/// Ops a ring holds; a worker's streams have a handful each.
const QUEUE_ENTRIES: u32 = 512;

/// Starts them one after the other, each with a queue of its own, on the CPUs that the calling thread is bound to. Their number
/// follows from those CPUs unless it is set.
pub(super) fn start_workers(
    config: &EngineConfig,
    arena: &Arc<Arena>,
    outbox: &Arc<Mailbox<Event>>,
    bound: &Bound,
) -> Result<(Vec<WorkerHandle>, EngineFacts), TransferError> {
    let count = config.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, |n| n.get().min(8)));
    let count = count.max(1);
    let choice = match config.engine {
        EngineChoice::Auto => QueueChoice::Auto,
        EngineChoice::Uring => QueueChoice::Uring,
        EngineChoice::Epoll => QueueChoice::Epoll,
    };
    let (mut workers, mut facts) = (Vec::new(), EngineFacts::default());
    for number in 0..count {
        let (tell, answer) = std::sync::mpsc::channel();
        let (arena, outbox) = (arena.clone(), outbox.clone());
        let stats = Arc::new(WorkerStats::default());
        let (counters, bound) = (stats.clone(), bound.clone());
        let thread = move || {
            let queue = match open_queue(choice, &arena, QUEUE_ENTRIES) {
                Ok(queue) => queue,
                Err(error) => return drop(tell.send(Err(error))),
            };
            if bound.is_bound() && queue.describe().engine == "io_uring" {
                // Where it is refused, the coordinator has said so.
                let _ = bind_ring_threads();
            }
            bound.worker(number, count);
            let inbox = Arc::new(Mailbox::new(queue.waker()));
            let _ = tell.send(Ok((inbox.clone(), queue.describe())));
            if let Err(error) = Worker::new(queue, arena, inbox, outbox, counters).run() {
                // Without its worker no stream moves and no claim comes back: better to end than to hang.
                tracing::error!(%error, "worker {number} failed");
                std::process::abort();
            }
        };
        let failed = |error: std::io::Error| {
            TransferError::new(Class::Permanent, format!("a worker could not start: {error}; try --engine epoll"))
        };
        std::thread::Builder::new().name(format!("lh-worker-{number}")).spawn(thread).map_err(failed)?;
        let (inbox, described) = answer.recv().expect("a worker answers once").map_err(failed)?;
        facts = described;
        workers.push(WorkerHandle { inbox, stats });
    }
    Ok((workers, facts))
}
