//! Trees that are hard to copy, and their comparison. Everything goes by descriptors, because some paths are as long as
//! the kernel allows.

use super::noise;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{mkfifo, symlinkat};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const PATH_MAX: usize = 4095;

/// Sizes around every border that the engine knows: page, pack file, block, chunk, more than two chunks.
pub const SIZES: [usize; 18] = [
    0, 1, 4095, 4096, 4097, 49_151, 49_152, 49_153, 262_143, 262_144, 262_145, 4_194_303, 4_194_304, 4_194_305,
    8_388_607, 8_388_608, 8_388_609, 9_437_185,
];

/// One name of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: &'static str,
    pub mode: u32,
    pub mtime: (i64, i64),
    pub size: i64,
    /// Digest of the content, or the symlink's target.
    pub content: String,
    pub blocks: i64,
}

fn kind(stat: &FileStat) -> &'static str {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => "directory",
        SFlag::S_IFREG => "file",
        SFlag::S_IFLNK => "symlink",
        _ => "special",
    }
}

fn item(parent: &OwnedFd, name: &OsStr) -> Item {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
    let kind = kind(&stat);
    let content = match kind {
        "file" => {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut bytes = Vec::new();
            let mut file = File::from(openat(parent, name, flags, Mode::empty()).unwrap());
            file.read_to_end(&mut bytes).unwrap();
            longhaul::digest::of(&bytes).to_string()
        }
        "symlink" => format!("{:?}", readlinkat(parent, name).unwrap()),
        _ => String::new(),
    };
    let size = if kind == "file" { stat.st_size } else { 0 };
    Item {
        kind,
        mode: stat.st_mode & 0o7777,
        mtime: (stat.st_mtime, stat.st_mtime_nsec),
        size,
        content,
        blocks: stat.st_blocks,
    }
}

fn walk(dir: OwnedFd, prefix: &[u8], out: &mut BTreeMap<Vec<u8>, Item>) {
    let again = dir.try_clone().unwrap();
    let mut listing = Dir::from_fd(again).unwrap();
    let names: Vec<Vec<u8>> = listing.iter().map(|e| e.unwrap().file_name().to_bytes().to_vec()).collect();
    for name in names.into_iter().filter(|n| n != b"." && n != b"..") {
        let path = if prefix.is_empty() { name.clone() } else { [prefix, b"/", &name].concat() };
        let item = item(&dir, OsStr::from_bytes(&name));
        let below = item.kind == "directory";
        out.insert(path.clone(), item);
        if below {
            walk(openat(&dir, OsStr::from_bytes(&name), DIRECTORY, Mode::empty()).unwrap(), &path, out);
        }
    }
}

/// Everything at and below `root`; the root itself has the empty name.
pub fn list(root: &Path) -> BTreeMap<Vec<u8>, Item> {
    let mut out = BTreeMap::new();
    let parent = File::open(root.parent().unwrap()).unwrap();
    let name = root.file_name().unwrap();
    let top = item(&OwnedFd::from(parent), name);
    let below = top.kind == "directory";
    out.insert(Vec::new(), top);
    if below {
        walk(File::open(root).unwrap().into(), b"", &mut out);
    }
    out
}

/// What of the metadata is compared.
#[derive(Debug, Clone, Copy)]
pub struct Compare {
    pub mode_mask: u32,
    pub mtimes: bool,
}

impl Compare {
    /// What `cp` keeps when nothing is said.
    pub const DEFAULT: Self = Self { mode_mask: 0o777, mtimes: true };
    pub const SPECIAL: Self = Self { mode_mask: 0o7777, mtimes: true };
    pub const CONTENT: Self = Self { mode_mask: 0, mtimes: false };
}

/// Panics with the first differences. What is neither file, directory nor symlink is not expected at the destination.
#[track_caller]
pub fn assert_same(from: &Path, to: &Path, how: Compare) {
    let different = differences(from, to, how);
    assert!(different.is_empty(), "{from:?} and {to:?} differ: {:#?}", &different[..different.len().min(10)]);
}

pub fn differences(from: &Path, to: &Path, how: Compare) -> Vec<String> {
    let (from, to) = (list(from), list(to));
    let masked = |item: &Item| {
        let link = item.kind == "symlink";
        Item {
            mode: if link { 0 } else { item.mode & how.mode_mask },
            mtime: if how.mtimes { item.mtime } else { (0, 0) },
            blocks: 0,
            ..item.clone()
        }
    };
    let mut different = Vec::new();
    for (name, item) in from.iter().filter(|(_, item)| item.kind != "special") {
        let shown: String = String::from_utf8_lossy(name).chars().take(120).collect();
        match to.get(name) {
            None => different.push(format!("{shown:?} is missing")),
            Some(there) if masked(there) != masked(item) => different.push(format!("{shown:?}: {item:?} {there:?}")),
            Some(_) => {}
        }
    }
    let more = to.keys().filter(|name| !from.contains_key(*name));
    different.extend(more.map(|name| format!("{:?} is too much", String::from_utf8_lossy(name))));
    different
}

