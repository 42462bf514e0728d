//! `scripts/lab.sh`: the link is what was asked for. Round trip, loss, queue and rate, before and after live changes, seen
//! with UDP and TCP from threads inside its namespaces.

use crate::support::{Agent, BINARY, data_file, scratch, skip};
use nix::sched::{CloneFlags, setns};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const FAR: &str = "10.77.0.2";
/// An answer that is not there by then was lost.
const PATIENCE: Duration = Duration::from_millis(1500);

const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// Lets namespaces have cubic as their default, and sets this host back afterwards.
struct Cubic(Option<String>);

impl Cubic {
    fn allow() -> Self {
        let before = std::fs::read_to_string(ALLOWED).unwrap();
        if before.split_whitespace().any(|name| name == "cubic") {
            return Self(None);
        }
        let wanted = format!("{} cubic", before.trim());
        // Where this is no root's machine, the lab says so.
        Self(std::fs::write(ALLOWED, wanted).is_ok().then_some(before))
    }
}

impl Drop for Cubic {
    fn drop(&mut self) {
        self.0.iter().for_each(|before| drop(std::fs::write(ALLOWED, before.trim())));
    }
}

pub struct Lab {
    name: String,
    spaces: (String, String),
    _cubic: Option<Cubic>,
    _alone: MutexGuard<'static, ()>,
}

fn script(words: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lab.sh");
    let output = Command::new(script).args(words).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

impl Lab {
    /// `None`, said why, where it cannot be had.
    pub fn up(letter: char, words: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("network namespaces need root");
            return None;
        }
        let alone = crate::alone();
        let name = format!("t{letter}{}", std::process::id() % 10_000_000);
        let lab = Self {
            spaces: (format!("{name}-a"), format!("{name}-b")),
            name,
            _cubic: words.contains(&"cubic").then(Cubic::allow),
            _alone: alone,
        };
        let (done, said) = script(&[&["up", "--name", &lab.name][..], words].concat());
        assert!(done, "{said}");
        Some(lab)
    }

    /// What a command inside one of the namespaces begins with.
    pub fn prefix(&self, side: char) -> Vec<&str> {
        let name = if side == 'a' { &self.spaces.0 } else { &self.spaces.1 };
        vec!["ip", "netns", "exec", name]
    }

    /// Changes the link while it is up.
    pub fn set(&self, words: &[&str]) {
        let (done, said) = script(&[&["set", "--name", &self.name][..], words].concat());
        assert!(done, "{said}");
    }

    /// Runs `work` in a thread inside one of the namespaces.
    pub fn inside<T: Send + 'static>(&self, side: char, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let space = format!("/run/netns/{}-{side}", self.name);
        std::thread::spawn(move || {
            setns(std::fs::File::open(space).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = script(&["down", "--name", &self.name]);
    }
}

/// Sends every datagram back, on side b, as long as it lives.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    port: u16,
}

fn roomy(socket: &UdpSocket) {
    // The bursts below have to fit the receiver's buffer: what is lost there is not the link's.
    longhaul::sys::syscall::force_buffer(socket, true, 16 << 20).unwrap();
}

impl Echo {
    fn on(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = std::sync::mpsc::channel();
        let ends = stop.clone();
        let thread = lab.inside('b', move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            roomy(&socket);
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            tell.send(socket.local_addr().unwrap().port()).unwrap();
            let mut buf = [0; 2000];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buf) {
                    let _ = socket.send_to(&buf[..len], from);
                }
            }
        });
        let port = told.recv().unwrap();
        Self { stop, thread: Some(thread), port }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Sends `count` datagrams of `bytes`, `gap` apart, and gives the round trips of those that came back, in ms.
fn trips(lab: &Lab, echo: &Echo, count: usize, bytes: usize, gap: Duration) -> Vec<f64> {
    let port = echo.port;
    let work = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        roomy(&socket);
        socket.connect((FAR, port)).unwrap();
        let receiver = socket.try_clone().unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let began = Instant::now();
        let collect = std::thread::spawn(move || {
            let (mut buf, mut found) = ([0; 2000], Vec::new());
            while found.len() < count {
                let Ok(len) = receiver.recv(&mut buf) else { break };
                assert_eq!(len, bytes);
                let sent = u64::from_le_bytes(buf[..8].try_into().unwrap());
                found.push((began.elapsed().as_micros() as u64 - sent) as f64 / 1e3);
            }
            found
        });
        let mut datagram = vec![0; bytes];
        for number in 0..count {
            datagram[..8].copy_from_slice(&(began.elapsed().as_micros() as u64).to_le_bytes());
            socket.send(&datagram).unwrap();
            // Not in one go: the sender's own queue is shorter than some of these bursts.
            if !gap.is_zero() || number % 50 == 49 {
                std::thread::sleep(gap.max(Duration::from_micros(100)));
            }
        }
        collect.join().unwrap()
    };
    lab.inside('a', work).join().unwrap()
}

