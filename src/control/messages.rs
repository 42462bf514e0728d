//! What travels over the HTTP port, as types that both ends share. Unknown fields are refused.

use crate::engine::handle::TransferStatus;
use crate::engine::spec::{Report, Snapshot, Ticket, TransferOptions, Verify};
use crate::ids::{AgentId, TransferId};
use crate::limits::{MAX_BLOCK, MAX_STREAMS, MIN_BLOCK, MIN_RATE};
use crate::profile::{ProfileUse, check_congestion, split_congestion};
use crate::relpath::{PathError, RelPath};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The largest socket buffer a request may ask for: a 400 Gbit/s path of 20 ms.
const WINDOW_MAX: u64 = 1 << 30;
/// One of each kind.
const CHECKSUMS_MAX: usize = 5;
/// Hex digits of the longest checksum.
const EXPECT_MAX: usize = 64;

/// A path as bytes: a JSON string where it is UTF-8, else `{"hex": "…"}`. Absolute paths mean below the agent's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WirePath(pub Vec<u8>);

impl WirePath {
    /// The checked path below the root.
    pub fn rel_path(&self) -> Result<RelPath, PathError> {
        super::url::below_root(&self.0)
    }
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => BTreeMap::from([("hex", hex::encode(&self.0))]).serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, deny_unknown_fields)]
        enum Form {
            Text(String),
            Hex { hex: String },
        }
        match Form::deserialize(d).map_err(|_| serde::de::Error::custom("a path is a string or {\"hex\": \"…\"}"))? {
            Form::Text(text) => Ok(Self(text.into_bytes())),
            Form::Hex { hex } => hex::decode(hex).map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// The body of `POST /v1/tickets`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "direction", rename_all = "lowercase", deny_unknown_fields)]
pub enum TicketRequest {
    /// The client's side is the destination.
    Read {
        /// Files or trees.
        paths: Vec<WirePath>,
        /// Whether directories may be offered.
        #[serde(default)]
        recursive: bool,
        /// The client's wish; the stricter side decides.
        #[serde(default)]
        encrypt: Option<bool>,
    },
    /// The client's side is the source.
    Write {
        /// DST.
        path: WirePath,
        /// One SRC becomes DST; otherwise every SRC goes below it.
        #[serde(default)]
        becomes: bool,
        /// What is left out is the agent's default.
        #[serde(default)]
        options: PartialOptions,
        /// As for reading.
        #[serde(default)]
        encrypt: Option<bool>,
    },
    /// No files: bytes that mean nothing, for a while, to measure the path.
    Probe {
        /// Whether the agent sends, or the client does.
        agent_sends: bool,
        /// Streams.
        streams: u16,
        /// How long.
        duration_ms: u32,
        /// Congestion control and window of the sender; nothing else of it counts.
        #[serde(default)]
        options: PartialOptions,
    },
}

/// [`TransferOptions`] of which only some were said.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartialOptions(pub Map<String, Value>);

impl From<&TransferOptions> for PartialOptions {
    fn from(options: &TransferOptions) -> Self {
        match serde_json::to_value(options) {
            Ok(Value::Object(map)) => Self(map),
            _ => Self::default(),
        }
    }
}

impl PartialOptions {
    /// Everything said, the verify level from `default` where it was not, all in range. The error is a sentence.
    pub fn resolve(mut self, default: Verify) -> Result<TransferOptions, String> {
        self.0.retain(|_, value| !value.is_null());
        let said = self.0.contains_key("verify");
        let mut options: TransferOptions =
            serde_json::from_value(Value::Object(self.0)).map_err(|e| format!("the options: {e}"))?;
        if !said {
            options.verify = default;
        }
        check_options(&options)?;
        Ok(options)
    }
}

fn check_options(options: &TransferOptions) -> Result<(), String> {
    if options.streams.is_some_and(|n| n == 0 || n > MAX_STREAMS) {
        return Err(format!("`streams` is 1 to {MAX_STREAMS}"));
    }
    if !options.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&options.block) {
        return Err(format!("`block` is a power of two from {MIN_BLOCK} to {MAX_BLOCK}"));
    }
    if options.window.is_some_and(|w| w == 0 || w > WINDOW_MAX) {
        return Err(format!("`window` is 1 to {WINDOW_MAX} bytes"));
    }
    if options.rate.is_some_and(|r| r < MIN_RATE) {
        return Err(format!("`rate` is at least {MIN_RATE} bits per second"));
    }
    if let Some(names) = &options.congestion {
        check_congestion(&split_congestion(names)).map_err(|why| format!("`congestion`: {why}"))?;
    }
    options.tuning.check().map_err(|(key, why)| format!("`{key}`: {why}"))?;
    options.profile.as_ref().map_or(Ok(()), ProfileUse::check)?;
    if options.checksums.len() > CHECKSUMS_MAX {
        return Err(format!("`checksums` lists at most {CHECKSUMS_MAX} kinds"));
    }
    let hex = |h: &str| (1..=EXPECT_MAX).contains(&h.len()) && h.bytes().all(|b| b.is_ascii_hexdigit());
    if options.expect.as_ref().is_some_and(|e| !hex(&e.hex)) {
        return Err("`expect` has a value in hex digits".to_owned());
    }
    Ok(())
}

