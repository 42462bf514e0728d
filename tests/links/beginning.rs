//! How many round trips a transfer takes beside the bytes.

use super::lab::FAR;
use super::site::{Site, lab};
use crate::support::{Agent, data_file, scratch};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

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

/// Data streams that were dialled ahead and are cut off at their first word (an agent with many strangers makes room) are dialled
/// anew at once: no pause of 200 ms, four round trips here, is added to the one for the news and the one for the dial.
/// Needs root: network namespaces; skipped without.
#[test]
fn what_was_dialled_ahead_and_is_cut_off_is_dialled_anew_at_once() {
    let Some(lab) = lab('k', &["--rtt", "50ms", "--rate", "200mbit"]) else { return };
    let dir = scratch(1 << 20);
    let front = format!("{FAR}:8471");
    let agent =
        Agent::start_at(&dir.path().join("source"), &lab.prefix('b'), FAR, (8470, 9471), &["--advertise-data", &front]);
    data_file(&agent.root().join("file"), 1024, 7);
    let door = Arc::new(Mutex::new(Door::default()));
    let kept = door.clone();
    let _front = lab.inside('b', move || cut_off_ahead(&TcpListener::bind(front).unwrap(), &kept));
    let site = Site { lab, agent, dir };
    let trips = |_| {
        *door.lock().unwrap() = Door::default();
        let took = site.done(site.start(&[]))["duration_ns"].as_f64().unwrap() / 1e9 / 0.05;
        assert!(door.lock().unwrap().cut > 0, "streams were dialled ahead, and cut off");
        took
    };
    let best = (0..3).map(trips).fold(f64::MAX, f64::min);
    eprintln!("{best:.1} round trips where what was dialled ahead is cut off");
    assert!(best < 13.0, "{best:.1} round trips");
}

/// What a transfer's connections have met so far.
#[derive(Default)]
struct Door {
    accepted: usize,
    /// How many there were when the first said its first word, which is the control stream.
    ahead: Option<usize>,
    cut: usize,
}

/// Passes connections on to the data port of the agent, but for those that stood there when the control stream began to talk:
/// each of them is cut off when it says something.
fn cut_off_ahead(listener: &TcpListener, door: &Arc<Mutex<Door>>) {
    for mut client in listener.incoming().map_while(Result::ok) {
        let number = {
            let mut door = door.lock().unwrap();
            door.accepted += 1;
            door.accepted
        };
        let door = door.clone();
        // In the namespace too, as its parent is.
        std::thread::spawn(move || {
            if client.peek(&mut [0]).unwrap_or(0) == 0 {
                return;
            }
            {
                let mut door = door.lock().unwrap();
                match door.ahead {
                    None => door.ahead = Some(door.accepted),
                    Some(ahead) if number <= ahead => return door.cut += 1,
                    Some(_) => {}
                }
            }
            let mut server = TcpStream::connect((FAR, 9471)).unwrap();
            let (mut back, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let _ = std::io::copy(&mut client, &mut server);
            let _ = server.shutdown(Shutdown::Write);
        });
    }
}
