use super::*;

const SECOND: u64 = 1_000_000_000;

/// Eight streams and two workers at each end for ten seconds at about 940 Mbit/s: what follows says where they were.
fn evidence(sending: f64, reading: f64, idle: f64) -> Evidence {
    let wall_ns = 10 * SECOND;
    let of = |share: f64| (share * (8 * wall_ns) as f64) as u64;
    let end = EndView { wall_ns, streams: 8, workers: 2, cpu_ns: wall_ns / 5, ..EndView::default() };
    Evidence {
        source: EndView { send_ns: of(sending), disk_ns: of(reading), idle_ns: of(idle), ..end },
        destination: end,
        sender: Some(SenderView {
            busy_us: 80_000_000,
            bytes_sent: 1_200_000_000,
            rtt_us: 104_600,
            min_rtt_us: 100_000,
            segment: 1448,
            congestion: "cubic".to_owned(),
            ..SenderView::default()
        }),
        received_bytes: 1_175_000_000,
        spare_ns: 0,
    }
}

fn sender(evidence: &mut Evidence) -> &mut SenderView {
    evidence.sender.as_mut().unwrap()
}

#[track_caller]
fn held_back_by(evidence: &Evidence, cap: Option<u64>, limiter: Limiter) -> f64 {
    let shares = evidence.shares(cap);
    let sum: f64 = shares.iter().map(|(_, share)| share).sum();
    assert!((sum - 1.0).abs() < 1e-9 && shares.iter().all(|(_, share)| *share >= 0.0), "{shares:?}");
    assert_eq!(shares[0].0, limiter, "{shares:?}");
    let explained = evidence.explain(cap).join("\n");
    assert!(explained.contains(&format!("{} held it back", limiter.word())), "{explained}");
    shares[0].1
}

#[test]
fn a_slow_source_disk() {
    held_back_by(&evidence(0.1, 0.8, 0.05), None, Limiter::SourceDisk);
}

#[test]
fn a_source_without_a_core() {
    // Whether it uses the cores or waits for them; the streams see their sends come back late.
    for (cpu, delay) in [(19, 0), (4, 15)] {
        let mut seen = evidence(0.7, 0.05, 0.05);
        (seen.source.cpu_ns, seen.source.delay_ns) = (cpu * SECOND, delay * SECOND);
        assert!(held_back_by(&seen, None, Limiter::SourceCpu) > 0.8);
    }
}

#[test]
fn a_small_send_buffer() {
    let mut seen = evidence(0.97, 0.0, 0.0);
    sender(&mut seen).sndbuf_limited_us = 70_000_000;
    assert!(held_back_by(&seen, None, Limiter::SenderWindow) > 0.7);
    let notes = notes(&seen.shares(None), false);
    assert!(notes.len() == 1 && notes[0].contains("net.ipv4.tcp_wmem at the source"), "{notes:?}");
}

#[test]
fn a_small_receive_buffer_and_nobody_busy_behind_it() {
    let mut seen = evidence(0.97, 0.0, 0.0);
    sender(&mut seen).rwnd_limited_us = 70_000_000;
    assert!(held_back_by(&seen, None, Limiter::ReceiverWindow) > 0.7);
    assert!(notes(&seen.shares(None), false)[0].contains("net.ipv4.tcp_rmem at the destination"));
    assert!(notes(&seen.shares(None), true).is_empty(), "on loopback");
}

#[test]
fn a_destination_without_a_core_fills_the_window_too() {
    let mut seen = evidence(0.97, 0.0, 0.0);
    sender(&mut seen).rwnd_limited_us = 70_000_000;
    seen.destination.cpu_ns = 19 * SECOND;
    held_back_by(&seen, None, Limiter::DestinationCpu);
    assert!(notes(&seen.shares(None), false).is_empty(), "no sysctl helps");
    // As seen in the lab with a fifth of a core: acknowledgements come late, and the window is full for a quarter only.
    let mut late = evidence(0.79, 0.0, 0.21);
    (late.destination.cpu_ns, late.destination.delay_ns) = (4 * SECOND, 15 * SECOND);
    late.destination.held_back_ns = 3 * SECOND;
    sender(&mut late).rwnd_limited_us = 18_000_000;
    held_back_by(&late, None, Limiter::DestinationCpu);
}

