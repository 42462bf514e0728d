//! The yardstick: the least that moves a file over TCP with the same digest. Two processes, two streams, 256 KiB blocks:
//! pread, digest, send on one side; recv, digest, pwrite into a new file on the other. No frames, no journal, no sync.

use super::{Candidate, Fallible, Outcome, timed};
use longhaul::digest::ChunkHasher;
use longhaul::grid::Span;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const STREAMS: u64 = 2;
const BLOCK: usize = 256 << 10;
const SOCKET_BUFFER: usize = 1 << 20;
/// Tells this program that it is one end of the pair.
const ROLE: &str = "LONGHAUL_BENCH_PAIR";

pub struct Pair {
    source: PathBuf,
}

impl Pair {
    pub fn new(source: &Path) -> Self {
        Self { source: source.to_owned() }
    }
}

impl Candidate for Pair {
    fn name(&self) -> &str {
        "pair"
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let me = std::env::current_exe()?;
        let mut receiver = Command::new(&me)
            .env(ROLE, "receive")
            .arg(out.join(self.source.file_name().expect("made by us")))
            .arg(std::fs::metadata(&self.source)?.len().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut port = String::new();
        let mut said = BufReader::new(receiver.stdout.take().expect("piped"));
        said.read_line(&mut port)?;
        let before = super::cpu_of_ended();
        let began = std::time::Instant::now();
        let (_, _, sender, rss) = timed(Command::new(&me).env(ROLE, "send").arg(&self.source).arg(port.trim()))?;
        // The receiver says when its last byte is written, and waits to be read out.
        let mut ended = String::new();
        said.read_line(&mut ended)?;
        let wall = began.elapsed().as_secs_f64();
        if !receiver.wait()?.success() {
            return Err("the receiver failed".into());
        }
        let both = super::cpu_of_ended() - before;
        let rss_destination = ended.trim().parse().unwrap_or(0);
        Ok(Outcome {
            wall,
            cpu_source: sender,
            cpu_destination: both - sender,
            rss_source: rss,
            rss_destination,
            ..Outcome::default()
        })
    }
}

/// Runs one end of the pair, if that is what this process is.
pub fn pair_role() -> Option<()> {
    let role = std::env::var(ROLE).ok()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let run = match role.as_str() {
        "receive" => receive(Path::new(&args[0]), args[1].parse().expect("a length")),
        _ => send(Path::new(&args[0]), args[1].parse().expect("a port")),
    };
    run.expect("one end of the pair");
    Some(())
}

fn tuned(socket: &TcpStream) -> std::io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    let _ = socket.set_tcp_congestion(b"cubic");
    socket.set_tcp_nodelay(true)
}

/// Each stream's part of the file, in whole blocks.
fn part(len: u64, stream: u64) -> (u64, u64) {
    let blocks = len.div_ceil(BLOCK as u64);
    let edge = |n: u64| (blocks * n / STREAMS * BLOCK as u64).min(len);
    (edge(stream), edge(stream + 1))
}

fn send(path: &Path, port: u16) -> std::io::Result<()> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    std::thread::scope(|scope| {
        let ends: Vec<_> = (0..STREAMS)
            .map(|stream| {
                let file = &file;
                scope.spawn(move || {
                    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
                    tuned(&socket)?;
                    socket.write_all(&[stream as u8])?;
                    let (mut at, end) = part(len, stream);
                    let (mut buffer, mut hasher) = (vec![0; BLOCK], ChunkHasher::default());
                    while at < end {
                        let step = (end - at).min(BLOCK as u64) as usize;
                        file.read_exact_at(&mut buffer[..step], at)?;
                        hasher.update(&buffer[..step]);
                        socket.write_all(&buffer[..step])?;
                        at += step as u64;
                    }
                    socket.write_all(&hasher.finish(Span { offset: 0, len }).0)
                })
            })
            .collect();
        ends.into_iter().try_for_each(|end| end.join().expect("no panic"))
    })
}

fn receive(path: &Path, len: u64) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    let file = File::create_new(path)?;
    std::thread::scope(|scope| {
        let ends: Vec<_> = (0..STREAMS)
            .map(|_| {
                let (file, listener) = (&file, &listener);
                scope.spawn(move || {
                    let (mut socket, _) = listener.accept()?;
                    tuned(&socket)?;
                    let mut stream = [0];
                    socket.read_exact(&mut stream)?;
                    let (mut at, end) = part(len, u64::from(stream[0]));
                    let (mut buffer, mut hasher) = (vec![0; BLOCK], ChunkHasher::default());
                    while at < end {
                        let step = (end - at).min(BLOCK as u64) as usize;
                        socket.read_exact(&mut buffer[..step])?;
                        hasher.update(&buffer[..step]);
                        file.write_all_at(&buffer[..step], at)?;
                        at += step as u64;
                    }
                    let mut digest = [0; 16];
                    socket.read_exact(&mut digest)?;
                    let same = digest == hasher.finish(Span { offset: 0, len }).0;
                    if same { Ok(()) } else { Err(std::io::Error::other("the digest differs")) }
                })
            })
            .collect();
        ends.into_iter().try_for_each(|end| end.join().expect("no panic"))
    })?;
    println!("{}", longhaul::sys::peak_rss_bytes());
    Ok(())
}
