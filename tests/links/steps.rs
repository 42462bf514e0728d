//! A link that changes under a transfer: within 10 s nine tenths of what is then possible arrive again, by the file system's
//! count. Where it takes less, less is asked for.

use super::site::Site;
use std::time::Duration;

/// What TCP, IP and frames leave of a link's rate for payload.
const PAYLOAD: f64 = 0.945;
const SECOND: Duration = Duration::from_secs(1);

/// Changes a link of 200 Mbit/s that loses `loss`, and looks at the seconds from `after` on; it has `mbit` by then.
/// Needs root: network namespaces; skipped without.
fn step(letter: char, loss: &str, change: &[&str], mbit: f64, after: Duration) {
    let link = ["--rtt", "60ms", "--rate", "200mbit", "--loss", loss, "--tcp-buf", "64m"];
    let Some(site) = Site::up(letter, &link, 448 << 20) else { return };
    let copy = site.start(&[]);
    // Past the slow start, and what it has overflowed.
    site.has_placed(64 << 20);
    let before = site.rate(2 * SECOND);
    assert!(before > 0.85 * PAYLOAD * 200.0, "{before:.0} Mbit/s before anything has changed");
    site.lab.set(change);
    let first = site.rate(after);
    let then = site.rate(4 * SECOND);
    copy.kill();
    let possible = PAYLOAD * mbit;
    eprintln!(
        "{change:?}: {before:.0} Mbit/s before, {first:.0} in the first {after:?}, then {then:.0} of {possible:.0}"
    );
    assert!(then >= 0.9 * possible, "{change:?}: {then:.0} of {possible:.0} Mbit/s");
}

#[test]
fn the_rate_halves() {
    step('h', "0%", &["--rate", "100mbit"], 100.0, 5 * SECOND);
}

#[test]
fn losses_appear() {
    step('l', "0%", &["--loss", "0.1%"], 200.0, 5 * SECOND);
}

#[test]
fn the_round_trip_doubles() {
    step('d', "0%", &["--rtt", "120ms"], 200.0, 5 * SECOND);
}

/// Cubic bears so few losses over 60 ms and not over 120; that it is no queue has to be found out.
#[test]
fn the_round_trip_doubles_where_some_is_lost() {
    step('y', "0.01%", &["--rtt", "120ms"], 200.0, 10 * SECOND);
}
