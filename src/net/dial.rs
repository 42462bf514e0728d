//! Dialling: options before the first segment, a deadline, and a sentence when it fails.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::profile::SciTag;
use socket2::{Domain, Protocol, Socket, Type};

use super::Unlabelled;
use super::label;
use super::socket::{SocketNote, SocketOptions, apply, fit_segments};

/// How to dial.
#[derive(Debug, Clone)]
pub struct DialOptions {
    /// For the whole attempt.
    pub timeout: Duration,
    /// Set before the connection is opened.
    pub socket: SocketOptions,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host is there, nobody listens.
    #[error("{addr} refuses connections: is the agent running there, on this port?")]
    Refused {
        /// The peer.
        addr: SocketAddr,
    },
    /// No answer.
    #[error("{addr} does not answer within {timeout:?}: check the address and any firewall between")]
    Timeout {
        /// The peer.
        addr: SocketAddr,
        /// The deadline.
        timeout: Duration,
    },
    /// No way there.
    #[error("no route to {addr}: {source}")]
    Unreachable {
        /// The peer.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The local address cannot be used.
    #[error("cannot send from {bind}: {source}")]
    Bind {
        /// The local address.
        bind: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot connect to {addr}: {source}")]
    Other {
        /// The peer.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket with its options, not yet connected: for who connects it by other means than [`dial`].
#[derive(Debug)]
pub struct Dialling {
    socket: Socket,
    rest: Connecting,
}

/// The rest of a [`Dialling`], while its socket connects.
#[derive(Debug)]
pub struct Connecting {
    /// Where it is to connect to: the address with the flow label, if there is one.
    pub target: SocketAddr,
    /// For the whole attempt.
    pub timeout: Duration,
    addr: SocketAddr,
    notes: Vec<SocketNote>,
    labelled: Option<(SciTag, Option<Unlabelled>)>,
}

impl Dialling {
    /// Makes the socket.
    pub fn prepare(addr: SocketAddr, options: &DialOptions) -> Result<Self, DialError> {
        let other = |source| DialError::Other { addr, source };
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)).map_err(other)?;
        let mut notes = apply(&socket, &options.socket, Some(addr));
        notes.extend(fit_segments(&socket, &options.socket));
        if let Some(bind) = options.socket.bind.map(|address| SocketAddr::new(address, 0)) {
            socket.bind(&bind.into()).map_err(|source| DialError::Bind { bind, source })?;
        }
        let labelled = options.socket.scitag.map(|tag| (tag, label::prepare(&socket, tag, addr)));
        let target = labelled.as_ref().and_then(|(_, target)| target.as_ref().ok()).copied().unwrap_or(addr);
        let labelled = labelled.map(|(tag, target)| (tag, target.err()));
        Ok(Self { socket, rest: Connecting { target, timeout: options.timeout, addr, notes, labelled } })
    }

    /// The socket, as a stream that does not block, and what is to be done with it.
    pub fn non_blocking(self) -> Result<(TcpStream, Connecting), DialError> {
        let Self { socket, rest } = self;
        socket.set_nonblocking(true).map_err(|source| DialError::Other { addr: rest.addr, source })?;
        Ok((socket.into(), rest))
    }
}

impl Connecting {
    /// What has come of it: the stream, and which options are not as asked.
    pub fn done(self, connected: io::Result<TcpStream>) -> Result<(TcpStream, Vec<SocketNote>), DialError> {
        let Self { addr, timeout, mut notes, labelled, .. } = self;
        let socket = connected.map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionRefused => DialError::Refused { addr },
            io::ErrorKind::TimedOut => DialError::Timeout { addr, timeout },
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                DialError::Unreachable { addr, source }
            }
            _ => DialError::Other { addr, source },
        })?;
        notes.extend(labelled.and_then(|(tag, refused)| {
            let why = refused.or_else(|| label::read_back(&socket, tag))?;
            Some(SocketNote::Unlabelled { tag, why })
        }));
        Ok((socket, notes))
    }
}

/// Connects to `addr`, blocking at most `options.timeout`. The stream blocks; the notes say which options are not as asked.
pub fn dial(addr: SocketAddr, options: &DialOptions) -> Result<(TcpStream, Vec<SocketNote>), DialError> {
    let Dialling { socket, rest } = Dialling::prepare(addr, options)?;
    let connected = socket.connect_timeout(&rest.target.into(), rest.timeout).map(|()| socket.into());
    rest.done(connected)
}

