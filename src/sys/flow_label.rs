//! The flow labels of IPv6 (`include/uapi/linux/in6.h`), which no safe crate offers. A socket's label is what it was connected
//! with; what a listening socket has goes over to the sockets that it accepts.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};

use super::syscall::{getsockopt_bytes, setsockopt_bytes};

/// `IPV6_FLOWLABEL_MGR`: labels are leased, asked for and let go.
const FLOWLABEL_MGR: i32 = 32;
/// `IPV6_FLOWINFO_SEND`: an address's `sin6_flowinfo` is looked at.
const FLOWINFO_SEND: i32 = 33;
/// `IPV6_FL_A_GET`: the action of every request here.
const ACTION_GET: u8 = 0;
/// `IPV6_FL_F_CREATE`: a label that nobody has yet.
const FLAG_CREATE: u16 = 1;
/// `IPV6_FL_F_REFLECT`: accepted connections answer with the label that they were called with.
const FLAG_REFLECT: u16 = 4;
/// `IPV6_FL_S_ANY`: others may have the same. A private label would make the kernel look every packet's up.
const SHARE_ANY: u8 = 255;
/// `struct in6_flowlabel_req`: address 16, label 4, action 1, share 1, flags 2, expires 2, linger 2, reserved 4.
const REQUEST_LEN: usize = 32;

fn request(to: Ipv6Addr, label: u32, share: u8, flags: u16) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..16].copy_from_slice(&to.octets());
    bytes[16..20].copy_from_slice(&label.to_be_bytes());
    (bytes[20], bytes[21]) = (ACTION_GET, share);
    bytes[22..24].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// Leases a label of 20 bits for this socket, until it is closed, and has the socket's next `connect` look at
/// `sin6_flowinfo`.
///
/// # Errors
/// `ERANGE`: a label with the highest bit where `net.ipv6.flowlabel_state_ranges` is on. `EPERM`: somebody has it alone.
/// `ENOBUFS`: too many are leased.
pub fn lease(socket: impl AsFd, to: Ipv6Addr, label: u32) -> io::Result<()> {
    manage(socket.as_fd(), &request(to, label, SHARE_ANY, FLAG_CREATE))?;
    setsockopt_bytes(socket.as_fd(), libc::IPPROTO_IPV6, FLOWINFO_SEND, &1i32.to_ne_bytes())
}

/// Has what this listening socket accepts answer with the labels that it is called with.
///
/// # Errors
/// `EPERM` where `net.ipv6.flowlabel_consistency` is on, which is the kernel's default.
pub fn reflect(socket: impl AsFd) -> io::Result<()> {
    manage(socket.as_fd(), &request(Ipv6Addr::UNSPECIFIED, 0, 0, FLAG_REFLECT))
}

fn manage(socket: BorrowedFd<'_>, request: &[u8]) -> io::Result<()> {
    setsockopt_bytes(socket, libc::IPPROTO_IPV6, FLOWLABEL_MGR, request)
}

/// The label of a connected socket that was leased or is reflected.
///
/// # Errors
/// `ENOENT`: neither.
pub fn in_force(socket: impl AsFd) -> io::Result<u32> {
    // The kernel reads the request before it writes the answer over it.
    let mut bytes = request(Ipv6Addr::UNSPECIFIED, 0, 0, 0);
    getsockopt_bytes(socket.as_fd(), libc::IPPROTO_IPV6, FLOWLABEL_MGR, &mut bytes)?;
    Ok(u32::from_be_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]) & 0xf_ffff)
}
