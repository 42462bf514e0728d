//! The three messages that open a connection, and the keys that come out of them.
//!
//! ```text
//! ClientHello 176: magic 8 | lowest u16 | highest u16 | kind u8 | flags u8 | stream u16 | attempt u32 | streams u16 |
//!                  zero u16 | id 16 | epoch u64 | nonce 32 | key 32 | zero 32 | mac 32
//! ServerHello 136: magic 8 | status u8 | flags u8 | version u16 | streams u16 | zero u16 | id 16 | epoch u64 | nonce 32 |
//!                  key 32 | mac 32
//! ClientFinish 32: mac
//! ```

use super::{HIGHEST_VERSION, LOWEST_VERSION, Reader, WireError};
use crate::ids::{SessionId, StreamIndex, TicketId};
use aws_lc_rs::{agreement, digest, hkdf, hmac, rand};

/// First bytes of every connection.
pub const MAGIC: [u8; 8] = *b"LONGHAUL";
/// Bytes of a [`ClientHello`].
pub const CLIENT_HELLO_LEN: usize = 176;
/// Bytes of a [`ServerHello`].
pub const SERVER_HELLO_LEN: usize = 136;
/// Bytes of the finish.
pub const FINISH_LEN: usize = 32;
const MAC_LEN: usize = 32;
/// The dialer accepts a connection without encryption.
const ALLOW_PLAIN: u8 = 1;

/// What a connection wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Stream 0 of a new session, by this ticket.
    Open(TicketId),
    /// A further stream of this session.
    Join(SessionId),
}

/// The dialer's first message, without nonce, key and MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHello {
    /// Lowest version spoken.
    pub lowest: u16,
    /// Highest version spoken.
    pub highest: u16,
    /// Open or join.
    pub purpose: Purpose,
    /// Which stream; 0 exactly when opening.
    pub stream: StreamIndex,
    /// Rises with every dial of this stream.
    pub attempt: u32,
    /// Data streams wanted, when opening.
    pub streams: u16,
    /// Whether encryption may be off.
    pub allow_plain: bool,
    nonce: [u8; 32],
    key: [u8; 32],
}

/// Why a listener refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// No common version.
    Version = 1,
    /// Unknown, expired, used or foreign ticket, or the key does not match. One answer for all, so that nobody learns
    /// which tickets exist.
    Ticket = 2,
    /// No such session: the agent may have restarted.
    Session = 3,
    /// Too many sessions, streams or unauthenticated connections.
    Busy = 4,
    /// The hello makes no sense.
    Malformed = 5,
    /// The agent is stopping.
    Stopping = 6,
}

impl Refusal {
    fn from_byte(byte: u8) -> Option<Self> {
        use Refusal::*;
        [Version, Ticket, Session, Busy, Malformed, Stopping].into_iter().find(|r| *r as u8 == byte)
    }
}

/// The listener's answer, without nonce, key and MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerHello {
    /// The version that will be spoken.
    pub version: u16,
    /// Data streams granted.
    pub streams: u16,
    /// The session.
    pub session: SessionId,
    /// Whether bodies are encrypted: unless both ends allow plain.
    pub encrypted: bool,
}

/// Keys and agreement of an authenticated connection.
pub struct Agreed {
    /// Dialer to listener.
    pub to_listener: [u8; 32],
    /// Listener to dialer.
    pub to_dialer: [u8; 32],
    /// Authentication key of the session's further streams; only of use from stream 0.
    pub join: [u8; 32],
    /// What the listener said.
    pub hello: ServerHello,
}

impl std::fmt::Debug for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Agreed({:?})", self.hello)
    }
}

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The listener said no.
    #[error("{}", refusal_text(*.0))]
    Refused(Refusal),
    /// Not our protocol.
    #[error("the port speaks {0}, not Longhaul: is this the agent's data port (default 8471)?")]
    Foreign(&'static str),
    /// The peer does not know the ticket's key.
    #[error("the peer could not prove that it knows the ticket: somebody else may be answering on this address")]
    Mac,
    /// The peer chose something that was not offered.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The listener turned encryption off although it may not.
    #[error("the peer wants to go without encryption, which this end does not allow")]
    Downgrade,
    /// The system's random numbers or the key exchange failed.
    #[error("the key exchange failed")]
    Crypto,
}

fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Version => "the peer speaks no common protocol version: upgrade the older of the two",
        Refusal::Ticket => {
            "the peer refuses the ticket: expired, used already, or issued by another agent; ask for a new one"
        }
        Refusal::Session => "the peer does not know the session any more (restarted?): it needs a new ticket",
        Refusal::Busy => "the peer is at its limit of sessions or connections: try again later",
        Refusal::Malformed => "the peer could not read the handshake: the two builds do not fit",
        Refusal::Stopping => "the peer is shutting down: try again later",
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut context = hmac::Context::with_key(&key);
    for part in parts {
        context.update(part);
    }
    context.sign().as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
}

fn same(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

struct Ephemeral {
    private: agreement::PrivateKey,
    public: [u8; 32],
    nonce: [u8; 32],
}

impl Ephemeral {
    fn new() -> Result<Self, HandshakeError> {
        let private = agreement::PrivateKey::generate(&agreement::X25519).map_err(|_| HandshakeError::Crypto)?;
        let mut nonce = [0; 32];
        rand::fill(&mut nonce).map_err(|_| HandshakeError::Crypto)?;
        Self::of(private, nonce)
    }

    fn of(private: agreement::PrivateKey, nonce: [u8; 32]) -> Result<Self, HandshakeError> {
        let public = private.compute_public_key().map_err(|_| HandshakeError::Crypto)?;
        let public = public.as_ref().try_into().map_err(|_| HandshakeError::Crypto)?;
        Ok(Self { private, public, nonce })
    }

    /// Of a private key that a test knows: the same bytes each time.
    #[cfg(any(test, feature = "testing"))]
    fn fixed(private: &[u8; 32], nonce: [u8; 32]) -> Result<Self, HandshakeError> {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, private);
        Self::of(private.map_err(|_| HandshakeError::Crypto)?, nonce)
    }

    fn keys(&self, peer: &[u8; 32], auth: &[u8; 32], transcript: &[u8]) -> Result<[[u8; 32]; 3], HandshakeError> {
        struct Len;
        impl hkdf::KeyType for Len {
            fn len(&self) -> usize {
                96
            }
        }
        let hash = digest::digest(&digest::SHA256, transcript);
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer);
        agreement::agree(&self.private, peer, HandshakeError::Crypto, |secret| {
            let info: [&[u8]; 2] = [b"longhaul 1 frames", hash.as_ref()];
            let mut out = [0; 96];
            hkdf::Salt::new(hkdf::HKDF_SHA256, auth)
                .extract(secret)
                .expand(&info, Len)
                .and_then(|okm| okm.fill(&mut out))
                .map_err(|_| HandshakeError::Crypto)?;
            let part = |i: usize| out[i * 32..][..32].try_into().expect("32 bytes");
            Ok([part(0), part(1), part(2)])
        })
    }
}

/// The dialer's half.
pub struct Dialer {
    hello: [u8; CLIENT_HELLO_LEN],
    auth: [u8; 32],
    allow_plain: bool,
    ephemeral: Ephemeral,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialer(..)")
    }
}

impl Dialer {
    /// Prepares the first message; `auth` is the ticket's key or the session's join key.
    pub fn new(
        purpose: Purpose,
        stream: StreamIndex,
        attempt: u32,
        streams: u16,
        allow_plain: bool,
        auth: &[u8; 32],
    ) -> Result<Self, HandshakeError> {
        Self::with(Ephemeral::new()?, purpose, (stream, attempt), streams, allow_plain, auth)
    }

    /// [`Dialer::new`] for stream 1 or 0, with the private key and the nonce given: for golden bytes.
    #[cfg(any(test, feature = "testing"))]
    pub fn fixed(
        purpose: Purpose,
        streams: u16,
        allow_plain: bool,
        auth: &[u8; 32],
        private: &[u8; 32],
        nonce: [u8; 32],
    ) -> Result<Self, HandshakeError> {
        let stream = StreamIndex(u16::from(matches!(purpose, Purpose::Join(_))));
        Self::with(Ephemeral::fixed(private, nonce)?, purpose, (stream, 7), streams, allow_plain, auth)
    }

