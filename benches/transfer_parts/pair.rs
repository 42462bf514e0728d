//! The yardsticks: the least that moves the same bytes. Two processes, blocking calls, a thread and a connection for each
//! stream: read, digest, (seal,) send on one side; receive, (open,) digest, write on the other. No frames, no journal.

use super::{Candidate, Fallible, Outcome, Timed, Traits, timed};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use longhaul::digest::{ChunkHasher, DIGEST_LEN};
use longhaul::grid::Span;
use longhaul::sys::{Arena, ArenaConfig, SLOT_HEAD, Slot};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Through the page cache: as many as this machine has cores.
const STREAMS: u64 = 2;
/// By O_DIRECT: one request is in flight for each stream, and a device wants several.
const DIRECT_STREAMS: u64 = 4;
const BLOCK: usize = 256 << 10;
const DIRECT_BLOCK: usize = 1 << 20;
const SOCKET_BUFFER: usize = 1 << 20;
const TAG: usize = 16;
/// Content of files that the loop holds at once: bytes.
const SLICE: usize = 1 << 30;
/// Tells this program that it is one end of the pair.
const ROLE: &str = "LONGHAUL_BENCH_PAIR";

/// What a pair does besides moving bytes.
#[derive(Clone, Copy, Default)]
pub struct How {
    pub digest: bool,
    pub cipher: bool,
    /// O_DIRECT at both ends, space allocated beforehand, fdatasync at the end.
    pub direct: bool,
    /// One stream: one blocking reader, one blocking writer.
    pub single: bool,
    /// The file is there with all its pages, and is written over.
    pub warm: bool,
}

impl How {
    fn word(self) -> String {
        let flag = |on, c| if on { c } else { '-' };
        let flags = [(self.digest, 'd'), (self.cipher, 'c'), (self.direct, 'o'), (self.single, '1'), (self.warm, 'w')];
        flags.map(|(on, c)| flag(on, c)).iter().collect()
    }

    fn of(word: &str) -> Self {
        let has = |c| word.contains(c);
        Self { digest: has('d'), cipher: has('c'), direct: has('o'), single: has('1'), warm: has('w') }
    }

    fn streams(self) -> u64 {
        match (self.single, self.direct) {
            (true, _) => 1,
            (false, true) => DIRECT_STREAMS,
            (false, false) => STREAMS,
        }
    }

    fn block(self) -> usize {
        if self.direct { DIRECT_BLOCK } else { BLOCK }
    }
}

pub struct Pair {
    name: &'static str,
    how: How,
    source: PathBuf,
}

impl Pair {
    pub fn new(name: &'static str, how: How, source: &Path) -> Self {
        Self { name, how, source: source.to_owned() }
    }
}

impl Candidate for Pair {
    fn name(&self) -> &str {
        self.name
    }

    fn traits(&self) -> Traits {
        let verify = if self.how.digest { "XXH3-128 on receipt" } else { "none" };
        Traits { verify, durable: if self.how.direct { "fdatasync" } else { "none" }, encrypted: self.how.cipher }
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let me = std::env::current_exe()?;
        let target = out.join(self.source.file_name().expect("made by us"));
        if self.how.warm {
            // Other bytes than the source's: the comparison afterwards sees whether they were written over.
            super::fill(&target, self.source.metadata()?.len())?;
        }
        let mut receiver = Command::new(&me)
            .env(ROLE, "receive")
            .arg(self.how.word())
            .arg(&target)
            .arg(if self.source.is_dir() { "tree".to_owned() } else { self.source.metadata()?.len().to_string() })
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut port = String::new();
        let mut said = BufReader::new(receiver.stdout.take().expect("piped"));
        said.read_line(&mut port)?;
        let before = super::cpu_of_ended();
        let began = Instant::now();
        let mut sender = Command::new(&me);
        sender.env(ROLE, "send").arg(self.how.word()).arg(&self.source).arg(port.trim());
        let ran = timed(&mut sender, &[receiver.id()])?;
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
            cpu_source: ran.cpu,
            cpu_destination: both - ran.cpu,
            rss_source: ran.rss,
            rss_destination,
            huge: (ran.huge[0], ran.huge[1]),
            ..Outcome::default()
        })
    }
}

