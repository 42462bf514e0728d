//! A buffer for direct I/O outside the workers' arena: probing and reading back.

/// Alignment of address, offset and length that every direct I/O of this program keeps to. Devices ask for 512 or 4096.
pub const DIRECT_ALIGN: usize = 4096;

/// Zeroed bytes at an address that is a multiple of [`DIRECT_ALIGN`].
#[derive(Debug)]
pub struct AlignedBuf {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes, rounded up to [`DIRECT_ALIGN`].
    pub fn new(len: usize) -> Self {
        let len = len.next_multiple_of(DIRECT_ALIGN);
        // Over-allocated by one unit: the aligned part starts inside, and a boxed slice never moves.
        let bytes = vec![0; len + DIRECT_ALIGN].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN);
        Self { bytes, start, len }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}
