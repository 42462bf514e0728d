//! How many round trips a transfer takes beside the bytes.

use super::site::{Site, lab};
use crate::support::scratch;
use std::net::TcpListener;

const RTT: f64 = 0.2;

/// From the request for a ticket to the verdict of a file of 1 KiB, with the agent on these ports: the best of three, since what
/// other processes take is no round trip.
fn trips(letter: char, ports: (u16, u16)) -> Option<f64> {
    let (lab, dir) = (lab(letter, &["--rtt", "200ms", "--rate", "200mbit"])?, scratch(1 << 20));
    let place = dir.path().join("source");
    let site = Site::with_source_at(lab, dir, &place, 1024, ports);
    // Nobody's data port, where a guess would look for one.
    let _silent = (ports.1 != 8471).then(|| site.lab.inside('b', || TcpListener::bind("0.0.0.0:8471").unwrap()).join());
    let trips = |_| site.done(site.start(&[]))["duration_ns"].as_f64().unwrap() / 1e9 / RTT;
    let best = (0..3).map(trips).fold(f64::MAX, f64::min);
    eprintln!("{best:.1} round trips from the request for a ticket to the verdict, with the agent on {ports:?}");
    Some(best)
}

/// The data streams are dialled while the control stream still agrees on what to move: 2 round trips for TLS and the ticket's
/// request, 2 until the session is open, 2 for the streams, 1 for the bytes, 2 for totals and verdict; one after the other
/// it is one more. Where the data port was guessed wrong, that costs nothing.
/// Needs root: network namespaces; skipped without.
#[test]
fn streams_are_dialled_while_the_offer_is_on_its_way() {
    for ports in [(0, 0), (8470, 0)] {
        let Some(trips) = trips('x', ports) else { return };
        assert!(trips < 9.6, "{trips:.1} round trips on {ports:?}");
    }
}

/// Where agents have their ports unless somebody chose others, control stream and data streams are dialled while the ticket is
/// on its way, and the manifest comes with the offer: none of these costs a round trip of its own.
/// Needs root: network namespaces; skipped without.
#[test]
fn the_usual_data_port_is_dialled_while_the_ticket_is_on_its_way() {
    let Some(trips) = trips('h', (8470, 8471)) else { return };
    assert!(trips < 7.5, "{trips:.1} round trips");
}
