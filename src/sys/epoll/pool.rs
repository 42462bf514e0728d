//! A few threads for file ops that would make the worker wait. A flight moves into a thread and back: nothing is shared.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::sys::flight::{Flight, PageCache, Step};
use crate::sys::{Completion, WakeSource, Waker, bind_thread, thread_cpus};

/// Threads of one queue: what keeps one fast disk busy with 256 KiB ops; more only add switches.
const THREADS: usize = 4;
/// Upper bound of the two channels.
const CHANNEL_MAX: u32 = 4096;
/// Name of the threads, at most 15 bytes.
const NAME: &str = "lh-file-io";

#[derive(Debug)]
pub(super) struct Pool {
    /// `None` once closing.
    jobs: Option<Sender<Flight>>,
    results: Receiver<(Flight, io::Result<u32>)>,
    /// Kept for threads that start later.
    ends: (Receiver<Flight>, Sender<(Flight, io::Result<u32>)>),
    reports: WakeSource,
    /// The CPUs that the queue's thread could run on when it opened the queue: its own threads keep to them, though it may be
    /// bound to one of them since.
    home: Vec<usize>,
    threads: Vec<JoinHandle<()>>,
    backlog: VecDeque<Flight>,
    running: usize,
    running_max: usize,
}

impl Pool {
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let running_max = entries.clamp(1, CHANNEL_MAX) as usize;
        let (jobs, take) = bounded(running_max);
        // As many places as there may be jobs: no thread ever waits to report.
        let (give, results) = bounded(running_max);
        Ok(Self {
            jobs: Some(jobs),
            results,
            ends: (take, give),
            reports: WakeSource::new()?,
            home: thread_cpus().unwrap_or_default(),
            threads: Vec::new(),
            backlog: VecDeque::new(),
            running: 0,
            running_max,
        })
    }

    /// Readable when there is something to collect.
    pub(super) fn reports(&self) -> BorrowedFd<'_> {
        self.reports.fd()
    }

    pub(super) fn started(&self) -> bool {
        !self.threads.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.running + self.backlog.len()
    }

    /// Takes an op; it is begun by [`Pool::submit`] at the latest.
    pub(super) fn start(&mut self, flight: Flight) {
        self.backlog.push_back(flight);
        self.submit();
    }

    /// Hands waiting ops to the threads.
    pub(super) fn submit(&mut self) {
        while self.running < self.running_max {
            let Some(flight) = self.backlog.pop_front() else { return };
            self.running += 1;
            if self.threads.len() < THREADS.min(self.running) {
                self.add_thread();
            }
            let flight = match &self.jobs {
                Some(jobs) if self.started() => match jobs.try_send(flight) {
                    Ok(()) => continue,
                    Err(TrySendError::Full(flight) | TrySendError::Disconnected(flight)) => flight,
                },
                _ => flight,
            };
            // No thread could be started: better here than never.
            self.report(run(flight));
        }
    }

    fn report(&self, result: (Flight, io::Result<u32>)) {
        // Room is certain (see `new`), and the receiver lives as long as `self`.
        let _ = self.ends.1.try_send(result);
        self.reports.waker().wake();
    }

    fn add_thread(&mut self) {
        let (take, give) = self.ends.clone();
        let waker = self.reports.waker();
        let moved = thread_cpus().is_ok_and(|now| now != self.home);
        let home = moved.then(|| self.home.clone());
        let body = move || {
            if let Some(home) = home {
                // Refused: then it stays where the queue's thread is.
                let _ = bind_thread(&home);
            }
            work(&take, &give, &waker);
        };
        let thread = std::thread::Builder::new().name(NAME.to_owned()).spawn(body);
        self.threads.extend(thread);
    }

    /// Moves finished ops into `ready`.
    pub(super) fn collect(&mut self, ready: &mut Vec<Completion>) {
        self.reports.drain();
        for (flight, result) in self.results.try_iter() {
            self.running -= 1;
            ready.push(flight.complete(result));
        }
        self.submit();
    }
}

fn run(mut flight: Flight) -> (Flight, io::Result<u32>) {
    let result = match flight.run(&mut PageCache::default()) {
        Step::Done(result) => result,
        Step::Again | Step::Blocked => Err(io::ErrorKind::WouldBlock.into()),
    };
    (flight, result)
}

fn work(take: &Receiver<Flight>, give: &Sender<(Flight, io::Result<u32>)>, waker: &Waker) {
    while let Ok(flight) = take.recv() {
        if give.send(run(flight)).is_err() {
            return;
        }
        waker.wake();
    }
}

impl Drop for Pool {
    /// Waits for the ops that the threads have.
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