fn least(trips: &[f64]) -> f64 {
    trips.iter().copied().fold(f64::MAX, f64::min)
}

fn most(trips: &[f64]) -> f64 {
    trips.iter().copied().fold(0.0, f64::max)
}

/// Needs root: network namespaces, and a TUN device where the kernel has no netem; skipped without.
#[test]
fn a_lab_has_the_round_trip_and_the_losses_that_were_asked_for() {
    let Some(lab) = Lab::up('r', &["--rtt", "100ms"]) else { return };
    let echo = Echo::on(&lab);
    let gap = Duration::from_millis(10);
    let far = trips(&lab, &echo, 30, 100, gap);
    assert_eq!(far.len(), 30, "nothing is lost unasked");
    // Two wake-ups each way; what the machine does beside it, the least does not see.
    assert!((100.0..103.0).contains(&least(&far)), "{far:?}");
    lab.set(&["--rtt", "20ms"]);
    let near = trips(&lab, &echo, 30, 100, gap);
    assert!((20.0..23.0).contains(&least(&near)), "{near:?}");

    // 5 % each way: 9.75 % do not come back; four standard deviations of 4,000 are 1.9 %.
    lab.set(&["--rtt", "0ms", "--loss", "5%"]);
    let count = 4000;
    let lost = 1.0 - trips(&lab, &echo, count, 100, Duration::ZERO).len() as f64 / count as f64;
    eprintln!("round trips of {:.2} and {:.2} ms, {:.2} % lost of 9.75", least(&far), least(&near), lost * 100.0);
    assert!((0.0785..0.1165).contains(&lost), "{lost}");

    // An outage, and its end.
    lab.set(&["--loss", "0%"]);
    let (done, said) = script(&["cut", "--name", &lab.name, "--for", "1s"]);
    assert!(done, "{said}");
    if said.is_empty() && script(&["status", "--name", &lab.name]).1.contains("with=wanlab") {
        assert_eq!(trips(&lab, &echo, 5, 100, Duration::ZERO).len(), 0, "in the outage");
    }
    assert_eq!(trips(&lab, &echo, 5, 100, gap).len(), 5, "after it");

    let (again, said) = script(&["up", "--name", &lab.name]);
    assert!(!again && said.contains("is up already"), "{said}");
    let space = format!("/run/netns/{}-a", lab.name);
    assert!(Path::new(&space).exists());
    drop(echo);
    drop(lab);
    assert!(!Path::new(&space).exists(), "down takes everything away");
}

/// Needs root: network namespaces, and a TUN device where the kernel has no netem; skipped without.
#[test]
fn a_lab_has_the_rate_and_the_queue_that_were_asked_for() {
    let Some(lab) = Lab::up('q', &["--rtt", "10ms", "--rate", "20mbit", "--queue", "256k"]) else { return };
    let echo = Echo::on(&lab);
    // 500 packets of 1,228 bytes at once: 213 fit the queue while some leave, the others are dropped. The last that fits
    // waits for 256 KiB at 20 Mbit/s, 105 ms.
    let burst = trips(&lab, &echo, 500, 1200, Duration::ZERO);
    let (count, longest) = (burst.len(), most(&burst));
    eprintln!("{count} of 500 came through a queue of 256 KiB, the last after {longest:.1} ms");
    assert!((210..=260).contains(&count), "{count} packets");
    // Its own delay on top, and what the machine adds when it is busy.
    assert!((114.0..160.0).contains(&longest), "{longest} ms");

    lab.set(&["--rate", "100mbit", "--queue", "1.0bdp"]);
    let server = lab.inside('b', || {
        let listener = TcpListener::bind("0.0.0.0:5201").unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        let (mut buf, mut total, mut from) = (vec![0; 1 << 16], 0u64, None);
        // The first 4 MiB are the connection's start.
        while let Ok(len @ 1..) = socket.read(&mut buf) {
            total += len as u64;
            if total > 4 << 20 && from.is_none() {
                from = Some((Instant::now(), total));
            }
        }
        let (since, before) = from.unwrap();
        (total - before) as f64 * 8.0 / since.elapsed().as_secs_f64() / 1e6
    });
    let client = lab.inside('a', || {
        let end = Instant::now() + Duration::from_secs(10);
        let mut socket = loop {
            match TcpStream::connect((FAR, 5201)) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
        };
        let block = vec![7; 1 << 16];
        (0..(24 << 4)).for_each(|_| socket.write_all(&block).unwrap());
    });
    client.join().unwrap();
    let rate = server.join().unwrap();
    eprintln!("{rate:.1} Mbit/s of payload at 100 Mbit/s");
    // Headers leave 96.5 % for payload.
    assert!((85.0..97.5).contains(&rate), "{rate} Mbit/s");
}