#[test]
fn a_slow_destination_disk() {
    // By back-pressure on the streams, or by asking for less.
    let mut pressed = evidence(0.9, 0.0, 0.05);
    sender(&mut pressed).rwnd_limited_us = 70_000_000;
    pressed.destination.disk_ns = 64 * SECOND;
    held_back_by(&pressed, None, Limiter::DestinationDisk);
    // As seen in the lab: a file that fits the buffers, then its writes, streams that are done with theirs, then the sync.
    let mut late = evidence(0.32, 0.0, 0.67);
    (late.destination.disk_ns, late.spare_ns) = (44 * SECOND, 14 * SECOND);
    assert!(held_back_by(&late, None, Limiter::DestinationDisk) > 0.55);
    let mut asking = evidence(0.2, 0.0, 0.75);
    asking.destination.held_back_ns = 9 * SECOND;
    held_back_by(&asking, None, Limiter::DestinationDisk);
}

#[test]
fn a_network_that_is_full_or_loses() {
    let full = evidence(0.97, 0.0, 0.0);
    assert!(held_back_by(&full, None, Limiter::Network) > 0.9);
    assert!(full.explain(None).last().unwrap().contains("the path is full"));
    let mut lossy = evidence(0.97, 0.0, 0.0);
    sender(&mut lossy).bytes_retransmitted = 12_000_000;
    let words = lossy.explain(None).pop().unwrap();
    assert!(words.contains("1.00 % went twice and there is hardly a queue") && words.contains("--cc bbr"), "{words}");
    sender(&mut lossy).rtt_us = 137_000;
    let words = lossy.explain(None).pop().unwrap();
    assert!(words.contains("the queue is full"), "{words}");
}

#[test]
fn nothing_to_ask_for() {
    held_back_by(&evidence(0.05, 0.0, 0.93), None, Limiter::WaitingForData);
}

/// As seen in the lab: a dozen chunks on eight streams, and the last ones take as long as all the others.
#[test]
fn streams_without_a_chunk_at_the_end_hold_nothing_back() {
    let mut seen = evidence(0.38, 0.0, 0.62);
    held_back_by(&seen, None, Limiter::WaitingForData);
    seen.spare_ns = (0.6 * 80e9) as u64;
    assert!(held_back_by(&seen, None, Limiter::Network) > 0.9);
    assert!(seen.explain(None)[0].contains("sending 95 %, reading 0 %, nothing asked 5 %"), "{:?}", seen.explain(None));
    // More than the source has seen of it, and nothing else at all.
    seen.spare_ns = u64::MAX;
    assert!(held_back_by(&seen, None, Limiter::Network) > 0.9);
    let mut idle = evidence(0.0, 0.0, 1.0);
    idle.spare_ns = u64::MAX;
    held_back_by(&idle, None, Limiter::WaitingForData);
    let before = Evidence { spare_ns: 30, ..evidence(0.0, 0.0, 0.0) };
    assert_eq!(Evidence { spare_ns: 70, ..seen }.since(&before).spare_ns, 40);
}

#[test]
fn a_rate_that_somebody_set() {
    let seen = evidence(0.97, 0.0, 0.0);
    assert!(held_back_by(&seen, Some(1_000_000_000), Limiter::ConfiguredCap) > 0.9);
    held_back_by(&seen, Some(2_000_000_000), Limiter::Network);
    // The source's own profile may have set it: 8 x 120 Mbit/s.
    let mut paced = evidence(0.97, 0.0, 0.0);
    sender(&mut paced).paced = 120_000_000;
    held_back_by(&paced, None, Limiter::ConfiguredCap);
    // Half of the time was start and end: by the mean it is far from the cap, by what was sent meanwhile it is not.
    sender(&mut paced).busy_us = 80_000_000;
    (paced.source.wall_ns, paced.destination.wall_ns) = (20 * SECOND, 20 * SECOND);
    held_back_by(&paced, Some(960_000_000), Limiter::ConfiguredCap);
    // A cap that is not reached held nothing back, whatever else did.
    held_back_by(&evidence(0.1, 0.8, 0.05), Some(2_000_000_000), Limiter::SourceDisk);
}

