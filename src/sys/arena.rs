//! Block buffers: one mapping, handed out as owning slots.
//!
//! A slot is `SLOT_HEAD + block + SLOT_TAIL` bytes and starts on a page, so the payload at [`SLOT_HEAD`] can be the
//! target of O_DIRECT while its frame header lies in front of it and its digest and tag behind it: one send covers all
//! three. Huge pages matter here: O_DIRECT into 4 KiB pages costs twice the time of 2 MiB ones.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes in front of the payload of a slot: a page, so that the payload starts on one.
pub const SLOT_HEAD: u32 = 4096;
/// Bytes behind the payload: a page, so that the next slot starts on one.
pub const SLOT_TAIL: u32 = 4096;
/// Alignment of the mapping: a huge page of x86-64 and of aarch64 with 4 KiB base pages.
const HUGE: usize = 2 << 20;
/// The largest block: offsets inside a slot, and the lengths of one op, are `u32` and the kernel moves less than 2 GiB
/// at once.
const BLOCK_MAX: u32 = 1 << 30;
/// NUMA nodes in a mask: as many as a kernel can be built for (`MAX_NUMNODES`), in words of the kernel's.
const NODE_WORDS: usize = 1024 / u64::BITS as usize;
/// The largest arena: several times the memory of today's largest nodes, and a list of free slots that stays small.
const ARENA_MAX: usize = 1 << 40;

/// What an [`Arena`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Upper bound of all slots together, in bytes. Touched page by page as slots are first used.
    pub bytes: usize,
    /// Payload bytes of a slot: a multiple of 4096, at most 1 GiB.
    pub block: u32,
    /// Whether to try pages reserved by the administrator (`vm.nr_hugepages`) before transparent ones.
    pub explicit_huge_pages: bool,
}

/// Which pages an [`Arena`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArenaKind {
    /// Reserved by the administrator (`MAP_HUGETLB`).
    ExplicitHuge,
    /// Asked for by `MADV_HUGEPAGE`; the kernel gives them where it finds them.
    TransparentHuge,
    /// Plain pages.
    Small,
}

impl ArenaKind {
    /// The words in reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::ExplicitHuge => "explicit huge pages",
            Self::TransparentHuge => "transparent huge pages",
            Self::Small => "4 KiB pages",
        }
    }
}

/// One mapping, cut into slots of equal size. Shared by all queues of the process.
#[derive(Debug)]
pub struct Arena {
    map: NonNull<u8>,
    map_len: usize,
    /// The first slot: inside `map`, 2 MiB aligned.
    base: NonNull<u8>,
    slot_len: u32,
    slots: u32,
    kind: ArenaKind,
    free: FreeList,
}

