//! Waking a thread that waits in a queue, or a task that waits for a descriptor: an eventfd with a flag in front of it,
//! so that waking somebody who is already being woken costs no system call.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    /// A wake was sent and not yet drained.
    pending: AtomicBool,
    /// Called at every wake: a simulated thread has no descriptor to wait for.
    #[cfg(feature = "testing")]
    instead: Option<Instead>,
}

/// What is called in the descriptor's stead.
#[cfg(feature = "testing")]
struct Instead(Box<dyn Fn() + Send + Sync>);

#[cfg(feature = "testing")]
impl std::fmt::Debug for Instead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Instead")
    }
}

/// Ends the wait of a queue (or of whoever watches a [`WakeSource`]) from another thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Ends the present wait, or the next one. Whatever was written before the call is visible to the woken thread after
    /// it returns from its wait. Never blocks.
    pub fn wake(&self) {
        #[cfg(feature = "testing")]
        if let Some(instead) = &self.0.instead {
            return instead.0();
        }
        if self.0.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        // EAGAIN would mean a counter at its limit, so the descriptor is readable anyhow.
        while write(&self.0.fd, &1u64.to_ne_bytes()) == Err(Errno::EINTR) {}
    }
}

#[cfg(feature = "testing")]
impl Waker {
    /// A waker that calls `wake` and nothing else.
    pub fn calling(wake: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?.into();
        let instead = Some(Instead(Box::new(wake)));
        Ok(Self(Arc::new(Shared { fd, pending: AtomicBool::new(false), instead })))
    }
}

/// The waiting side of a [`Waker`]. A readable `fd` means: call [`WakeSource::drain`], then look for what is new.
#[derive(Debug)]
pub struct WakeSource(Arc<Shared>);

impl WakeSource {
    /// Makes an eventfd (non-blocking, closed on exec).
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let fd = EventFd::from_value_and_flags(0, flags)?.into();
        Ok(Self(Arc::new(Shared {
            fd,
            pending: AtomicBool::new(false),
            #[cfg(feature = "testing")]
            instead: None,
        })))
    }

    /// The descriptor to wait for, readable after a wake.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    /// Takes the wakes that were sent; says whether there were any. Look for work after it, not before: a wake that comes
    /// between the two is then not lost.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        let taken = loop {
            match read(&self.0.fd, &mut count) {
                Err(Errno::EINTR) => {}
                other => break other.is_ok(),
            }
        };
        // Second, so that a wake in between leaves at worst one needless wake-up. The swap pairs with the one in `wake`:
        // what was written before a wake that found the flag up is visible after this line.
        self.0.pending.swap(false, Ordering::AcqRel) || taken
    }

    /// A handle for other threads.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }
}

impl AsFd for WakeSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl AsRawFd for WakeSource {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::sync::atomic::AtomicU64;

    fn readable(source: &WakeSource, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(source.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout_ms)).unwrap() == 1
    }

    #[test]
    fn wakes_merge_and_drain() {
        let source = WakeSource::new().unwrap();
        assert!(!readable(&source, 0) && !source.drain());
        source.waker().wake();
        source.waker().wake();
        assert!(readable(&source, 0) && source.drain());
        assert!(!readable(&source, 0) && !source.drain());
        source.waker().wake();
        assert!(readable(&source, 0), "a wake after a drain counts again");
    }

    #[test]
    fn no_wake_is_lost_in_a_race() {
        const ROUNDS: u64 = 100_000;
        let source = WakeSource::new().unwrap();
        let (waker, sent) = (source.waker(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=ROUNDS {
                    sent.store(n, Ordering::Relaxed);
                    waker.wake();
                }
            });
            while sent.load(Ordering::Relaxed) < ROUNDS {
                assert!(readable(&source, 10_000), "slept through a wake at {}", sent.load(Ordering::Relaxed));
                source.drain();
            }
        });
    }
}