#[test]
fn a_mixture_shows_both() {
    let mut seen = evidence(0.5, 0.45, 0.0);
    sender(&mut seen).bytes_retransmitted = 12_000_000;
    let shares = seen.shares(None);
    let share = |limiter| shares.iter().find(|(l, _)| *l == limiter).map_or(0.0, |(_, share)| *share);
    assert!(share(Limiter::Network) > 0.4 && share(Limiter::SourceDisk) > 0.4, "{shares:?}");
}

#[test]
fn shares_by_their_words_of_one_source_of_several_and_of_a_peer() {
    let one = vec![(Limiter::Network, 0.700_4), (Limiter::SourceDisk, 0.299_6)];
    let words = named(&one);
    assert_eq!(words, BTreeMap::from([("network".to_owned(), 0.7), ("source disk".to_owned(), 0.3)]));
    assert_eq!((largest(&words), largest(&BTreeMap::new())), ("network".to_owned(), String::new()));
    let other = vec![(Limiter::SourceDisk, 1.0)];
    let both = mean([&one, &other, &Shares::new()].into_iter());
    assert_eq!(named(&both), BTreeMap::from([("network".to_owned(), 0.35), ("source disk".to_owned(), 0.65)]));
    assert_eq!(both[0].0, Limiter::SourceDisk);
    let mut wild = words.clone();
    for (word, share) in
        [("\u{1b}[2J", 0.5), ("configured cap", 7.0), ("sender window", f64::NAN), ("source cpu", -0.1)]
    {
        wild.insert(word.to_owned(), share);
    }
    assert_eq!(told(wild), words);
    for limiter in Limiter::ALL {
        assert_eq!(told(named(&vec![(limiter, 0.5)])).len(), 1, "{limiter:?} has a word that is known");
    }
}

#[test]
fn numbers_of_a_peer_that_cannot_be_lead_to_no_panic() {
    let mut seen = Evidence::default();
    assert!(seen.shares(None).is_empty() || seen.shares(None)[0].1.is_finite());
    let end = EndView {
        wall_ns: 1,
        streams: u64::MAX,
        workers: u64::MAX,
        cpu_ns: u64::MAX,
        delay_ns: u64::MAX,
        idle_ns: u64::MAX,
        disk_ns: u64::MAX,
        send_ns: u64::MAX,
        held_back_ns: u64::MAX,
    };
    let sender = SenderView {
        busy_us: 1,
        rwnd_limited_us: u64::MAX,
        sndbuf_limited_us: u64::MAX,
        bytes_sent: 1,
        bytes_retransmitted: u64::MAX,
        rtt_us: u64::MAX,
        min_rtt_us: u64::MAX,
        segment: u32::MAX,
        congestion: "\u{1b}[2Jbbr".to_owned(),
        paced: u64::MAX,
    };
    let view = SourceView { end, sender };
    seen.add_source(&view);
    seen.add_source(&view);
    seen.destination = EndView { wall_ns: 0, ..end };
    let shares = seen.shares(Some(1));
    assert!(shares.iter().all(|(_, share)| (0.0..=1.0).contains(share)), "{shares:?}");
    assert!(seen.explain(None).iter().all(|line| !line.contains('\u{1b}')));
}

#[test]
fn an_older_source_is_judged_by_the_destination() {
    let mut seen = evidence(0.9, 0.0, 0.05);
    seen.sender = None;
    held_back_by(&seen, None, Limiter::Network);
    seen.destination.disk_ns = 64 * SECOND;
    held_back_by(&seen, None, Limiter::DestinationDisk);
}
