//! Fireflies: datagrams that tell a collector of the network which community and activity a flow belongs to, and what it has
//! moved. A line of syslog (RFC 5424) whose message is JSON.
//!
//! Sources: `schemas/v1.0.0/firefly.schema.json` of scitags.org; the header as `scitags/flowd` and XRootD write it and the
//! collectors' rule reads it (`02-parsing.conf` of `scitags/firefly-collector`).

use crate::profile::SciTag;
use serde::Serialize;
use std::net::SocketAddr;

/// Facility local0 (16), severity informational (6).
const PRIORITY: u8 = 16 << 3 | 6;
/// Characters of a host's name, so that a firefly fits a packet.
const HOST_MAX: usize = 255;

/// Where in its life a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is up.
    Start,
    /// It goes on.
    Ongoing,
    /// It is closed.
    End,
}

/// One firefly.
#[derive(Debug, Clone)]
pub struct Firefly<'a> {
    /// What is told.
    pub state: State,
    /// Now, RFC 3339.
    pub now: &'a str,
    /// When the flow began, RFC 3339.
    pub begun: &'a str,
    /// The flow's community and activity.
    pub tag: SciTag,
    /// Who tells, by the name of its host.
    pub host: &'a str,
    /// The flow at this end.
    pub local: SocketAddr,
    /// The flow at the other end.
    pub peer: SocketAddr,
    /// Bytes that came in.
    pub received: u64,
    /// Bytes that the other end has acknowledged.
    pub sent: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document<'a> {
    version: u8,
    flow_lifecycle: Lifecycle<'a>,
    usage: Usage,
    context: Context,
    flow_id: FlowId,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Lifecycle<'a> {
    state: State,
    current_time: &'a str,
    start_time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<&'a str>,
}

#[derive(Serialize)]
struct Usage {
    received: u64,
    sent: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Context {
    experiment_id: u16,
    activity_id: u16,
    application: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct FlowId {
    afi: &'static str,
    src_ip: String,
    dst_ip: String,
    protocol: &'static str,
    src_port: u16,
    dst_port: u16,
}

impl Firefly<'_> {
    /// As a datagram. The flow's source is the end that tells, as in the other programs.
    pub fn encode(&self) -> Vec<u8> {
        // An address of IPv4 that a socket of IPv6 shows is one of IPv4 on the wire.
        let (src, dst) = (self.local.ip().to_canonical(), self.peer.ip().to_canonical());
        let document = Document {
            version: 1,
            flow_lifecycle: Lifecycle {
                state: self.state,
                current_time: self.now,
                start_time: self.begun,
                end_time: (self.state == State::End).then_some(self.now),
            },
            usage: Usage { received: self.received, sent: self.sent },
            context: Context {
                experiment_id: self.tag.community(),
                activity_id: self.tag.activity(),
                application: concat!("longhaul v", env!("CARGO_PKG_VERSION")),
            },
            flow_id: FlowId {
                afi: if src.is_ipv4() { "ipv4" } else { "ipv6" },
                src_ip: src.to_string(),
                dst_ip: dst.to_string(),
                protocol: "tcp",
                src_port: self.local.port(),
                dst_port: self.peer.port(),
            },
        };
        let host: String = self.host.chars().filter(char::is_ascii_graphic).take(HOST_MAX).collect();
        let host = if host.is_empty() { "-" } else { &host };
        let json = serde_json::to_string(&document).expect("plain structs always become JSON");
        format!("<{PRIORITY}>1 {} {host} longhaul - firefly-json - {json}", self.now).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firefly(state: State) -> Firefly<'static> {
        Firefly {
            state,
            now: "2026-11-26T10:00:02.000000Z",
            begun: "2026-11-26T10:00:00.000000Z",
            tag: SciTag::try_from(16 << 6 | 14).unwrap(),
            host: "dtn1.example.org",
            local: "[2001:db8::1]:8471".parse().unwrap(),
            peer: "[2001:db8::2]:40000".parse().unwrap(),
            received: 7,
            sent: 4_294_967_296,
        }
    }

    #[test]
    fn scitag_fireflies_are_lines_of_syslog_with_the_schemas_json() {
        let text = String::from_utf8(firefly(State::End).encode()).unwrap();
        let want = concat!(
            "<134>1 2026-11-26T10:00:02.000000Z dtn1.example.org longhaul - firefly-json - ",
            "{\"version\":1,\"flow-lifecycle\":{\"state\":\"end\",\"current-time\":\"2026-11-26T10:00:02.000000Z\",",
            "\"start-time\":\"2026-11-26T10:00:00.000000Z\",\"end-time\":\"2026-11-26T10:00:02.000000Z\"},",
            "\"usage\":{\"received\":7,\"sent\":4294967296},",
            "\"context\":{\"experiment-id\":16,\"activity-id\":14,\"application\":\"longhaul v",
            env!("CARGO_PKG_VERSION"),
            "\"},\"flow-id\":{\"afi\":\"ipv6\",\"src-ip\":\"2001:db8::1\",\"dst-ip\":\"2001:db8::2\",\"protocol\":\"tcp\",",
            "\"src-port\":8471,\"dst-port\":40000}}"
        );
        assert_eq!(text, want);
        assert!(text.len() < 1200, "it fits a packet");
    }

    #[test]
    fn scitag_fireflies_end_only_when_they_end() {
        for (state, word) in [(State::Start, "start"), (State::Ongoing, "ongoing")] {
            let text = String::from_utf8(firefly(state).encode()).unwrap();
            let json: serde_json::Value =
                serde_json::from_str(text.split_once(" - {").unwrap().1.replacen("", "{", 1).as_str()).unwrap();
            assert_eq!(json["flow-lifecycle"]["state"], word);
            assert!(json["flow-lifecycle"].get("end-time").is_none());
        }
    }

    #[test]
    fn scitag_fireflies_know_ipv4_behind_a_dual_socket_and_strange_hosts() {
        let (local, peer) = ("[::ffff:192.0.2.1]:1".parse().unwrap(), "[::ffff:192.0.2.2]:2".parse().unwrap());
        let text = Firefly { local, peer, host: "a b\n{", ..firefly(State::Start) }.encode();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\"afi\":\"ipv4\",\"src-ip\":\"192.0.2.1\",\"dst-ip\":\"192.0.2.2\""), "{text}");
        assert!(text.contains("Z ab{ longhaul"), "{text}");
        assert!(
            String::from_utf8(Firefly { host: "\n", ..firefly(State::Start) }.encode())
                .unwrap()
                .contains("Z - longhaul")
        );
    }
}
