//! The file-operations pool: a bounded number of plain threads for calls that block (scan, open, create, metadata,
//! rename, sync, read-back). io_uring would hand these to threads of its own anyway.

use crossbeam::channel::{Sender, unbounded};
use std::sync::Arc;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the pool; cheap to clone. Threads end when the last handle is dropped.
#[derive(Clone)]
pub struct Pool {
    jobs: Arc<Sender<Job>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} waiting)", self.jobs.len())
    }
}

impl Pool {
    /// Starts `threads` threads called `lh-NAME`.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let (jobs, inbox) = unbounded::<Job>();
        for _ in 0..threads {
            let inbox = inbox.clone();
            std::thread::Builder::new().name(format!("lh-{name}")).spawn(move || {
                while let Ok(job) = inbox.recv() {
                    job();
                }
            })?;
        }
        Ok(Self { jobs: Arc::new(jobs) })
    }

    /// Runs `job` some time soon.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) {
        // The threads live as long as a sender does.
        let _ = self.jobs.send(Box::new(job));
    }

    /// Runs `job` and gives what it returns.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        self.submit(move || drop(reply.send(job())));
        answer.await.expect("a pool thread runs each of its jobs to the end")
    }
}
