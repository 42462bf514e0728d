//! Flow labels that say a SciTag. The kernel takes a label at `connect` only: a socket that dials gets its own, a socket that
//! is accepted has its listening socket's, or the dialler's where the kernel may reflect.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use socket2::{SockRef, Socket};

use crate::profile::SciTag;
use crate::sys::flow_label;

/// Labels that are tried before a refusal counts: somebody else may have one of a tag's sixteen alone.
const TRIES: usize = 4;

/// Why packets do not bear a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlabelled {
    /// IPv4 has no flow labels.
    Ipv4,
    /// The community is above 511.
    Community,
    /// This end accepted the connection.
    Accepted,
    /// It did, and what it accepts bears another tag.
    Own(SciTag),
    /// The system's words.
    Refused(String),
}

impl fmt::Display for Unlabelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4 => f.write_str("IPv4 has no flow labels"),
            Self::Community => f.write_str("a flow label has nine bits for the community, which end at 511"),
            Self::Accepted => f.write_str(
                "the kernel takes a label from the end that dials; here the agent's own setting `scitag` would do, or \
                 net.ipv6.flowlabel_consistency=0, with which this end answers with the dialler's label",
            ),
            Self::Own(own) => write!(f, "this agent's own is {own}, which all bears that it accepts"),
            Self::Refused(reason) => write!(f, "the kernel refuses the flow label: {reason}"),
        }
    }
}

