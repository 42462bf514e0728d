//! Test builds only: every change to a file system, and every word about what is durable, is shown to whoever listens in
//! this thread, before and after. The listener may let it happen, refuse it, shorten it, or do it in its own way: the
//! simulator's disk model is one.

use nix::errno::Errno;
use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// A change that is about to happen. Names are single components in `dir`.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "each is the system call of that name")]
pub enum Change<'a> {
    Create {
        dir: BorrowedFd<'a>,
        name: &'a [u8],
    },
    MakeDir {
        dir: BorrowedFd<'a>,
        name: &'a [u8],
    },
    Symlink {
        dir: BorrowedFd<'a>,
        name: &'a [u8],
    },
    Link {
        dir: BorrowedFd<'a>,
        from: &'a [u8],
        to: &'a [u8],
    },
    Rename {
        dir: BorrowedFd<'a>,
        from: &'a [u8],
        to: &'a [u8],
        replace: bool,
    },
    Unlink {
        dir: BorrowedFd<'a>,
        name: &'a [u8],
    },
    RemoveDir {
        dir: BorrowedFd<'a>,
        name: &'a [u8],
    },
    Truncate {
        file: BorrowedFd<'a>,
        len: u64,
    },
    Allocate {
        file: BorrowedFd<'a>,
        offset: u64,
        len: u64,
    },
    Punch {
        file: BorrowedFd<'a>,
        offset: u64,
        len: u64,
    },
    Write {
        file: BorrowedFd<'a>,
        offset: u64,
        bytes: &'a [u8],
    },
    /// Mode, times or an attribute of an open file or directory.
    Metadata {
        file: BorrowedFd<'a>,
    },
    SyncData {
        file: BorrowedFd<'a>,
    },
    /// fsync of a file or directory.
    Sync {
        file: BorrowedFd<'a>,
    },
    SyncFs {
        file: BorrowedFd<'a>,
    },
}

/// What the listener decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It happens.
    Go,
    /// It has happened already: the listener did it.
    Done,
    /// Of a write, only so many bytes happen.
    Short(usize),
    /// It fails.
    Fail(Errno),
}

/// What the engine has said to be durable.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// Chunks of a file, by its key in the journal.
    Chunks(&'a [u8; 16], &'a [u32]),
    /// A file under its final name.
    File(&'a [u8; 16]),
}

/// See the module.
pub trait Observer {
    /// Before a change.
    fn before(&self, change: &Change<'_>) -> Decision;
    /// After a change that succeeded.
    fn after(&self, change: &Change<'_>);
    /// The engine tells something.
    fn told(&self, what: Told<'_>);
}

thread_local! {
    static OBSERVER: RefCell<Option<Rc<dyn Observer>>> = const { RefCell::new(None) };
}

/// Who listens in this thread from now on.
pub fn install(observer: Option<Rc<dyn Observer>>) {
    OBSERVER.with(|slot| *slot.borrow_mut() = observer);
}

fn observer() -> Option<Rc<dyn Observer>> {
    OBSERVER.with(|slot| slot.borrow().clone())
}

/// Whether somebody listens in this thread: then nothing may be handed to others.
pub fn active() -> bool {
    OBSERVER.with(|slot| slot.borrow().is_some())
}

/// Tells what was said.
pub fn told(what: Told<'_>) {
    if let Some(observer) = observer() {
        observer.told(what);
    }
}

/// Makes a change that has no result but an error.
pub fn observed(change: Change<'_>, act: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let Some(observer) = observer() else { return act() };
    match observer.before(&change) {
        Decision::Fail(errno) => return Err(errno),
        Decision::Done => {}
        Decision::Go | Decision::Short(_) => act()?,
    }
    observer.after(&change);
    Ok(())
}

/// Makes a write; `act` writes the bytes that it is given and says how many it wrote.
pub fn observed_write(
    file: BorrowedFd<'_>,
    offset: u64,
    bytes: &[u8],
    act: impl FnOnce(&[u8]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let Some(observer) = observer() else { return act(bytes) };
    let bytes = match observer.before(&Change::Write { file, offset, bytes }) {
        Decision::Fail(errno) => return Err(errno),
        Decision::Short(count) => &bytes[..count.min(bytes.len())],
        Decision::Go | Decision::Done => bytes,
    };
    let count = act(bytes)?;
    observer.after(&Change::Write { file, offset, bytes: &bytes[..count] });
    Ok(count)
}

/// Opens a name that may come to be by it.
pub fn observed_create<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    act: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let Some(observer) = observer() else { return act() };
    let change = Change::Create { dir, name };
    if let Decision::Fail(errno) = observer.before(&change) {
        return Err(errno);
    }
    let made = act()?;
    observer.after(&change);
    Ok(made)
}
