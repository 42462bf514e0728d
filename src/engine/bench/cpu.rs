//! Digest and cipher, as a source's worker does them to each block.

use super::{BenchError, Done, Measured, metered, threads};
use crate::digest::ChunkHasher;
use crate::engine::spec::Latency;
use crate::grid::{CHUNK_SIZE, Span};
use crate::wire::crypt::{FrameKey, Sealer};
use crate::wire::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What is done to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// XXH3-128.
    Digest,
    /// AES-256-GCM.
    Cipher,
    /// Both, one after the other.
    Both,
    /// The digest, and the checksum that a frame has where nothing is encrypted.
    Plain,
}

/// A part that needs no I/O.
#[derive(Debug, Clone, Copy)]
pub struct CpuSpec {
    /// Which.
    pub work: Work,
    /// Bytes of a block, a power of two that divides a chunk.
    pub block: u32,
    /// Threads, each with a block of its own.
    pub threads: usize,
    /// How long.
    pub time: Duration,
}

/// Measures it.
///
/// # Errors
/// No random bytes, or no thread.
pub fn cpu(spec: &CpuSpec) -> Result<Measured, BenchError> {
    let CpuSpec { work, block, .. } = *spec;
    metered(spec.time, |meter| {
        let latency = threads(spec.threads, |_| {
            let mut frame = vec![0; HEADER_LEN + block as usize + TRAILER_LEN];
            let mut key = [0; 32];
            let random = aws_lc_rs::rand::fill(&mut frame).and_then(|()| aws_lc_rs::rand::fill(&mut key));
            random.map_err(|_| BenchError::io("get random bytes")(std::io::ErrorKind::Other.into()))?;
            let mut sealer = Sealer::new(if work == Work::Plain { FrameKey::plain() } else { FrameKey::new(&key) });
            let mut hasher = ChunkHasher::default();
            let mut latency = Latency::histogram();
            let mut offset = 0;
            while !meter.is_over() {
                let began = Instant::now();
                if work != Work::Cipher {
                    hasher.update(black_box(&frame[HEADER_LEN..HEADER_LEN + block as usize]));
                    if (offset + u64::from(block)).is_multiple_of(CHUNK_SIZE) {
                        black_box(
                            hasher.finish(Span { offset: offset + u64::from(block) - CHUNK_SIZE, len: CHUNK_SIZE }),
                        );
                    }
                }
                if work != Work::Digest {
                    let header =
                        Header { kind: FrameType::Data, flags: 0, body_len: block, handle: 1, offset, counter: 0 };
                    sealer.seal(header, black_box(&mut frame));
                }
                offset += u64::from(block);
                meter.add(block.into());
                Latency::record(&mut latency, began.elapsed().as_nanos() as u64);
            }
            Ok(latency)
        })?;
        let how = match work {
            Work::Digest => "XXH3-128",
            Work::Cipher => "AES-256-GCM",
            Work::Both => "XXH3-128, then AES-256-GCM",
            Work::Plain => "XXH3-128 of the chunk and of the frame: not encrypted",
        };
        Ok(Done { latency: Some(latency), threads: spec.threads, how: how.to_owned(), ..Done::default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cost_more_than_one_and_blocks_are_counted() {
        let spec = |work| CpuSpec { work, block: 65_536, threads: 1, time: Duration::from_millis(60) };
        for work in [Work::Digest, Work::Cipher, Work::Both, Work::Plain] {
            let measured = cpu(&spec(work)).unwrap();
            assert!(measured.bytes > 0 && measured.bytes.is_multiple_of(65_536), "{measured:?}");
            assert_eq!(measured.latency.count * 65_536, measured.bytes, "each block was timed");
            assert!(measured.rate() > 100_000_000, "no processor of ours is that slow: {measured:?}");
        }
    }
}