fn entropy() -> u32 {
    let mut bytes = [0; 4];
    // Without random numbers every flow of a tag has one label: worse for who spreads flows by it, and no more than that.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

fn flow_of(addr: SocketAddr) -> Option<SocketAddrV6> {
    match addr {
        SocketAddr::V6(addr) if addr.ip().to_ipv4_mapped().is_none() => Some(addr),
        _ => None,
    }
}

/// Leases a label for a socket that is about to dial; the address to dial, with that label.
pub fn prepare(socket: &Socket, tag: SciTag, addr: SocketAddr) -> Result<SocketAddr, Unlabelled> {
    let addr = flow_of(addr).ok_or(Unlabelled::Ipv4)?;
    let label = leased(|label| flow_label::lease(socket, *addr.ip(), label), tag)?;
    // The standard library hands this field on as it is: in the network's order.
    Ok(SocketAddrV6::new(*addr.ip(), addr.port(), label.to_be(), addr.scope_id()).into())
}

fn leased(lease: impl Fn(u32) -> io::Result<()>, tag: SciTag) -> Result<u32, Unlabelled> {
    let mut last = Unlabelled::Community;
    for _ in 0..TRIES {
        let label = tag.flow_label(entropy()).ok_or(Unlabelled::Community)?;
        match lease(label) {
            Ok(()) => return Ok(label),
            Err(error) => last = Unlabelled::Refused(error.to_string()),
        }
    }
    Err(last)
}

/// Gives a bound socket that does not listen yet a label, which all have that it accepts.
///
/// A label is taken at `connect`, before anything is looked up; and this one goes to where no connection can lead, so that no
/// packet is sent and the socket stays as it is.
pub fn prepare_listener(socket: &Socket, tag: SciTag) -> Result<(), Unlabelled> {
    if !SockRef::from(socket).local_addr().is_ok_and(|addr| addr.is_ipv6()) {
        return Err(Unlabelled::Ipv4);
    }
    let label = leased(|label| flow_label::lease(socket, Ipv6Addr::LOCALHOST, label), tag)?;
    let nowhere = SocketAddrV6::new(Ipv4Addr::BROADCAST.to_ipv6_mapped(), 9, label.to_be(), 0);
    match socket.connect(&SocketAddr::from(nowhere).into()) {
        Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => Ok(()),
        Err(error) => Err(Unlabelled::Refused(error.to_string())),
        Ok(()) => Err(Unlabelled::Refused("a connection to nowhere was made".to_owned())),
    }
}

/// Reads back what was prepared for a socket that has dialled.
pub fn read_back(socket: &impl AsFd, tag: SciTag) -> Option<Unlabelled> {
    let differs = |label| format!("it reads back as {label:05x}");
    match flow_label::in_force(socket) {
        Ok(label) if tag.is_in(label) => None,
        Ok(label) => Some(Unlabelled::Refused(differs(label))),
        Err(error) => Some(Unlabelled::Refused(error.to_string())),
    }
}

/// Reads back what a connected socket's packets bear. `ours`: what this end's listening socket gives what it accepts.
pub fn check(socket: &impl AsFd, tag: SciTag, ours: Option<SciTag>) -> Option<Unlabelled> {
    let handle = SockRef::from(socket);
    let peer = handle.peer_addr().ok().and_then(|addr| addr.as_socket());
    if peer.is_some_and(|peer| flow_of(peer).is_none()) {
        return Some(Unlabelled::Ipv4);
    }
    if tag.flow_label(0).is_none() {
        return Some(Unlabelled::Community);
    }
    match ours {
        Some(own) if own == tag => None,
        Some(own) => Some(Unlabelled::Own(own)),
        None if flow_label::in_force(socket).is_ok_and(|label| tag.is_in(label)) => None,
        None => Some(Unlabelled::Accepted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{DialOptions, SocketNote, SocketOptions, dial, listen, listen_labelled};
    use std::time::Duration;

    fn tag(id: u16) -> SciTag {
        SciTag::try_from(id).unwrap()
    }

    fn options(tag: SciTag) -> DialOptions {
        let socket = SocketOptions { scitag: Some(tag), ..SocketOptions::default() };
        DialOptions { timeout: Duration::from_secs(5), socket }
    }

    #[test]
    fn scitag_is_in_the_label_of_who_dials_and_every_stream_has_a_chance_of_its_own() {
        let Ok(listener) = listen("[::1]:0".parse().unwrap()) else { return };
        let mut labels = std::collections::BTreeSet::new();
        let mut open = Vec::new();
        for _ in 0..24 {
            let (near, notes) = dial(listener.addr, &options(tag(65))).unwrap();
            assert_eq!(notes, []);
            let label = flow_label::in_force(&near).unwrap();
            assert!(tag(65).is_in(label) && check(&near, tag(65), None).is_none(), "{label:x}");
            labels.insert(label);
            open.push(near);
        }
        // Of 24 out of 16 all are equal once in 10^27.
        assert!(labels.len() > 1, "{labels:?}");
        let (plain, notes) =
            dial(listener.addr, &DialOptions { socket: SocketOptions::default(), ..options(tag(65)) }).unwrap();
        assert_eq!((notes, flow_label::in_force(&plain).is_err()), (Vec::new(), true), "nothing is leased unasked");
    }

    #[test]
    fn scitag_that_cannot_be_borne_is_a_note_and_the_connection_is_made() {
        let (v4, v6) = (listen("127.0.0.1:0".parse().unwrap()).unwrap(), listen("[::1]:0".parse().unwrap()));
        let (_, notes) = dial(v4.addr, &options(tag(65))).unwrap();
        assert_eq!(notes, [SocketNote::Unlabelled { tag: tag(65), why: Unlabelled::Ipv4 }]);
        let Ok(v6) = v6 else { return };
        let large = tag(512 << 6 | 1);
        let (near, notes) = dial(v6.addr, &options(large)).unwrap();
        assert_eq!(notes, [SocketNote::Unlabelled { tag: large, why: Unlabelled::Community }]);
        assert!(
            notes[0].to_string().contains("32769 (community 512, activity 1): a flow label has nine bits"),
            "{}",
            notes[0]
        );
        // What somebody else has alone is not to be had.
        let refused = leased(|_| Err(io::ErrorKind::PermissionDenied.into()), tag(65)).unwrap_err();
        assert!(matches!(&refused, Unlabelled::Refused(why) if why.contains("permission")), "{refused}");
        let (far, _) = v6.socket.accept().unwrap();
        let own = std::fs::read_to_string("/proc/sys/net/ipv6/flowlabel_consistency").unwrap_or_default();
        if own.trim() == "1" {
            assert_eq!(check(&far, tag(65), None), Some(Unlabelled::Accepted));
        }
        drop(near);
    }

    #[test]
    fn scitag_of_a_listening_socket_leaves_it_as_it_was() {
        for local in ["[::]:0", "[::1]:0"] {
            let Ok(listener) = listen_labelled(local.parse().unwrap(), Some(tag(65))) else { continue };
            assert_eq!(listener.unlabelled, None);
            let port = listener.addr.port();
            for to in ["127.0.0.1", "::1"] {
                let address: std::net::IpAddr = to.parse().unwrap();
                if address.is_ipv4() && local == "[::1]:0" {
                    continue;
                }
                let near = std::net::TcpStream::connect((address, port)).unwrap();
                let (far, peer) = listener.socket.accept().unwrap();
                assert_eq!((peer.ip().to_canonical(), near.peer_addr().unwrap().port()), (address, port));
                let why = check(&far, tag(65), Some(tag(65)));
                assert_eq!(why, address.is_ipv4().then_some(Unlabelled::Ipv4));
                let other = check(&far, tag(66), Some(tag(65)));
                let own = Unlabelled::Own(tag(65));
                assert_eq!(other, Some(if address.is_ipv4() { Unlabelled::Ipv4 } else { own }));
            }
        }
        let v4 = listen_labelled("127.0.0.1:0".parse().unwrap(), Some(tag(65))).unwrap();
        assert_eq!(v4.unlabelled, Some(Unlabelled::Ipv4));
    }
}