/// Needs root: network namespaces, and a TUN device where the kernel has no netem; skipped without.
#[test]
fn a_probe_finds_what_the_lab_is_and_cp_takes_its_profile() {
    let Some(lab) = Lab::up('p', &["--rtt", "40ms", "--rate", "100mbit"]) else { return };
    let dir = scratch(64 << 20);
    let space = |side: char| ["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), format!("{}-{side}", lab.name)];
    let far = space('b');
    let far: Vec<&str> = far.iter().map(String::as_str).collect();
    let agent = Agent::start_in(&dir.path().join("source"), &far, FAR, &[]);
    data_file(&agent.root().join("file"), 8 << 20, 5);
    let pin = agent.ready["fingerprint"].as_str().unwrap().to_owned();
    let run = |words: &[&str]| {
        let near = space('a');
        let mut command = Command::new(&near[0]);
        command.args(&near[1..]).arg(BINARY).args(words);
        command.args(["--json", "--peer-fingerprint", &pin, "--token-file"]).arg(agent.token_file());
        command.env("HOME", dir.path()).env_remove("XDG_CONFIG_HOME").env("XDG_STATE_HOME", dir.path().join("state"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        assert!(output.status.success(), "{json:#}\n{said}");
        json
    };
    let picture = dir.path().join("ramp.svg");
    let peer = agent.url("").trim_end_matches('/').to_owned();
    for direction in ["push", "pull"] {
        let began = Instant::now();
        let found = run(&[
            "probe",
            &peer,
            "--for",
            "12s",
            "--direction",
            direction,
            "--save",
            "lab",
            "--svg",
            picture.to_str().unwrap(),
        ]);
        assert!(began.elapsed() < Duration::from_secs(20), "a bounded time: {:?}", began.elapsed());
        let profile = &found["profile"];
        let (rate, rtt) = (profile["path"]["rate"].as_str().unwrap(), profile["path"]["rtt_min"].as_str().unwrap());
        let mbit = longhaul::units::parse_rate(rate).unwrap() as f64 / 1e6;
        let ms = longhaul::units::parse_span(rtt).unwrap().as_secs_f64() * 1e3;
        eprintln!("{direction}: {mbit:.1} Mbit/s, {ms:.2} ms, {} trials", found["trials"].as_array().unwrap().len());
        // Headers leave 96.5 % of the link for payload; what waited for a hole comes in lumps.
        assert!((80.0..103.0).contains(&mbit) && (40.0..44.0).contains(&ms), "{found:#}");
        assert_eq!((profile["path"]["mtu"].as_u64(), profile["measured"].as_bool()), (Some(1500), Some(true)));
        let sockets = std::fs::read_to_string(dir.path().join(".config/longhaul/profiles/lab.toml")).unwrap();
        assert!(sockets.contains(&format!("peers = [\"{FAR}\"]")), "{sockets}");
    }
    assert!(std::fs::read_to_string(&picture).unwrap().contains("<polyline"));
    let to = dir.path().join("copy");
    let report = run(&["cp", &agent.url("file"), to.to_str().unwrap()]);
    assert_eq!(
        (report["profile"].as_str(), report["profile_measured"].as_bool()),
        (Some("lab"), Some(true)),
        "{report:#}"
    );
    assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(agent.root().join("file")).unwrap());
}