/// Local: create, write, rename for each file of a tree that lies in memory, by two threads; one syncfs at the end.
pub struct Loop {
    source: PathBuf,
}

impl Loop {
    pub fn new(source: &Path) -> Self {
        Self { source: source.to_owned() }
    }
}

impl Candidate for Loop {
    fn name(&self) -> &str {
        "bare-loop"
    }

    fn traits(&self) -> Traits {
        Traits { verify: "none", durable: "syncfs", encrypted: false }
    }

    fn run(&mut self, out: &Path) -> Fallible<Outcome> {
        let target = out.join(self.source.file_name().expect("made by us"));
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE, "loop").arg(&self.source).arg(&target);
        let Timed { stdout, cpu, rss, .. } = timed(&mut command, &[])?;
        let wall = String::from_utf8(stdout)?.trim().parse()?;
        Ok(Outcome { wall, cpu_destination: cpu, rss_destination: rss, ..Outcome::default() })
    }
}

/// Runs one end of the pair, if that is what this process is.
pub fn pair_role() -> Option<()> {
    let role = std::env::var(ROLE).ok()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let run = match role.as_str() {
        "receive" => receive(How::of(&args[0]), Path::new(&args[1]), args[2].parse().ok()),
        "send" => send(How::of(&args[0]), Path::new(&args[1]), args[2].parse().expect("a port")),
        _ => write_all(Path::new(&args[0]), Path::new(&args[1])),
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
fn part(len: u64, stream: u64, how: How) -> (u64, u64) {
    let block = how.block() as u64;
    let blocks = len.div_ceil(block);
    let edge = |n: u64| (blocks * n / how.streams() * block).min(len);
    (edge(stream), edge(stream + 1))
}

/// A buffer of huge pages, the payload at the beginning of a page.
fn buffer(how: How) -> std::io::Result<Slot> {
    let config = ArenaConfig { bytes: 4 << 20, block: how.block() as u32, explicit_huge_pages: false };
    Ok(Arena::new(config)?.take().expect("an arena begins full"))
}

fn opened(options: &mut OpenOptions, how: How, path: &Path) -> std::io::Result<File> {
    options.custom_flags(if how.direct { libc::O_DIRECT } else { 0 }).open(path)
}

/// Digest and cipher of one stream.
struct Guard {
    hasher: Option<ChunkHasher>,
    key: Option<LessSafeKey>,
    counter: u64,
}

impl Guard {
    fn new(how: How) -> Self {
        // The key is no secret here: what is measured is its work.
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes");
        Self {
            hasher: how.digest.then(ChunkHasher::default),
            key: how.cipher.then(|| LessSafeKey::new(key)),
            counter: 0,
        }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.counter.to_le_bytes());
        self.counter += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Digests and seals the first `len` bytes; how many then go out.
    fn out(&mut self, bytes: &mut [u8], len: usize) -> usize {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..len]);
        }
        let nonce = self.nonce();
        let Some(key) = &self.key else { return len };
        let sealed = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut bytes[..len]);
        bytes[len..len + TAG].copy_from_slice(sealed.expect("below the cipher's limit").as_ref());
        len + TAG
    }

    /// Bytes that come for `len` bytes of payload.
    fn incoming(&self, len: usize) -> usize {
        len + if self.key.is_some() { TAG } else { 0 }
    }

    fn come(&mut self, bytes: &mut [u8], len: usize) -> std::io::Result<()> {
        let nonce = self.nonce();
        if let Some(key) = &self.key {
            key.open_in_place(nonce, Aad::empty(), &mut bytes[..len + TAG])
                .map_err(|_| std::io::Error::other("the tag differs"))?;
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..len]);
        }
        Ok(())
    }

    fn finish(&mut self, len: u64) -> [u8; DIGEST_LEN] {
        self.hasher.take().map_or([0; DIGEST_LEN], |mut hasher| hasher.finish(Span { offset: 0, len }).0)
    }
}

