//! What the kernel knows about a connection (`TCP_INFO`), tolerant of kernels that know less.

use std::io;
use std::os::fd::AsFd;

use super::syscall::getsockopt_bytes;

/// Room for the structure of kernels to come; today's is about 250 bytes.
const ROOM: usize = 512;

/// A sample of `TCP_INFO`. A figure that this kernel does not keep is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpInfo {
    /// Smoothed round trip, in µs.
    pub rtt_us: u32,
    /// Its deviation, in µs.
    pub rttvar_us: u32,
    /// Least round trip seen, in µs; `u32::MAX` before the first.
    pub min_rtt_us: u32,
    /// Round trip as the receiver estimates it, in µs.
    pub rcv_rtt_us: u32,
    /// Congestion window, in segments.
    pub cwnd: u32,
    /// Bytes of a full segment sent.
    pub snd_mss: u32,
    /// Path MTU in bytes.
    pub pmtu: u32,
    /// Retransmitted segments in all.
    pub total_retrans: u32,
    /// Retransmitted bytes in all.
    pub bytes_retrans: u64,
    /// Latest delivery rate, in bytes per second.
    pub delivery_rate: u64,
    /// Pacing rate, in bytes per second; `u64::MAX` without.
    pub pacing_rate: u64,
    /// Bytes acknowledged by the peer.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes sent, repeats included.
    pub bytes_sent: u64,
    /// Segments sent, with and without data.
    pub segs_out: u32,
    /// Segments received.
    pub segs_in: u32,
    /// Bytes in the send buffer that were never sent.
    pub notsent_bytes: u32,
    /// The peer's window, in bytes.
    pub snd_wnd: u32,
    /// Time with data to send, in µs.
    pub busy_time_us: u64,
    /// Part of it spent waiting for the peer's window, in µs.
    pub rwnd_limited_us: u64,
    /// Part of it spent waiting for the own send buffer, in µs.
    pub sndbuf_limited_us: u64,
}

impl TcpInfo {
    /// Samples a TCP socket.
    ///
    /// # Errors
    /// Not a TCP socket.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let mut bytes = [0; ROOM];
        let filled = getsockopt_bytes(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes)?;
        Ok(Self::parse(&bytes[..filled]))
    }

    /// Offsets are the kernel's ABI (`include/uapi/linux/tcp.h`): the structure only ever grows at its end.
    fn parse(bytes: &[u8]) -> Self {
        let word =
            |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap_or_default()));
        let long =
            |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap_or_default()));
        Self {
            snd_mss: word(16),
            pmtu: word(60),
            rtt_us: word(68),
            rttvar_us: word(72),
            cwnd: word(80),
            rcv_rtt_us: word(92),
            total_retrans: word(100),
            pacing_rate: long(104),
            bytes_acked: long(120),
            bytes_received: long(128),
            segs_out: word(136),
            segs_in: word(140),
            notsent_bytes: word(144),
            min_rtt_us: word(148),
            delivery_rate: long(160),
            busy_time_us: long(168),
            rwnd_limited_us: long(176),
            sndbuf_limited_us: long(184),
            bytes_sent: long(200),
            bytes_retrans: long(208),
            snd_wnd: word(228),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn counts_what_went_over_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[1; 50_000]).unwrap();
        far.read_exact(&mut [0; 50_000]).unwrap();
        far.write_all(b"ack").unwrap();
        near.read_exact(&mut [0; 3]).unwrap();
        let (sent, received) = (TcpInfo::of(&near).unwrap(), TcpInfo::of(&far).unwrap());
        assert_eq!((received.bytes_received, sent.bytes_received), (50_000, 3));
        assert_eq!((sent.bytes_sent, sent.notsent_bytes), (50_000, 0));
        // The SYN counts as a byte acknowledged.
        assert!((50_000..=50_001).contains(&sent.bytes_acked), "{sent:?}");
        assert!(sent.rtt_us > 0 && sent.rtt_us < 1_000_000 && sent.min_rtt_us <= sent.rtt_us, "{sent:?}");
        // Linux 5.4 and later tell it.
        assert!(sent.snd_wnd > 1_000 && sent.snd_wnd < 1 << 30, "{sent:?}");
        assert!(sent.cwnd >= 2 && sent.snd_mss >= 500 && sent.segs_out > 0 && received.segs_in > 0, "{sent:?}");
    }

    #[test]
    fn short_structures_of_old_kernels_leave_zeros() {
        let bytes = [1u8; 104];
        let info = TcpInfo::parse(&bytes);
        assert_eq!((info.rtt_us, info.total_retrans), (0x0101_0101, 0x0101_0101));
        assert_eq!((info.bytes_acked, info.bytes_retrans, info.min_rtt_us), (0, 0, 0));
        assert_eq!(TcpInfo::parse(&bytes[..70]).rtt_us, 0, "half a figure is none");
        assert!(TcpInfo::of(std::fs::File::open(".").unwrap()).is_err());
    }
}
