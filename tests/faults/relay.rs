//! A relay in front of an agent's data port that cuts, falls silent or flips a byte. Connection 0 is a session's control
//! stream, the data streams follow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Pair {
    client: TcpStream,
    server: TcpStream,
    silent: AtomicBool,
    /// One side is closed and the other is not told.
    half_open: AtomicBool,
    /// A pump has ended.
    over: AtomicBool,
    /// Bytes that the agent has sent through it, and those that it was sent.
    down: AtomicU64,
    up: AtomicU64,
}

#[derive(Default)]
struct Shared {
    target: Mutex<Option<SocketAddr>>,
    pairs: Mutex<Vec<Arc<Pair>>>,
    /// Connection, whether in what the agent sends, and the offset there.
    flip: Mutex<Option<(usize, bool, u64)>>,
    /// Connection, what the agent is sent without delay, and how late the rest of it comes.
    delay: Mutex<Option<(usize, u64, Duration)>>,
}

#[derive(Clone)]
pub struct Relay {
    shared: Arc<Shared>,
    pub address: SocketAddr,
}

impl Relay {
    /// Listens; accepts nothing useful before [`Relay::forward_to`].
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let inner = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let target = *inner.target.lock().unwrap();
                let Some(server) = target.and_then(|target| TcpStream::connect(target).ok()) else { continue };
                let pair = Arc::new(Pair {
                    client,
                    server,
                    silent: AtomicBool::new(false),
                    half_open: AtomicBool::new(false),
                    over: AtomicBool::new(false),
                    down: AtomicU64::new(0),
                    up: AtomicU64::new(0),
                });
                let number = {
                    let mut pairs = inner.pairs.lock().unwrap();
                    pairs.push(pair.clone());
                    pairs.len() - 1
                };
                let (down, up, shared) = (pair.clone(), pair, inner.clone());
                std::thread::spawn(move || pump(&down, true, number, &shared));
                let shared = inner.clone();
                std::thread::spawn(move || pump(&up, false, number, &shared));
            }
        });
        Self { shared, address }
    }

    pub fn forward_to(&self, target: &str) {
        *self.shared.target.lock().unwrap() = Some(target.parse().unwrap());
    }

    /// Flips one bit of what the agent sends on a connection.
    pub fn flip(&self, connection: usize, offset: u64) {
        *self.shared.flip.lock().unwrap() = Some((connection, true, offset));
    }

    /// The same in what the agent is sent.
    pub fn flip_up(&self, connection: usize, offset: u64) {
        *self.shared.flip.lock().unwrap() = Some((connection, false, offset));
    }

    /// Past `bytes`, what the agent is sent on a connection comes later, once.
    pub fn delay_up(&self, connection: usize, bytes: u64, by: Duration) {
        *self.shared.delay.lock().unwrap() = Some((connection, bytes, by));
    }

    /// Whether that has happened.
    pub fn delayed(&self) -> bool {
        self.shared.delay.lock().unwrap().is_none()
    }

    /// What the agent was sent through a connection.
    pub fn carried_up(&self, connection: usize) -> u64 {
        self.shared.pairs.lock().unwrap()[connection].up.load(Ordering::Relaxed)
    }

    /// Takes back a flip that has not happened, and says whether there was one.
    pub fn unflip(&self) -> bool {
        self.shared.flip.lock().unwrap().take().is_some()
    }

    /// Whether the flip has happened.
    pub fn flipped(&self) -> bool {
        self.shared.flip.lock().unwrap().is_none()
    }

    pub fn connections(&self) -> usize {
        self.shared.pairs.lock().unwrap().len()
    }

    /// What the agent has sent, by connection.
    pub fn all_carried(&self) -> Vec<u64> {
        (0..self.connections()).map(|n| self.carried(n)).collect()
    }

    /// What the agent has sent through a connection.
    pub fn carried(&self, connection: usize) -> u64 {
        self.shared.pairs.lock().unwrap()[connection].down.load(Ordering::Relaxed)
    }

    /// Resets a connection at both sides.
    pub fn reset(&self, connection: usize) {
        let pair = self.shared.pairs.lock().unwrap()[connection].clone();
        for socket in [&pair.client, &pair.server] {
            let _ = socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
            // With nothing left to read or write the pumps end, and the last owner's close sends the reset.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn reset_all(&self) {
        (0..self.connections()).for_each(|n| self.reset(n));
    }

    /// Whether a connection is open and carries what it is given.
    pub fn alive(&self, connection: usize) -> bool {
        let pair = self.shared.pairs.lock().unwrap()[connection].clone();
        ![&pair.silent, &pair.half_open, &pair.over].iter().any(|flag| flag.load(Ordering::Relaxed))
    }

    /// Ends a connection in order at the side that dialled; the other learns it when it sends.
    pub fn fin(&self, connection: usize) {
        let pair = self.shared.pairs.lock().unwrap()[connection].clone();
        let _ = pair.client.shutdown(std::net::Shutdown::Write);
    }

    /// Closes the agent's side; the side that dialled keeps a connection that answers nothing.
    pub fn half_open(&self, connection: usize) {
        let pair = self.shared.pairs.lock().unwrap()[connection].clone();
        pair.half_open.store(true, Ordering::Relaxed);
        let _ = pair.server.shutdown(std::net::Shutdown::Both);
    }

    /// A connection stays open and carries nothing any more.
    pub fn silence(&self, connection: usize) {
        self.shared.pairs.lock().unwrap()[connection].silent.store(true, Ordering::Relaxed);
    }
}

fn pump(pair: &Pair, down: bool, number: usize, shared: &Shared) {
    let (mut from, mut to) = if down { (&pair.server, &pair.client) } else { (&pair.client, &pair.server) };
    let (mut buffer, mut at) = (vec![0; 64 << 10], 0u64);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        while pair.silent.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        {
            let mut flip = shared.flip.lock().unwrap();
            let here = |(n, way, offset): &(usize, bool, u64)| {
                (*n, *way) == (number, down) && (at..at + count as u64).contains(offset)
            };
            if let Some((.., offset)) = flip.filter(here) {
                buffer[(offset - at) as usize] ^= 0x10;
                *flip = None;
            }
        }
        let late = {
            let mut delay = shared.delay.lock().unwrap();
            delay.take_if(|(n, after, _)| !down && *n == number && at >= *after)
        };
        if let Some((.., by)) = late {
            std::thread::sleep(by);
        }
        at += count as u64;
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        if down { &pair.down } else { &pair.up }.fetch_add(count as u64, Ordering::Relaxed);
    }
    pair.over.store(true, Ordering::Relaxed);
    if !pair.half_open.load(Ordering::Relaxed) {
        let _ = from.shutdown(std::net::Shutdown::Both);
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}
