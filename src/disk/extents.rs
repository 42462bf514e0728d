//! Where a file has data, so that holes are neither sent nor allocated.

use super::probe::FsKind;
use crate::grid::Span;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::os::fd::BorrowedFd;

/// Extents of one file that are kept: 1 MiB of memory. A file in more pieces is read as one.
pub const MAX_EXTENTS: usize = 65_536;

/// The data of an open file of `size` bytes, in order and without overlap, by SEEK_DATA and SEEK_HOLE. `None`: not known,
/// treat all of it as data (another file system than ext4, XFS, btrfs and tmpfs, whose answers are trusted; more than
/// [`MAX_EXTENTS`]; any error).
///
/// Moves the descriptor's file offset.
pub fn data_extents(fd: BorrowedFd<'_>, size: u64) -> Option<Vec<Span>> {
    if !FsKind::of(fd).ok()?.tells_holes() {
        return None;
    }
    let mut out: Vec<Span> = Vec::new();
    let mut at = 0u64;
    while at < size {
        let start = match lseek(fd, i64::try_from(at).ok()?, Whence::SeekData) {
            Ok(start) => u64::try_from(start).ok()?,
            // No data from here on.
            Err(Errno::ENXIO) => break,
            Err(_) => return None,
        };
        if start >= size {
            break;
        }
        let end = match lseek(fd, i64::try_from(start).ok()?, Whence::SeekHole) {
            Ok(end) => u64::try_from(end).ok()?.min(size),
            Err(_) => return None,
        };
        // Both can only go forward; anything else is a file that changes under us.
        if start < at || end <= start || out.len() == MAX_EXTENTS {
            return None;
        }
        out.push(Span { offset: start, len: end - start });
        at = end;
    }
    Some(out)
}