// SAFETY: the pointers refer to a mapping that lives as long as the arena, and bytes are only reached through a `Slot`,
// of which there is one per index (see `FreeList`).
unsafe impl Send for Arena {}
// SAFETY: as above; every method with `&self` works on atomics or plain values.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps the buffers. No page is touched yet.
    ///
    /// # Errors
    /// `InvalidInput` when `block` is not a multiple of 4096 within 1 GiB, `bytes` less than one slot or above 1 TiB; else
    /// the error of `mmap`.
    pub fn new(config: ArenaConfig) -> io::Result<Arc<Self>> {
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidInput, what);
        if config.block == 0 || config.block > BLOCK_MAX || !config.block.is_multiple_of(4096) {
            return Err(invalid("the block is not a multiple of 4096 between 4 KiB and 1 GiB"));
        }
        if config.bytes > ARENA_MAX {
            return Err(invalid("the buffer memory is above 1 TiB"));
        }
        let slot_len = SLOT_HEAD + config.block + SLOT_TAIL;
        // ARENA_MAX by the smallest slot fits u32.
        let slots = (config.bytes / slot_len as usize) as u32;
        let len = (slots as usize)
            .checked_mul(slot_len as usize)
            .and_then(|len| len.checked_next_multiple_of(HUGE))
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| invalid("the buffer memory is smaller than one block"))?;
        let (map, map_len, base, kind) = map(len, config.explicit_huge_pages)?;
        Ok(Arc::new(Self { map, map_len, base, slot_len, slots, kind, free: FreeList::full(slots) }))
    }

    /// Takes a free slot, the one given back last first (its bytes are still in the cache). `None` when all are out.
    ///
    /// A slot holds whatever its last user left there: never send more of it than was written.
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let index = self.free.pop()?;
        Some(Slot { arena: Arc::clone(self), index })
    }

    /// Free slots, as of now.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// All slots.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Bytes of one slot, head and tail included.
    pub fn slot_len(&self) -> u32 {
        self.slot_len
    }

    /// Payload bytes of one slot.
    pub fn block(&self) -> u32 {
        self.slot_len - SLOT_HEAD - SLOT_TAIL
    }

    /// Which pages it is made of.
    pub fn kind(&self) -> ArenaKind {
        self.kind
    }

    /// Has the kernel take its pages from these NUMA nodes, in turn where there are several, and from others only where these
    /// have none left. For pages that nobody has touched yet: before slots are taken, and before a ring registers them.
    ///
    /// # Errors
    /// `EINVAL` for a node that does not exist, has no memory or lies outside the process's cpuset, or none; `ENOSYS` from a
    /// kernel without NUMA; `EPERM` where system calls are filtered.
    pub fn prefer_nodes(&self, nodes: &[u32]) -> io::Result<()> {
        let mut mask = [0u64; NODE_WORDS];
        for node in nodes {
            let word = mask.get_mut((node / u64::BITS) as usize).ok_or(io::ErrorKind::InvalidInput)?;
            *word |= 1 << (node % u64::BITS);
        }
        let mode = match nodes.len() {
            0 => return Err(io::ErrorKind::InvalidInput.into()),
            1 => libc::MPOL_PREFERRED,
            _ => libc::MPOL_INTERLEAVE,
        };
        let len = (self.slots as usize * self.slot_len as usize).next_multiple_of(HUGE);
        // The kernel takes one bit less than it is told.
        let bits = NODE_WORDS * u64::BITS as usize + 1;
        // SAFETY: the range is the arena's own mapping (see `new`: `len` bytes from `base` on), whose contents a policy does
        // not change; the mask lives through the call, which only reads it.
        let code = unsafe { libc::syscall(libc::SYS_mbind, self.base.as_ptr(), len, mode, mask.as_ptr(), bits, 0) };
        nix::errno::Errno::result(code).map(drop).map_err(io::Error::from)
    }

    /// Start of the slots, for registration with a ring.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `map` and `map_len` are what `mmap` returned; no slot is left, since each holds the arena alive.
        let unmapped = unsafe { munmap(self.map.cast(), self.map_len) };
        debug_assert!(unmapped.is_ok());
    }
}

fn map(len: NonZeroUsize, explicit: bool) -> io::Result<(NonNull<u8>, usize, NonNull<u8>, ArenaKind)> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    if explicit {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        if let Ok(map) = unsafe { mmap_anonymous(None, len, protection, flags) } {
            keep_from_children(map.cast(), len.get());
            return Ok((map.cast(), len.get(), map.cast(), ArenaKind::ExplicitHuge));
        }
    }
    let map_len = len.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: as above.
    let map: NonNull<u8> = unsafe { mmap_anonymous(None, map_len, protection, flags) }?.cast();
    let skip = map.as_ptr().align_offset(HUGE);
    // SAFETY: `skip` < HUGE and the mapping is HUGE longer than asked for, so `base + len` stays inside.
    let base = unsafe { map.add(skip) };
    // SAFETY: the range lies inside the mapping just made; the advice changes no contents.
    let advised = unsafe { madvise(base.cast(), len.get(), MmapAdvise::MADV_HUGEPAGE) };
    keep_from_children(base, len.get());
    let kind = match advised.is_ok() && transparent_allowed() {
        true => ArenaKind::TransparentHuge,
        false => ArenaKind::Small,
    };
    Ok((map, map_len.get(), base, kind))
}

