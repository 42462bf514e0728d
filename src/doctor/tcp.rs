//! What the kernel's TCP is allowed to do.

use super::{Facts, Finding, Level, Look, STREAMS, Target, size};
use crate::units::BitRate;

const TCP7: &str = "tcp(7)";
const SOCKET7: &str = "socket(7)";
const ESNET: &str = "ESnet fasterdata, host tuning";
const MEASURED: &str = "tuning/README.md, measured on an emulated link";
/// Part of a receive buffer that becomes window; the rest is for the packets' own structures (tcp_adv_win_scale 1).
const RECEIVE_USABLE: f64 = 0.5;
/// The same of a send buffer, measured: 3.2 to 3.6 MB in flight of 4 MiB.
const SEND_USABLE: f64 = 0.8;
/// The largest window that TCP's scaling carries.
const WINDOW_LIMIT: u64 = 1 << 30;

pub(super) fn check(facts: &Facts, target: &Target, into: &mut Vec<Finding>) {
    buffers(facts, target, into);
    congestion(facts, into);
    switches(facts, target, into);
    memory(facts, target, into);
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// `sysctl -w NAME="VALUE"`.
fn set(name: &str, value: &str) -> Option<String> {
    let quoted = if value.contains(' ') { format!("\"{value}\"") } else { value.to_owned() };
    Some(format!("sysctl -w {name}={quoted}"))
}

fn buffers(facts: &Facts, target: &Target, into: &mut Vec<Finding>) {
    let bdp = target.bdp();
    for (name, usable, core) in [
        ("net.ipv4.tcp_wmem", SEND_USABLE, "net.core.wmem_max"),
        ("net.ipv4.tcp_rmem", RECEIVE_USABLE, "net.core.rmem_max"),
    ] {
        // Twice bandwidth times delay, as a round power of two, and not beyond what the window can use.
        let wanted = (2 * bdp).next_power_of_two().clamp(4 << 20, 2 * WINDOW_LIMIT - 1);
        let wanted = if wanted >= WINDOW_LIMIT { i32::MAX as u64 } else { wanted };
        if let Some([min, default, max]) =
            facts.sysctls.get(name).map(|text| numbers(text)).as_deref().and_then(|v| v.first_chunk())
        {
            let one = (*max as f64 * usable) as u64;
            let rate = |streams: u64| (one as f64 * streams as f64 * 8e6 / target.rtt_us.max(1) as f64) as u64;
            let level = if one * STREAMS < bdp { Level::Wrong } else { Level::Advice };
            let why = format!(
                "at this round trip one stream carries {} at most, {STREAMS} together {}",
                BitRate(rate(1)),
                BitRate(rate(STREAMS))
            );
            let command = set(name, &format!("{min} {default} {wanted}"));
            let wanted = format!("a third value of at least {} (twice bandwidth x delay)", size(2 * bdp));
            Look::at(into, name, size(*max), TCP7).judge(one >= bdp, level, wanted, why, command);
        }
        if let Some(max) = facts.sysctls.get(core).and_then(|text| text.parse::<u64>().ok()) {
            let why =
                "caps what --window and a profile's window may ask for; the kernel's own tuning does not look at it";
            let wanted_text = format!("at least {}", size(2 * bdp));
            Look::at(into, core, size(max), SOCKET7).judge(
                max >= 2 * bdp.min(WINDOW_LIMIT / 2),
                Level::Advice,
                wanted_text,
                why,
                set(core, &wanted.to_string()),
            );
        }
    }
}

fn congestion(facts: &Facts, into: &mut Vec<Finding>) {
    let words = |name: &str| -> Option<Vec<&str>> { Some(facts.sysctls.get(name)?.split_whitespace().collect()) };
    let Some(current) = facts.sysctls.get("net.ipv4.tcp_congestion_control") else { return };
    let known = ["cubic", "bbr"].contains(&current.as_str());
    Look::at(into, "net.ipv4.tcp_congestion_control", current, ESNET).judge(
        known,
        Level::Advice,
        "cubic, or bbr on lossy paths",
        "older algorithms take minutes to fill a long link after a loss",
        set("net.ipv4.tcp_congestion_control", "cubic"),
    );
    let available = words("net.ipv4.tcp_available_congestion_control").unwrap_or_default();
    let allowed = words("net.ipv4.tcp_allowed_congestion_control").unwrap_or_default();
    for name in ["cubic", "bbr"] {
        let topic = format!("congestion control {name}");
        let why = match name {
            "bbr" => "0.01 % of loss at 100 ms leaves one cubic stream 125 Mbit/s of 1 Gbit/s, one bbr stream 873",
            _ => "what most of the path's other users run; bbr is unfair to them where its queue is short",
        };
        if !available.contains(&name) {
            let command = Some(format!("modprobe tcp_{name}"));
            Look::at(into, topic, "not loaded", MEASURED).end(Level::Advice, "available", why, command);
        } else {
            let all = allowed.iter().copied().chain([name]).collect::<Vec<_>>().join(" ");
            let state = if allowed.contains(&name) { "allowed to everybody" } else { "for root only" };
            Look::at(into, topic, state, MEASURED).judge(
                allowed.contains(&name),
                Level::Advice,
                "allowed, so that agents without privileges may choose it",
                why,
                set("net.ipv4.tcp_allowed_congestion_control", &all),
            );
        }
    }
}

/// Switches that have one right position on a long link.
fn switches(facts: &Facts, target: &Target, into: &mut Vec<Finding>) {
    let table = [
        ("tcp_window_scaling", "1", Level::Wrong, TCP7, "without it no window is larger than 64 KiB"),
        (
            "tcp_sack",
            "1",
            Level::Wrong,
            TCP7,
            "without it a loss in a large window costs a round trip for each segment",
        ),
        ("tcp_timestamps", "1", Level::Wrong, TCP7, "sequence numbers wrap within seconds at 10 Gbit/s (RFC 7323)"),
        ("tcp_moderate_rcvbuf", "1", Level::Wrong, TCP7, "without it receive buffers stay at tcp_rmem's second value"),
        (
            "tcp_slow_start_after_idle",
            "0",
            Level::Advice,
            ESNET,
            "a stream that paused, for a disk perhaps, begins again with ten segments",
        ),
        (
            "tcp_no_metrics_save",
            "1",
            Level::Advice,
            ESNET,
            "one bad connection's threshold is handed to the next ones to the same host",
        ),
    ];
    for (name, wanted, level, source, why) in table {
        let name = format!("net.ipv4.{name}");
        let Some(value) = facts.sysctls.get(&name) else { continue };
        // Timestamps: 2 is on, without the random offset.
        let good = value == wanted || (name.ends_with("timestamps") && value == "2");
        let command = set(&name, wanted);
        Look::at(into, name, value, source).judge(good, level, wanted, why, command);
    }
    let jumbo = facts.interfaces.iter().any(|interface| interface.mtu > 1500);
    if let Some(value) = facts.sysctls.get("net.ipv4.tcp_mtu_probing").filter(|_| jumbo) {
        Look::at(into, "net.ipv4.tcp_mtu_probing", value, ESNET).judge(
            value != "0",
            Level::Advice,
            "1",
            "with large packets one smaller hop whose messages are filtered stops a stream for good",
            set("net.ipv4.tcp_mtu_probing", "1"),
        );
    }
    if let Some(value) = facts.sysctls.get("net.core.netdev_max_backlog").filter(|_| target.rate >= 10_000_000_000) {
        let packets: u64 = value.parse().unwrap_or(0);
        Look::at(into, "net.core.netdev_max_backlog", value, "OSG fasterdata-tuning; not measured here").judge(
            packets >= 250_000,
            Level::Advice,
            "250000 from 10 Gbit/s on",
            "packets that a core has not yet taken wait there; what does not fit is lost",
            set("net.core.netdev_max_backlog", "250000"),
        );
    }
}

fn memory(facts: &Facts, target: &Target, into: &mut Vec<Finding>) {
    let Some(limits) = facts.sysctls.get("net.ipv4.tcp_mem").map(|text| numbers(text)) else { return };
    let [low, pressure, high] = limits[..] else { return };
    let bytes = |pages: u64| pages.saturating_mul(facts.page_bytes);
    // Sent and received data wait in buffers of about the bandwidth x delay, with as much again around them.
    let need = 2 * target.bdp();
    let pages = need.div_ceil(facts.page_bytes.max(1));
    let scale = |pages: u64| pages.max(low);
    let command = set(
        "net.ipv4.tcp_mem",
        &format!("{} {} {}", scale(2 * pages), scale(3 * pages).max(pressure), scale(4 * pages).max(high)),
    );
    Look::at(into, "net.ipv4.tcp_mem", format!("pressure from {}", size(bytes(pressure))), TCP7).judge(
        bytes(low) >= need,
        if bytes(pressure) < need { Level::Wrong } else { Level::Advice },
        format!("a first value of at least {} for this link alone", size(need)),
        "all connections of the machine share it; near it no receive window grows, whatever the buffer sizes",
        command,
    );
    if let Some(now) = facts.tcp_pages {
        Look::at(into, "TCP memory in use", size(bytes(now)), TCP7).judge(
            now < low,
            if now >= pressure { Level::Wrong } else { Level::Advice },
            format!("below {}", size(bytes(low))),
            "the kernel is short of memory for sockets now: windows shrink",
            Some("ss -tm state all   # who holds it".to_owned()),
        );
    }
}
