//! Windows of real runs (`recorded/README.md`), shown to the tuner again.
//!
//! A recording holds what a path answered to the tuner of its day. It says nothing of what the path would have answered to
//! another decision, so each test asserts what holds of the windows themselves, or decisions up to the first that departs from
//! the recording: [`Replay::moves`] ends there.

use super::*;

struct Replay {
    windows: Vec<Window>,
    /// What was put in force, and by the how manieth window, from 0.
    moves: Vec<(usize, Knobs)>,
    tuner: Tuner,
}

/// What the recorded tuner put in force: a window in which the knobs changed, and what they were then.
type Recorded<'a> = &'a [(usize, fn(&mut Knobs))];

/// Shows a recording to a tuner that may change all. It stops where the tuner departs from `recorded`, the moves by which the
/// windows came about: a move that is missing, another one, or one a window late.
fn replay(text: &str, recorded: Recorded<'_>) -> Replay {
    let windows: Vec<Window> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!((15..=60).contains(&windows.len()), "{} windows", windows.len());
    let free = Free { streams: true, control: true, depth: true, pacing: true };
    let mut then = Knobs { streams: 8, control: None, depth: 8, pacing: None };
    let mut replay = Replay { moves: Vec::new(), tuner: Tuner::new(free, then, 64), windows };
    for (at, window) in replay.windows.iter().enumerate() {
        let before = replay.tuner.knobs;
        replay.tuner.look(window);
        let now = replay.tuner.knobs;
        if now != before {
            replay.moves.push((at, now));
        }
        recorded.iter().filter(|(when, _)| *when == at).for_each(|(_, change)| change(&mut then));
        // By which rate exactly it is paced is no departure.
        if (now.streams, now.control, now.depth, now.pacing.is_some())
            != (then.streams, then.control, then.depth, then.pacing.is_some())
        {
            eprintln!("departs from the recording at window {at}: {now:?}, then {then:?}");
            break;
        }
    }
    replay
}

impl Replay {
    /// Every window names one of these, and for a good part of its time.
    fn limited_by(&self, limiters: &[Limiter]) {
        for (at, window) in self.windows.iter().enumerate() {
            assert!(window.is(limiters), "window {at}: {window:?}");
        }
    }

    #[track_caller]
    fn none_was_taken_back(&self) {
        assert!(self.tuner.steps.iter().all(|step| step.ends_with("kept")), "{:?}", self.tuner.steps);
    }
}

fn bbr(knobs: &mut Knobs) {
    (knobs.control, knobs.pacing) = (Some(Control::Bbr), Some(0));
}

#[test]
fn losses_are_seen_once_the_queue_of_the_beginning_has_gone_and_bbr_is_kept() {
    let seen = replay(include_str!("recorded/lossy.jsonl"), &[(7, bbr)]);
    seen.limited_by(&[Limiter::Network]);
    let queued = seen.windows.iter().take_while(|window| window.is_queued()).count();
    assert_eq!(queued, 7, "the queue of the slow start hides what is lost");
    let (at, knobs) = seen.moves[0];
    assert_eq!((at, knobs.control, knobs.streams), (queued, Some(Control::Bbr), 8), "{:?}", seen.moves);
    // By what the path carried while it had a queue: its payload is 189 Mbit/s.
    assert!(knobs.pacing.is_some_and(|bits| (180_000_000..205_000_000).contains(&bits)), "{knobs:?}");
    seen.none_was_taken_back();
}

#[test]
fn a_clean_path_that_is_full_is_left_alone_for_as_long_as_it_lasts() {
    let seen = replay(include_str!("recorded/clean.jsonl"), &[]);
    seen.limited_by(&[Limiter::Network]);
    assert!(seen.windows.iter().any(|window| window.resent > 0), "it did lose, where its queue was full");
    assert!(seen.moves.is_empty() && seen.tuner.steps.is_empty(), "{:?}", seen.moves);
}