/// A fork while the kernel writes into a buffer could leave those bytes in the child's copy of the page.
fn keep_from_children(base: NonNull<u8>, len: usize) {
    // SAFETY: the range lies inside a mapping of ours; the advice only concerns children, which do not use it.
    let _ = unsafe { madvise(base.cast(), len, MmapAdvise::MADV_DONTFORK) };
}

fn transparent_allowed() -> bool {
    // The advice succeeds where the administrator, or whoever started this process (PR_SET_THP_DISABLE), has switched huge
    // pages off, so both have to be read.
    let reads = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let host = reads("/sys/kernel/mm/transparent_hugepage/enabled");
    !host.is_empty() && !host.contains("[never]") && !reads("/proc/self/status").contains("THP_enabled:\t0")
}

/// An owning handle to one buffer of an [`Arena`]; back on the free list when dropped.
#[derive(Debug)]
pub struct Slot {
    arena: Arc<Arena>,
    index: u32,
}

impl Slot {
    /// The whole slot: head, payload and tail.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping, which `arena` keeps; mapped pages are initialised (zero at first);
        // there is one `Slot` per index, so `&self` excludes writers. While the kernel may write, a queue owns the slot.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.arena.slot_len as usize) }
    }

    /// The whole slot, to write into.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as for `as_slice`, and `&mut self` excludes every other reader.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.arena.slot_len as usize) }
    }

    /// Its number in the arena.
    pub fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        // SAFETY: `index` < `slots`, so the offset stays inside the mapping.
        unsafe { self.arena.base.add(self.index as usize * self.arena.slot_len as usize).as_ptr() }
    }

    pub(super) fn len(&self) -> u32 {
        self.arena.slot_len
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.arena.free.push(self.index);
    }
}

/// A lock-free stack of slot numbers. Last in, first out: a queue would walk through the whole arena and find every
/// block cold in the cache.
#[derive(Debug)]
struct FreeList {
    /// Low half: number of the top slot, or [`NONE`]. High half: a count of changes, so that a top that was taken and
    /// given back in between is not taken for an unchanged one.
    top: AtomicU64,
    /// For each free slot, the one below it.
    below: Box<[AtomicU32]>,
    count: AtomicU32,
}

const NONE: u32 = u32::MAX;

impl FreeList {
    fn full(slots: u32) -> Self {
        let below = (0..slots).map(|n| AtomicU32::new(if n + 1 < slots { n + 1 } else { NONE })).collect();
        let top = if slots == 0 { NONE } else { 0 };
        Self { top: AtomicU64::new(u64::from(top)), below, count: AtomicU32::new(slots) }
    }

    fn pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let index = top as u32;
            let below = self.below.get(index as usize)?.load(Ordering::Relaxed);
            let next = tagged(top, below);
            match self.top.compare_exchange_weak(top, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    return Some(index);
                }
                Err(seen) => top = seen,
            }
        }
    }

    fn push(&self, index: u32) {
        // Counted first: a pop that follows the push at once must not take the count below zero.
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            self.below[index as usize].store(top as u32, Ordering::Relaxed);
            match self.top.compare_exchange_weak(top, tagged(top, index), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(seen) => top = seen,
            }
        }
    }

    fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }
}

