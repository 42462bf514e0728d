//! How a file is read and written: pure choices from what was probed. The measurements behind them are in the
//! project's notes on the data path: O_DIRECT from the arena is cheapest for big cold files, the page cache for hot and
//! small ones, and buffered writing without write-back behind it ends in one long sync.

use super::confined::retrying;
use super::probe::{FsFacts, FsKind};
use crate::sys::FileMode;
use crate::sys::fsys::{self, Caching};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// From here on a file is worth direct I/O and an allocation of its own.
pub const LARGE: u64 = 4 << 20;
/// Pages that are asked for when residency is sampled.
const SAMPLES: u64 = 8;
/// So many of them in memory make a file hot.
const HOT_SAMPLES: u64 = 7;
/// The unit in which the page cache counts here. Where pages are larger fewer are counted, and the file looks cold.
const PAGE: u64 = 4096;
/// Between the places of two samplings: a prime beyond any readahead window.
const TURN_STEP: u64 = 2_097_169;

/// What the user asked for (`engine::spec::IoChoice`, mapped by the engine).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoWish {
    /// As probed.
    #[default]
    Auto,
    /// Plain buffered.
    Buffered,
    /// RWF_DONTCACHE where it works.
    DontCache,
    /// O_DIRECT where it works.
    Direct,
    /// Not at all, for benches: bytes are made up, and what is written is dropped. Its operator's wish alone, never a peer's.
    Synthetic,
}

/// Whether a file lies in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// Nearly all sampled pages do.
    Hot,
    /// They do not.
    Cold,
    /// The file system does not say.
    Unknown,
}

/// Whether a file of `size` bytes lies in the page cache: counted by the kernel where it tells, else sampled with reads that
/// must not wait.
pub fn residency(fd: BorrowedFd<'_>, size: u64) -> Residency {
    if size == 0 {
        return Residency::Hot;
    }
    match fsys::cached_pages(fd) {
        Ok(pages) if pages >= size.div_ceil(PAGE) / SAMPLES * HOT_SAMPLES => Residency::Hot,
        Ok(_) => Residency::Cold,
        Err(_) => sampled_residency(fd, size),
    }
}

