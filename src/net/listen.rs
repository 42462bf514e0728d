//! Listening, on both IP versions through one socket where the host has both.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::label::{self, Unlabelled};
use crate::profile::SciTag;
use crate::sys::flow_label;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Connections that wait to be accepted; the kernel clamps it to `net.core.somaxconn` (4096 today).
const BACKLOG: i32 = 1024;

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Something else has the port.
    #[error("{addr} is in use: stop what listens there or choose another port")]
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address or the port is not for this process.
    #[error("may not listen on {addr}: ports below 1024 need a privilege")]
    Denied {
        /// The address.
        addr: SocketAddr,
    },
    /// No interface has this address.
    #[error("{addr} is no address of this host")]
    NoSuchAddress {
        /// The address.
        addr: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {addr}: {source}")]
    Other {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket and where it listens.
#[derive(Debug)]
pub struct Listener {
    /// Blocking, close-on-exec.
    pub socket: TcpListener,
    /// The address, with the port that was picked for port 0.
    pub addr: SocketAddr,
    /// Whether `[::]` was asked for on a host without IPv6, so that only IPv4 is served.
    pub ipv4_only: bool,
    /// Why the sockets that it accepts do not bear the SciTag that was asked for.
    pub unlabelled: Option<Unlabelled>,
}

/// Listens on `addr`; `[::]` serves IPv4 as well, and becomes `0.0.0.0` where IPv6 is switched off.
pub fn listen(addr: SocketAddr) -> Result<Listener, ListenError> {
    listen_labelled(addr, None)
}

/// The same; what is accepted has flow labels that say `tag`. Without one it has the dialler's labels, where the kernel may
/// reflect them.
pub fn listen_labelled(addr: SocketAddr, tag: Option<SciTag>) -> Result<Listener, ListenError> {
    let mut unlabelled = None;
    let mut open = |addr| open(addr, tag, &mut unlabelled);
    let (socket, ipv4_only) = match open(addr) {
        Err(error) if addr.is_ipv6() && addr.ip().is_unspecified() && without_ipv6(&error) => {
            (open((Ipv4Addr::UNSPECIFIED, addr.port()).into()), true)
        }
        other => (other, false),
    };
    let socket = socket.map_err(|source| explain(addr, source))?;
    let addr = socket.local_addr().map_err(|source| explain(addr, source))?;
    Ok(Listener { socket, addr, ipv4_only, unlabelled })
}

fn open(addr: SocketAddr, tag: Option<SciTag>, unlabelled: &mut Option<Unlabelled>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restart must not wait for the last run's connections to fade.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    match tag {
        Some(tag) => *unlabelled = label::prepare_listener(&socket, tag).err(),
        // Where it is refused, which is usual, a stream whose tag somebody asks for has a note.
        None => drop(flow_label::reflect(&socket)),
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn explain(addr: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { addr },
        io::ErrorKind::PermissionDenied => ListenError::Denied { addr },
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress { addr },
        _ => ListenError::Other { addr, source },
    }
}

/// Sets options on a listening socket, so that accepted connections inherit buffers and congestion control from their
/// first segment on.
pub fn apply_to_listener(listener: &TcpListener, options: &super::SocketOptions) -> Vec<super::SocketNote> {
    let local = SockRef::from(listener).local_addr().ok().and_then(|addr| addr.as_socket());
    // Only a listener on loopback has nothing but loopback peers.
    super::apply(listener, options, local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn one_socket_serves_both_versions() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let port = listener.addr.port();
        assert_ne!(port, 0);
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        if !listener.ipv4_only {
            TcpStream::connect(("::1", port)).unwrap();
        }
    }

    #[test]
    fn errors_name_the_address_and_the_way_out() {
        let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let again = listen(first.addr).unwrap_err();
        assert!(matches!(again, ListenError::InUse { addr } if addr == first.addr), "{again}");
        let foreign = listen("192.0.2.77:0".parse().unwrap()).unwrap_err();
        assert!(matches!(foreign, ListenError::NoSuchAddress { .. }), "{foreign}");
        // At once again after a close, although an accepted connection lingers.
        let near = TcpStream::connect(first.addr).unwrap();
        drop(first.socket.accept().unwrap());
        drop(first.socket);
        drop(near);
        listen(first.addr).unwrap();
    }
}
