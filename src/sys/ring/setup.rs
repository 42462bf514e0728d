//! Opening a ring: the newest flags first, each refusal kept for the report.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, Probe, opcode};

use crate::sys::Arena;

/// The kernel takes no registered buffer above this (EFAULT).
const REGISTERED_BUFFER_MAX: u64 = 1 << 30;
/// The kernel takes no more registered buffers than this (EINVAL).
const REGISTERED_BUFFERS_MAX: usize = 1 << 14;
/// Places for registered sockets: MAX_STREAMS of several sessions in one worker. Beyond them the plain descriptor serves.
pub(super) const SOCKET_TABLE: u32 = 1024;
/// Completion entries per submission entry, so that a burst of pushes seldom has to wait.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// What is asked of the kernel at setup, oldest first: kernel 5.5, 5.18, 5.19, 5.19, 6.0, 6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    CqSize,
    SubmitAll,
    CoopTaskrun,
    ShowTaskrun,
    SingleIssuer,
    DeferTaskrun,
}

const FLAGS: [Flag; 6] =
    [Flag::CqSize, Flag::SubmitAll, Flag::CoopTaskrun, Flag::ShowTaskrun, Flag::SingleIssuer, Flag::DeferTaskrun];

impl Flag {
    fn word(self) -> &'static str {
        match self {
            Flag::CqSize => "CQSIZE",
            Flag::SubmitAll => "SUBMIT_ALL",
            Flag::CoopTaskrun => "COOP_TASKRUN",
            Flag::ShowTaskrun => "TASKRUN_FLAG",
            Flag::SingleIssuer => "SINGLE_ISSUER",
            Flag::DeferTaskrun => "DEFER_TASKRUN",
        }
    }

    /// What the kernel, or this code, needs besides: deferred work that does not show in the flags would never be run.
    fn needs(self) -> &'static [Flag] {
        match self {
            Flag::ShowTaskrun => &[Flag::CoopTaskrun],
            Flag::DeferTaskrun => &[Flag::SingleIssuer, Flag::ShowTaskrun],
            _ => &[],
        }
    }
}

fn build(flags: &[Flag], entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp();
    for flag in flags {
        match flag {
            Flag::CqSize => builder.setup_cqsize(entries * COMPLETIONS_PER_ENTRY),
            Flag::SubmitAll => builder.setup_submit_all(),
            Flag::CoopTaskrun => builder.setup_coop_taskrun(),
            Flag::ShowTaskrun => builder.setup_taskrun_flag(),
            Flag::SingleIssuer => builder.setup_single_issuer(),
            Flag::DeferTaskrun => builder.setup_defer_taskrun(),
        };
    }
    builder.build(entries)
}

fn named(call: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => format!("{call}: {:?}", nix::errno::Errno::from_raw(code)),
        None => format!("{call}: {error}"),
    }
}

/// The same error with the call's name in front; the kind stays.
pub(super) fn in_call(call: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), named(call, &error))
}

/// Sets a ring up with as many flags as the kernel takes; with it, whether the kernel knows zero-copy sends.
pub(super) fn open(
    entries: u32,
    features: &mut Vec<&'static str>,
    refused: &mut Vec<String>,
) -> io::Result<(IoUring, bool)> {
    let mut taken = FLAGS.to_vec();
    let mut outcome = build(&taken, entries);
    if matches!(&outcome, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
        // Some flag is unknown here. Add them one by one, oldest first, and keep those that work.
        taken.clear();
        outcome = build(&taken, entries);
        for flag in FLAGS {
            if outcome.is_err() {
                break;
            }
            if let Some(missing) = flag.needs().iter().find(|need| !taken.contains(need)) {
                refused.push(format!("{}: needs {}", flag.word(), missing.word()));
                continue;
            }
            taken.push(flag);
            match build(&taken, entries) {
                Ok(ring) => outcome = Ok(ring),
                Err(error) => {
                    taken.pop();
                    refused.push(named(flag.word(), &error));
                }
            }
        }
    }
    let ring = outcome.map_err(|error| in_call("io_uring_setup", error))?;
    features.extend(taken.iter().map(|flag| flag.word()));
    let zero_copy = check(&ring)?;
    Ok((ring, zero_copy))
}