    fn with(
        ephemeral: Ephemeral,
        purpose: Purpose,
        (stream, attempt): (StreamIndex, u32),
        streams: u16,
        allow_plain: bool,
        auth: &[u8; 32],
    ) -> Result<Self, HandshakeError> {
        let mut out = Vec::with_capacity(CLIENT_HELLO_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&LOWEST_VERSION.to_le_bytes());
        out.extend_from_slice(&HIGHEST_VERSION.to_le_bytes());
        let (kind, id) = match purpose {
            Purpose::Open(id) => (1, id.0),
            Purpose::Join(id) => (2, id.0),
        };
        out.push(kind);
        out.push(if allow_plain { ALLOW_PLAIN } else { 0 });
        out.extend_from_slice(&stream.0.to_le_bytes());
        out.extend_from_slice(&attempt.to_le_bytes());
        out.extend_from_slice(&streams.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&id);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&ephemeral.nonce);
        out.extend_from_slice(&ephemeral.public);
        out.resize(CLIENT_HELLO_LEN - MAC_LEN, 0);
        out.extend_from_slice(&mac(auth, &[&out]));
        let hello = out.try_into().expect("the fields add up to CLIENT_HELLO_LEN");
        Ok(Self { hello, auth: *auth, allow_plain, ephemeral })
    }

    /// The first message.
    pub fn hello(&self) -> &[u8; CLIENT_HELLO_LEN] {
        &self.hello
    }

    /// Reads the answer and gives the finish and the keys.
    pub fn finish(&self, answer: &[u8; SERVER_HELLO_LEN]) -> Result<([u8; FINISH_LEN], Agreed), HandshakeError> {
        if let Some(what) = foreign(answer) {
            return Err(HandshakeError::Foreign(what));
        }
        let mut fields = Reader::new(&answer[8..], "server hello");
        let status = fields.u8()?;
        if status != 0 {
            return Err(HandshakeError::Refused(Refusal::from_byte(status).ok_or(WireError::Range("status"))?));
        }
        let encrypted = match fields.u8()? {
            0 => false,
            1 => true,
            _ => return Err(WireError::Range("flags").into()),
        };
        let version = fields.u16()?;
        let streams = fields.u16()?;
        fields.u16()?;
        let session = SessionId(fields.array()?);
        fields.u64()?;
        let _nonce: [u8; 32] = fields.array()?;
        let key: [u8; 32] = fields.array()?;
        let (body, tag) = answer.split_at(SERVER_HELLO_LEN - MAC_LEN);
        if !same(&mac(&self.auth, &[b"server", &self.hello, body]), tag) {
            return Err(HandshakeError::Mac);
        }
        if !(LOWEST_VERSION..=HIGHEST_VERSION).contains(&version) {
            return Err(WireError::Range("version").into());
        }
        if !encrypted && !self.allow_plain {
            return Err(HandshakeError::Downgrade);
        }
        let transcript = [&self.hello[..], answer].concat();
        let [to_listener, to_dialer, join] = self.ephemeral.keys(&key, &self.auth, &transcript)?;
        let finish = mac(&self.auth, &[b"finish", &transcript]);
        Ok((
            finish,
            Agreed { to_listener, to_dialer, join, hello: ServerHello { version, streams, session, encrypted } },
        ))
    }
}

/// What else may be listening on a port, from its first bytes.
pub fn foreign(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(&MAGIC) {
        None
    } else if bytes.starts_with(b"HTTP/") || bytes.starts_with(b"GET ") || bytes.starts_with(b"POST") {
        Some("HTTP")
    } else if bytes.len() > 1 && (0x14..=0x17).contains(&bytes[0]) && bytes[1] == 3 {
        Some("TLS")
    } else if bytes.starts_with(b"SSH-") {
        Some("SSH")
    } else {
        Some("another protocol")
    }
}

impl ClientHello {
    /// Reads a first message; its MAC is checked by [`Listener::answer`], once the key is looked up.
    pub fn decode(bytes: &[u8; CLIENT_HELLO_LEN]) -> Result<Self, HandshakeError> {
        if let Some(what) = foreign(bytes) {
            return Err(HandshakeError::Foreign(what));
        }
        let mut fields = Reader::new(&bytes[8..CLIENT_HELLO_LEN - MAC_LEN], "client hello");
        let (lowest, highest) = (fields.u16()?, fields.u16()?);
        let kind = fields.u8()?;
        let flags = fields.u8()?;
        let stream = StreamIndex(fields.u16()?);
        let attempt = fields.u32()?;
        let streams = fields.u16()?;
        fields.u16()?;
        let id: [u8; 16] = fields.array()?;
        fields.u64()?;
        let (nonce, key) = (fields.array()?, fields.array()?);
        let purpose = match (kind, stream.0) {
            (1, 0) => Purpose::Open(TicketId(id)),
            (2, 1..) => Purpose::Join(SessionId(id)),
            _ => return Err(WireError::Range("kind").into()),
        };
        if flags > ALLOW_PLAIN {
            return Err(WireError::Range("flags").into());
        }
        if lowest > highest {
            return Err(WireError::Range("version").into());
        }
        let allow_plain = flags == ALLOW_PLAIN;
        Ok(Self { lowest, highest, purpose, stream, attempt, streams, allow_plain, nonce, key })
    }