fn tagged(previous: u64, index: u32) -> u64 {
    ((previous >> 32).wrapping_add(1) << 32) | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(slots: usize) -> Arc<Arena> {
        let block = 64 << 10;
        let bytes = slots * (block as usize + 8192);
        Arena::new(ArenaConfig { bytes, block, explicit_huge_pages: false }).unwrap()
    }

    #[test]
    fn slots_are_aligned_apart_and_run_out() {
        let arena = arena(5);
        assert_eq!((arena.slots(), arena.free(), arena.block()), (5, 5, 64 << 10));
        let mut taken: Vec<Slot> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!((taken.len(), arena.free()), (5, 0));
        for (n, slot) in taken.iter_mut().enumerate() {
            assert_eq!(slot.as_slice()[SLOT_HEAD as usize..].as_ptr() as usize % 4096, 0);
            slot.as_mut_slice().fill(n as u8 + 1);
        }
        for (n, slot) in taken.iter().enumerate() {
            assert!(slot.as_slice().iter().all(|&b| b == n as u8 + 1), "slot {n} is shared");
        }
        let last = taken.pop().unwrap();
        let index = last.index();
        drop(last);
        assert_eq!(arena.take().unwrap().index(), index, "the slot given back last comes first");
        drop(taken);
        assert_eq!(arena.free(), 5);
    }

    #[test]
    fn a_slot_is_never_out_twice_under_contention() {
        let arena = arena(3);
        std::thread::scope(|scope| {
            for id in 1..=4u8 {
                let arena = &arena;
                scope.spawn(move || {
                    for _ in 0..50_000 {
                        let Some(mut slot) = arena.take() else { continue };
                        let bytes = slot.as_mut_slice();
                        (bytes[0], bytes[70_000]) = (id, id);
                        std::hint::spin_loop();
                        assert_eq!((slot.as_slice()[0], slot.as_slice()[70_000]), (id, id), "two owners of one slot");
                    }
                });
            }
        });
        assert_eq!(arena.free(), 3);
    }

    #[test]
    fn a_top_that_came_back_is_not_an_unchanged_one() {
        // What a thread between its load and its exchange must notice: the slots below may be others by now.
        let list = FreeList::full(3);
        let before = list.top.load(Ordering::Relaxed);
        let top = list.pop().unwrap();
        list.push(top);
        let after = list.top.load(Ordering::Relaxed);
        assert_eq!(before as u32, after as u32);
        assert_ne!(before, after);
    }

    /// What the kernel shows of the mapping is the policy that was asked for.
    #[test]
    fn its_pages_are_taken_from_the_nodes_that_were_named() {
        let arena = arena(40);
        let policy = || {
            let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
            let base = format!("{:08x}", arena.base.as_ptr() as usize);
            let words = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
            maps.lines().find(|line| line.split(' ').next() == Some(&base)).and_then(words)
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:\t"));
        let Some(node) = allowed.and_then(|list| list.split([',', '-']).next()?.parse::<u32>().ok()) else {
            return eprintln!("skipped: no NUMA in this kernel");
        };
        arena.prefer_nodes(&[node]).unwrap();
        assert_eq!(policy(), Some(format!("prefer:{node}")));
        for nodes in [&[][..], &[1023], &[1024]] {
            assert!(arena.prefer_nodes(nodes).is_err(), "{nodes:?}");
        }
        arena.take().unwrap().as_mut_slice().fill(7);
        assert_eq!(policy(), Some(format!("prefer:{node}")));
        // Several are taken in turn; where a host has one, it is named twice.
        arena.prefer_nodes(&[node, node]).unwrap();
        assert_eq!(policy(), Some(format!("interleave:{node}")));
    }

    #[test]
    fn refuses_what_cannot_work_and_falls_back_to_smaller_pages() {
        for (bytes, block) in [(1 << 20, 0), (1 << 20, 5000), (100, 4096), (1 << 40, 1 << 31), (usize::MAX, 4096)] {
            let config = ArenaConfig { bytes, block, explicit_huge_pages: false };
            assert!(Arena::new(config).is_err(), "{config:?}");
        }
        let config = ArenaConfig { bytes: 1 << 20, block: 4096, explicit_huge_pages: true };
        let arena = Arena::new(config).unwrap();
        assert!(!arena.kind().word().is_empty());
        arena.take().unwrap().as_mut_slice().fill(7);
    }
}
