//! Interfaces, and the way to the peer.

use super::facts::{Interface, Peer};
use super::{Facts, Finding, Level, Look, Target};
use crate::units::BitRate;

const ESNET: &str = "ESnet fasterdata, host tuning";
const ETHTOOL: &str = "ethtool(8)";
/// From here on the CPU, not the wire, is what packets cost (bits per second).
const FAST: u64 = 10_000_000_000;
/// IPv4 and TCP headers without options, bytes.
const HEADERS_V4: u32 = 40;
/// The same of IPv6.
const HEADERS_V6: u32 = 60;

pub(super) fn check(facts: &Facts, target: &Target, into: &mut Vec<Finding>) {
    if let Some(peer) = &facts.peer {
        reach(facts, peer, into);
    }
    let way = facts.peer.as_ref().and_then(|peer| peer.interface.as_deref());
    for interface in facts.interfaces.iter().filter(|i| way.is_none_or(|way| way == i.name)) {
        wire(interface, into);
        discipline(facts, interface, into);
        offloads(interface, into);
        if target.rate >= FAST {
            rings(interface, into);
            placement(facts, interface, into);
        }
    }
}

fn wire(interface: &Interface, into: &mut Vec<Finding>) {
    let name = &interface.name;
    let rate = interface.speed_mbit.map(|mbit| u64::from(mbit) * 1_000_000);
    match rate {
        Some(rate) => {
            let half = interface.duplex.as_deref() == Some("half");
            let measured = format!("{}{}", BitRate(rate), if half { ", half duplex" } else { "" });
            let why = "half duplex collides: the two ends disagree about negotiation";
            Look::at(into, format!("{name} link"), measured, ETHTOOL).judge(
                !half,
                Level::Wrong,
                "full duplex",
                why,
                Some(format!("ethtool -s {name} autoneg on")),
            );
        }
        None => {
            let driver = interface.driver.as_deref().unwrap_or("no device");
            let why = "the rate is the hypervisor's or the tunnel's to know: `longhaul probe` measures it";
            Look::at(into, format!("{name} link"), format!("speed not told ({driver})"), ETHTOOL).end(
                Level::Unknown,
                "a speed",
                why,
                None,
            );
        }
    }
    let fast = rate.is_some_and(|rate| rate >= FAST);
    if fast || interface.mtu < 1500 {
        let (level, wanted, why) = if interface.mtu < 1500 {
            (Level::Advice, "1500, if every hop carries it", "a tunnel, most likely: more packets for the same bytes")
        } else {
            (
                Level::Advice,
                "9000, if every hop to the peer carries it",
                "six times fewer packets; the CPU is the limit here",
            )
        };
        let good = interface.mtu >= if fast { 8900 } else { 1500 };
        let command = fast.then(|| format!("ip link set dev {name} mtu 9000   # after: longhaul probe PEER"));
        Look::at(into, format!("{name} MTU"), interface.mtu, ESNET).judge(good, level, wanted, why, command);
    }
    if let (Some(pcie), Some(rate)) = (&interface.pcie, rate) {
        // 8b/10b below 8 GT/s, 128b/130b from there on; a tenth goes to the bus's own packets.
        let efficiency = if pcie.speed < 8.0 { 0.8 } else { 128.0 / 130.0 } * 0.9;
        let carries = (pcie.speed * f64::from(pcie.width) * efficiency * 1e9) as u64;
        let why = format!(
            "the slot carries about {}; the card could have x{} at {} GT/s",
            BitRate(carries),
            pcie.width_max,
            pcie.speed_max
        );
        Look::at(
            into,
            format!("{name} PCIe"),
            format!("x{} at {} GT/s", pcie.width, pcie.speed),
            "PCI Express base specification",
        )
        .judge(
            carries >= rate,
            Level::Wrong,
            format!("more than {}", BitRate(rate)),
            why,
            Some("lspci -vv   # then another slot, or the slot's bifurcation in the firmware".to_owned()),
        );
    }
}

fn discipline(facts: &Facts, interface: &Interface, into: &mut Vec<Finding>) {
    let Some(qdisc) = &interface.qdisc else { return };
    // Each queue of a multi-queue root has the default one.
    let default = facts.sysctls.get("net.core.default_qdisc");
    let inner = if qdisc == "mq" { default.unwrap_or(qdisc) } else { qdisc };
    let (name, several) = (&interface.name, qdisc == "mq");
    let measured = if several { format!("mq over {inner}") } else { qdisc.clone() };
    let command = match several {
        true => format!("modprobe sch_fq; sysctl -w net.core.default_qdisc=fq && tc qdisc replace dev {name} root mq"),
        false => format!("modprobe sch_fq; tc qdisc replace dev {name} root fq"),
    };
    Look::at(into, format!("{name} queueing discipline"), measured, ESNET).judge(
        inner == "fq",
        Level::Advice,
        "fq",
        "pacing (--rate, profiles, bbr) is cheapest and smoothest there; TCP's own timers do it elsewhere",
        Some(command),
    );
}

