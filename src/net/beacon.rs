//! Datagrams to listeners that may or may not be there: sent at once or not at all.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Two sockets at most, one for each IP version, which never block.
#[derive(Debug, Default)]
pub struct Beacon {
    to: Vec<SocketAddr>,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Beacon {
    /// To all of these.
    ///
    /// # Errors
    /// There is no socket of an IP version that one of them needs; the others are sent to.
    pub fn open(to: &[SocketAddr]) -> (Self, Option<io::Error>) {
        let open = |any: SocketAddr| {
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let mut beacon = Self { to: to.to_vec(), ..Self::default() };
        let mut failed = None;
        let mut ready = |place: &mut Option<UdpSocket>, any: SocketAddr| match open(any) {
            Ok(socket) => *place = Some(socket),
            Err(error) => failed = Some(error),
        };
        if to.iter().any(SocketAddr::is_ipv4) {
            ready(&mut beacon.v4, (Ipv4Addr::UNSPECIFIED, 0).into());
        }
        if to.iter().any(SocketAddr::is_ipv6) {
            ready(&mut beacon.v6, (Ipv6Addr::UNSPECIFIED, 0).into());
        }
        (beacon, failed)
    }

    /// One datagram to everybody. The last error, if there was one.
    pub fn send(&self, bytes: &[u8]) -> Option<(SocketAddr, io::Error)> {
        let mut failed = None;
        for to in &self.to {
            let Some(socket) = (if to.is_ipv4() { &self.v4 } else { &self.v6 }) else { continue };
            if let Err(error) = socket.send_to(bytes, to) {
                failed = Some((*to, error));
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scitag_datagrams_reach_both_versions_and_wait_for_nobody() {
        let listeners: Vec<UdpSocket> =
            ["127.0.0.1:0", "[::1]:0"].iter().filter_map(|any| UdpSocket::bind(any).ok()).collect();
        let mut to: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        // Nobody listens there: a datagram is lost, which is no error.
        to.push("127.0.0.1:9".parse().unwrap());
        let (beacon, failed) = Beacon::open(&to);
        assert!(failed.is_none());
        for _ in 0..1000 {
            let _ = beacon.send(b"here");
        }
        for listener in listeners {
            let mut bytes = [0; 8];
            assert_eq!((listener.recv(&mut bytes).unwrap(), &bytes[..4]), (4, &b"here"[..]));
        }
        let (far, _) = Beacon::open(&["127.0.0.1:9".parse().unwrap()]);
        let error = far.send(&vec![0; 1 << 17]).expect("more than a datagram holds");
        assert_eq!(error.0, "127.0.0.1:9".parse().unwrap());
    }
}