/// The body of `POST /v1/transfers`: this agent fetches from sources whose tickets the client got for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThirdPartyRequest {
    /// One source, or several equal ones.
    pub sources: Vec<HandedSource>,
    /// DST below this agent's root.
    pub path: WirePath,
    /// One SRC becomes DST.
    #[serde(default)]
    pub becomes: bool,
    /// What is left out is the agent's default.
    #[serde(default)]
    pub options: PartialOptions,
}

/// A source of a third-party transfer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandedSource {
    /// The source's name for messages and logs.
    pub name: String,
    /// A read ticket of that source.
    pub ticket: Ticket,
}

/// The body of `POST /v1/transfers/{id}/tickets`: a fresh ticket for a source that wants one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandTicket {
    /// The source's place in [`ThirdPartyRequest::sources`].
    pub source: usize,
    /// The ticket.
    pub ticket: Ticket,
}

/// The answer to [`ThirdPartyRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// For `GET` and `DELETE /v1/transfers/{id}`.
    pub id: String,
}

/// A transfer as the HTTP port shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TransferView {
    /// The name under which this agent knows it: of a third-party transfer what [`Started`] said, otherwise the
    /// transfer id, once it is known.
    pub id: Option<String>,
    /// The transfer id, the same for a resume.
    pub transfer: Option<TransferId>,
    /// Whose ticket or token it was.
    pub principal: String,
    /// `source` or `destination`.
    pub role: String,
    /// The peer's data address.
    pub peer: Option<SocketAddr>,
    /// Our side of it.
    pub local: Option<SocketAddr>,
    /// The path at this end, escaped.
    pub path: String,
    /// Sources, by index, that wait for a fresh ticket.
    #[serde(default)]
    pub wants_tickets: Vec<usize>,
    /// Progress.
    pub snapshot: Snapshot,
    /// Present when it has ended.
    pub report: Option<Report>,
}

impl From<TransferStatus> for TransferView {
    fn from(status: TransferStatus) -> Self {
        Self {
            id: status.transfer.map(|id| id.to_string()),
            transfer: status.transfer,
            principal: status.principal,
            role: status.role.to_owned(),
            peer: status.peer,
            local: status.local,
            path: status.path,
            wants_tickets: Vec::new(),
            snapshot: status.snapshot,
            report: status.report,
        }
    }
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link, not followed.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// The answer to `GET /v1/stat?path=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatReply {
    /// Directory, file, …
    pub kind: StatKind,
    /// Bytes of a regular file, 0 of anything else.
    pub size: u64,
}

/// The answer to `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusReply {
    /// Who it is.
    pub agent: AgentId,
    /// Of the program.
    pub version: String,
    /// `source`, `destination`.
    pub roles: Vec<String>,
    /// Free and total bytes beneath the root, and its file system.
    pub root: RootFacts,
    /// What the engine's probes found.
    pub engine: BTreeMap<String, String>,
    /// Since the start.
    pub uptime_seconds: u64,
    /// Transfers that run.
    pub sessions: usize,
}