fn each_stream(how: How, run: impl Fn(u64) -> std::io::Result<()> + Sync) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        let run = &run;
        let ends: Vec<_> = (0..how.streams()).map(|stream| scope.spawn(move || run(stream))).collect();
        ends.into_iter().try_for_each(|end| end.join().expect("no panic"))
    })
}

fn send(how: How, path: &Path, port: u16) -> std::io::Result<()> {
    let connect = |stream: u64| {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        tuned(&socket)?;
        socket.write_all(&[stream as u8])?;
        std::io::Result::Ok(socket)
    };
    if path.is_dir() {
        let files = files_below(path)?;
        let next = AtomicUsize::new(0);
        return each_stream(how, |stream| send_tree(how, path, &files, &next, connect(stream)?));
    }
    let file = opened(OpenOptions::new().read(true), how, path)?;
    let len = file.metadata()?.len();
    each_stream(how, |stream| {
        let mut socket = connect(stream)?;
        let (mut at, end) = part(len, stream, how);
        let (mut slot, mut guard) = (buffer(how)?, Guard::new(how));
        let bytes = &mut slot.as_mut_slice()[SLOT_HEAD as usize..];
        while at < end {
            let step = (end - at).min(how.block() as u64) as usize;
            file.read_exact_at(&mut bytes[..step], at)?;
            let all = guard.out(bytes, step);
            socket.write_all(&bytes[..all])?;
            at += step as u64;
        }
        socket.write_all(&guard.finish(len))
    })
}

/// Each file as name, size, content (sealed with its tag where the pair seals), digest; files of at most a block are one send.
fn send_tree(how: How, root: &Path, files: &[PathBuf], next: &AtomicUsize, socket: TcpStream) -> std::io::Result<()> {
    let mut socket = BufWriter::with_capacity(BLOCK, socket);
    let mut content = vec![0; BLOCK + TAG];
    while let Some(name) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut file = File::open(root.join(name))?;
        let len = file.metadata()?.len();
        let bytes = name.as_os_str().as_encoded_bytes();
        socket.write_all(&(bytes.len() as u16).to_le_bytes())?;
        socket.write_all(bytes)?;
        socket.write_all(&len.to_le_bytes())?;
        let (mut guard, mut left) = (Guard::new(how), len);
        while left > 0 {
            let step = left.min(BLOCK as u64) as usize;
            file.read_exact(&mut content[..step])?;
            let all = guard.out(&mut content, step);
            socket.write_all(&content[..all])?;
            left -= step as u64;
        }
        socket.write_all(&guard.finish(len))?;
    }
    socket.write_all(&0u16.to_le_bytes())?;
    socket.flush()
}

fn files_below(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut dirs, mut files) = (vec![PathBuf::new()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() { &mut dirs } else { &mut files };
            list.push(dir.join(entry.file_name()));
        }
    }
    files.sort();
    Ok(files)
}

fn receive(how: How, path: &Path, len: Option<u64>) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    let accept = || {
        let (mut socket, _) = listener.accept()?;
        tuned(&socket)?;
        let mut stream = [0];
        socket.read_exact(&mut stream)?;
        std::io::Result::Ok((socket, u64::from(stream[0])))
    };
    match len {
        None => each_stream(how, |_| receive_tree(how, path, accept()?.0))?,
        Some(len) => {
            // An existing file keeps its pages.
            let file = opened(OpenOptions::new().read(true).write(true).create(true).truncate(false), how, path)?;
            if how.direct {
                nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, len as i64)?;
            }
            each_stream(how, |_| {
                let (socket, stream) = accept()?;
                receive_part(how, &file, len, stream, socket)
            })?;
            if how.direct {
                file.sync_data()?;
            }
        }
    }
    println!("{}", longhaul::sys::peak_rss_bytes());
    Ok(())
}

