//! SciTags: which community and activity a flow belongs to, as networks for research count them.
//!
//! Sources: the SciTags "Packet and Flow Marking Technical Specification" (scitags.org) for the layout of the flow label,
//! also in `draft-cc-v6ops-wlcg-flow-label-marking-03`; a flow's id, 65 to 65535, as XRootD takes it in `scitag.flow`
//! (`XrdNetPMark`).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bits of an id that are the activity; the others are the community.
const ACTIVITY_BITS: u16 = 6;
/// Community 1, activity 1: the least id.
const LEAST: u16 = 65;
/// Bits of the community in a flow label. Ids have room for ten.
const LABEL_COMMUNITY_BITS: u32 = 9;
/// Bits of a flow label that tell the tag; the others differ from flow to flow.
const LABEL_TAG: u32 = 0x1ff << 9 | 0x3f << 2;
/// Bits of a flow label that differ from flow to flow. The highest one is not among them, though it could be: where
/// `net.ipv6.flowlabel_state_ranges` is on, the kernel lets nobody have a label with it.
const LABEL_ENTROPY: u32 = 1 << 18 | 1 << 8 | 0b11;
/// Where collectors listen if nothing is said.
const FIREFLY_PORT: u16 = 10514;
/// Characters of a collector's name, as of any name in the DNS.
const HOST_MAX: usize = 253;

/// A flow's id: community and activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct SciTag(u16);

impl SciTag {
    /// Who: an experiment's number in the registry of scitags.org, from 1.
    pub fn community(self) -> u16 {
        self.0 >> ACTIVITY_BITS
    }

    /// What for: a number that the community gives, 0 to 63.
    pub fn activity(self) -> u16 {
        self.0 & ((1 << ACTIVITY_BITS) - 1)
    }

    /// The 20 bits of the IPv6 flow label, from the highest: two of entropy, the community with its lowest bit first, one of
    /// entropy, the activity, two of entropy. `None`: the community does not fit the label's nine bits.
    pub fn flow_label(self, entropy: u32) -> Option<u32> {
        let community = u32::from(self.community());
        let fits = community >> LABEL_COMMUNITY_BITS == 0;
        let reversed = community.reverse_bits() >> (u32::BITS - LABEL_COMMUNITY_BITS);
        fits.then_some(reversed << 9 | u32::from(self.activity()) << 2 | (entropy & LABEL_ENTROPY))
    }

    /// Whether a flow label says this.
    pub fn is_in(self, label: u32) -> bool {
        self.flow_label(0) == Some(label & LABEL_TAG)
    }
}

impl TryFrom<u16> for SciTag {
    type Error = String;

    fn try_from(id: u16) -> Result<Self, String> {
        if id < LEAST { Err(format!("a SciTag is {LEAST} to 65535, not {id}")) } else { Ok(Self(id)) }
    }
}

impl From<SciTag> for u16 {
    fn from(tag: SciTag) -> u16 {
        tag.0
    }
}

impl FromStr for SciTag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id: u16 = text.parse().map_err(|_| format!("a SciTag is {LEAST} to 65535, not `{text}`"))?;
        Self::try_from(id)
    }
}

impl fmt::Display for SciTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (community {}, activity {})", self.0, self.community(), self.activity())
    }
}