/// The storage beneath an agent's root. Where it lies on that host is not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFacts {
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// RFC 9457, with the class of the error.
#[derive(utoipa::ToSchema, Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProblemBody {
    /// `urn:longhaul:problem:…`
    #[serde(rename = "type", default)]
    pub kind: String,
    /// In a few words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// One sentence.
    #[serde(default)]
    pub detail: String,
    /// `engine::error::Class::word`.
    #[serde(default)]
    pub class: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_survive() {
        for bytes in [b"/a/b".as_slice(), b"", "é".as_bytes(), b"a\xff\n"] {
            let path = WirePath(bytes.to_vec());
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<WirePath>(&json).unwrap(), path);
        }
        assert_eq!(serde_json::to_string(&WirePath(vec![0xff])).unwrap(), r#"{"hex":"ff"}"#);
        for bad in [r#"{"hex":"zz"}"#, r#"{"hex":"ff","x":1}"#, "3", "null"] {
            assert!(serde_json::from_str::<WirePath>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ticket_requests_as_documented() {
        let read: TicketRequest =
            serde_json::from_str(r#"{"direction":"read","paths":["/a",{"hex":"ff"}],"recursive":true,"encrypt":null}"#)
                .unwrap();
        assert!(matches!(read, TicketRequest::Read { ref paths, recursive: true, encrypt: None } if paths.len() == 2));
        let write: TicketRequest =
            serde_json::from_str(r#"{"direction":"write","path":"/in","becomes":true,"options":{"streams":4}}"#)
                .unwrap();
        let TicketRequest::Write { options, .. } = write else { panic!() };
        let options = options.resolve(Verify::Disk).unwrap();
        assert_eq!((options.streams, options.verify), (Some(4), Verify::Disk));
        for bad in [
            r#"{"direction":"read","paths":["/a"],"recursiv":true}"#,
            r#"{"direction":"up","path":"/a"}"#,
            r#"{"paths":["/a"]}"#,
        ] {
            assert!(serde_json::from_str::<TicketRequest>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn options_out_of_range_are_refused_with_their_name() {
        let resolve = |text: &str| serde_json::from_str::<PartialOptions>(text).unwrap().resolve(Verify::Disk);
        assert_eq!(resolve(r#"{"verify":"wire"}"#).unwrap().verify, Verify::Wire);
        assert_eq!(resolve(r#"{"verify":null}"#).unwrap().verify, Verify::Disk);
        for (text, name) in [
            (r#"{"streams":0}"#, "streams"),
            (r#"{"streams":65}"#, "streams"),
            (r#"{"block":0}"#, "block"),
            (r#"{"block":100000}"#, "block"),
            (r#"{"block":2097152}"#, "block"),
            (r#"{"window":2147483648}"#, "window"),
            (r#"{"rate":1}"#, "rate"),
            (r#"{"congestion":"a b"}"#, "congestion"),
            (r#"{"expect":{"kind":"md5","hex":"xyz"}}"#, "expect"),
            (r#"{"congestion":"a,,b"}"#, "congestion"),
            (r#"{"tuning":{"mss":1}}"#, "sockets.mss"),
            (r#"{"tuning":{"depth":1000}}"#, "files.depth"),
            (r#"{"tuning":{"ttl":1}}"#, "ttl"),
            (r#"{"profile":{"name":"","why":"","measured":true}}"#, "profile"),
            (r#"{"bind":"127.0.0.1"}"#, "bind"),
            (r#"{"stream":1}"#, "stream"),
        ] {
            let error = resolve(text).unwrap_err();
            assert!(error.contains(name), "{text}: {error}");
        }
        let full = TransferOptions { streams: Some(2), ..TransferOptions::default() };
        assert_eq!(PartialOptions::from(&full).resolve(Verify::Disk).unwrap(), full);
    }
}
