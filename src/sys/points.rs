//! Fault points: named stations of the walk at which a test can make a process die, lose its disk, wait, see an error,
//! move fewer bytes, or damage them. Without the feature `testing` every function here is empty and compiles to nothing.
//!
//! `LONGHAUL_FAULT` arms them: `NAME:WHEN:ACTION`, several separated by commas. WHEN counts the hits of the point in this
//! process: `3` the third, `2-5` the second to the fifth, `4+` from the fourth on, `*` each. ACTION is `kill` (SIGKILL of the process), `cut1`
//! and `cut2` (the file system at `LONGHAUL_FAULT_MOUNT` loses its power, with and without its log flushed, and the process dies),
//! `off2` (as `cut2`, and the process goes on), `delay=MS`, `fail=ERRNO`, `short`, `flip`, `move`. `LONGHAUL_FAULT_LOG` names a file that gets a line for each hit.
//!
//! A point's name stands in the source as a literal, and once: `tests/crash/points.rs` takes the list from there.

#[cfg(feature = "testing")]
mod armed;

use nix::errno::Errno;

/// A station: what has to be durable or told by now is, and what comes next is not.
#[inline(always)]
pub fn at(name: &'static str) {
    #[cfg(feature = "testing")]
    armed::hit(name);
    #[cfg(not(feature = "testing"))]
    let _ = name;
}

/// A station at which something is told: the log shows what.
#[inline(always)]
pub fn told(name: &'static str, what: &dyn std::fmt::Display) {
    #[cfg(feature = "testing")]
    armed::hit_with(name, Some(what));
    #[cfg(not(feature = "testing"))]
    let _ = (name, what);
}

/// In front of a call that may be told to fail.
#[inline(always)]
pub fn fails(name: &'static str) -> Result<(), Errno> {
    #[cfg(feature = "testing")]
    if let Some(armed::Action::Fail(errno)) = armed::hit(name) {
        return Err(*errno);
    }
    #[cfg(not(feature = "testing"))]
    let _ = name;
    Ok(())
}

/// How many of `len` bytes a call may move: all, or one to a half of them.
#[inline(always)]
pub fn short(name: &'static str, len: usize) -> usize {
    #[cfg(feature = "testing")]
    if let Some(armed::Action::Short) = armed::hit(name) {
        return (len / 2).max(1);
    }
    #[cfg(not(feature = "testing"))]
    let _ = name;
    len
}

/// Bytes in memory that may lose a bit.
#[inline(always)]
pub fn flip(name: &'static str, bytes: &mut [u8]) {
    #[cfg(feature = "testing")]
    if let Some(armed::Action::Flip) = armed::hit(name)
        && let Some(byte) = bytes.get_mut(bytes.len() / 3)
    {
        *byte ^= 0x10;
    }
    #[cfg(not(feature = "testing"))]
    let _ = (name, bytes);
}

/// A place in a file that may become another: the neighbour at a distance of `step`, which is a power of two.
#[inline(always)]
pub fn place(name: &'static str, at: u64, step: u64) -> u64 {
    #[cfg(feature = "testing")]
    if let Some(armed::Action::Move) = armed::hit(name) {
        return at ^ step;
    }
    #[cfg(not(feature = "testing"))]
    let _ = (name, step);
    at
}

/// Whether a test says that nobody else writes to its file systems (`LONGHAUL_ALONE`): what a busy host chooses shall not
/// decide which points are passed.
#[inline(always)]
pub fn alone() -> bool {
    #[cfg(feature = "testing")]
    let told = std::env::var_os("LONGHAUL_ALONE").is_some();
    #[cfg(not(feature = "testing"))]
    let told = false;
    told
}
