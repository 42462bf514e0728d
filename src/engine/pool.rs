//! The file-operations pool: a bounded number of plain threads for calls that block (scan, open, create, metadata,
//! rename, sync, read-back). io_uring would hand these to threads of its own anyway.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Descriptors that a process may want: files of several transfers, their sockets, the pool's directories.
const DESCRIPTORS: u64 = 1 << 16;

/// Raises this process's limit of open files as far as it may (shells and systemd begin with 1024), and says what holds.
pub fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let wanted = hard.min(DESCRIPTORS);
    if soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_err() { soft } else { wanted }
}

/// A call that blocks.
pub type Job = Box<dyn FnOnce() + Send>;

/// What waits, and whether anybody can still bring more.
#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// A plain lock and condition: jobs are system calls by the dozen, so the lock is idle nearly always, and a thread that
/// finds nothing sleeps at once (a channel's receiver spins first, which cost a source of small files 6 % of its time).
#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

impl Shared {
    fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match waiting.jobs.pop_front() {
                Some(job) => return Some(job),
                None if waiting.closed => return None,
                None => waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.more.notify_all();
    }
}

/// A handle to the pool; cheap to clone. Threads end when the last handle is dropped and no job waits.
#[derive(Clone)]
pub struct Pool {
    handle: Arc<Handle>,
    /// Takes the jobs in the threads' stead.
    #[cfg(feature = "testing")]
    instead: Option<Arc<dyn Fn(Job) + Send + Sync>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.handle.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).jobs.len();
        write!(f, "Pool({waiting} waiting)")
    }
}

impl Pool {
    /// Starts `threads` threads called `lh-NAME`.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let handle = Handle(Arc::new(Shared::default()));
        for _ in 0..threads {
            let shared = handle.0.clone();
            std::thread::Builder::new().name(format!("lh-{name}")).spawn(move || {
                while let Some(job) = shared.next() {
                    job();
                }
            })?;
        }
        Ok(Self {
            handle: Arc::new(handle),
            #[cfg(feature = "testing")]
            instead: None,
        })
    }

    /// A pool without threads: `take` gets every job and runs it when and in which order it likes.
    #[cfg(feature = "testing")]
    pub fn simulated(take: Arc<dyn Fn(Job) + Send + Sync>) -> Self {
        Self { handle: Arc::new(Handle(Arc::new(Shared::default()))), instead: Some(take) }
    }

    /// Whether jobs run in the thread of who submits them: then none may wait for another.
    pub fn is_simulated(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.instead.is_some();
        #[cfg(not(feature = "testing"))]
        false
    }

    /// Runs `job` some time soon.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) {
        #[cfg(feature = "testing")]
        if let Some(take) = &self.instead {
            return take(Box::new(job));
        }
        self.handle.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).jobs.push_back(Box::new(job));
        self.handle.0.more.notify_one();
    }

    /// Runs `job` and gives what it returns.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        self.submit(move || drop(reply.send(job())));
        match answer.await {
            Ok(answer) => answer,
            // A simulated host that dies drops its jobs; who waits for them dies with it.
            Err(_) if self.is_simulated() => std::future::pending().await,
            Err(_) => panic!("a pool thread runs each of its jobs to the end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    /// Jobs that wait when the last handle goes are run all the same, and then the threads end.
    #[test]
    fn jobs_run_to_the_last_and_threads_end() {
        let (ran, alive) = (Arc::new(AtomicU32::new(0)), Arc::new(()));
        let pool = Pool::start("test", 2).unwrap();
        for _ in 0..100 {
            let (ran, alive) = (ran.clone(), alive.clone());
            pool.submit(move || {
                let _alive = alive;
                std::thread::sleep(Duration::from_micros(100));
                ran.fetch_add(1, Ordering::SeqCst);
            });
        }
        let threads = Arc::downgrade(&pool.handle.0);
        drop(pool);
        let late = Instant::now() + Duration::from_secs(10);
        while threads.strong_count() > 0 && Instant::now() < late {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((ran.load(Ordering::SeqCst), threads.strong_count(), Arc::strong_count(&alive)), (100, 0, 1));
    }

    #[test]
    fn the_limit_of_open_files_is_raised() {
        use nix::sys::resource::{Resource, getrlimit};
        let limit = raise_descriptor_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(limit, soft);
        assert!(soft >= hard.min(DESCRIPTORS), "{soft} of {hard}");
    }
}
