//! Sealing and opening frames in place.

use super::WireError;
use super::header::{FrameType, HEADER_LEN, Header, TRAILER_LEN};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::{BufMut, BytesMut};
use xxhash_rust::xxh3::Xxh3Default;

/// One direction's key, or none with encryption off.
pub struct FrameKey(Option<LessSafeKey>);

impl std::fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "FrameKey(..)" } else { "FrameKey(none)" })
    }
}

impl FrameKey {
    /// A key of 32 bytes; never used for another connection or direction.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes");
        Self(Some(LessSafeKey::new(key)))
    }

    /// Encryption is off.
    pub fn plain() -> Self {
        Self(None)
    }

    /// Whether bodies are encrypted.
    pub fn encrypts(&self) -> bool {
        self.0.is_some()
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn plain_check(header: &[u8; HEADER_LEN], body: &[u8]) -> [u8; TRAILER_LEN] {
    if header[0] == FrameType::Data as u8 {
        // The chunk's own check covers the payload; a second digest over it would cost as much again.
        return [0; TRAILER_LEN];
    }
    let mut state = Xxh3Default::new();
    state.update(header);
    state.update(body);
    state.digest128().to_le_bytes()
}

/// The sending half of a direction.
#[derive(Debug)]
pub struct Sealer {
    key: FrameKey,
    next: u64,
}

impl Sealer {
    /// Starts counting at 0.
    pub fn new(key: FrameKey) -> Self {
        Self { key, next: 0 }
    }

    /// Seals a frame that lies contiguous in `frame`: room for the header, the body, room for the trailer. The header's
    /// counter is set here.
    pub fn seal(&mut self, mut header: Header, frame: &mut [u8]) {
        header.counter = self.next;
        self.next += 1;
        let encoded = header.encode();
        let (head, rest) = frame.split_at_mut(HEADER_LEN);
        let (body, trailer) = rest.split_at_mut(header.body_len as usize);
        head.copy_from_slice(&encoded);
        let tag = match &self.key.0 {
            None => plain_check(&encoded, body),
            Some(key) => key
                .seal_in_place_separate_tag(nonce(header.counter), Aad::from(encoded), body)
                .expect("a body is far below AES-GCM's limit")
                .as_ref()
                .try_into()
                .expect("a GCM tag has 16 bytes"),
        };
        trailer[..TRAILER_LEN].copy_from_slice(&tag);
    }

    /// A whole frame of its own.
    pub fn frame(&mut self, kind: FrameType, flags: u8, handle: u32, offset: u64, body: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN + body.len() + TRAILER_LEN];
        out[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(body);
        let header = Header { kind, flags, body_len: body.len() as u32, handle, offset, counter: 0 };
        self.seal(header, &mut out);
        out
    }

    /// Appends a whole frame of stream 0 to what is to be sent.
    pub fn append(&mut self, out: &mut BytesMut, kind: FrameType, body: &[u8]) {
        let start = out.len();
        out.put_bytes(0, HEADER_LEN);
        out.put_slice(body);
        out.put_bytes(0, TRAILER_LEN);
        let header = Header { kind, flags: 0, body_len: body.len() as u32, handle: 0, offset: 0, counter: 0 };
        self.seal(header, &mut out[start..]);
    }
}

/// The receiving half of a direction.
#[derive(Debug)]
pub struct Opener {
    key: FrameKey,
    next: u64,
}

impl Opener {
    /// Expects counter 0 first.
    pub fn new(key: FrameKey) -> Self {
        Self { key, next: 0 }
    }

    /// Whether bodies are encrypted.
    pub fn encrypts(&self) -> bool {
        self.key.encrypts()
    }

    /// Checks a header's counter as soon as the header is there. After an error the stream is to be closed.
    pub fn expect(&self, header: &Header) -> Result<(), WireError> {
        if header.counter == self.next {
            Ok(())
        } else {
            Err(WireError::Counter { got: header.counter, want: self.next })
        }
    }

    /// Opens the body in place. [`WireError::Tag`] refuses this frame only: the stream stays in step, because the header
    /// was checked by itself.
    pub fn open(&mut self, header: &Header, body: &mut [u8], trailer: &[u8]) -> Result<(), WireError> {
        self.expect(header)?;
        self.next += 1;
        let encoded = header.encode();
        let tag: &[u8; TRAILER_LEN] = trailer.try_into().map_err(|_| WireError::Length("trailer"))?;
        match &self.key.0 {
            None if plain_check(&encoded, body) == *tag => Ok(()),
            None => Err(WireError::Tag),
            Some(key) => key
                .open_in_place_separate_tag(nonce(header.counter), Aad::from(encoded), tag, body)
                .map(|_| ())
                .map_err(|_| WireError::Tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(encrypted: bool) -> (Sealer, Opener) {
        let key = || if encrypted { FrameKey::new(&[7; 32]) } else { FrameKey::plain() };
        (Sealer::new(key()), Opener::new(key()))
    }

    fn open(opener: &mut Opener, frame: &[u8]) -> Result<Vec<u8>, WireError> {
        let header = Header::decode(frame[..HEADER_LEN].try_into().unwrap(), 1 << 20)?;
        let end = HEADER_LEN + header.body_len as usize;
        let mut body = frame[HEADER_LEN..end].to_vec();
        opener.open(&header, &mut body, &frame[end..])?;
        Ok(body)
    }

    #[test]
    fn frames_open_once_and_in_order() {
        for encrypted in [false, true] {
            let (mut sealer, mut opener) = pair(encrypted);
            let a = sealer.frame(FrameType::Want, 0, 1, 2, b"first");
            let b = sealer.frame(FrameType::Want, 0, 1, 2, b"second");
            assert_eq!(a.windows(5).any(|w| w == b"first"), !encrypted);
            assert_eq!(open(&mut opener, &b), Err(WireError::Counter { got: 1, want: 0 }));
            assert_eq!(open(&mut opener, &a).unwrap(), b"first");
            assert_eq!(open(&mut opener, &a), Err(WireError::Counter { got: 0, want: 1 }));
            assert_eq!(open(&mut opener, &b).unwrap(), b"second");
        }
    }

    #[test]
    fn appended_frames_are_the_same_frames() {
        for encrypted in [false, true] {
            let ((mut one, _), (mut other, _)) = (pair(encrypted), pair(encrypted));
            let mut many = BytesMut::new();
            let bodies: [&[u8]; 3] = [b"first", b"", b"third"];
            bodies.iter().for_each(|body| other.append(&mut many, FrameType::Control, body));
            let alone: Vec<u8> = bodies.iter().flat_map(|body| one.frame(FrameType::Control, 0, 0, 0, body)).collect();
            assert_eq!(many, alone);
        }
    }

    #[test]
    fn a_damaged_frame_is_refused_and_the_next_one_is_not() {
        for encrypted in [false, true] {
            let (mut sealer, mut opener) = pair(encrypted);
            let mut bad = sealer.frame(FrameType::Pack, 0, 0, 0, b"payload");
            let good = sealer.frame(FrameType::Pack, 0, 0, 0, b"payload");
            bad[HEADER_LEN + 3] ^= 0x10;
            assert_eq!(open(&mut opener, &bad), Err(WireError::Tag));
            assert_eq!(open(&mut opener, &good).unwrap(), b"payload");
        }
    }
}
