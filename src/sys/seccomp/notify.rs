//! Answering the kernel's questions about `io_uring_setup`: its flags lie behind a pointer, which a filter cannot follow.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// How often the supervisor looks whether its child has ended, in milliseconds.
const TICK_MS: u16 = 50;
/// Offset of `flags` in `struct io_uring_params`.
const FLAGS_AT: u64 = 8;

pub(super) fn send_descriptor(socket: RawFd, descriptor: &OwnedFd) -> io::Result<()> {
    let rights = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(socket, &[IoSlice::new(b"l")], &control, MsgFlags::empty(), None)?;
    Ok(())
}

pub(super) fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut vectors = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control
            && let Some(fd) = rights.first()
        {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Answers until the child ends: EINVAL for a setup with any flag of `mask`, else the call goes on.
pub(super) fn supervise(child: &mut Child, listener: &OwnedFd, mask: u32) -> io::Result<ExitStatus> {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, TICK_MS) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
            answer(listener, mask)?;
        } else if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
    }
}

fn answer(listener: &OwnedFd, mask: u32) -> io::Result<()> {
    // SAFETY: the kernel wants a zeroed structure, all of whose fields are integers, and fills it.
    let mut question = unsafe { MaybeUninit::<libc::seccomp_notif>::zeroed().assume_init() };
    // SAFETY: the request's argument is this structure, exclusively ours for the length of the call.
    let code = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question) };
    match Errno::result(code) {
        Ok(_) => {}
        // The thread that asked is gone.
        Err(Errno::ENOENT | Errno::EINTR) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    let refuse = flags_of(question.pid, question.data.args[1]).is_ok_and(|flags| flags & mask != 0);
    let mut reply = libc::seccomp_notif_resp {
        id: question.id,
        val: 0,
        error: if refuse { -libc::EINVAL } else { 0 },
        flags: if refuse { 0 } else { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 },
    };
    // SAFETY: as above; the kernel reads the structure.
    let code = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut reply) };
    match Errno::result(code) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn flags_of(pid: u32, params: u64) -> io::Result<u32> {
    let mut flags = [0; 4];
    let at = params.checked_add(FLAGS_AT).ok_or(io::ErrorKind::InvalidInput)?;
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut flags, at)?;
    Ok(u32::from_ne_bytes(flags))
}
