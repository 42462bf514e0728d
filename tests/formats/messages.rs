//! Messages of stream 0, each with every field that it can have.

use crate::{every_variant, golden, same_as_golden};
use longhaul::digest::Digest;
use longhaul::grid::Span;
use longhaul::ids::{AgentId, Epoch, Handle, PathKey, StreamIndex, TransferId};
use longhaul::manifest::Mtime;
use longhaul::profile::{Priority, SciTag, Steer, Tuning};
use longhaul::relpath::RelPath;
use longhaul::wire::control::{
    Accept, Bind, Bound, Control, Message, Offer, OfferedRoot, PeerError, Progress, Retune, Sealed, SourceStats, Wish,
};
use longhaul::wire::data::Status;
use longhaul::wire::views::{EndView, SenderView, SourceView};
use std::collections::BTreeMap;

fn offer() -> Offer {
    let root = |name: &[u8], path: &[u8], directory| OfferedRoot {
        name: hex::encode(name),
        path: hex::encode(path),
        directory,
        object: (64, u64::MAX),
        host: "0f".repeat(16),
    };
    Offer {
        agent: AgentId([2; 16]),
        roots: vec![root(b"run7", b"/srv/run7", true), root(b"\xff", b"/srv/\xff", false)],
        engine: "io_uring".to_owned(),
        cpus: String::new(),
        notes: vec!["one \u{e9}".to_owned()],
        process: 4711,
        digests: false,
    }
}

fn accept(full: bool) -> Accept {
    Accept {
        transfer: TransferId([3; 16]),
        epoch: Epoch(9),
        block: 262_144,
        rate: full.then_some(10_000_000_000),
        congestion: full.then(|| "cubic".to_owned()),
        window: full.then_some(1 << 24),
        io: "auto".to_owned(),
        credit: 8,
        streams: 4,
        tuning: Tuning::default(),
    }
}

fn tuning() -> Tuning {
    Tuning {
        pacing: Some(2_000_000_000),
        notsent_lowat: Some(1 << 20),
        user_timeout_ms: Some(120_000),
        mss: Some(8948),
        dscp: Some(10),
        depth: Some(16),
        ..Tuning::default()
    }
}

fn samples() -> Vec<(&'static str, Message)> {
    let bind = |handle, sparse| Bind {
        handle: Handle(handle),
        root: 2,
        path: RelPath::new(b"d/\xfe").unwrap(),
        size: 1 << 50,
        mtime: Mtime { secs: -1, nanos: 5 },
        sparse,
    };
    let bound = |handle, status, extents| Bound { handle: Handle(handle), status, object: (1, 2), extents };
    let spans = vec![Span { offset: 0, len: 4096 }, Span { offset: 8192, len: 1 }];
    let stats = SourceStats {
        sent_bytes: 1,
        cpu_ns: 2,
        send_wait_ns: 3,
        read_wait_ns: 4,
        idle_ns: 5,
        busy_ns: 6,
        io: "O_DIRECT (large)".to_owned(),
        notes: vec!["clamped".to_owned()],
        view: None,
    };
    let end = EndView {
        wall_ns: 1,
        streams: 2,
        workers: 3,
        cpu_ns: 4,
        delay_ns: 5,
        idle_ns: 6,
        disk_ns: 7,
        send_ns: 8,
        held_back_ns: 9,
    };
    let sender = SenderView {
        busy_us: 1,
        rwnd_limited_us: 2,
        sndbuf_limited_us: 3,
        bytes_sent: 4,
        bytes_retransmitted: 5,
        rtt_us: 6,
        min_rtt_us: 7,
        segment: 8,
        congestion: "bbr".to_owned(),
        paced: 9,
    };
    let seen = SourceStats { view: Some(SourceView { end, sender }), ..stats.clone() };
    let sample = seen.view.clone().unwrap_or_default();
    let progress = Progress {
        bytes: 1,
        total_bytes: 2,
        files: 3,
        total_files: 4,
        scanned: true,
        phase: "moving".to_owned(),
        limiter_shares: BTreeMap::new(),
    };
    let limited = BTreeMap::from([("network".to_owned(), 0.75), ("source disk".to_owned(), 0.25)]);
    let limited = Progress { limiter_shares: limited, ..progress.clone() };
    let handles = || vec![Handle(1), Handle(u32::MAX)];
    vec![
        ("Offer", Message::Offer(offer())),
        ("Accept", Message::Accept(accept(true))),
        ("Accept-short", Message::Accept(accept(false))),
        ("Accept-tuned", Message::Accept(Accept { tuning: tuning(), ..accept(false) })),
        (
            "Accept-tagged",
            Message::Accept(Accept {
                tuning: Tuning { scitag: SciTag::try_from(1038).ok(), ..tuning() },
                ..accept(false)
            }),
        ),
        ("Segment", Message::Segment(vec![1, 2, 3])),
        ("ManifestEnd", Message::ManifestEnd(4)),
        ("Problem", Message::Problem { root: 1, path: b"p\xff".to_vec(), what: "no \u{e9}".into() }),
        ("Credit", Message::Credit(8)),
        ("Bind", Message::Bind(vec![bind(7, true), bind(8, false)])),
        (
            "Bound",
            Message::Bound(vec![
                bound(7, Status::Ok, Some(spans)),
                bound(8, Status::Ok, Some(vec![])),
                bound(9, Status::Gone, None),
            ]),
        ),
        ("Seal", Message::Seal(handles())),
        ("Sealed", Message::Sealed(vec![Sealed { handle: Handle(1), status: Status::Changed }])),
        ("Unbind", Message::Unbind(handles())),
        ("Progress", Message::Progress(progress)),
        ("Progress-limited", Message::Progress(limited)),
        ("StatsRequest", Message::StatsRequest),
        ("Stats", Message::Stats(stats)),
        ("Stats-seen", Message::Stats(seen)),
        ("Verdict", Message::Verdict(b"{\"verdict\":\"DURABLE\"}".to_vec())),
        ("Error", Message::Error(PeerError { class: "retry".into(), what: "full".into() })),
        ("Ping", Message::Ping),
        ("Bye", Message::Bye),
        ("Digests", Message::Digests(vec![(PathKey([1; 16]), Digest([2; 16]))])),
        (
            "Retune",
            Message::Retune(Retune {
                rate: Some(8_000_000),
                streams: 4,
                asked: Steer { rate: Some(0), streams: Some(4), priority: Some(Priority::Low) },
                ..Retune::default()
            }),
        ),
        (
            "Retune-tuned",
            Message::Retune(Retune {
                streams: 16,
                control: Some(Control::Bbr),
                pacing: Some(940_000_000),
                ..Retune::default()
            }),
        ),
        ("Sample", Message::Sample(sample)),
        ("Retune-uncapped", Message::Retune(Retune { rate: None, streams: 1, ..Retune::default() })),
        ("Wish", Message::Wish(Wish { steer: Steer { streams: Some(2), ..Steer::default() }, yields: 1 })),
        ("Lost", Message::Lost { stream: StreamIndex(3), attempt: 1001 }),
    ]
}

#[test]
fn messages_are_made_as_they_always_were() {
    let made: Vec<_> = samples().into_iter().map(|(name, message)| (name.to_owned(), message.encode())).collect();
    every_variant(include_str!("../../src/wire/control.rs"), "Message", &made);
    same_as_golden("message", &made);
}

#[test]
fn messages_are_read_as_they_always_were() {
    let golden = golden();
    for (name, message) in samples() {
        assert_eq!(Message::decode(&golden[format!("message/{name}").as_str()]), Ok(message), "{name}");
    }
}