/// Everything the queue cannot do without. Tells whether the kernel knows zero-copy sends.
fn check(ring: &IoUring) -> io::Result<bool> {
    let missing =
        |what: &str| io::Error::new(io::ErrorKind::Unsupported, format!("io_uring: no {what} in this kernel"));
    let params = ring.params();
    if !params.is_feature_ext_arg() {
        return Err(missing("wait with a timeout"));
    }
    if !params.is_feature_nodrop() || !params.is_feature_fast_poll() {
        return Err(missing("lossless completions or internal poll"));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| in_call("io_uring_register", error))?;
    let needed = [
        ("RECV", opcode::Recv::CODE),
        ("SEND", opcode::Send::CODE),
        ("READ", opcode::Read::CODE),
        ("WRITE", opcode::Write::CODE),
        ("READ_FIXED", opcode::ReadFixed::CODE),
        ("WRITE_FIXED", opcode::WriteFixed::CODE),
        ("POLL_ADD", opcode::PollAdd::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(missing(name)),
        None => Ok(probe.is_supported(opcode::SendZc::CODE)),
    }
}

/// Registers an empty table of descriptors; `false` where the kernel refuses.
pub(super) fn register_sockets(ring: &IoUring, refused: &mut Vec<String>) -> bool {
    let sparse = ring.submitter().register_files_sparse(SOCKET_TABLE);
    // The sparse form came with 5.19; before it a table of -1 says the same.
    let outcome = sparse.or_else(|_| ring.submitter().register_files(&[-1 as RawFd; SOCKET_TABLE as usize]));
    outcome.map_err(|error| refused.push(named("registered files", &error))).is_ok()
}

/// How the arena is cut into registered buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct FixedBuffers {
    slots_per_buffer: u32,
}

impl FixedBuffers {
    /// The registered buffer that a slot lies in.
    pub(super) fn index(self, slot: u32) -> u16 {
        // At most REGISTERED_BUFFERS_MAX, checked at registration.
        (slot / self.slots_per_buffer) as u16
    }
}

/// Registers the arena: pins its pages (and so touches them all).
pub(super) fn register_arena(ring: &IoUring, arena: &Arena, refused: &mut Vec<String>) -> Option<FixedBuffers> {
    let slot_len = u64::from(arena.slot_len());
    // A slot must not straddle two registered buffers.
    let slots_per_buffer = (REGISTERED_BUFFER_MAX / slot_len) as u32;
    let slots = arena.slots() as u32;
    let buffers = slots.checked_div(slots_per_buffer).map_or(usize::MAX, |n| n as usize + 1);
    if buffers > REGISTERED_BUFFERS_MAX {
        refused.push("registered buffers: the arena is too large".to_owned());
        return None;
    }
    let vectors: Vec<libc::iovec> = (0..slots)
        .step_by(slots_per_buffer as usize)
        .map(|first| {
            let count = slots_per_buffer.min(slots - first) as usize;
            let base = arena.base().as_ptr().wrapping_add(first as usize * arena.slot_len() as usize);
            libc::iovec { iov_base: base.cast(), iov_len: count * arena.slot_len() as usize }
        })
        .collect();
    // SAFETY: the buffers are the arena's mapping, and the ring's owner keeps the arena alive for as long as the ring.
    #[allow(unsafe_code)]
    let outcome = unsafe { ring.submitter().register_buffers(&vectors) };
    match outcome {
        Ok(()) => Some(FixedBuffers { slots_per_buffer }),
        Err(error) => {
            // Most often ENOMEM: RLIMIT_MEMLOCK. Plain reads and writes cost the same at 256 KiB an op and more.
            refused.push(named("registered buffers", &error));
            None
        }
    }
}