fn offloads(interface: &Interface, into: &mut Vec<Finding>) {
    let name = &interface.name;
    for (word, flag, why) in [
        ("tx-checksum", "tx", "every byte sent is read once more by the CPU"),
        ("tso", "tso", "the CPU cuts every segment: several times the cost of a byte"),
        ("gso", "gso", "the CPU cuts segments early, and each travels the stack alone"),
        ("gro", "gro", "each packet received travels the stack alone"),
    ] {
        let Some(on) = interface.offloads.get(word) else { continue };
        let measured = if *on { "on" } else { "off" };
        let command = Some(format!("ethtool -K {name} {flag} on"));
        Look::at(into, format!("{name} {word}"), measured, ETHTOOL).judge(*on, Level::Wrong, "on", why, command);
    }
    if interface.offloads.get("lro") == Some(&true) {
        let command = Some(format!("ethtool -K {name} lro off"));
        let why = "merges what routing and some drivers cannot take apart again; GRO does the same work";
        Look::at(into, format!("{name} lro"), "on", ESNET).end(Level::Advice, "off", why, command);
    }
}

fn rings(interface: &Interface, into: &mut Vec<Finding>) {
    let Some(rings) = &interface.rings else { return };
    let name = &interface.name;
    let why = "packets that arrive while the core is busy wait there; ESnet: the largest";
    for (word, now, max) in [("rx", rings.rx, rings.rx_max), ("tx", rings.tx, rings.tx_max)] {
        let command = Some(format!("ethtool -G {name} {word} {max}"));
        Look::at(into, format!("{name} {word} ring"), now, ESNET).judge(
            now >= max,
            Level::Advice,
            max.to_string(),
            why,
            command,
        );
    }
}

fn placement(facts: &Facts, interface: &Interface, into: &mut Vec<Finding>) {
    let name = &interface.name;
    let mut cores: Vec<u32> = interface.interrupts.values().flatten().copied().collect();
    cores.sort_unstable();
    cores.dedup();
    if interface.queues > 1 && !interface.interrupts.is_empty() {
        let measured = format!("{} queues, interrupts on {}", interface.queues, counted(cores.len()));
        Look::at(into, format!("{name} interrupts"), measured, ESNET).judge(
            cores.len() > 1,
            Level::Advice,
            "spread over several cores",
            "one core cannot take 10 Gbit/s and more",
            Some(format!("grep {name} /proc/interrupts   # then: echo CORE > /proc/irq/N/smp_affinity_list")),
        );
    }
    if let (true, Some(node)) = (facts.numa_nodes > 1, interface.numa_node) {
        let far: Vec<String> =
            cores.iter().filter(|core| !interface.near_cores.contains(core)).map(u32::to_string).collect();
        let measured = match far.is_empty() {
            true => format!("on node {node}, as the card"),
            false => format!("cores {} are not on the card's node {node}", far.join(",")),
        };
        Look::at(into, format!("{name} NUMA"), measured, ESNET).judge(
            far.is_empty(),
            Level::Advice,
            format!("interrupts on node {node}, and the agent there too"),
            "every packet crosses the link between the sockets otherwise: 20 to 30 % on older hosts",
            Some(format!("longhaul agent --cpus node:{node} …")),
        );
    }
}

fn counted(cores: usize) -> String {
    if cores == 1 { "one core".to_owned() } else { format!("{cores} cores") }
}

fn reach(facts: &Facts, peer: &Peer, into: &mut Vec<Finding>) {
    let name = &peer.name;
    if let Some(error) = &peer.error {
        let why = "nothing about the link can be measured";
        let command = Some(format!("ping -c 3 {name}   # is it the host, or the port?"));
        return Look::at(into, format!("peer {name}"), error, "connect(2)").end(
            Level::Wrong,
            "an answer",
            why,
            command,
        );
    }
    let rtt = peer.rtt_us.map_or("?".to_owned(), |us| crate::units::write_span(std::time::Duration::from_micros(us)));
    let way = peer.interface.as_deref().map(|way| format!(" by {way}")).unwrap_or_default();
    let address = peer.address.as_deref().unwrap_or_default();
    Look::at(into, format!("peer {name}"), format!("{address} answers in {rtt}{way}"), "TCP_INFO of five connects")
        .end(Level::Fine, "an answer", "the least of five", None);
    if let Some(error) = &peer.data_error {
        let why = "bytes go over the data port; without it there is no transfer";
        let command = Some("open the port in the peer's firewall, or name another: --data-port N".to_owned());
        Look::at(into, format!("peer {name} data port"), error, "README.md, Firewall").end(
            Level::Wrong,
            "open",
            why,
            command,
        );
    }
    if let (Some(segment), Some(route)) = (peer.segment, peer.route_mtu) {
        let headers = if address.starts_with('[') { HEADERS_V6 } else { HEADERS_V4 };
        let theirs = segment + headers;
        let jumbo = facts.interfaces.iter().any(|i| Some(&i.name) == peer.interface.as_ref() && i.mtu > 1500);
        Look::at(into, format!("peer {name} MTU"), format!("{theirs} of our {route}"), ESNET).judge(
            theirs >= route,
            if jumbo { Level::Advice } else { Level::Fine },
            "the same at both ends",
            "segments follow the smaller; if the peer's interface is not the reason, a hop on the way is",
            Some(format!("ping -M do -s {} {name}   # the largest that passes", route - 28)),
        );
    }
}
