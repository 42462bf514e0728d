//! How many connections there may be, in total and of one neighbour.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Counts connections; see [`Caps::admit`].
#[derive(Debug, Clone)]
pub struct Caps {
    total: usize,
    per_source: usize,
    counts: Arc<Mutex<Counts>>,
}

/// One connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    source: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

/// Who counts as one neighbour: an IPv4 address, or an IPv6 /64, which is what one host is given.
pub fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
        v4 => v4,
    }
}

impl Caps {
    /// At most `total` connections, at most `per_source` of one neighbour.
    pub fn new(total: usize, per_source: usize) -> Self {
        Self { total, per_source, counts: Arc::default() }
    }

    /// A place for a connection from `ip`, or `None` when there is no more.
    pub fn admit(&self, ip: IpAddr) -> Option<Place> {
        let source = source_of(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.total >= self.total || mine >= self.per_source {
            return None;
        }
        counts.total += 1;
        counts.by_source.insert(source, mine + 1);
        Some(Place { source, counts: self.counts.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        if let Some(mine) = counts.by_source.get_mut(&self.source) {
            *mine -= 1;
            if *mine == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_neighbour_is_an_ipv4_address_or_an_ipv6_64() {
        let caps = Caps::new(100, 2);
        let first = caps.admit(ip("192.0.2.1")).unwrap();
        let _mapped = caps.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert!(caps.admit(ip("192.0.2.1")).is_none());
        let _other = caps.admit(ip("192.0.2.2")).unwrap();
        drop(first);
        let _again = caps.admit(ip("192.0.2.1")).unwrap();

        let _a = caps.admit(ip("2001:db8:0:1::1")).unwrap();
        let _b = caps.admit(ip("2001:db8:0:1:ffff::2")).unwrap();
        assert!(caps.admit(ip("2001:db8:0:1:aaaa::3")).is_none());
        assert!(caps.admit(ip("2001:db8:0:2::1")).is_some());
    }

    #[test]
    fn the_total_holds_and_nothing_is_left_behind() {
        let caps = Caps::new(2, 2);
        let places: Vec<_> = ["192.0.2.1", "192.0.2.2"].into_iter().map(|a| caps.admit(ip(a)).unwrap()).collect();
        assert!(caps.admit(ip("192.0.2.3")).is_none());
        drop(places);
        let counts = caps.counts.lock().unwrap();
        assert!(counts.total == 0 && counts.by_source.is_empty());
    }
}
