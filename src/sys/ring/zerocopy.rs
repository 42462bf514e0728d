//! Which sockets send without a copy: tried on the first blocks of each, and given up where the kernel says that it copied.
//!
//! Pinning pages and waiting for a second completion costs more than copying a block that lies in the cache, unless the
//! bytes really go from the slot to the device. Loopback and every path that ends in this host copy; only a notice of the
//! kernel tells (IORING_SEND_ZC_REPORT_USAGE).

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use socket2::SockRef;

use crate::sys::SendPath;

/// Sends below this are copied: a block is the least that is worth its notice.
pub(super) const WORTH: u32 = 64 << 10;
/// Asks for a word in the notice on whether the bytes were copied (kernel 6.2; earlier ones answer EINVAL).
pub(super) const REPORT_USAGE: u16 = 1 << 3;
/// That word (IORING_NOTIF_USAGE_ZC_COPIED).
const COPIED: u32 = 1 << 31;
/// Sends of a socket that must come back uncopied before it counts as proven. So many at most are under way until then.
const TRIALS: u8 = 4;

/// Whether a notice says that the bytes were copied.
pub(super) fn copied(result: i32) -> bool {
    result as u32 & COPIED != 0
}

/// Whether an error means that this send cannot go without a copy, rather than that the connection is at fault: unknown
/// flags, sockets without the ability, no memory that may be pinned.
pub(super) fn refuses(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOBUFS | Errno::ENOMEM | Errno::EPERM | Errno::EACCES)
}

/// Whether trying is worth it: what stays in this host is always copied.
pub(super) fn may_help(socket: &OwnedFd) -> bool {
    let socket = SockRef::from(socket);
    let ip = |addr: std::io::Result<socket2::SockAddr>| Some(addr.ok()?.as_socket()?.ip().to_canonical());
    match (ip(socket.peer_addr()), ip(socket.local_addr())) {
        (Some(peer), Some(local)) => !peer.is_loopback() && peer != local,
        _ => false,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Trial { proven: u8, under_way: u8 },
    Proven,
    Copies,
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    state: State,
    /// Counts the sockets that had this place, so that a late notice is not taken for a later socket's.
    mark: u32,
}

/// One state for each registered socket; a socket without a place sends plainly.
#[derive(Debug)]
pub(super) struct ZeroCopy {
    places: Vec<Place>,
}

impl ZeroCopy {
    pub(super) fn new(places: u32) -> Self {
        Self { places: vec![Place { state: State::Plain, mark: 0 }; places as usize] }
    }

    /// A socket has come to its place, or has left it.
    pub(super) fn attach(&mut self, place: u32, worth: bool) {
        if let Some(place) = self.places.get_mut(place as usize) {
            place.mark = place.mark.wrapping_add(1);
            place.state = if worth { State::Trial { proven: 0, under_way: 0 } } else { State::Plain };
        }
    }

    /// Whether the next send goes without a copy: then the mark to be given back with what becomes of it.
    pub(super) fn mark(&mut self, place: u32) -> Option<u32> {
        let place = self.places.get_mut(place as usize)?;
        match &mut place.state {
            State::Proven => Some(place.mark),
            State::Trial { proven, under_way } if *proven + *under_way < TRIALS => {
                *under_way += 1;
                Some(place.mark)
            }
            _ => None,
        }
    }

    fn state(&mut self, place: u32, mark: u32) -> Option<&mut State> {
        let place = self.places.get_mut(place as usize)?;
        (place.mark == mark).then_some(&mut place.state)
    }

    /// A marked send has ended for good.
    pub(super) fn noticed(&mut self, place: u32, mark: u32, copied: bool) {
        match self.state(place, mark) {
            Some(state @ (State::Trial { .. } | State::Proven)) if copied => *state = State::Copies,
            Some(state @ State::Trial { .. }) => {
                let State::Trial { proven, under_way } = state else { return };
                (*proven, *under_way) = (*proven + 1, under_way.saturating_sub(1));
                if *proven >= TRIALS {
                    *state = State::Proven;
                }
            }
            _ => {}
        }
    }

    /// A marked send took nothing, so there is nothing to be learnt from it.
    pub(super) fn without_notice(&mut self, place: u32, mark: u32) {
        if let Some(State::Trial { under_way, .. }) = self.state(place, mark) {
            *under_way = under_way.saturating_sub(1);
        }
    }

    /// A marked send was refused.
    pub(super) fn refused(&mut self, place: u32, mark: u32) {
        if let Some(state @ (State::Trial { .. } | State::Proven)) = self.state(place, mark) {
            *state = State::Refused;
        }
    }

    pub(super) fn path(&self, place: u32) -> SendPath {
        match self.places.get(place as usize).map(|place| place.state) {
            Some(State::Proven) => SendPath::ZeroCopy,
            Some(State::Copies) => SendPath::Copies,
            Some(State::Refused) => SendPath::Refused,
            _ => SendPath::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_proven_by_its_first_sends() {
        let mut sockets = ZeroCopy::new(2);
        sockets.attach(1, true);
        let marks: Vec<u32> = std::iter::from_fn(|| sockets.mark(1)).take(100).collect();
        assert_eq!(marks.len(), usize::from(TRIALS), "no more than the trials before the first notice");
        for mark in &marks[1..] {
            sockets.noticed(1, *mark, false);
        }
        assert_eq!((sockets.path(1), sockets.mark(1)), (SendPath::Plain, None));
        sockets.noticed(1, marks[0], false);
        assert_eq!(sockets.path(1), SendPath::ZeroCopy);
        assert!((0..100).all(|_| sockets.mark(1).is_some()));
        // A route may change: a copy ends it at any time, and for good.
        sockets.noticed(1, marks[0], true);
        sockets.noticed(1, marks[0], false);
        assert_eq!((sockets.path(1), sockets.mark(1)), (SendPath::Copies, None));
    }

    #[test]
    fn a_notice_of_an_earlier_socket_says_nothing_of_this_one() {
        let mut sockets = ZeroCopy::new(1);
        sockets.attach(0, true);
        let old = sockets.mark(0).unwrap();
        sockets.attach(0, false);
        sockets.attach(0, true);
        sockets.noticed(0, old, true);
        sockets.refused(0, old);
        assert_eq!(sockets.path(0), SendPath::Plain);
        let mark = sockets.mark(0).unwrap();
        assert_ne!(mark, old);
        sockets.refused(0, mark);
        assert_eq!((sockets.path(0), sockets.mark(0)), (SendPath::Refused, None));
        assert_eq!((ZeroCopy::new(0).mark(0), sockets.mark(u32::MAX)), (None, None), "no place, no trial");
    }

    #[test]
    fn what_took_nothing_may_be_tried_again() {
        let mut sockets = ZeroCopy::new(1);
        sockets.attach(0, true);
        for _ in 0..3 * TRIALS {
            let mark = sockets.mark(0).unwrap();
            sockets.without_notice(0, mark);
        }
        assert_eq!(sockets.path(0), SendPath::Plain);
    }

    #[test]
    fn what_stays_in_this_host_is_not_tried() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(local) else { continue };
            let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(!may_help(&near.into()), "{local}");
        }
        assert!(!may_help(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()), "nobody at the other end");
    }
}