/// Who is told of tagged flows: `HOST`, `HOST:PORT` or `[ADDRESS]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector {
    /// A name or an address, without brackets.
    pub host: String,
    /// UDP.
    pub port: u16,
}

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is no collector: write HOST, HOST:PORT or [ADDRESS]:PORT");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or_else(fail)?;
                let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(fail)?) };
                (address, port)
            }
            // An address of IPv6 without brackets has no port.
            None if text.matches(':').count() > 1 => (text, None),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(FIREFLY_PORT), |port| port.parse().ok().filter(|port| *port != 0));
        let word = |b: u8| b.is_ascii_alphanumeric() || b"-._:%".contains(&b);
        let sound = (1..=HOST_MAX).contains(&host.len()) && host.bytes().all(word);
        match port {
            Some(port) if sound => Ok(Self { host: host.to_owned(), port }),
            _ => Err(fail()),
        }
    }
}

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Collector> for String {
    fn from(collector: Collector) -> String {
        collector.to_string()
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// How an end marks its flows when nothing else is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marking {
    /// What they are.
    pub scitag: Option<SciTag>,
    /// Who is told.
    pub collectors: Vec<Collector>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(id: u16) -> SciTag {
        SciTag::try_from(id).unwrap()
    }

    #[test]
    fn ids_are_65_to_65535() {
        assert_eq!((tag(65).community(), tag(65).activity()), (1, 1));
        assert_eq!((tag(65_535).community(), tag(65_535).activity()), (1023, 63));
        assert_eq!("1038".parse(), Ok(tag(16 << 6 | 14)));
        for bad in ["64", "0", "65536", "-65", "", "atlas", "65.0"] {
            assert!(bad.parse::<SciTag>().unwrap_err().contains("65 to 65535"), "{bad}");
        }
        assert_eq!(serde_json::from_str::<SciTag>("65").unwrap(), tag(65));
        assert!(serde_json::from_str::<SciTag>("64").unwrap_err().to_string().contains("65 to 65535"));
        assert_eq!(tag(1038).to_string(), "1038 (community 16, activity 14)");
    }

    /// Values of the registry's communities and activities, by the arithmetic of two other programs: `flowlabel` of
    /// sflow-rt/scitags (bits as text, reversed) and `genFlowTag` of scitags/flowd-go (a loop over bits).
    #[test]
    fn scitag_flow_labels_are_those_of_other_programs() {
        let text = |community: u32, activity: u32| {
            let bits: String = format!("{community:09b}").chars().rev().collect();
            (u32::from_str_radix(&bits, 2).unwrap() << 9) + (activity << 2)
        };
        let looped = |community: u32, activity: u32| {
            let reversed = (0..9).fold(0, |sum, i| sum | (community >> i & 1) << (8 - i));
            reversed << 9 | activity << 2
        };
        for (community, activity, label) in
            [(1u16, 1u16, 0x2_0004), (2, 0, 0x1_0000), (16, 14, 0x0_2038), (23, 1, 0x3_a004), (511, 63, 0x3_fefc)]
        {
            let tag = tag(community << 6 | activity);
            assert_eq!(tag.flow_label(0), Some(label), "{tag}");
            assert_eq!(
                (text(community.into(), activity.into()), looped(community.into(), activity.into())),
                (label, label)
            );
        }
    }

    #[test]
    fn entropy_changes_nothing_that_is_told() {
        for id in [65, 1038, 511 << 6 | 63] {
            for entropy in [0, u32::MAX, 0x5_5555, 0xa_aaaa, 0x104] {
                let label = tag(id).flow_label(entropy).unwrap();
                assert!(label < 1 << 19 && tag(id).is_in(label), "{label:x}");
                assert!(!tag(id + 1).is_in(label) && !tag(id + 64).is_in(label));
            }
        }
        assert_eq!(tag(65).flow_label(u32::MAX).unwrap().count_ones(), 2 + 4, "four bits differ from flow to flow");
        assert_eq!((tag(512 << 6).flow_label(0), tag(512 << 6).is_in(0)), (None, false), "ten bits do not fit nine");
    }

    #[test]
    fn collectors_are_hosts_with_ports() {
        for (text, told) in [
            ("collector.example.org", "collector.example.org:10514"),
            ("192.0.2.1:514", "192.0.2.1:514"),
            ("2001:db8::1", "[2001:db8::1]:10514"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("[::1]", "[::1]:10514"),
        ] {
            let collector: Collector = text.parse().unwrap();
            assert_eq!(collector.to_string(), told);
            assert_eq!(told.parse(), Ok(collector));
        }
        for bad in ["", ":1", "a:", "a:0", "a:65536", "a b", "[::1", "[::1]9", "udp://a", "a\n"] {
            assert!(bad.parse::<Collector>().is_err(), "{bad}");
        }
    }
}
