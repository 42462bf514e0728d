//! The document of `--json`: what `iperf3 -J` prints, key by key, and beside it the object `longhaul`. Pure.
//!
//! A figure that this end cannot know is 0 where iperf3 writes 0 as well (windows and round trips of a remote sender), else
//! `null` (the remote end's split of CPU time, buffers of a part without sockets).

use super::parts::{Part, intervals};
use crate::engine::probe::{StreamSample, StreamTrial, Trial};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

/// What a document is about.
#[derive(Debug, Clone)]
pub struct Setting {
    /// As iperf3's `version`.
    pub version: String,
    /// As `uname -a` would say it.
    pub system: String,
    /// When it began, Unix seconds.
    pub now: u64,
    /// Whom it was connected to: a host and a port.
    pub peer: (String, u16),
    /// Streams, or threads.
    pub streams: u16,
    /// Bytes of a block.
    pub block: u32,
    /// What was asked for, s.
    pub seconds: f64,
    /// Intervals of the document, µs.
    pub interval_us: u64,
    /// Whether the other end sends.
    pub reverse: bool,
}

/// Seconds and the rate of `bytes` in them.
fn span(start_us: u64, end_us: u64, bytes: u64) -> Map<String, Value> {
    let seconds = end_us.saturating_sub(start_us) as f64 / 1e6;
    let rate = if seconds > 0.0 { bytes as f64 * 8.0 / seconds } else { 0.0 };
    let value = json!({
        "start": start_us as f64 / 1e6, "end": end_us as f64 / 1e6, "seconds": seconds, "bytes": bytes, "bits_per_second": rate,
    });
    object(value)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn with(mut map: Map<String, Value>, more: Value) -> Value {
    map.extend(object(more));
    Value::Object(map)
}

/// The document: `part` in iperf3's keys (with `trial` if it was one of the network), `longhaul` as the one object beside them.
pub fn document(setting: &Setting, part: &Part, trial: Option<&Trial>, longhaul: Value) -> Value {
    let each = streams(part, trial);
    json!({
        "start": start(setting, trial, &each),
        "intervals": measured_intervals(setting, part, trial, &each),
        "end": end(setting, part, trial, &each),
        "longhaul": longhaul,
    })
}

/// The trial's streams; a part without sockets is one stream.
fn streams(part: &Part, trial: Option<&Trial>) -> Vec<StreamTrial> {
    match trial {
        Some(trial) if !trial.each.is_empty() => trial.each.clone(),
        _ => {
            let samples =
                part.samples.iter().map(|(_, bytes)| StreamSample { bytes: *bytes, ..StreamSample::default() });
            vec![StreamTrial { samples: samples.collect(), ..StreamTrial::default() }]
        }
    }
}

fn start(setting: &Setting, trial: Option<&Trial>, each: &[StreamTrial]) -> Value {
    let host = |address: Option<SocketAddr>| address.map(|a| a.ip().to_string());
    let port = |address: Option<SocketAddr>| address.map(|a| a.port());
    let connected: Vec<Value> = (1..)
        .zip(each)
        .filter(|(_, stream)| stream.local.is_some())
        .map(|(socket, stream)| {
            json!({
                "socket": socket, "local_host": host(stream.local), "local_port": port(stream.local),
                "remote_host": host(stream.remote), "remote_port": port(stream.remote),
            })
        })
        .collect();
    let buffers = trial.and_then(|trial| trial.each.first()).map(|stream| stream.buffers);
    let time = jiff::Timestamp::from_second(i64::try_from(setting.now).unwrap_or(0)).unwrap_or_default();
    json!({
        "connected": connected,
        "version": setting.version,
        "system_info": setting.system,
        "timestamp": { "time": time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(), "timesecs": setting.now },
        "connecting_to": { "host": setting.peer.0, "port": setting.peer.1 },
        "cookie": "",
        "tcp_mss_default": trial.map_or(0, |trial| trial.sender.segment),
        "target_bitrate": 0,
        "sock_bufsize": 0,
        "sndbuf_actual": buffers.map(|(send, _)| send),
        "rcvbuf_actual": buffers.map(|(_, receive)| receive),
        "test_start": {
            "protocol": "TCP", "num_streams": setting.streams, "blksize": setting.block, "omit": 0, "duration": setting.seconds,
            "bytes": 0, "blocks": 0, "reverse": u8::from(setting.reverse), "tos": 0, "target_bitrate": 0,
        },
    })
}

fn measured_intervals(setting: &Setting, part: &Part, trial: Option<&Trial>, each: &[StreamTrial]) -> Vec<Value> {
    let sends = trial.is_some() && !setting.reverse;
    let one = |(from, to, range): (u64, u64, std::ops::Range<usize>)| {
        let (mut all, mut repeats) = (0, 0);
        let mut streams = Vec::new();
        for (socket, stream) in (1..).zip(each) {
            let samples = stream.samples.get(range.clone()).unwrap_or_default();
            let last = samples.last().copied().unwrap_or_default();
            let bytes = samples.iter().map(|sample| sample.bytes).sum::<u64>();
            let again = samples.iter().map(|sample| sample.retransmits).sum::<u64>();
            (all, repeats) = (all + bytes, repeats + again);
            let mut map = with(span(from, to, bytes), json!({ "socket": socket, "omitted": false, "sender": sends }));
            if sends && let Value::Object(map) = &mut map {
                map.extend(object(json!({
                    "retransmits": again, "snd_cwnd": last.cwnd, "snd_wnd": last.window, "rtt": last.rtt_us,
                    "rttvar": last.rttvar_us, "pmtu": last.mtu,
                })));
            }
            streams.push(map);
        }
        let mut sum = with(span(from, to, all), json!({ "omitted": false, "sender": sends }));
        if sends && let Value::Object(map) = &mut sum {
            map.insert("retransmits".to_owned(), repeats.into());
        }
        json!({ "streams": streams, "sum": sum })
    };
    intervals(&part.samples, setting.interval_us).into_iter().map(one).collect()
}

fn end(setting: &Setting, part: &Part, trial: Option<&Trial>, each: &[StreamTrial]) -> Value {
    let sends = trial.is_some() && !setting.reverse;
    let to = part.samples.last().map_or(part.duration_ns / 1_000, |(at, _)| *at);
    let streams: Vec<Value> = (1..)
        .zip(each)
        .map(|(socket, stream)| {
            let samples = &stream.samples;
            let bytes = samples.iter().map(|sample| sample.bytes).sum::<u64>();
            let again: u64 = samples.iter().map(|sample| sample.retransmits).sum();
            let most = |of: fn(&StreamSample) -> u64| if sends { samples.iter().map(of).max().unwrap_or(0) } else { 0 };
            let rtts: Vec<u64> = samples.iter().map(|sample| sample.rtt_us).filter(|rtt| sends && *rtt > 0).collect();
            // The other end tells a sum over its streams.
            let known = if sends { Some(again) } else { trial.filter(|_| each.len() == 1).map(repeats) };
            let sender = json!({
                "socket": socket, "retransmits": known, "max_snd_cwnd": most(|s| s.cwnd), "max_snd_wnd": most(|s| s.window),
                "max_rtt": rtts.iter().max().unwrap_or(&0), "min_rtt": rtts.iter().min().unwrap_or(&0),
                "mean_rtt": rtts.iter().sum::<u64>().checked_div(rtts.len() as u64).unwrap_or(0), "sender": sends,
            });
            let receiver = json!({ "socket": socket, "sender": sends });
            json!({ "sender": with(span(0, to, bytes), sender), "receiver": with(span(0, to, bytes), receiver) })
        })
        .collect();
    let moved: u64 = each.iter().flat_map(|stream| &stream.samples).map(|sample| sample.bytes).sum();
    let again = if sends {
        Some(each.iter().flat_map(|stream| &stream.samples).map(|sample| sample.retransmits).sum())
    } else {
        trial.map(repeats)
    };
    let congestion = trial.map(|trial| trial.congestion.clone());
    json!({
        "streams": streams,
        "sum_sent": with(span(0, to, moved), json!({ "retransmits": again, "sender": sends })),
        "sum_received": with(span(0, to, moved), json!({ "sender": sends })),
        "cpu_utilization_percent": utilization(part),
        "sender_tcp_congestion": congestion,
        "receiver_tcp_congestion": congestion,
    })
}

/// Segments sent again, from the bytes that a sender tells.
fn repeats(trial: &Trial) -> u64 {
    trial.sender.bytes_retransmitted.div_ceil(u64::from(trial.sender.segment).max(1))
}

fn utilization(part: &Part) -> Value {
    let percent = |ns: u64| ns as f64 / part.duration_ns.max(1) as f64 * 100.0;
    json!({
        "host_total": percent(part.cpu.user + part.cpu.system), "host_user": percent(part.cpu.user),
        "host_system": percent(part.cpu.system),
        "remote_total": (part.peer_cpu_ns > 0).then(|| percent(part.peer_cpu_ns)), "remote_user": null, "remote_system": null,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parts::Kind;
    use super::super::parts::tests::part;
    use super::*;

    fn setting(reverse: bool) -> Setting {
        Setting {
            version: "longhaul 1".to_owned(),
            system: "Linux".to_owned(),
            now: 1_795_714_582,
            peer: ("dtn1".to_owned(), 8470),
            streams: 2,
            block: 65_536,
            seconds: 1.0,
            interval_us: 500_000,
            reverse,
        }
    }

    fn trial() -> Trial {
        let sample =
            |n: u64| StreamSample { bytes: 1_000, retransmits: n % 2, cwnd: n * 10, rtt_us: n, ..Default::default() };
        let stream = StreamTrial {
            local: Some("192.0.2.1:4000".parse().unwrap()),
            remote: Some("192.0.2.2:8471".parse().unwrap()),
            buffers: (16_384, 131_072),
            samples: (1..=10).map(sample).collect(),
        };
        let mut trial = Trial { streams: 2, congestion: "bbr".to_owned(), each: vec![stream; 2], ..Trial::default() };
        trial.sender.segment = 1_448;
        trial.sender.bytes_retransmitted = 3 * 1_448;
        trial
    }

    fn about_the_network(reverse: bool) -> Value {
        let mut part = part(Kind::Network, 160_000);
        part.samples = (1..=10).map(|n| (n * 100_000, 2_000)).collect();
        part.peer_cpu_ns = 250_000_000;
        document(&setting(reverse), &part, Some(&trial()), json!({}))
    }

    #[test]
    fn what_this_end_sends_has_a_senders_figures() {
        let document = about_the_network(false);
        let intervals = document["intervals"].as_array().unwrap();
        assert_eq!(intervals.len(), 2);
        let sum = &intervals[1]["sum"];
        assert_eq!((sum["bytes"].as_u64(), sum["retransmits"].as_u64()), (Some(10_000), Some(4)), "{sum}");
        assert_eq!((sum["bits_per_second"].as_f64(), sum["start"].as_f64()), (Some(160_000.0), Some(0.5)));
        let stream = &intervals[0]["streams"][1];
        assert_eq!((stream["socket"].as_u64(), stream["snd_cwnd"].as_u64()), (Some(2), Some(50)), "{stream}");
        let end = &document["end"];
        assert_eq!(end["sum_sent"]["retransmits"].as_u64(), Some(10));
        assert_eq!(end["streams"][0]["sender"]["mean_rtt"].as_u64(), Some(5));
        assert_eq!(end["sum_received"]["bytes"].as_u64(), Some(20_000));
        let cpu = &end["cpu_utilization_percent"];
        assert_eq!((cpu["host_total"].as_f64(), cpu["remote_total"].as_f64()), (Some(50.0), Some(25.0)));
        assert_eq!(document["start"]["timestamp"]["time"].as_str(), Some("Thu, 26 Nov 2026 17:36:22 GMT"));
        assert_eq!(document["start"]["connected"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn what_arrives_here_has_the_senders_sum() {
        let document = about_the_network(true);
        assert_eq!(document["intervals"][0]["sum"].get("retransmits"), None, "as iperf3 -R");
        assert_eq!(document["end"]["sum_sent"]["retransmits"].as_u64(), Some(3));
        let sender = &document["end"]["streams"][0]["sender"];
        assert!(sender["retransmits"].is_null() && sender["sender"] == false, "a sum over streams is told: {sender}");
        assert_eq!(document["start"]["test_start"]["reverse"].as_u64(), Some(1));
    }

    #[test]
    fn a_part_without_sockets_is_one_stream() {
        let document = document(&setting(false), &part(Kind::DiskRead, 80_000), None, json!({ "a": 1 }));
        assert_eq!(document["start"]["connected"].as_array().unwrap().len(), 0);
        assert_eq!(document["intervals"][0]["streams"].as_array().unwrap().len(), 1);
        assert_eq!(document["end"]["sum_received"]["bytes"].as_u64(), Some(10_000));
        assert!(document["end"]["sum_sent"]["retransmits"].is_null() && document["longhaul"]["a"] == 1);
    }
}
