//! A connection of a session: TCP. In test builds a simulated one can stand in its place, so that handshake, control
//! stream and workers run over a network that a seed decides about.

use crate::profile::SciTag;
use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One end of a simulated connection.
#[cfg(feature = "testing")]
pub trait SimulatedEnd: AsyncRead + AsyncWrite + Unpin {
    /// A descriptor that names this end to the simulated queue. It moves no bytes.
    fn descriptor(&self) -> io::Result<OwnedFd>;
    /// Another handle of the same end.
    fn share(&self) -> Box<dyn SimulatedEnd>;
    /// As `shutdown(2)` of both directions.
    fn cut(&self);
    /// Round trip, µs.
    fn rtt_us(&self) -> u32;
}

/// A connection that async code reads and writes.
pub enum Conn {
    /// On tokio.
    Tcp(TcpStream),
    /// In a test.
    #[cfg(feature = "testing")]
    Simulated(Box<dyn SimulatedEnd>),
}

/// A connection between two owners: out of tokio's hands, not yet in a worker's.
pub enum Parked {
    /// Non-blocking.
    Tcp(StdStream),
    /// In a test.
    #[cfg(feature = "testing")]
    Simulated(Box<dyn SimulatedEnd>),
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Conn")
    }
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parked")
    }
}

impl Conn {
    /// Leaves tokio.
    pub fn park(self) -> io::Result<Parked> {
        Ok(match self {
            Conn::Tcp(socket) => Parked::Tcp(socket.into_std()?),
            #[cfg(feature = "testing")]
            Conn::Simulated(end) => Parked::Simulated(end),
        })
    }

    /// Our address; `unspecified` where there is none.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Conn::Tcp(socket) => socket.local_addr(),
            #[cfg(feature = "testing")]
            Conn::Simulated(_) => Ok(SocketAddr::from(([0, 0, 0, 0], 0))),
        }
    }

    /// Small messages answer each other: without this each may wait 40 ms for a delayed ACK.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Conn::Tcp(socket) => socket.set_nodelay(true),
            #[cfg(feature = "testing")]
            Conn::Simulated(_) => Ok(()),
        }
    }
}

impl Parked {
    /// Into tokio.
    pub fn wake(self) -> io::Result<Conn> {
        Ok(match self {
            Parked::Tcp(socket) => Conn::Tcp(TcpStream::from_std(socket)?),
            #[cfg(feature = "testing")]
            Parked::Simulated(end) => Conn::Simulated(end),
        })
    }

    /// Another descriptor of the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Parked::Tcp(socket) => Parked::Tcp(socket.try_clone()?),
            #[cfg(feature = "testing")]
            Parked::Simulated(end) => Parked::Simulated(end.share()),
        })
    }

    /// Its descriptor, for a worker's queue.
    pub fn into_descriptor(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Parked::Tcp(socket) => socket.into(),
            #[cfg(feature = "testing")]
            Parked::Simulated(end) => end.descriptor()?,
        })
    }

    /// Caps its rate in bytes per second, or lifts the cap. What was not as asked.
    pub fn pace(&self, bytes_per_sec: Option<u64>) -> Option<String> {
        match self {
            Parked::Tcp(socket) => crate::net::set_pacing(socket, bytes_per_sec).map(|note| note.to_string()),
            #[cfg(feature = "testing")]
            Parked::Simulated(_) => None,
        }
    }

    /// Gives it this congestion control. What was not as asked.
    pub fn control(&self, name: &str) -> Option<String> {
        match self {
            Parked::Tcp(socket) => crate::net::socket::set_congestion(socket, name).map(|note| note.to_string()),
            #[cfg(feature = "testing")]
            Parked::Simulated(_) => None,
        }
    }

    /// Ends it in both directions: whoever waits on it notices.
    pub fn cut(&self) {
        match self {
            Parked::Tcp(socket) => drop(socket.shutdown(std::net::Shutdown::Both)),
            #[cfg(feature = "testing")]
            Parked::Simulated(end) => end.cut(),
        }
    }

    /// Its addresses here and there; none of a simulated one.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Parked::Tcp(socket) => socket.local_addr().ok().zip(socket.peer_addr().ok()),
            #[cfg(feature = "testing")]
            Parked::Simulated(_) => None,
        }
    }

    /// Why its packets do not bear a tag that this end would give what it accepts as `ours`.
    pub fn unlabelled(&self, tag: SciTag, ours: Option<SciTag>) -> Option<String> {
        match self {
            Parked::Tcp(socket) => {
                let why = crate::net::label::check(socket, tag, ours)?;
                Some(crate::net::SocketNote::Unlabelled { tag, why }.to_string())
            }
            #[cfg(feature = "testing")]
            Parked::Simulated(_) => None,
        }
    }

    /// What the kernel knows of it; nothing of a simulated one.
    pub fn tcp_info(&self) -> Option<crate::sys::TcpInfo> {
        match self {
            Parked::Tcp(socket) => crate::sys::TcpInfo::of(socket).ok(),
            #[cfg(feature = "testing")]
            Parked::Simulated(_) => None,
        }
    }

    /// Its congestion control; empty where it cannot be told.
    pub fn congestion(&self) -> String {
        match self {
            Parked::Tcp(socket) => crate::net::socket::congestion_in_force(socket),
            #[cfg(feature = "testing")]
            Parked::Simulated(_) => String::new(),
        }
    }

    /// Round trip in µs, 0 where the kernel does not tell.
    pub fn rtt_us(&self) -> u32 {
        match self {
            Parked::Tcp(socket) => crate::sys::TcpInfo::of(socket).map(|info| info.rtt_us).unwrap_or(0),
            #[cfg(feature = "testing")]
            Parked::Simulated(end) => end.rtt_us(),
        }
    }
}

macro_rules! either {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Conn::Tcp($socket) => {
                let $socket = Pin::new($socket);
                $call
            }
            #[cfg(feature = "testing")]
            Conn::Simulated($socket) => {
                let $socket = Pin::new(&mut **$socket);
                $call
            }
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, socket => socket.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_shutdown(cx))
    }
}
