//! Where the time of the workers went.

use crate::engine::coordinator::Ctx;
use std::sync::atomic::Ordering;

/// Sums over the workers, ns.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerTotals {
    /// Outside of waits.
    pub busy: u64,
    /// CPU.
    pub cpu: u64,
    /// Time in which they could have run and had no core.
    pub delay: u64,
}

impl WorkerTotals {
    /// What has been added since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            cpu: self.cpu.saturating_sub(before.cpu),
            delay: self.delay.saturating_sub(before.delay),
        }
    }
}

/// Sums over the workers, of all that they do.
pub fn worker_totals(ctx: &Ctx) -> WorkerTotals {
    ctx.workers.iter().fold(WorkerTotals::default(), |sum, worker| {
        let (cpu, delay) = worker.stats.thread_times();
        let busy = worker.stats.busy.load(Ordering::Relaxed);
        WorkerTotals { busy: sum.busy + busy, cpu: sum.cpu + cpu, delay: sum.delay + delay }
    })
}
