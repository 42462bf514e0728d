//! Whole-file checksums that archives ask for, beside the digests of `digest.rs`.
//!
//! CRC-32C and Adler-32 of a file follow from those of its chunks, in any order of arrival ([`Combiner`]). SHA-256 and
//! MD5 do not: they take a second read ([`hash_reader`]).

use crate::digest::{self, ChunkHasher, Digest};
use crate::grid::{CHUNK_SIZE, Grid, Span};
use crc_fast::CrcAlgorithm;
use md5::Digest as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// Whole-file checksums that archives ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum ChecksumKind {
    /// The file digest of `digest.rs`.
    Xxh3,
    /// CRC-32C (Castagnoli), combined from chunks.
    Crc32c,
    /// Adler-32, combined from chunks.
    Adler32,
    /// SHA-256, by a second read.
    Sha256,
    /// MD5, by a second read.
    Md5,
}

/// A stored value that a file must have, `--expect ALG:HEX`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The algorithm.
    pub kind: ChecksumKind,
    /// The value in lower-case hex.
    pub hex: String,
}

/// What was wrong with a checksum that somebody typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// No such algorithm.
    #[error("`{0}` is no checksum: use xxh3, crc32c, adler32, sha256 or md5")]
    Kind(String),
    /// No colon.
    #[error("`{0}` is not ALG:HEX: write for example crc32c:e3069283")]
    Form(String),
    /// The value is not so many hex digits.
    #[error("{kind} has {want} hex digits, not `{hex}`")]
    Hex {
        /// The algorithm.
        kind: ChecksumKind,
        /// Hex digits of that algorithm.
        want: usize,
        /// What was typed.
        hex: String,
    },
}

impl ChecksumKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Xxh3, Self::Crc32c, Self::Adler32, Self::Sha256, Self::Md5];

    /// The name in options, manifests and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xxh3 => "xxh3",
            Self::Crc32c => "crc32c",
            Self::Adler32 => "adler32",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
        }
    }

    /// Bytes of a value.
    pub fn value_len(self) -> usize {
        match self {
            Self::Crc32c | Self::Adler32 => 4,
            Self::Xxh3 | Self::Md5 => 16,
            Self::Sha256 => 32,
        }
    }

    /// Whether the file has to be read from beginning to end for it.
    pub fn needs_second_read(self) -> bool {
        matches!(self, Self::Sha256 | Self::Md5)
    }
}

impl fmt::Display for ChecksumKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ChecksumKind {
    type Err = ChecksumError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.to_ascii_lowercase().replace('-', "");
        Self::ALL.into_iter().find(|kind| kind.name() == plain).ok_or_else(|| ChecksumError::Kind(text.to_owned()))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.hex)
    }
}

impl FromStr for Expected {
    type Err = ChecksumError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, hex) = text.split_once(':').ok_or_else(|| ChecksumError::Form(text.to_owned()))?;
        let (kind, hex): (ChecksumKind, _) = (kind.parse()?, hex.to_ascii_lowercase());
        let want = 2 * kind.value_len();
        if hex.len() != want || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ChecksumError::Hex { kind, want, hex });
        }
        Ok(Self { kind, hex })
    }
}

/// The two checksums that combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combinable {
    /// CRC-32C.
    Crc32c,
    /// Adler-32.
    Adler32,
}

impl Combinable {
    /// From a kind; `None` if it does not combine.
    pub fn of(kind: ChecksumKind) -> Option<Self> {
        match kind {
            ChecksumKind::Crc32c => Some(Self::Crc32c),
            ChecksumKind::Adler32 => Some(Self::Adler32),
            _ => None,
        }
    }

    /// The value of no bytes at all.
    pub fn empty(self) -> u32 {
        match self {
            Self::Crc32c => 0,
            Self::Adler32 => 1,
        }
    }

    /// The value of `a ‖ b`, where `b` is `len` bytes long.
    pub fn join(self, a: u32, b: u32, len: u64) -> u32 {
        match self {
            Self::Crc32c => {
                crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, u64::from(a), u64::from(b), len) as u32
            }
            Self::Adler32 => adler32_join(a, b, len),
        }
    }
}

/// The largest prime below 2^16.
const ADLER: u64 = 65_521;

