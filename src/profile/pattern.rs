//! Whom a profile is for: addresses, networks, and names with `*`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Characters of one pattern; a DNS name has at most 253.
const PATTERN_MAX: usize = 253;

/// The 96 bits before an IPv4 address that is mapped into IPv6.
const MAPPED: u128 = 0xffff;

/// One entry of a profile's `peers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// An address or a network: the address as IPv6 (IPv4 mapped) and its leading bits that count.
    Net(u128, u8),
    /// A name in lower case; `*` stands for any run of characters.
    Name(String),
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Pattern {
    /// Reads `192.0.2.7`, `10.0.0.0/8`, `2001:db8::/32`, `dtn1.example.org` or `*.example.org`. The error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        if let Ok(address) = address.parse::<IpAddr>() {
            let all = if address.is_ipv4() { 32 } else { 128 };
            let prefix = match prefix {
                None => all,
                Some(prefix) => prefix
                    .parse()
                    .ok()
                    .filter(|bits| *bits <= all)
                    .ok_or_else(|| format!("`{text}`: a prefix is a number from 0 to {all}"))?,
            };
            let prefix = prefix + (128 - all);
            if bits(address) & !mask(prefix) != 0 {
                return Err(format!("`{text}` has bits set beyond its prefix"));
            }
            return Ok(Self::Net(bits(address), prefix));
        }
        let sound = |b: u8| b.is_ascii_alphanumeric() || b"-._*".contains(&b);
        if text.is_empty() || text.len() > PATTERN_MAX || !text.bytes().all(sound) {
            return Err(format!("`{text}` is neither an address, a network (10.0.0.0/8) nor a name (*.example.org)"));
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }

    /// Whether `name` matches.
    pub fn matches_name(&self, name: &str) -> bool {
        matches!(self, Self::Name(pattern) if glob(pattern.as_bytes(), name.to_ascii_lowercase().as_bytes()))
    }

    /// Whether `address` matches.
    pub fn matches_address(&self, address: IpAddr) -> bool {
        let Self::Net(net, prefix) = self else { return false };
        // IPv4 lies inside `::/0` by its mapping only: nobody who writes `::/0` means it.
        let same_version = address.to_canonical().is_ipv4() == (*net >> 32 == MAPPED && *prefix >= 96);
        same_version && bits(address) & mask(*prefix) == *net
    }

    /// How exactly a match names the peer; names before addresses, longer before shorter.
    pub fn weight(&self) -> usize {
        match self {
            Self::Net(_, prefix) => usize::from(*prefix),
            Self::Name(name) => 1_000 + name.bytes().filter(|b| *b != b'*').count(),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Net(net, prefix) => {
                let address = IpAddr::V6(Ipv6Addr::from_bits(*net)).to_canonical();
                let (prefix, all) = if address.is_ipv4() { (prefix - 96, 32) } else { (*prefix, 128) };
                if prefix == all { write!(f, "{address}") } else { write!(f, "{address}/{prefix}") }
            }
        }
    }
}

/// `*` in `pattern` stands for any run. Linear in the text for one star, and never worse than their product.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            // The star takes one more.
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, peer: &str) -> bool {
        let pattern = Pattern::parse(pattern).unwrap();
        peer.parse().map_or_else(|_| pattern.matches_name(peer), |address| pattern.matches_address(address))
    }

    #[test]
    fn networks_match_by_prefix_in_either_version() {
        assert!(matches("10.0.0.0/8", "10.255.0.1") && !matches("10.0.0.0/8", "11.0.0.1"));
        assert!(matches("10.0.0.0/8", "::ffff:10.1.2.3"), "an IPv4 peer of a dual-stack socket");
        assert!(matches("192.0.2.7", "192.0.2.7") && !matches("192.0.2.7", "192.0.2.8"));
        assert!(matches("2001:db8::/32", "2001:db8:9::1") && !matches("2001:db8::/32", "2001:db9::1"));
        assert!(matches("0.0.0.0/0", "203.0.113.9") && !matches("0.0.0.0/0", "2001:db8::1"));
        assert!(matches("::/0", "2001:db8::1") && !matches("::/0", "203.0.113.9"));
        for bad in ["10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0.0/x", "", "a b", "name/8", "a\u{e9}"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_match_with_stars_and_without_case() {
        assert!(matches("*.example.org", "DTN1.Example.org") && !matches("*.example.org", "example.org"));
        assert!(matches("dtn*.a*b.org", "dtn42.axyb.org") && !matches("dtn*.a*b.org", "dtn42.axy.org"));
        assert!(matches("*", "anything") && !matches("dtn1", "dtn11") && !matches("dtn11", "dtn1"));
        assert!(!matches("*", "192.0.2.1"), "a name's star is not for addresses");
        // What backtracks is bounded: this would take for ever in the naive way.
        assert!(!matches(&format!("{}b", "*a".repeat(60)), &"a".repeat(250)));
    }

    #[test]
    fn the_closer_pattern_weighs_more_and_shows_as_written() {
        let weight = |text: &str| Pattern::parse(text).unwrap().weight();
        assert!(weight("10.1.0.0/16") > weight("10.0.0.0/8") && weight("10.0.0.1") > weight("10.0.0.0/31"));
        assert!(weight("*.example.org") > weight("*.org") && weight("*.org") > weight("2001:db8::1"));
        for text in ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1", "*.example.org", "0.0.0.0/0"] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
        }
    }
}
