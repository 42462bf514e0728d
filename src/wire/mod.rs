//! The protocol, version 1: bytes in, values out, no I/O.
//!
//! # A connection
//! ```text
//! dialer                                   listener
//!   ClientHello  ------------------------->            open a session with a ticket, or join one
//!                <-------------------------  ServerHello (or a refusal)
//!   ClientFinish ------------------------->            proof of freshness; frames may follow at once
//! ```
//! Both hellos carry a nonce, an ephemeral X25519 key and an HMAC-SHA256 under the *authentication key*: the ticket's
//! key for the stream that opens a session (index 0), the session's join key for the others. The finish is an HMAC over
//! both hellos, so a replayed hello gets nothing: not a stream, not a buffer. Frame keys are HKDF-SHA256(salt:
//! authentication key, secret: the X25519 result, info: the hash of both hellos), one for each direction and
//! connection; a recorded connection stays closed even to somebody who learns the ticket later.
//!
//! # Frames
//! After the handshake each direction is a sequence of frames: 32 bytes of [`header`], a body, 16 bytes of trailer. The
//! trailer is the AES-256-GCM tag (header as associated data, nonce = the header's counter, which must count up by one),
//! or, with encryption off, XXH3-128 over header and body for every type but `Data`, whose payload has its chunk's check.
//! The header carries a check of its own, so that a damaged length never desynchronises a stream silently.
//!
//! # Streams
//! Stream 0 carries [`control`] messages. The others carry Wants towards the source and chunks towards the destination,
//! in the order of the Wants; [`data`] describes their bodies. Pull and push differ only in who dials.
//!
//! # Version history
//! 1: the first.

pub mod control;
pub mod crypt;
pub mod data;
pub mod firefly;
pub mod handshake;
pub mod header;
pub mod views;

/// The lowest version this build speaks.
pub const LOWEST_VERSION: u16 = 1;
/// The highest version this build speaks.
pub const HIGHEST_VERSION: u16 = 1;

/// Why bytes from a peer were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Cut off, or bytes behind the end.
    #[error("a {0} message is cut off or has bytes behind its end")]
    Length(&'static str),
    /// A field out of its range.
    #[error("the field `{0}` of a message is out of range")]
    Range(&'static str),
    /// A frame type that does not belong here.
    #[error("a frame of type {0} does not belong on this stream")]
    Type(u8),
    /// The header's check does not match.
    #[error("a frame header is damaged")]
    HeaderCheck,
    /// The tag or body check does not match.
    #[error("a frame does not match its tag: damaged on the way or forged")]
    Tag,
    /// A counter that is not the next one.
    #[error("frame {got} came where {want} was due: replayed, reordered or lost")]
    Counter {
        /// What the header said.
        got: u64,
        /// What was due.
        want: u64,
    },
    /// A path that no tree can have.
    #[error("a path is refused: {0}")]
    Path(#[from] crate::relpath::PathError),
    /// A manifest segment is refused.
    #[error(transparent)]
    Manifest(#[from] crate::manifest::ManifestError),
}

/// A bounds-checked reader of little-endian fields, naming the message in its errors.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(WireError::Length(self.what))?;
        self.rest = rest;
        Ok(head)
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        Ok(self.bytes(N)?.try_into().expect("bytes(N) has N bytes"))
    }
    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// `u16` length, then so many bytes.
    pub(crate) fn short(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u16()?;
        self.bytes(usize::from(len))
    }
    /// `u32` length (at most what is left), then so many bytes.
    pub(crate) fn long(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u32()?;
        self.bytes(len as usize)
    }
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Length(self.what)) }
    }
}

pub(crate) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(crate) fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}