/// Adler-32 is two sums: `A = 1 + Σ xᵢ` and `B = Σ (A after each byte)`, both modulo 65521. Behind `a`, each of the
/// `len` sums of `b` starts from `A_a` instead of 1: so `A = A_a + A_b − 1` and `B = B_a + B_b + len · (A_a − 1)`. This
/// is what zlib's `adler32_combine` computes as well.
fn adler32_join(a: u32, b: u32, len: u64) -> u32 {
    let halves = |value: u32| (u64::from(value & 0xffff), u64::from(value >> 16));
    let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
    let before = (a_low + ADLER - 1) % ADLER;
    let sum = (before + b_low) % ADLER;
    let sums = (a_high + b_high + (len % ADLER) * before) % ADLER;
    (sums << 16 | sum) as u32
}

/// The value of a run of bytes, block by block.
#[derive(Debug, Clone)]
pub struct PartHasher(Part);

#[derive(Debug, Clone)]
enum Part {
    Crc32c(Box<crc_fast::Digest>),
    Adler32 { low: u64, high: u64 },
}

impl PartHasher {
    /// For one of the two.
    pub fn new(kind: Combinable) -> Self {
        Self(match kind {
            Combinable::Crc32c => Part::Crc32c(Box::new(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi))),
            Combinable::Adler32 => Part::Adler32 { low: 1, high: 0 },
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Part::Crc32c(crc) => crc.update(bytes),
            Part::Adler32 { low, high } => {
                // So many bytes of 255, weighted by their places, still fit 32 bits: the loop runs in vectors.
                const STEP: usize = 5552;
                for step in bytes.chunks(STEP) {
                    let (mut sum, mut weighted) = (0u32, 0u32);
                    for (at, &byte) in step.iter().enumerate() {
                        sum += u32::from(byte);
                        weighted += (step.len() - at) as u32 * u32::from(byte);
                    }
                    *high = (*high + *low * step.len() as u64 + u64::from(weighted)) % ADLER;
                    *low = (*low + u64::from(sum)) % ADLER;
                }
            }
        }
    }

    /// The value so far; the hasher begins anew.
    pub fn finish(&mut self) -> u32 {
        match &mut self.0 {
            Part::Crc32c(crc) => crc.finalize_reset() as u32,
            Part::Adler32 { low, high } => {
                let value = (*high << 16 | *low) as u32;
                (*low, *high) = (1, 0);
                value
            }
        }
    }
}

/// The whole file's value from those of its chunks, in any order. Neighbours are joined as they come, so that memory
/// follows the gaps, not the file.
#[derive(Debug, Clone)]
pub struct Combiner {
    kind: Combinable,
    grid: Grid,
    /// First index of a run to (one past its last index, bytes, value).
    runs: BTreeMap<u32, (u32, u64, u32)>,
}

/// A chunk that a [`Combiner`] does not take. The file's value then needs a second read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// The file has no such chunk, or it has another length.
    #[error("chunk {0} of {1} bytes is not one of this file")]
    NotOfThisFile(u32, u64),
    /// It was there already: a chunk that was forgotten and fetched again cannot be taken out.
    #[error("chunk {0} was there already")]
    Twice(u32),
}

impl Combiner {
    /// For a file of `grid`.
    pub fn new(kind: Combinable, grid: Grid) -> Self {
        Self { kind, grid, runs: BTreeMap::new() }
    }

    /// Which checksum.
    pub fn kind(&self) -> Combinable {
        self.kind
    }

    /// Takes the value of chunk `index`, which is `len` bytes long.
    pub fn add(&mut self, index: u32, len: u64, value: u32) -> Result<(), CombineError> {
        if self.grid.span(index).is_none_or(|span| span.len != len) {
            return Err(CombineError::NotOfThisFile(index, len));
        }
        let before = self.runs.range(..=index).next_back().map(|(first, run)| (*first, *run));
        if before.is_some_and(|(_, (end, ..))| end > index) {
            return Err(CombineError::Twice(index));
        }
        let (mut first, mut run) = (index, (index + 1, len, value));
        if let Some((earlier, (end, bytes, earlier_value))) = before.filter(|(_, (end, ..))| *end == index) {
            first = earlier;
            run = (run.0, bytes + len, self.kind.join(earlier_value, value, len));
            debug_assert_eq!(end, index);
        }
        if let Some((end, bytes, later)) = self.runs.remove(&run.0) {
            run = (end, run.1 + bytes, self.kind.join(run.2, later, bytes));
        }
        self.runs.insert(first, run);
        Ok(())
    }

    /// The file's value; `None` while a chunk is missing.
    pub fn finish(&self) -> Option<u32> {
        if self.grid.chunks() == 0 {
            return Some(self.kind.empty());
        }
        let (end, _, value) = self.runs.get(&0)?;
        (*end == self.grid.chunks()).then_some(*value)
    }