#[test]
fn small_buffers_are_told_by_either_end_and_made_up_for_by_streams_until_the_path_is_full() {
    // Then the tuner of that day went to 64, and back, with nothing left to ask of them.
    let recorded: Recorded<'_> = &[(1, |k| k.streams = 16), (6, |k| k.streams = 32), (11, |k| k.streams = 64)];
    let seen = replay(include_str!("recorded/small-buffers.jsonl"), recorded);
    seen.limited_by(&[Limiter::SenderWindow, Limiter::ReceiverWindow]);
    let streams: Vec<(usize, u16)> = seen.moves.iter().map(|(at, knobs)| (*at, knobs.streams)).collect();
    assert_eq!(streams, [(1, 16), (6, 32)], "each as soon as two windows are full");
    assert!(!seen.windows[11].more);
    let kept = seen.tuner.steps.iter().filter(|step| step.ends_with("kept")).count();
    assert_eq!(kept, 2, "{:?}", seen.tuner.steps);
}

#[test]
fn half_a_rate_is_a_new_path_and_what_its_queue_loses_is_no_reason() {
    let seen = replay(include_str!("recorded/rate-halves.jsonl"), &[]);
    seen.limited_by(&[Limiter::Network]);
    let burst = seen.windows.iter().position(|w| lost_of(w.sent, w.resent) > 0.05).expect("the queue overflowed");
    assert!((8..12).contains(&burst), "{burst}");
    assert!(seen.moves.is_empty(), "{:?}", seen.moves);
    // What the path has carried before is not what it carries now.
    assert!(seen.tuner.full.is_some_and(|full| full < 110e6), "{:?}", seen.tuner.full);
    assert!(seen.tuner.had < 110e6, "{}", seen.tuner.had);
}

#[test]
fn losses_that_appear_bring_bbr_in_within_three_windows() {
    let seen = replay(include_str!("recorded/loss-appears.jsonl"), &[(12, bbr)]);
    seen.limited_by(&[Limiter::Network]);
    // It was full and clean for ten windows, but for what the slow start overflowed by.
    assert!(seen.windows[2..6].iter().all(|w| w.resent == 0 && w.is_queued()));
    let fell = seen.windows.iter().position(|w| w.rate() < 170e6 && !w.is_queued()).expect("losses took it down");
    let (at, knobs) = seen.moves[0];
    assert!(knobs.control == Some(Control::Bbr) && at >= fell && at <= fell + 2, "{fell} {:?}", seen.moves);
    assert!(knobs.pacing.is_some_and(|bits| (180_000_000..220_000_000).contains(&bits)), "{knobs:?}");
    seen.none_was_taken_back();
}

#[test]
fn a_longer_way_without_losses_is_no_reason_for_anything() {
    let seen = replay(include_str!("recorded/rtt-doubles.jsonl"), &[]);
    seen.limited_by(&[Limiter::Network]);
    // Cubic alone has all of it again after some windows.
    let late: Vec<f64> = seen.windows[14..18].iter().map(Window::rate).collect();
    assert!(late.iter().all(|rate| *rate > 0.9 * 189e6), "{late:?}");
    assert!(seen.moves.is_empty(), "{:?}", seen.moves);
}

#[test]
fn a_longer_way_with_losses_is_told_from_a_queue_and_bbr_is_tried() {
    // The tuner of that day saw a queue for the rest of the transfer, and half of what was possible.
    let seen = replay(include_str!("recorded/rtt-doubles-lossy.jsonl"), &[]);
    seen.limited_by(&[Limiter::Network]);
    let step = seen.windows.iter().position(|w| w.rate() < 160e6).unwrap();
    let (at, knobs) = seen.moves[0];
    let waited: u64 = seen.windows[step..=at].iter().map(|w| w.ns).sum();
    assert!(at > step && waited < 8_000_000_000, "{step} {:?}", seen.moves);
    assert_eq!(knobs.control, Some(Control::Bbr));
    assert!(knobs.pacing.is_some_and(|bits| (180_000_000..220_000_000).contains(&bits)), "{knobs:?}");
}
