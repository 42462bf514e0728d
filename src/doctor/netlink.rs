//! The queueing discipline of each interface: the kernel tells it over netlink only.

use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::time::Duration;

const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;
const IFLA_QDISC: u16 = 6;
/// Header of a message, and the interface's own fields behind it.
const HEAD: usize = 16;
/// A dump comes in pieces of at most 32 KiB.
const PIECE: usize = 64 << 10;
/// Interfaces of one host, 1 KiB each and more.
const PIECES_MAX: usize = 1000;

/// Interface and root discipline, as `ip link` shows it.
pub fn disciplines() -> io::Result<BTreeMap<String, String>> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut ask = Vec::with_capacity(2 * HEAD);
    ask.extend_from_slice(&(2 * HEAD as u32).to_ne_bytes());
    ask.extend_from_slice(&RTM_GETLINK.to_ne_bytes());
    ask.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    ask.resize(2 * HEAD, 0);
    (&socket).write_all(&ask)?;
    let mut found = BTreeMap::new();
    let mut piece = vec![0; PIECE];
    for _ in 0..PIECES_MAX {
        let len = (&socket).read(&mut piece)?;
        if !take(&piece[..len], &mut found)? {
            break;
        }
    }
    Ok(found)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads the messages of one piece; whether more follow.
fn take(mut bytes: &[u8], found: &mut BTreeMap<String, String>) -> io::Result<bool> {
    while bytes.len() >= HEAD {
        let len = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let message = bytes.get(..len).filter(|message| message.len() >= HEAD).ok_or(io::ErrorKind::InvalidData)?;
        match u16_at(message, 4) {
            Some(NLMSG_DONE) => return Ok(false),
            Some(NLMSG_ERROR) => return Err(io::ErrorKind::InvalidData.into()),
            _ => {}
        }
        let (mut name, mut discipline) = (None, None);
        let mut rest = message.get(2 * HEAD..).unwrap_or_default();
        while let (Some(len), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            let Some(value) = rest.get(4..usize::from(len)) else { break };
            let text = || String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
            match kind {
                IFLA_IFNAME => name = Some(text()),
                IFLA_QDISC => discipline = Some(text()),
                _ => {}
            }
            rest = rest.get(usize::from(len).next_multiple_of(4)..).unwrap_or_default();
        }
        if let (Some(name), Some(discipline)) = (name, discipline) {
            found.insert(name, discipline);
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_none_and_damage_is_an_error() {
        let found = disciplines().unwrap();
        assert_eq!(found.get("lo").map(String::as_str), Some("noqueue"), "{found:?}");
        let mut none = BTreeMap::new();
        assert!(take(&[200, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut none).is_err());
        let mut short = vec![0; 40];
        short[0] = 40;
        short[32..36].copy_from_slice(&[200, 0, 3, 0]);
        assert!(take(&short, &mut none).unwrap() && none.is_empty(), "an attribute that is cut off");
    }
}