fn set_time(path: &Path, secs: i64, nanos: i64) {
    let time = TimeSpec::new(secs, nanos);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// A tree with everything that a copy can get wrong, at `root`, whose longest path is as long as the kernel lets a path
/// be. Returns how many regular files it has.
pub fn nasty(root: &Path) -> u64 {
    fs::create_dir_all(root).unwrap();
    let at = |name: &str| root.join(name);
    let file = |path: &Path, content: &[u8]| fs::write(path, content).unwrap();
    for dir in ["empty", "sizes", "modes", "links", "names", "deep", "closed"] {
        fs::create_dir(at(dir)).unwrap();
    }
    for (n, size) in SIZES.into_iter().enumerate() {
        file(&at(&format!("sizes/{size}")), &noise(size, n as u64 + 1));
    }
    for n in 0..40 {
        file(&at(&format!("sizes/small-{n:02}")), &noise(n * 997, 100 + n as u64));
    }
    // Only root reads a file that nobody may read.
    let closed = if nix::unistd::geteuid().is_root() { 0o000 } else { 0o444 };
    for mode in [closed, 0o400, 0o600, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1644] {
        let path = at(&format!("modes/{mode:04o}"));
        file(&path, b"mode");
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(at("modes/sticky")).unwrap();
    fs::set_permissions(at("modes/sticky"), Permissions::from_mode(0o1777)).unwrap();
    symlink("../sizes/4096", at("links/relative")).unwrap();
    symlink("/nowhere/at all", at("links/dangling")).unwrap();
    symlink("..", at("links/up")).unwrap();
    symlink("self", at("links/self")).unwrap();
    symlink(OsStr::from_bytes(&[b'x'; PATH_MAX - 1]), at("links/long")).unwrap();
    for name in [&b"new\nline"[..], b"\xff\xfe not UTF-8 \x80", b" blank ", b"-r", b"quote'\"", b"%41?#:*", b"\x1b[31m"]
    {
        file(&root.join("names").join(OsStr::from_bytes(name)), name);
    }
    file(&root.join("names").join(OsStr::from_bytes(&[b'n'; 255])), b"the longest name");
    // A hole in front, one in the middle of a chunk, one of several chunks, one at the end.
    let sparse = File::create(at("sizes/sparse")).unwrap();
    sparse.write_all_at(&noise(70_000, 7), 1 << 20).unwrap();
    sparse.write_all_at(&noise(5000, 8), 30_000_000).unwrap();
    sparse.set_len(41_000_000).unwrap();
    let holes = File::create(at("sizes/only a hole")).unwrap();
    holes.set_len(6_000_000).unwrap();
    mkfifo(&at("sizes/fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    // As deep as a path can name, and the last name is a file's.
    let room = PATH_MAX - root.as_os_str().len() - "/deep".len();
    let mut dir: OwnedFd = File::open(at("deep")).unwrap().into();
    let mut left = room;
    let step = [b'd'; 250];
    while left > 456 {
        let name = OsStr::from_bytes(&step);
        mkdirat(&dir, name, Mode::from_bits_truncate(0o755)).unwrap();
        dir = openat(&dir, name, DIRECTORY, Mode::empty()).unwrap();
        left -= step.len() + 1;
    }
    // Two more: one directory that takes what one name cannot, and the file.
    let name = vec![b'e'; left - 2 - 200];
    mkdirat(&dir, OsStr::from_bytes(&name), Mode::from_bits_truncate(0o755)).unwrap();
    let inner = openat(&dir, OsStr::from_bytes(&name), DIRECTORY, Mode::empty()).unwrap();
    let last = vec![b'f'; 200];
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let end = openat(&inner, OsStr::from_bytes(&last), flags, Mode::from_bits_truncate(0o644)).unwrap();
    File::from(end).write_all_at(&noise(300_000, 9), 0).unwrap();
    symlinkat("somewhere", &inner, "l").unwrap();
    let mut chain = at("deep/a");
    for _ in 0..150 {
        fs::create_dir(&chain).unwrap();
        chain.push("b");
    }
    file(&chain, b"bottom");
    file(&at("closed/file"), b"in a closed directory");
    fs::create_dir(at("closed/below")).unwrap();
    fs::set_permissions(at("closed/below"), Permissions::from_mode(0o555)).unwrap();
    for (name, secs, nanos) in [
        ("sizes/0", 1_000_000_007, 123_456_789),
        ("sizes/4097", -1, 999_999_999),
        ("sizes/9437185", 4_102_444_800, 1),
        ("links/dangling", 86_400, 5),
        ("names/-r", 0, 0),
    ] {
        set_time(&at(name), secs, nanos);
    }
    for (n, dir) in
        ["empty", "sizes", "modes", "links", "names", "deep", "closed/below", "closed", ""].into_iter().enumerate()
    {
        set_time(&at(dir), 1_200_000_000 + n as i64, 111_111_111 + n as i64);
    }
    fs::set_permissions(at("closed"), Permissions::from_mode(0o555)).unwrap();
    list(root).values().filter(|item| item.kind == "file").count() as u64
}

/// Lets a tree with closed directories be removed by whoever made it.
pub fn open_up(root: &Path) {
    for dir in ["closed", "closed/below"] {
        let _ = fs::set_permissions(root.join(dir), Permissions::from_mode(0o755));
    }
}

/// `count` files of `size` bytes in directories of a thousand.
pub fn many(root: &Path, count: usize, size: usize) {
    for n in 0..count {
        let dir = root.join(format!("{:03}", n / 1000));
        if n % 1000 == 0 {
            fs::create_dir_all(&dir).unwrap();
        }
        fs::write(dir.join(format!("file-{n:06}")), noise(size, n as u64 + 1)).unwrap();
    }
}

/// A name with any bytes.
pub fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