    /// [`Combiner::finish`] as it is written in manifests.
    pub fn finish_named(&self) -> Option<Expected> {
        let kind = match self.kind {
            Combinable::Crc32c => ChecksumKind::Crc32c,
            Combinable::Adler32 => ChecksumKind::Adler32,
        };
        self.finish().map(|value| Expected { kind, hex: hex::encode(value.to_be_bytes()) })
    }
}

/// What one pass over a file gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// Bytes read.
    pub size: u64,
    /// One for each kind that was asked for, in that order.
    pub values: Vec<Expected>,
}

impl Sums {
    /// The value of one kind.
    pub fn hex(&self, kind: ChecksumKind) -> Option<&str> {
        self.values.iter().find(|value| value.kind == kind).map(|value| value.hex.as_str())
    }

    /// The file digest, if it was asked for.
    pub fn digest(&self) -> Option<Digest> {
        self.hex(ChecksumKind::Xxh3)?.parse().ok()
    }
}

/// Bytes read at once: stays in cache while every algorithm goes over it; a divisor of the chunk.
const READ_BYTES: usize = 256 << 10;
const _: () = assert!(CHUNK_SIZE.is_multiple_of(READ_BYTES as u64));

/// Reads to the end, once, and computes every kind that is asked for.
pub fn hash_reader(kinds: &[ChecksumKind], mut from: impl Read) -> io::Result<Sums> {
    let mut states: Vec<Whole> = kinds.iter().map(|&kind| Whole::new(kind)).collect();
    let mut buffer = vec![0; READ_BYTES];
    let mut size = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        states.iter_mut().for_each(|state| state.update(size, &buffer[..filled]));
        size += filled as u64;
        if filled < buffer.len() {
            break;
        }
    }
    let values = kinds.iter().zip(states).map(|(&kind, state)| Expected { kind, hex: state.finish(size) }).collect();
    Ok(Sums { size, values })
}

enum Whole {
    Xxh3 { chunk: ChunkHasher, digests: Vec<Digest> },
    Part(PartHasher),
    Sha256(aws_lc_rs::digest::Context),
    Md5(md5::Md5),
}

