//! Crowds before the door: connections that say nothing or very little, from one address and from many, while somebody
//! honest wants to be let in.

use crate::peer::{Session, destination, read_ticket, source, write_ticket};
use crate::stage::Stage;
use crate::support::SOON;
use longhaul::wire::control::Message;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Room for the sockets of a crowd in this process: how many there may be.
fn room(sockets: u64) -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = (sockets + 500).min(hard);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
    }
    assert!(wanted >= 1_500, "at most {hard} open files here: too few for a crowd");
    sockets.min(wanted - 500)
}

/// A connection to `port` from 127.x.y.z.
fn from(source: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

fn address(number: u32, addresses: u32) -> Ipv4Addr {
    let number = number % addresses;
    Ipv4Addr::new(127, 77, (number / 250) as u8, 1 + (number % 250) as u8)
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A crowd that is renewed as it is shown the door, for as long as `meanwhile` takes.
fn crowd(stage: &Stage, port: u16, addresses: u32, size: u32, meanwhile: impl FnOnce()) -> u64 {
    let (stop, opened) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let idle: Vec<TcpStream> = (0..size).filter_map(|n| from(address(n, addresses), port).ok()).collect();
        opened.fetch_add(idle.len() as u64, Ordering::Relaxed);
        assert!(idle.len() as u32 > size / 2, "only {} of {size} could knock", idle.len());
        // Who is shown the door comes back.
        scope.spawn(|| {
            let mut number = size;
            let mut more = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                more.extend(from(address(number, addresses), port).ok());
                opened.fetch_add(1, Ordering::Relaxed);
                number += 1;
                if more.len() > 400 {
                    more.drain(..200);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        meanwhile();
        stop.store(true, Ordering::Relaxed);
        drop(idle);
    });
    assert!(!stage.sandbox.path().as_os_str().is_empty());
    opened.into_inner()
}

#[test]
fn idle_connections_keep_nobody_out() {
    let mut stage = Stage::new();
    // The agent closes most of its own ends at once; ours stay.
    let size = room(5_500) as u32 - 500;
    let base = descriptors(stage.agent.running.pid());
    for addresses in [1, 250] {
        // Who is honest comes from 127.0.0.1.
        let mut took = Duration::ZERO;
        let opened = crowd(&stage, stage.agent.data, addresses, size, || {
            for _ in 0..3 {
                took = took.max(stage.honest());
            }
        });
        println!(
            "COUNT idle_connections={opened} addresses={addresses} honest_copies=6 slowest_pair_ms={}",
            took.as_millis()
        );
        assert!(took < SOON / 3, "honest copies took {took:?}");
        stage.unharmed("a crowd");
    }
    // What is said in a crowd's name is forgotten with it.
    let began = Instant::now();
    while descriptors(stage.agent.running.pid()) > base + 64 {
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "descriptors stay: {}",
            descriptors(stage.agent.running.pid())
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Ends what goes on beside a test, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Streams that have every right to be there, in both roles, and do nothing: ten times as many as the agent has buffers. It
/// keeps none for them, and little else.
#[test]
fn idle_streams_of_open_sessions_keep_no_buffers() {
    let mut stage = Stage::new();
    let wanted = room(crate::count(1_200, 5_500)).min(crate::count(1_200, 5_000)) as usize;
    let (stop, controls) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::<Session>::new()));
    let mut idle = Vec::new();
    let (mut growth, mut took) = (Vec::new(), Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                controls.lock().unwrap().iter_mut().for_each(|session| {
                    session.control.say(&Message::Ping);
                });
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let _end = SetOnDrop(&stop);
        while idle.len() < wanted {
            let number = controls.lock().unwrap().len();
            let mut session = match number % 2 {
                0 => destination(&read_ticket(&stage.agent, "/src"), 31, |_| {}),
                _ => source(&write_ticket(&stage.agent, &format!("/in/idle{number}")), 31),
            };
            assert!(session.streams > 20, "{} streams", session.streams);
            idle.extend((1..=session.streams).map(|index| session.stream(index).unwrap()));
            controls.lock().unwrap().push(session);
            if idle.len() * 2 > wanted && growth.is_empty() {
                growth.push(stage.growth());
            }
        }
        growth.push(stage.growth());
        took = stage.honest();
    });
    println!("COUNT idle_streams={} rss_growth={growth:?} honest_pair_ms={}", idle.len(), took.as_millis());
    assert!(took < SOON / 3, "honest copies took {took:?}");
    // Half of them, all of them: a stream costs its state, some KiB, and not its block of 256.
    let each = growth[1].saturating_sub(growth[0]) / (wanted as u64 / 2);
    assert!(each < 32 << 10, "{each} bytes for an idle stream: {growth:?}");
    drop((idle, controls));
    stage.unharmed("idle streams");
}

/// From the very address that the crowd comes from: a neighbour is not shut out for what others do.
#[test]
fn a_crowd_does_not_shut_its_neighbour_out() {
    let mut stage = Stage::new();
    let opened = {
        let idle: Vec<TcpStream> = (0..300).filter_map(|_| from(Ipv4Addr::LOCALHOST, stage.agent.data).ok()).collect();
        let took = stage.honest();
        println!("COUNT idle_neighbours={} honest_pair_ms={}", idle.len(), took.as_millis());
        // Not until the crowd is cut off, ten seconds after it came.
        assert!(took < Duration::from_secs(9), "{took:?}");
        idle.len()
    };
    assert!(opened > 100);
    stage.unharmed("a crowd at home");
}

/// A byte now and then: the deadline is one for all of it, not for each byte.
#[test]
fn dribbling_connections_are_cut_off_in_time() {
    let mut stage = Stage::new();
    room(1_000);
    let began = Instant::now();
    let hello = *longhaul::wire::handshake::Dialer::new(
        longhaul::wire::handshake::Purpose::Open(longhaul::ids::TicketId([1; 16])),
        longhaul::ids::StreamIndex(0),
        1,
        1,
        false,
        &[0; 32],
    )
    .unwrap()
    .hello();
    let mut crowd: Vec<TcpStream> = (0..200).filter_map(|n| from(address(n, 100), stage.agent.data).ok()).collect();
    assert!(crowd.len() > 150);
    crowd.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    let (mut sent, mut cut) = (0, 0);
    let mut honest = Duration::ZERO;
    while !crowd.is_empty() {
        // Whole hellos, and with them another reason, would be there after 35 s.
        assert!(began.elapsed() < Duration::from_secs(25), "{} are still there", crowd.len());
        crowd.retain_mut(|socket| {
            let gone = socket.write_all(&hello[sent % 170..][..1]).is_err()
                || matches!(socket.read(&mut [0; 1]), Ok(0))
                || socket.read(&mut [0; 1]).is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock);
            cut += u32::from(gone);
            !gone
        });
        sent += 1;
        if sent == 4 {
            honest = stage.honest();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!(
        "COUNT dribbling={cut} cut_after_ms={} honest_pair_ms={}",
        began.elapsed().as_millis(),
        honest.as_millis()
    );
    assert!(honest > Duration::ZERO, "they were cut before anybody honest came");
    stage.unharmed("dribbling");
}