    /// The highest version that both ends speak.
    pub fn common_version(&self) -> Option<u16> {
        let highest = self.highest.min(HIGHEST_VERSION);
        (highest >= self.lowest.max(LOWEST_VERSION)).then_some(highest)
    }
}

/// The listener's half, once the dialer's MAC was right.
pub struct Listener {
    answer: [u8; SERVER_HELLO_LEN],
    expected_finish: [u8; FINISH_LEN],
    agreed: Agreed,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener(..)")
    }
}

impl Listener {
    /// Checks the dialer's MAC under `auth` and prepares the answer.
    pub fn answer(
        bytes: &[u8; CLIENT_HELLO_LEN],
        hello: &ClientHello,
        auth: &[u8; 32],
        answer: ServerHello,
    ) -> Result<Self, HandshakeError> {
        Self::with(Ephemeral::new, bytes, hello, auth, answer)
    }

    /// [`Listener::answer`] with the private key and the nonce given: for golden bytes.
    #[cfg(any(test, feature = "testing"))]
    pub fn fixed(
        bytes: &[u8; CLIENT_HELLO_LEN],
        hello: &ClientHello,
        auth: &[u8; 32],
        answer: ServerHello,
        private: &[u8; 32],
        nonce: [u8; 32],
    ) -> Result<Self, HandshakeError> {
        Self::with(|| Ephemeral::fixed(private, nonce), bytes, hello, auth, answer)
    }

    fn with(
        ephemeral: impl FnOnce() -> Result<Ephemeral, HandshakeError>,
        bytes: &[u8; CLIENT_HELLO_LEN],
        hello: &ClientHello,
        auth: &[u8; 32],
        answer: ServerHello,
    ) -> Result<Self, HandshakeError> {
        let (body, tag) = bytes.split_at(CLIENT_HELLO_LEN - MAC_LEN);
        if !same(&mac(auth, &[body]), tag) {
            return Err(HandshakeError::Refused(Refusal::Ticket));
        }
        let ephemeral = ephemeral()?;
        let mut out = Vec::with_capacity(SERVER_HELLO_LEN);
        out.extend_from_slice(&MAGIC);
        out.push(0);
        out.push(u8::from(answer.encrypted));
        out.extend_from_slice(&answer.version.to_le_bytes());
        out.extend_from_slice(&answer.streams.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&answer.session.0);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&ephemeral.nonce);
        out.extend_from_slice(&ephemeral.public);
        let tag = mac(auth, &[b"server", bytes, &out]);
        out.extend_from_slice(&tag);
        let out: [u8; SERVER_HELLO_LEN] = out.try_into().expect("the fields add up to SERVER_HELLO_LEN");
        let transcript = [&bytes[..], &out].concat();
        let [to_listener, to_dialer, join] = ephemeral.keys(&hello.key, auth, &transcript)?;
        let expected_finish = mac(auth, &[b"finish", &transcript]);
        Ok(Self { answer: out, expected_finish, agreed: Agreed { to_listener, to_dialer, join, hello: answer } })
    }

    /// The second message.
    pub fn hello(&self) -> &[u8; SERVER_HELLO_LEN] {
        &self.answer
    }

    /// Checks the third message. Only now is the dialer known to be live and not a recording.
    pub fn finish(self, finish: &[u8; FINISH_LEN]) -> Result<Agreed, HandshakeError> {
        if same(&self.expected_finish, finish) {
            Ok(self.agreed)
        } else {
            Err(HandshakeError::Refused(Refusal::Ticket))
        }
    }
}