fn sampled_residency(fd: BorrowedFd<'_>, size: u64) -> Residency {
    // A read that must not wait still starts the kernel's readahead: ask elsewhere each time, or a file that was asked
    // about once would look hot for ever.
    static TURN: AtomicU64 = AtomicU64::new(0);
    let stride = (size / SAMPLES).max(1);
    let shift = TURN.fetch_add(TURN_STEP, Ordering::Relaxed) % stride;
    let mut hot = 0;
    for i in 0..SAMPLES {
        let offset = (stride * i + shift).min(size - 1);
        match retrying(|| fsys::read_at(fd, &mut [0], offset, Caching::NoWait)) {
            Ok(_) => hot += 1,
            Err(Errno::EAGAIN) => {}
            Err(_) => return Residency::Unknown,
        }
    }
    if hot >= HOT_SAMPLES { Residency::Hot } else { Residency::Cold }
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPlan {
    /// For the worker's queue.
    pub mode: FileMode,
    /// Why, for the report.
    pub reason: &'static str,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritePlan {
    /// For the worker's queue.
    pub mode: FileMode,
    /// Allocate the data extents first.
    pub preallocate: bool,
    /// Why not, where it would be done and the file system cannot.
    pub unallocated: Option<Errno>,
    /// Start the write-back behind the writer ([`super::part::PartFile::write_behind`]).
    pub write_behind: bool,
    /// Why, for the report.
    pub reason: &'static str,
}

/// Chooses how to read a file of `size` bytes.
pub fn read_plan(facts: &FsFacts, size: u64, residency: Residency, wish: IoWish) -> ReadPlan {
    let plan = |mode, reason| ReadPlan { mode, reason };
    let local = matches!(facts.kind, FsKind::Ext4 | FsKind::Xfs);
    match wish {
        IoWish::Synthetic => plan(FileMode::Synthetic, "made up: no file is read"),
        IoWish::Buffered => plan(FileMode::PageCache, "buffered as asked"),
        IoWish::Direct if facts.direct_fits() && !facts.kind.is_volatile() => plan(FileMode::Direct, "direct as asked"),
        IoWish::Direct => plan(FileMode::PageCache, "direct was asked for but does not work here"),
        IoWish::DontCache if facts.dontcache_read.is_ok() => plan(FileMode::DontCache, "uncached as asked"),
        IoWish::DontCache => plan(FileMode::PageCache, "RWF_DONTCACHE was asked for but does not work here"),
        IoWish::Auto if facts.kind.is_volatile() => plan(FileMode::PageCache, "in memory"),
        IoWish::Auto if residency == Residency::Hot => plan(FileMode::PageCache, "in the page cache"),
        IoWish::Auto if size < LARGE => plan(FileMode::PageCache, "small"),
        IoWish::Auto if local && facts.direct_fits() => plan(FileMode::Direct, "large and cold"),
        IoWish::Auto if local || facts.kind.is_remote() => {
            plan(FileMode::Deferred, "large and cold, several in flight")
        }
        IoWish::Auto => plan(FileMode::PageCache, "file system not known for more"),
    }
}

/// Chooses how to write a file of `size` bytes.
pub fn write_plan(facts: &FsFacts, size: u64, wish: IoWish) -> WritePlan {
    let large = size >= LARGE;
    let volatile = facts.kind.is_volatile();
    let local = matches!(facts.kind, FsKind::Ext4 | FsKind::Xfs);
    let direct = facts.direct_fits() && !volatile;
    let dontcache = facts.dontcache_write.is_ok();
    let (mode, reason) = match wish {
        IoWish::Synthetic => (FileMode::Synthetic, "thrown away: no file is written"),
        IoWish::Buffered => (FileMode::PageCache, "buffered as asked"),
        IoWish::Direct if direct => (FileMode::Direct, "direct as asked"),
        IoWish::Direct => (FileMode::PageCache, "direct was asked for but does not work here"),
        IoWish::DontCache if dontcache => (FileMode::DontCache, "uncached as asked"),
        IoWish::DontCache => (FileMode::PageCache, "RWF_DONTCACHE was asked for but does not work here"),
        IoWish::Auto if volatile => (FileMode::PageCache, "in memory"),
        IoWish::Auto if !large => (FileMode::PageCache, "small"),
        IoWish::Auto if local && direct => (FileMode::Direct, "large"),
        IoWish::Auto if local && dontcache => (FileMode::DontCache, "large, direct does not work here"),
        IoWish::Auto if local => (FileMode::PageCache, "large, neither direct nor RWF_DONTCACHE works here"),
        IoWish::Auto => (FileMode::PageCache, "file system not known for more"),
    };
    let takes_room = large && !volatile && mode != FileMode::Synthetic;
    WritePlan {
        mode,
        // On tmpfs an allocation only moves the cost of the pages to before the first byte.
        preallocate: takes_room && facts.fallocate.is_ok(),
        unallocated: facts.fallocate.err().filter(|_| takes_room),
        write_behind: large && !volatile && mode == FileMode::PageCache,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fsys::DirectAlign;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn facts(kind: FsKind) -> FsFacts {
        FsFacts {
            kind,
            direct: Ok(DirectAlign { memory: 512, offset: 512 }),
            fallocate: Ok(()),
            dontcache_read: Ok(()),
            dontcache_write: Ok(()),
            xattr: Ok(()),
            flock: Ok(()),
            noreplace: Ok(()),
        }
    }

    #[test]
    fn reads_go_where_they_are_cheapest() {
        use FileMode::{Deferred, PageCache};
        use {
            FsKind::*,
            IoWish::{Auto, Buffered},
            Residency::*,
        };
        let big = 1 << 30;
        for (kind, size, residency, wish, want) in [
            (Ext4, big, Cold, Auto, FileMode::Direct),
            (Xfs, big, Unknown, Auto, FileMode::Direct),
            (Ext4, big, Hot, Auto, PageCache),
            (Ext4, LARGE - 1, Cold, Auto, PageCache),
            (Tmpfs, big, Unknown, Auto, PageCache),
            (Tmpfs, big, Unknown, IoWish::Direct, PageCache),
            (Nfs, big, Cold, Auto, Deferred),
            (Other(1), big, Cold, Auto, PageCache),
            (Ext4, big, Cold, Buffered, PageCache),
            (Ext4, 1, Hot, IoWish::Direct, FileMode::Direct),
            (Ext4, 1, Hot, IoWish::DontCache, FileMode::DontCache),
        ] {
            let got = read_plan(&facts(kind), size, residency, wish);
            assert_eq!(got.mode, want, "{kind} {size} {residency:?} {wish:?}: {}", got.reason);
        }
        let mut odd = facts(Ext4);
        odd.direct = Ok(DirectAlign { memory: 512, offset: 65_536 });
        assert_eq!(read_plan(&odd, big, Cold, Auto).mode, Deferred, "an alignment that the workers do not keep to");
    }

    #[test]
    fn writes_fall_back_one_by_one() {
        let big = 1 << 30;
        let mut ext4 = facts(FsKind::Ext4);
        assert_eq!(write_plan(&ext4, big, IoWish::Auto).mode, FileMode::Direct);
        ext4.direct = Err(Errno::EINVAL);
        assert_eq!(write_plan(&ext4, big, IoWish::Auto).mode, FileMode::DontCache);
        assert!(!write_plan(&ext4, big, IoWish::Auto).write_behind);
        ext4.dontcache_write = Err(Errno::EOPNOTSUPP);
        let last = write_plan(&ext4, big, IoWish::Auto);
        assert!(last.mode == FileMode::PageCache && last.write_behind && last.preallocate);
        assert_eq!(write_plan(&ext4, big, IoWish::Direct).mode, FileMode::PageCache);
        let tmpfs = write_plan(&facts(FsKind::Tmpfs), big, IoWish::Auto);
        assert!(tmpfs.mode == FileMode::PageCache && !tmpfs.write_behind && !tmpfs.preallocate);
        let small = write_plan(&facts(FsKind::Xfs), LARGE - 1, IoWish::Auto);
        assert!(small.mode == FileMode::PageCache && !small.preallocate && !small.write_behind);
        let none = write_plan(&facts(FsKind::Xfs), big, IoWish::Synthetic);
        assert!(none.mode == FileMode::Synthetic && !none.preallocate && !none.write_behind, "{none:?}");
    }

    #[test]
    fn residency_by_counting_and_by_sampling() {
        let build = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(build.parent().unwrap()).unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        for i in 0..size >> 20 {
            file.write_all_at(&[1; 1 << 20], i << 20).unwrap();
        }
        file.sync_all().unwrap();
        if sampled_residency(file.as_fd(), size) == Residency::Unknown {
            return eprintln!("skipped: the build directory's file system does not tell residency");
        }
        for ask in [residency, sampled_residency] {
            assert_eq!(ask(file.as_fd(), size), Residency::Hot);
        }
        let drop_cache = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, drop_cache).unwrap();
        for _ in 0..3 {
            assert_eq!(residency(file.as_fd(), size), Residency::Cold);
            assert_eq!(sampled_residency(file.as_fd(), size), Residency::Cold, "asking must not warm it up");
        }
        assert_eq!(residency(file.as_fd(), 0), Residency::Hot);
    }
}
