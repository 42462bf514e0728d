//! Power cuts for tests: the ioctl by which ext4 and XFS stop at once and forget what is not on their disk.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// The file system's own log is written out first: its metadata may then be newer than its data.
pub const LOG_FLUSHED: u32 = 1;
/// Nothing more is written: what a power cut does.
pub const NOTHING_FLUSHED: u32 = 2;

mod raw {
    // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN share one number, 0x8004587d.
    nix::ioctl_read!(shutdown, b'X', 125, u32);
}

/// Cuts the power of the file system that `file` is on. Needs root. Afterwards it only gives errors, until it is
/// mounted anew.
pub fn cut(file: &File, flag: u32) -> Result<(), Errno> {
    let mut flag = flag;
    // SAFETY: the kernel reads one u32 at the address, which is valid for the whole call.
    unsafe { raw::shutdown(file.as_raw_fd(), &raw mut flag) }.map(|_| ())
}
