//! Every bound of the program, with its reason. Relations between bounds are asserted at compile time.

use crate::grid::CHUNK_SIZE;

/// Streams of one session. 64 saturate any link whose buffers are capped at 4 MiB; more only cost memory.
pub const MAX_STREAMS: u16 = 64;
/// Sessions that one agent serves at once.
pub const MAX_SESSIONS: usize = 256;
/// Source roots of one transfer (`cp` with many SRC).
pub const MAX_ROOTS: usize = 4096;

/// The default block: the unit of one I/O inside a chunk. Small enough to stay in L2 while it is read, digested,
/// sealed and sent.
pub const DEFAULT_BLOCK: u32 = 256 << 10;
/// The smallest and largest block: a power of two, so that blocks tile chunks.
pub const MIN_BLOCK: u32 = 64 << 10;
/// See [`MIN_BLOCK`].
pub const MAX_BLOCK: u32 = 1 << 20;

/// Files up to this size travel in packs: content inline, no Bind, one journal record a batch.
pub const PACK_FILE_MAX: u64 = 48 << 10;
/// Files of one pack want.
pub const PACK_MAX_FILES: usize = 128;
/// Encoded bytes of one pack want (paths included).
pub const PACK_WANT_MAX_BYTES: usize = 64 << 10;

/// Encoded bytes of one manifest segment.
pub const SEGMENT_MAX_BYTES: usize = 128 << 10;
/// Entries of one manifest segment.
pub const SEGMENT_MAX_ENTRIES: usize = 2048;
/// Segments that the destination lets the source send ahead.
pub const SEGMENT_CREDIT: u32 = 8;
/// A symlink's target, PATH_MAX less the NUL.
pub const SYMLINK_MAX: usize = 4095;

/// The body of a control frame. Reports, binds and segments stay below.
pub const CONTROL_BODY_MAX: usize = 256 << 10;
/// Bytes of unread Wants that a destination may have outstanding on one stream, so that neither side blocks on a send
/// while the other's input waits.
pub const WANT_WINDOW: usize = 64 << 10;
/// The smallest receive buffer the kernel gives by default is 128 KiB (the middle value of tcp_rmem); Linux never shrinks it below.
pub const SMALLEST_RECEIVE_BUFFER: usize = 128 << 10;

/// From accept to an authenticated peer.
pub const HANDSHAKE_DEADLINE_SECS: u64 = 10;
/// Connections of one IPv4 address, or IPv6 /64, that have not authenticated yet.
pub const UNAUTHENTICATED_PER_SOURCE: usize = 32;
/// The same over all addresses.
pub const UNAUTHENTICATED_TOTAL: usize = 1024;
/// How long a ticket can open a session.
pub const TICKET_TTL_SECS: u64 = 60;
/// Journals whose highest epoch a source remembers: several times the sessions it serves at once, at some 200 bytes each.
pub const FENCES_KEPT: usize = 4096;
/// Tickets issued and not yet used.
pub const MAX_TICKETS: usize = 10_000;

/// Collectors of fireflies. More are what a collector's own forwarding is for.
pub const MAX_COLLECTORS: usize = 8;
/// Between two fireflies of a stream that goes on.
pub const FIREFLY_EVERY_MS: u64 = 60_000;
/// Fireflies that wait for their collectors' names to be looked up: two of each stream.
pub const FIREFLIES_WAITING: usize = 2 * MAX_STREAMS as usize;

/// The least cap of a rate, bits per second: below it no deadline could tell a slow transfer from a dead one.
pub const MIN_RATE: u64 = 8_000;

/// A commit at least every so often while chunks wait.
pub const COMMIT_INTERVAL_MS: u64 = 1_000;
/// COMMIT_WINDOW: placed but not yet durable bytes, upper bound.
pub const COMMIT_WINDOW_MAX: u64 = 1 << 30;
/// COMMIT_WINDOW, lower bound.
pub const COMMIT_WINDOW_MIN: u64 = 16 << 20;

/// Default memory for block buffers of one process.
pub const DEFAULT_ARENA_BYTES: usize = 96 << 20;

/// COMMIT_WINDOW of DESIGN: at most 1 GiB and 1 % of what is to move, but at least 16 MiB. The time bound of one second
/// is [`COMMIT_INTERVAL_MS`].
pub fn commit_window(total_bytes: u64) -> u64 {
    (total_bytes / 100).clamp(COMMIT_WINDOW_MIN, COMMIT_WINDOW_MAX)
}

const _: () = {
    assert!(MAX_BLOCK as u64 <= CHUNK_SIZE && CHUNK_SIZE.is_multiple_of(MAX_BLOCK as u64));
    assert!(MIN_BLOCK.is_power_of_two() && DEFAULT_BLOCK.is_power_of_two() && MAX_BLOCK.is_power_of_two());
    assert!(PACK_FILE_MAX + 64 <= MIN_BLOCK as u64, "a packed file fits the smallest block");
    assert!(WANT_WINDOW < SMALLEST_RECEIVE_BUFFER);
    assert!(PACK_WANT_MAX_BYTES <= WANT_WINDOW);
    assert!(SEGMENT_MAX_BYTES < CONTROL_BODY_MAX);
    assert!(FENCES_KEPT > MAX_SESSIONS, "a session that is open is never forgotten");
};
