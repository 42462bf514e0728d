//! Tells collectors of a session's tagged data streams: when one is up, from time to time, and when it is closed. A
//! datagram that cannot go at once does not go, and no transfer waits or fails for one.

use super::conn::Parked;
use super::coordinator::Ctx;
use super::worker::StreamKey;
use crate::clock;
use crate::limits::{FIREFLIES_WAITING, FIREFLY_EVERY_MS};
use crate::net::Beacon;
use crate::profile::{Collector, SciTag};
use crate::wire::firefly::{Firefly, State};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a test sets to hear of streams that go on without waiting a minute, in milliseconds.
#[cfg(feature = "testing")]
const EVERY_VAR: &str = "LONGHAUL_FIREFLY_EVERY_MS";

/// The streams of one session that are told of.
#[derive(Debug)]
pub struct Fireflies {
    tag: SciTag,
    host: String,
    every: Duration,
    flows: BTreeMap<StreamKey, Flow>,
    lamp: Rc<RefCell<Lamp>>,
}

#[derive(Debug)]
struct Flow {
    local: SocketAddr,
    peer: SocketAddr,
    begun: String,
    told: Instant,
}

/// The way out. Before the collectors' names are looked up, what is to be sent waits here; it goes out even if the session has
/// ended meanwhile.
#[derive(Debug, Default)]
struct Lamp {
    beacon: Option<Beacon>,
    waiting: Vec<Vec<u8>>,
    failed: Option<String>,
}

impl Lamp {
    fn send(&mut self, bytes: Vec<u8>) {
        match &self.beacon {
            Some(beacon) => {
                if let Some((to, error)) = beacon.send(&bytes) {
                    self.failed.get_or_insert_with(|| format!("{to}: {error}"));
                }
            }
            None if self.waiting.len() < FIREFLIES_WAITING => self.waiting.push(bytes),
            None => {
                self.failed.get_or_insert_with(|| "its collectors' names are still being looked up".to_owned());
            }
        }
    }

    fn light(&mut self, found: Found) {
        let (beacon, error) = Beacon::open(&found.to);
        self.failed = self.failed.take().or(found.failed).or_else(|| error.map(|error| error.to_string()));
        self.beacon = Some(beacon);
        std::mem::take(&mut self.waiting).into_iter().for_each(|bytes| self.send(bytes));
    }
}

/// Where collectors are.
#[derive(Debug, Default)]
struct Found {
    to: Vec<SocketAddr>,
    failed: Option<String>,
}

/// Blocking where a name has to be looked up.
fn find(collectors: &[Collector]) -> Found {
    let mut found = Found::default();
    for collector in collectors {
        // One datagram for a collector, not one for each of its addresses.
        match (collector.host.as_str(), collector.port).to_socket_addrs().map(|mut all| all.next()) {
            Ok(Some(address)) => found.to.push(address),
            Ok(None) => found.failed = Some(format!("{collector} has no address")),
            Err(error) => found.failed = Some(format!("{collector}: {error}")),
        }
    }
    found
}

fn every() -> Duration {
    #[cfg(feature = "testing")]
    if let Some(ms) = std::env::var(EVERY_VAR).ok().and_then(|text| text.parse().ok()) {
        return Duration::from_millis(ms);
    }
    Duration::from_millis(FIREFLY_EVERY_MS)
}

/// The wall clock in RFC 3339 with microseconds.
fn wall() -> String {
    let micros = i64::try_from(clock::unix_micros()).unwrap_or(0);
    format!("{:.6}", jiff::Timestamp::from_microsecond(micros).unwrap_or_default())
}

impl Fireflies {
    /// `None` where there is nothing to tell or nobody to be told.
    pub fn new(ctx: &Ctx, tag: Option<SciTag>, collectors: &[Collector]) -> Option<Self> {
        let tag = tag.filter(|_| !collectors.is_empty())?;
        let lamp = Rc::<RefCell<Lamp>>::default();
        let collectors = collectors.to_vec();
        if collectors.iter().all(|collector| collector.host.parse::<std::net::IpAddr>().is_ok()) {
            lamp.borrow_mut().light(find(&collectors));
        } else {
            let (pool, lamp) = (ctx.pool.clone(), lamp.clone());
            tokio::task::spawn_local(async move {
                let found = pool.run(move || find(&collectors)).await;
                lamp.borrow_mut().light(found);
            });
        }
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        Some(Self { tag, host, every: every(), flows: BTreeMap::new(), lamp })
    }

    /// A stream is up.
    pub fn up(&mut self, stream: StreamKey, socket: &Parked) {
        if let Some((local, peer)) = socket.ends() {
            self.flows.insert(stream, Flow { local, peer, begun: wall(), told: clock::now() });
            self.tell(stream, socket, State::Start);
        }
    }

    /// Streams that have not been told of for long enough.
    pub fn due(&self) -> Vec<StreamKey> {
        let due = |flow: &Flow| clock::since(flow.told) >= self.every;
        self.flows.iter().filter(|(_, flow)| due(flow)).map(|(stream, _)| *stream).collect()
    }

    /// A stream goes on.
    pub fn on(&mut self, stream: StreamKey, socket: &Parked) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.told = clock::now();
            self.tell(stream, socket, State::Ongoing);
        }
    }

    /// A stream is closed.
    pub fn down(&mut self, stream: StreamKey, socket: &Parked) {
        self.tell(stream, socket, State::End);
        self.flows.remove(&stream);
    }

    fn tell(&self, stream: StreamKey, socket: &Parked, state: State) {
        let Some(flow) = self.flows.get(&stream) else { return };
        let info = socket.tcp_info().unwrap_or_default();
        let firefly = Firefly {
            state,
            now: &wall(),
            begun: &flow.begun,
            tag: self.tag,
            host: &self.host,
            local: flow.local,
            peer: flow.peer,
            received: info.bytes_received,
            // Not what was acknowledged: the last acknowledgement may be 40 ms late, and an end is told once.
            sent: info.bytes_sent.saturating_sub(info.bytes_retrans),
        };
        self.lamp.borrow_mut().send(firefly.encode());
    }

    /// What kept a firefly from being sent, the first time it did.
    pub fn note(&self) -> Option<String> {
        self.lamp.borrow().failed.as_ref().map(|why| format!("a firefly was not sent: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scitag_collectors_that_cannot_be_found_are_said_and_the_others_told() {
        let listener = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let collectors = [format!("127.0.0.1:{port}"), "nobody.invalid".to_owned()].map(|text| text.parse().unwrap());
        let mut lamp = Lamp::default();
        lamp.send(b"early".to_vec());
        (0..2 * FIREFLIES_WAITING).for_each(|_| lamp.send(b"more".to_vec()));
        assert_eq!(lamp.waiting.len(), FIREFLIES_WAITING);
        assert!(lamp.failed.take().is_some());
        lamp.light(find(&collectors));
        let mut bytes = [0; 16];
        assert_eq!((listener.recv(&mut bytes).unwrap(), &bytes[..5]), (5, &b"early"[..]));
        assert!(lamp.failed.as_ref().unwrap().contains("nobody.invalid:10514"), "{lamp:?}");
        assert!(lamp.waiting.is_empty());
        let text = wall();
        assert!(text.len() == 27 && text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(), "{text}");
    }
}
