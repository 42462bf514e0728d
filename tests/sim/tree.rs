//! What is moved: a few trees of different shapes, made once for all seeds of a run.

use crate::rng::Rng;
use longhaul::digest::path_key;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

/// Trees that seeds choose from. The one behind them is a single file of many chunks.
pub const SHAPES: u64 = 12;
/// Chunks of it.
const MANY: u64 = 14;
const CHUNK: u64 = 4 << 20;

pub struct TreeFile {
    pub path: PathBuf,
    pub key: [u8; 16],
    pub content: Vec<u8>,
    pub mode: u32,
    pub mtime: (i64, i64),
}

pub struct TreeDir {
    pub path: PathBuf,
    pub mode: u32,
    pub mtime: (i64, i64),
}

pub struct Tree {
    pub base: PathBuf,
    pub files: Vec<TreeFile>,
    pub dirs: Vec<TreeDir>,
    pub links: Vec<(PathBuf, PathBuf)>,
    pub bytes: u64,
}

/// Where simulations work: in memory, or their speed would be the disk's.
pub fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let below = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    below.join(format!("longhaul-sim-{}", std::process::id()))
}

/// Removes what simulations of this process have made.
pub fn clean_up() {
    let _ = std::fs::remove_dir_all(place());
}

/// The tree of a shape.
pub fn tree(shape: u64) -> &'static Tree {
    static TREES: OnceLock<Vec<OnceLock<Tree>>> = OnceLock::new();
    let trees = TREES.get_or_init(|| (0..=SHAPES).map(|_| OnceLock::new()).collect());
    trees[shape as usize].get_or_init(|| make(shape))
}

fn fill(rng: &mut Rng, len: u64) -> Vec<u8> {
    let mut content = Vec::with_capacity(len as usize + 8);
    while (content.len() as u64) < len {
        content.extend_from_slice(&rng.next().to_le_bytes());
    }
    content.truncate(len as usize);
    content
}

fn make(shape: u64) -> Tree {
    let mut rng = Rng::new(shape, "tree");
    let base = place().join(format!("tree-{shape}"));
    let root = base.join("src");
    let single = shape % 6 == 5 || shape == SHAPES;
    let mut sizes: Vec<(u64, bool)> = Vec::new();
    if shape == SHAPES {
        sizes.push((MANY * CHUNK + 77_777, false));
    } else if single {
        sizes.push((2 * CHUNK + 77_777, false));
    } else {
        for _ in 0..rng.range(1..4) {
            sizes.push((rng.range(50_000..900_000), false));
        }
        match shape % 4 {
            0 => sizes.push((CHUNK + rng.range(1..CHUNK), false)),
            1 => sizes.push((2 * CHUNK, false)),
            2 => sizes.push((CHUNK + 300_000, true)),
            _ => sizes.extend([(rng.range(1_000_000..3_000_000), false), (CHUNK - 1, false)]),
        }
        for _ in 0..rng.range(2..9) {
            let size = rng.pick(&[0, 1, 4095, 20_000, 48 << 10]);
            sizes.push((size, false));
        }
    }
    let mut dirs: Vec<TreeDir> = Vec::new();
    let mut time = 1_600_000_000;
    let mut stamp = |rng: &mut Rng| {
        time += 1_000;
        (time, rng.range(0..1_000_000_000) as i64)
    };
    if !single {
        for path in ["", "a", "a/deep", "b"] {
            let mode = rng.pick(&[0o755, 0o700, 0o750]);
            dirs.push(TreeDir { path: path.into(), mode, mtime: stamp(&mut rng) });
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
    } else {
        std::fs::create_dir_all(&base).unwrap();
    }
    let mut files = Vec::new();
    for (number, (size, sparse)) in sizes.into_iter().enumerate() {
        let above = if single { PathBuf::new() } else { rng.pick(&["", "a", "a/deep", "b"]).into() };
        let path: PathBuf = if single { PathBuf::new() } else { above.join(format!("file-{number}")) };
        let mut content = fill(&mut rng, size);
        let at = if single { root.clone() } else { root.join(&path) };
        let file = std::fs::File::create(&at).unwrap();
        if sparse {
            // A hole over a chunk's border, on pages.
            let (from, to) = (1 << 20, (4 << 20) + (128 << 10));
            content[from..to].fill(0);
            file.set_len(size).unwrap();
            file.write_all_at(&content[..from], 0).unwrap();
            file.write_all_at(&content[to..], to as u64).unwrap();
        } else {
            file.write_all_at(&content, 0).unwrap();
        }
        let (mode, mtime) = (rng.pick(&[0o644, 0o600, 0o755]), stamp(&mut rng));
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::new(mtime.0 as u64, mtime.1 as u32)).unwrap();
        let key = path_key(0, path.as_os_str().as_bytes()).0;
        files.push(TreeFile { path, key, content, mode, mtime });
    }
    let mut links = Vec::new();
    if shape % 3 == 1 && !single {
        std::os::unix::fs::symlink("file-0", root.join("b/link")).unwrap();
        links.push(("b/link".into(), "file-0".into()));
    }
    for dir in dirs.iter().rev() {
        let handle = std::fs::File::open(root.join(&dir.path)).unwrap();
        handle.set_permissions(std::fs::Permissions::from_mode(dir.mode)).unwrap();
        handle.set_modified(UNIX_EPOCH + Duration::new(dir.mtime.0 as u64, dir.mtime.1 as u32)).unwrap();
    }
    let bytes = files.iter().map(|file| file.content.len() as u64).sum();
    Tree { base, files, dirs, links, bytes }
}