#[cfg(test)]
mod tests {
    use super::super::listen;
    use super::*;
    use std::time::Instant;

    fn options() -> DialOptions {
        let socket = SocketOptions { window: Some(300_000), nodelay: true, ..SocketOptions::default() };
        DialOptions { timeout: Duration::from_secs(5), socket }
    }

    #[test]
    fn options_are_set_before_the_connection_opens() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = listen(local.parse().unwrap()) else { continue };
            let bind = Some(listener.addr.ip());
            let socket = SocketOptions { bind, mss: Some(1400), dscp: Some(10), ..options().socket };
            let (stream, notes) = dial(listener.addr, &DialOptions { socket, ..options() }).unwrap();
            assert_eq!(notes, []);
            assert!(stream.nodelay().unwrap() && stream.peer_addr().unwrap() == listener.addr);
            // Both ways: what was asked for before the first segment holds for the accepting end as well.
            let (far, _) = listener.socket.accept().unwrap();
            for end in [&stream, &far] {
                let mss = socket2::SockRef::from(end).tcp_mss().unwrap();
                assert!((1300..=1400).contains(&mss), "{local}: {mss}");
            }
            assert_eq!(socket2::SockRef::from(&stream).recv_buffer_size().unwrap(), 600_000);
        }
    }

    /// Sends until a peer whose receive buffer shrinks after the handshake has read `total` bytes: how long it took.
    fn through_a_late_window(window: u64, total: usize) -> Duration {
        use std::io::{Read, Write};
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let socket = SocketOptions { window: Some(window), nodelay: true, ..SocketOptions::default() };
        let options = DialOptions { timeout: Duration::from_secs(5), socket };
        let (mut near, _) = dial(listener.addr, &options).unwrap();
        let (mut far, _) = listener.socket.accept().unwrap();
        super::super::set_buffers(&far, window);
        let begin = Instant::now();
        let thread = std::thread::spawn(move || near.write_all(&vec![7; total]).unwrap());
        let mut buf = vec![0; 16 << 10];
        let mut got = 0;
        while got < total {
            got += far.read(&mut buf).unwrap();
        }
        thread.join().unwrap();
        begin.elapsed()
    }

    #[test]
    fn a_window_set_after_the_handshake_does_not_wait_for_the_persist_timer() {
        // A segment that never fits the window goes out with the persist timer, 200 ms at the least: a MiB through 4 KiB
        // takes some 19 s then, and 0.3 s else.
        let took = through_a_late_window(4096, 1 << 20);
        assert!(took < Duration::from_secs(6), "{took:?}");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let fitted = |window, mss| {
            assert_eq!(fit_segments(&socket, &SocketOptions { window, mss, ..SocketOptions::default() }), None);
            socket.tcp_mss().unwrap()
        };
        assert_eq!(fitted(Some(4096), None), 2048);
        assert_eq!(fitted(Some(1), None), 536, "not below what every path carries");
        assert_eq!(
            (fitted(Some(4096), Some(1400)), fitted(Some(4096), Some(9000)), fitted(None, Some(1400))),
            (1400, 2048, 1400)
        );
    }

    #[test]
    fn failures_say_what_to_do() {
        let free = listen("127.0.0.1:0".parse().unwrap()).unwrap().addr;
        let refused = dial(free, &options()).unwrap_err();
        assert!(matches!(refused, DialError::Refused { .. }), "{refused}");
        let socket = SocketOptions { bind: Some("192.0.2.1".parse().unwrap()), ..options().socket };
        let bound = dial(free, &DialOptions { socket, ..options() }).unwrap_err();
        assert!(matches!(bound, DialError::Bind { .. }), "{bound}");
    }

    #[test]
    fn a_silent_peer_costs_no_more_than_the_timeout() {
        // A listener whose queue is full drops the first segment: nobody answers.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        let timeout = Duration::from_millis(200);
        let begin = Instant::now();
        let mut held = Vec::new();
        for _ in 0..8 {
            match dial(addr, &DialOptions { timeout, ..options() }) {
                Ok(stream) => held.push(stream),
                Err(error) => {
                    assert!(matches!(error, DialError::Timeout { .. }), "{error}");
                    assert!(begin.elapsed() < Duration::from_secs(5));
                    return;
                }
            }
        }
        panic!("the queue never filled");
    }
}
