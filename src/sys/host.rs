//! What only an ioctl or a system call tells about the host: rings and offloads of an interface, whether the clock is kept.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_GRINGPARAM`: the command and eight numbers.
const GET_RINGS: u32 = 0x10;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;

/// Descriptors of an interface's rings: in use, and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// Receiving.
    pub rx: u32,
    /// At most.
    pub rx_max: u32,
    /// Sending.
    pub tx: u32,
    /// At most.
    pub tx_max: u32,
}

/// Work that an interface may take off the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Sender's checksums.
    TxChecksum,
    /// TCP segmentation.
    Tso,
    /// Segmentation by the kernel just before the driver.
    Gso,
    /// Receiver's merging, reversible.
    Gro,
    /// Receiver's merging by the card, not reversible.
    Lro,
}

#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u32,
    // The union of the kernel's structure is longer than a pointer.
    _rest: [u64; 2],
}

/// One ethtool command: `words` begins with it and is as long as the kernel's structure for it.
fn ethtool(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut request = IfReq { name, data: words.as_mut_ptr(), _rest: [0; 2] };
    // SAFETY: the request and what its pointer leads to live through the call; the callers below pair each command with a
    // buffer of its structure's length, which is all that the kernel writes.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    nix::errno::Errno::result(code).map(drop).map_err(io::Error::from)
}

/// Ring sizes of an interface.
///
/// # Errors
/// `EOPNOTSUPP` where the driver does not say, `ENODEV` for no such interface.
pub fn rings(interface: &str) -> io::Result<Rings> {
    let mut words = [0; 9];
    words[0] = GET_RINGS;
    ethtool(interface, &mut words)?;
    Ok(Rings { rx_max: words[1], tx_max: words[4], rx: words[5], tx: words[8] })
}

/// Whether an interface takes some work off the CPU.
///
/// # Errors
/// As [`rings`].
pub fn offload(interface: &str, which: Offload) -> io::Result<bool> {
    // ETHTOOL_GTXCSUM, GTSO, GGSO, GGRO.
    let (command, bit) = match which {
        Offload::TxChecksum => (0x16, u32::MAX),
        Offload::Tso => (0x1e, u32::MAX),
        Offload::Gso => (0x23, u32::MAX),
        Offload::Gro => (0x2b, u32::MAX),
        Offload::Lro => (GET_FLAGS, FLAG_LRO),
    };
    let mut words = [command, 0];
    ethtool(interface, &mut words)?;
    Ok(words[1] & bit != 0)
}

/// Whether something keeps the system's clock, and its largest error in µs.
///
/// # Errors
/// Where system calls are filtered.
pub fn clock_kept() -> io::Result<(bool, u64)> {
    // SAFETY: all-zero bytes are a valid timex (integers only); with `modes` 0 the call only fills it.
    let (code, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex)
    };
    let state = nix::errno::Errno::result(code)?;
    let kept = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    Ok((kept, u64::try_from(timex.maxerror).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_segments_and_nothing_is_asked_of_no_interface() {
        assert!(offload("lo", Offload::Tso).unwrap() && offload("lo", Offload::Gro).unwrap());
        assert!(!offload("lo", Offload::Lro).unwrap());
        assert_eq!(rings("lo").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(rings("nosuch").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(rings("a-name-that-is-too-long").is_err());
        let (_, error_us) = clock_kept().unwrap();
        assert!(error_us <= 16_000_000 || error_us < u64::MAX, "{error_us}");
    }
}
