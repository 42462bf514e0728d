//! What is moved: made here, of bytes that nothing makes smaller.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// What is moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One big file.
    Big,
    /// Many files of 10 KiB, 100 to a directory.
    Small,
    /// Files of 1 MiB, 100 to a directory: as many as make `--size`.
    Medium,
    /// One file of 1 KiB: nothing but latency.
    One,
}

/// Bytes of a file of [`Work::Small`].
const SMALL: usize = 10 << 10;
/// Bytes of a file of [`Work::Medium`].
const MEDIUM: usize = 1 << 20;
/// Files of a directory.
const PER_DIR: usize = 100;

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Work::Big => "big",
            Work::Small => "small",
            Work::Medium => "medium",
            Work::One => "one",
        }
    }

    pub fn named(name: &str) -> Result<Self, String> {
        [Work::Big, Work::Small, Work::Medium, Work::One]
            .into_iter()
            .find(|w| w.name() == name)
            .ok_or(format!("--work {name}: big, small, medium or one"))
    }

    /// Bytes that no file system or tool can make smaller.
    pub fn make(self, at: &Path, size: u64, files: usize) -> io::Result<()> {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        match self {
            Work::Big | Work::One => {
                let mut left = if self == Work::One { 1024 } else { size };
                let mut file = File::create(at)?;
                let mut block = vec![0; 1 << 20];
                while left > 0 {
                    noise.fill(&mut block);
                    let step = left.min(block.len() as u64);
                    file.write_all(&block[..step as usize])?;
                    left -= step;
                }
            }
            Work::Small | Work::Medium => {
                let mut content = vec![0; if self == Work::Small { SMALL } else { MEDIUM }];
                let files = if self == Work::Small { files } else { (size as usize).div_ceil(MEDIUM) };
                for number in 0..files {
                    let dir = at.join(format!("d{:04}", number / PER_DIR));
                    if number % PER_DIR == 0 {
                        fs::create_dir_all(&dir)?;
                    }
                    noise.fill(&mut content);
                    fs::write(dir.join(format!("f{number:06}")), &content)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes and files of a file or tree.
    pub fn totals(at: &Path) -> io::Result<(u64, u64)> {
        let meta = fs::metadata(at)?;
        if meta.is_file() {
            return Ok((meta.len(), 1));
        }
        let mut totals = (0, 0);
        for entry in fs::read_dir(at)? {
            let (bytes, files) = Self::totals(&entry?.path())?;
            totals = (totals.0 + bytes, totals.1 + files);
        }
        Ok(totals)
    }
}

struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}