fn receive_part(how: How, file: &File, len: u64, stream: u64, mut socket: TcpStream) -> std::io::Result<()> {
    let (mut at, end) = part(len, stream, how);
    let (mut slot, mut guard) = (buffer(how)?, Guard::new(how));
    let bytes = &mut slot.as_mut_slice()[SLOT_HEAD as usize..];
    while at < end {
        let step = (end - at).min(how.block() as u64) as usize;
        socket.read_exact(&mut bytes[..guard.incoming(step)])?;
        guard.come(bytes, step)?;
        file.write_all_at(&bytes[..step], at)?;
        at += step as u64;
    }
    ends_alike(&mut socket, &mut guard, len)
}

fn ends_alike(socket: &mut impl Read, guard: &mut Guard, len: u64) -> std::io::Result<()> {
    let mut digest = [0; DIGEST_LEN];
    socket.read_exact(&mut digest)?;
    if digest == guard.finish(len) { Ok(()) } else { Err(std::io::Error::other("the digest differs")) }
}

fn receive_tree(how: How, root: &Path, socket: TcpStream) -> std::io::Result<()> {
    let mut socket = BufReader::with_capacity(BLOCK, socket);
    let mut content = vec![0; BLOCK + TAG];
    let mut made = PathBuf::new();
    loop {
        let (mut name_len, mut len) = ([0; 2], [0; 8]);
        socket.read_exact(&mut name_len)?;
        let mut name = vec![0; usize::from(u16::from_le_bytes(name_len))];
        if name.is_empty() {
            return Ok(());
        }
        socket.read_exact(&mut name)?;
        socket.read_exact(&mut len)?;
        let path = root.join(std::ffi::OsStr::from_bytes(&name));
        let dir = path.parent().expect("below the root");
        if dir != made {
            std::fs::create_dir_all(dir)?;
            made = dir.to_owned();
        }
        let (len, mut guard) = (u64::from_le_bytes(len), Guard::new(how));
        let (mut file, mut left) = (File::create(path)?, len);
        while left > 0 {
            let step = left.min(BLOCK as u64) as usize;
            socket.read_exact(&mut content[..guard.incoming(step)])?;
            guard.come(&mut content, step)?;
            file.write_all(&content[..step])?;
            left -= step as u64;
        }
        ends_alike(&mut socket, &mut guard, len)?;
    }
}

/// Content is read slice by slice, with the clock stopped: a tree need not fit into memory.
fn write_all(source: &Path, target: &Path) -> std::io::Result<()> {
    let files = files_below(source)?;
    let mut spent = Duration::ZERO;
    std::fs::create_dir_all(target)?;
    let mut rest = &files[..];
    while !rest.is_empty() {
        let (mut contents, mut held) = (Vec::new(), 0);
        while let Some(name) = rest.get(contents.len()).filter(|_| held < SLICE) {
            contents.push(std::fs::read(source.join(name))?);
            held += contents.last().map_or(0, Vec::len);
        }
        let (slice, later) = rest.split_at(contents.len());
        rest = later;
        let began = Instant::now();
        write_slice(target, slice, &contents)?;
        spent += began.elapsed();
    }
    let began = Instant::now();
    nix::unistd::syncfs(&File::open(target)?)?;
    println!("{}", (spent + began.elapsed()).as_secs_f64());
    Ok(())
}

fn write_slice(target: &Path, names: &[PathBuf], contents: &[Vec<u8>]) -> std::io::Result<()> {
    let next = AtomicUsize::new(0);
    each_stream(How::default(), |_| {
        let mut made = PathBuf::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(at) else { return Ok(()) };
            let path = target.join(name);
            let dir = path.parent().expect("below the target");
            if dir != made {
                std::fs::create_dir_all(dir)?;
                made = dir.to_owned();
            }
            let part = path.with_extension("part");
            File::create(&part)?.write_all(&contents[at])?;
            std::fs::rename(part, path)?;
        }
    })
}