impl Whole {
    fn new(kind: ChecksumKind) -> Self {
        match kind {
            ChecksumKind::Xxh3 => Self::Xxh3 { chunk: ChunkHasher::default(), digests: Vec::new() },
            ChecksumKind::Crc32c => Self::Part(PartHasher::new(Combinable::Crc32c)),
            ChecksumKind::Adler32 => Self::Part(PartHasher::new(Combinable::Adler32)),
            ChecksumKind::Sha256 => Self::Sha256(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256)),
            ChecksumKind::Md5 => Self::Md5(md5::Md5::new()),
        }
    }

    /// Takes the bytes at `offset`, a multiple of [`READ_BYTES`].
    fn update(&mut self, offset: u64, bytes: &[u8]) {
        match self {
            Self::Xxh3 { chunk, digests } => {
                chunk.update(bytes);
                let end = offset + bytes.len() as u64;
                if end.is_multiple_of(CHUNK_SIZE) && !bytes.is_empty() {
                    digests.push(chunk.finish(Span { offset: end - CHUNK_SIZE, len: CHUNK_SIZE }));
                }
            }
            Self::Part(part) => part.update(bytes),
            Self::Sha256(state) => state.update(bytes),
            Self::Md5(state) => state.update(bytes),
        }
    }

    fn finish(self, size: u64) -> String {
        match self {
            Self::Xxh3 { mut chunk, mut digests } => {
                let len = size % CHUNK_SIZE;
                if len > 0 {
                    digests.push(chunk.finish(Span { offset: size - len, len }));
                }
                digest::file(size, &digests).to_string()
            }
            Self::Part(mut part) => hex::encode(part.finish().to_be_bytes()),
            Self::Sha256(state) => hex::encode(state.finish()),
            Self::Md5(state) => hex::encode(state.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(kind: Combinable, bytes: &[u8]) -> u32 {
        let mut hasher = PartHasher::new(kind);
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn published_values() {
        let sums = hash_reader(&ChecksumKind::ALL, b"123456789".as_slice()).unwrap();
        let hex = |kind| sums.hex(kind).unwrap();
        assert_eq!(hex(ChecksumKind::Crc32c), "e3069283");
        assert_eq!(hex(ChecksumKind::Adler32), "091e01de");
        assert_eq!(hex(ChecksumKind::Md5), "25f9e794323b453885f5181f1b624d0b");
        assert_eq!(hex(ChecksumKind::Sha256), "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225");
        assert_eq!(sums.digest(), Some(digest::file(9, &[digest::chunk(b"123456789", 0)])));
        let empty = hash_reader(&ChecksumKind::ALL, io::empty()).unwrap();
        assert_eq!(
            (empty.hex(ChecksumKind::Crc32c), empty.hex(ChecksumKind::Adler32)),
            (Some("00000000"), Some("00000001"))
        );
        assert_eq!(empty.digest(), Some(digest::file(0, &[])));
    }

    /// Gives out few bytes at a time, as pipes do.
    struct Trickle<'a>(&'a [u8]);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let len = self.0.len().min(out.len()).min(100_003);
            out[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    #[test]
    fn a_file_of_several_chunks_from_its_chunks_in_any_order() {
        for tail in [0, 1, 777_777] {
            let data: Vec<u8> = (0..3 * CHUNK_SIZE as usize + tail).map(|i| ((i * i) >> 7) as u8).collect();
            let sums = hash_reader(&ChecksumKind::ALL, Trickle(&data)).unwrap();
            let grid = Grid::new(data.len() as u64).unwrap();
            let mut order: Vec<u32> = (0..grid.chunks()).collect();
            for _ in 0..order.len() {
                order.rotate_left(1);
                for (kind, name) in
                    [(Combinable::Crc32c, ChecksumKind::Crc32c), (Combinable::Adler32, ChecksumKind::Adler32)]
                {
                    let mut combiner = Combiner::new(kind, grid);
                    for &index in &order {
                        assert_eq!(combiner.finish(), None);
                        let span = grid.span(index).unwrap();
                        let bytes = &data[span.offset as usize..span.end() as usize];
                        combiner.add(index, span.len, part(kind, bytes)).unwrap();
                        assert_eq!(combiner.add(index, span.len, 0), Err(CombineError::Twice(index)));
                    }
                    assert_eq!(combiner.finish_named().unwrap().hex, sums.hex(name).unwrap());
                    assert_eq!(combiner.runs.len(), 1);
                }
            }
            let digests: Vec<Digest> = data
                .chunks(CHUNK_SIZE as usize)
                .enumerate()
                .map(|(i, c)| digest::chunk(c, i as u64 * CHUNK_SIZE))
                .collect();
            assert_eq!(sums.digest(), Some(digest::file(data.len() as u64, &digests)));
        }
    }

    #[test]
    fn foreign_chunks_are_refused() {
        let mut combiner = Combiner::new(Combinable::Crc32c, Grid::new(CHUNK_SIZE + 1).unwrap());
        assert!(combiner.add(2, 1, 0).is_err() && combiner.add(1, 2, 0).is_err() && combiner.add(0, 1, 0).is_err());
        assert!(combiner.add(1, 1, 0).is_ok());
        assert_eq!(Combiner::new(Combinable::Adler32, Grid::new(0).unwrap()).finish(), Some(1));
    }

    /// Adler-32 as it is defined, a byte at a time.
    fn adler_slowly(bytes: &[u8]) -> u32 {
        let (mut low, mut high) = (1u32, 0u32);
        for &byte in bytes {
            low = (low + u32::from(byte)) % 65_521;
            high = (high + low) % 65_521;
        }
        high << 16 | low
    }

    proptest! {
        #[test]
        fn joins_at_any_cut(bytes in prop::collection::vec(any::<u8>(), 0..20_000), cut in any::<prop::sample::Index>()) {
            let (a, b) = bytes.split_at(cut.index(bytes.len() + 1));
            for kind in [Combinable::Crc32c, Combinable::Adler32] {
                let joined = kind.join(part(kind, a), part(kind, b), b.len() as u64);
                prop_assert_eq!(joined, part(kind, &bytes));
            }
            prop_assert_eq!(part(Combinable::Adler32, &bytes), adler_slowly(&bytes));
        }
    }

    #[test]
    fn the_heaviest_bytes_do_not_overflow() {
        let bytes = vec![255; 100_000];
        assert_eq!(part(Combinable::Adler32, &bytes), adler_slowly(&bytes));
    }

    #[test]
    fn expectations_as_typed() {
        let good: Expected = "CRC32C:E3069283".parse().unwrap();
        assert_eq!(good.to_string(), "crc32c:e3069283");
        assert_eq!("sha-256".parse(), Ok(ChecksumKind::Sha256));
        for bad in ["crc32c", "crc32c:e306928", "crc32c:e306928x", "sha1:00", ":"] {
            assert!(bad.parse::<Expected>().is_err(), "{bad}");
        }
    }
}