/// The answer to a dialer that is not let in. It is not authenticated: a hint for a message, never a reason to give up
/// a session.
pub fn refuse(refusal: Refusal) -> [u8; SERVER_HELLO_LEN] {
    let mut out = [0; SERVER_HELLO_LEN];
    out[..8].copy_from_slice(&MAGIC);
    out[8] = refusal as u8;
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: ServerHello = ServerHello { version: 1, streams: 4, session: SessionId([9; 16]), encrypted: true };

    fn open(auth: &[u8; 32], allow_plain: bool) -> Dialer {
        Dialer::new(Purpose::Open(TicketId([1; 16])), StreamIndex(0), 1, 4, allow_plain, auth).unwrap()
    }

    #[test]
    fn both_ends_get_the_same_keys_and_no_other_connection_does() {
        let auth = [3; 32];
        let mut seen = Vec::new();
        for _ in 0..2 {
            let dialer = open(&auth, false);
            let hello = ClientHello::decode(dialer.hello()).unwrap();
            assert_eq!(hello.purpose, Purpose::Open(TicketId([1; 16])));
            let listener = Listener::answer(dialer.hello(), &hello, &auth, ANSWER).unwrap();
            let (finish, ours) = dialer.finish(listener.hello()).unwrap();
            let theirs = listener.finish(&finish).unwrap();
            assert_eq!(
                (ours.to_listener, ours.to_dialer, ours.join),
                (theirs.to_listener, theirs.to_dialer, theirs.join)
            );
            assert_ne!(ours.to_listener, ours.to_dialer);
            seen.push(ours.to_listener);
        }
        assert_ne!(seen[0], seen[1]);
    }

    #[test]
    fn a_wrong_key_a_replay_a_reflection_and_every_flip_are_refused() {
        let auth = [3; 32];
        let dialer = open(&auth, false);
        let hello = ClientHello::decode(dialer.hello()).unwrap();
        assert!(Listener::answer(dialer.hello(), &hello, &[4; 32], ANSWER).is_err());
        let first = Listener::answer(dialer.hello(), &hello, &auth, ANSWER).unwrap();
        let (finish, _) = dialer.finish(first.hello()).unwrap();
        let replayed = Listener::answer(dialer.hello(), &hello, &auth, ANSWER).unwrap();
        assert!(replayed.finish(&finish).is_err(), "a recorded finish must not fit a new answer");
        let mut reflected = [0; SERVER_HELLO_LEN];
        reflected.copy_from_slice(&dialer.hello()[..SERVER_HELLO_LEN]);
        assert!(dialer.finish(&reflected).is_err());
        for at in 0..CLIENT_HELLO_LEN {
            let mut bad = *dialer.hello();
            bad[at] ^= 1;
            let refused = match ClientHello::decode(&bad) {
                Err(_) => true,
                Ok(h) => Listener::answer(&bad, &h, &auth, ANSWER).is_err(),
            };
            assert!(refused, "client hello byte {at}");
        }
        for at in 0..SERVER_HELLO_LEN {
            let mut bad = *first.hello();
            bad[at] ^= 1;
            assert!(dialer.finish(&bad).is_err(), "server hello byte {at}");
        }
    }

    #[test]
    fn encryption_cannot_be_stripped() {
        let auth = [3; 32];
        let dialer = open(&auth, false);
        let hello = ClientHello::decode(dialer.hello()).unwrap();
        let plain = ServerHello { encrypted: false, ..ANSWER };
        let listener = Listener::answer(dialer.hello(), &hello, &auth, plain).unwrap();
        assert_eq!(dialer.finish(listener.hello()).err(), Some(HandshakeError::Downgrade));
    }

    #[test]
    fn refusals_and_foreign_ports_have_sentences() {
        let dialer = open(&[3; 32], false);
        assert_eq!(dialer.finish(&refuse(Refusal::Busy)).err(), Some(HandshakeError::Refused(Refusal::Busy)));
        let mut http = [b' '; SERVER_HELLO_LEN];
        http[..12].copy_from_slice(b"HTTP/1.1 400");
        assert_eq!(dialer.finish(&http).err(), Some(HandshakeError::Foreign("HTTP")));
        let mut tls = [0; SERVER_HELLO_LEN];
        tls[..2].copy_from_slice(&[0x15, 3]);
        assert_eq!(dialer.finish(&tls).err(), Some(HandshakeError::Foreign("TLS")));
    }

    #[test]
    fn versions_meet_at_the_highest_common_one() {
        let dialer = open(&[3; 32], false);
        let mut hello = ClientHello::decode(dialer.hello()).unwrap();
        (hello.lowest, hello.highest) = (1, 9);
        assert_eq!(hello.common_version(), Some(HIGHEST_VERSION));
        (hello.lowest, hello.highest) = (HIGHEST_VERSION + 1, HIGHEST_VERSION + 2);
        assert_eq!(hello.common_version(), None);
    }
}
