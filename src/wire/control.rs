//! Messages of stream 0. The first byte of a Control frame's body says which; what is sent once a session is JSON, so
//! that fields can be added, what is sent per file is binary.

use super::data::Status;
use super::{Reader, WireError, put_long, put_short};
use crate::digest::Digest;
use crate::grid::Span;
use crate::ids::{AgentId, Epoch, Handle, PathKey, StreamIndex, TransferId};
use crate::limits::{CONTROL_BODY_MAX, MAX_ROOTS, MAX_STREAMS, MIN_RATE};
use crate::manifest::Mtime;
use crate::profile::{Steer, Tuning};
use crate::relpath::RelPath;
use crate::wire::views::SourceView;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Files in one Bind, Bound, Seal or Sealed message.
pub const BATCH_MAX: usize = 512;
/// Extents told for one file; a file with more is sent as if it had no holes.
pub const EXTENTS_MAX: usize = 4096;

/// What the source offers. The first message of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Who the source is.
    pub agent: AgentId,
    /// The offered trees and files in order; the manifest refers to them by index.
    pub roots: Vec<OfferedRoot>,
    /// The source's queue and how it reads, for the report.
    pub engine: String,
    /// The CPUs that its threads keep to, for the report.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cpus: String,
    /// What was not as asked at the source.
    pub notes: Vec<String>,
    /// The source's process: the same as the destination's for a copy inside one process.
    pub process: u64,
    /// It wants to be told the digest of every file that is there in the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub digests: bool,
}

/// One root of an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedRoot {
    /// Its last component, hex: the name below a directory DST.
    pub name: String,
    /// Its path at the source, hex: part of the transfer id.
    pub path: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Device and inode, to notice a copy onto itself on one host.
    pub object: (u64, u64),
    /// Identity of the source's host and boot, for the same.
    pub host: String,
}

/// The destination's answer: it holds the lock and has read its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    /// The transfer.
    pub transfer: TransferId,
    /// This session's epoch, durable at the destination.
    pub epoch: Epoch,
    /// Block in bytes.
    pub block: u32,
    /// Bits per second over all streams.
    pub rate: Option<u64>,
    /// Congestion control.
    pub congestion: Option<String>,
    /// Socket buffers.
    pub window: Option<u64>,
    /// How the source is to read: `auto`, `buffered`, `dontcache`, `direct` or `splice`; a word it does not know is `auto`.
    pub io: String,
    /// Segments the source may send at first, those that came behind its offer included.
    pub credit: u32,
    /// Data streams in use.
    pub streams: u16,
    /// What else the source is to set on its sockets.
    #[serde(default, skip_serializing_if = "Tuning::is_empty")]
    pub tuning: Tuning,
}

/// The source's counters at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct SourceStats {
    /// Payload bytes sent in this session.
    pub sent_bytes: u64,
    /// CPU of the source's process since the session began, ns.
    pub cpu_ns: u64,
    /// Time that streams waited for the network to take bytes, ns, over all streams.
    pub send_wait_ns: u64,
    /// Time that streams waited for the disk, ns.
    pub read_wait_ns: u64,
    /// Time that streams had nothing asked of them, ns.
    pub idle_ns: u64,
    /// Time that workers were busy, ns.
    pub busy_ns: u64,
    /// How files were read.
    pub io: String,
    /// Clamped options, fallbacks.
    pub notes: Vec<String>,
    /// Where this end's time went, and what its kernel says about its connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<SourceView>,
}

/// Progress for a source whose user waits there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
    /// As in `Snapshot`.
    pub bytes: u64,
    /// As in `Snapshot`.
    pub total_bytes: u64,
    /// As in `Snapshot`.
    pub files: u64,
    /// As in `Snapshot`.
    pub total_files: u64,
    /// As in `Snapshot`.
    pub scanned: bool,
    /// As in `Snapshot`.
    pub phase: String,
    /// As in `Snapshot`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limiter_shares: BTreeMap<String, f64>,
}

/// A failure told to the other end before a session closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerError {
    /// The word of its class.
    pub class: String,
    /// The sentence.
    pub what: String,
}

/// A congestion control that the tuner chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// RFC 9438.
    Cubic,
    /// The kernel's, whichever version it has.
    Bbr,
}

impl Control {
    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// What holds from now on. A destination sends it whenever something of it changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retune {
    /// Bits per second over all streams of this session.
    pub rate: Option<u64>,
    /// Data streams. Those of higher numbers end when nothing is asked of them any more.
    pub streams: u16,
    /// What people asked for meanwhile, for a source that opens the next session.
    #[serde(default, skip_serializing_if = "Steer::is_empty")]
    pub asked: Steer,
    /// Congestion control of all streams, by the tuner; without it what was asked for at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// Bits per second over all streams, by the tuner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pacing: Option<u64>,
}

/// What the source's side would have changed. The destination decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wish {
    /// Asked for there while the transfer runs.
    pub steer: Steer,
    /// By how many steps of priority it is to give way to others at the source, 0 to 2.
    pub yields: u8,
}

/// A file to open, with what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The destination's number for it.
    pub handle: Handle,
    /// Which root.
    pub root: u16,
    /// Below it.
    pub path: RelPath,
    /// Expected size.
    pub size: u64,
    /// Expected modification time.
    pub mtime: Mtime,
    /// The manifest says that it may have holes: tell its extents.
    pub sparse: bool,
}

/// The answer to a [`Bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Which file.
    pub handle: Handle,
    /// Open, or why not.
    pub status: Status,
    /// Device and inode, to notice a copy onto itself.
    pub object: (u64, u64),
    /// Where there is data; `None`: everywhere.
    pub extents: Option<Vec<Span>>,
}

/// The answer to a seal: the file's identity looked at once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Which file.
    pub handle: Handle,
    /// Unchanged, or how not.
    pub status: Status,
}

/// A message of stream 0.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Source: what there is.
    Offer(Offer),
    /// Destination: go.
    Accept(Accept),
    /// Source: encoded manifest segment.
    Segment(Vec<u8>),
    /// Source: nothing follows; how many segments there were.
    ManifestEnd(u32),
    /// Source: a name that could not be scanned, and why.
    Problem {
        /// Which root.
        root: u16,
        /// The name.
        path: Vec<u8>,
        /// The sentence.
        what: String,
    },
    /// Destination: so many more segments.
    Credit(u32),
    /// Destination: open these.
    Bind(Vec<Bind>),
    /// Source: opened.
    Bound(Vec<Bound>),
    /// Destination: are these still what they were? They are closed afterwards.
    Seal(Vec<Handle>),
    /// Source: yes or no.
    Sealed(Vec<Sealed>),
    /// Destination: close these without asking.
    Unbind(Vec<Handle>),
    /// Destination: progress.
    Progress(Progress),
    /// Destination: your counters, please.
    StatsRequest,
    /// Source: here.
    Stats(SourceStats),
    /// Destination: the report, JSON of `engine::spec::Report`.
    Verdict(Vec<u8>),
    /// Either: it cannot go on.
    Error(PeerError),
    /// Either: still here.
    Ping,
    /// Either: done, closing.
    Bye,
    /// Destination, if the offer asks for it: these files are there, with these digests.
    Digests(Vec<(PathKey, Digest)>),
    /// Destination, to a source that dials: this stream of yours, of this attempt, has ended here. What stands between the
    /// two may have let only one of them know.
    Lost {
        /// Which stream.
        stream: StreamIndex,
        /// Which dial of it: one that was dialled since is not meant.
        attempt: u32,
    },
    /// Destination: rate and streams from here on.
    Retune(Retune),
    /// Source: what it would have changed.
    Wish(Wish),
    /// Source, about twice a second, in the beginning five times: its counters since the session began, but for the round
    /// trip, which is the longest since the sample before.
    Sample(SourceView),
}

fn json<T: Serialize>(out: &mut Vec<u8>, tag: u8, value: &T) {
    out.push(tag);
    serde_json::to_writer(out, value).expect("plain structs always become JSON");
}

fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8], what: &'static str) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|_| WireError::Range(what))
}

impl Message {
    /// As the body of a Control frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Message::Offer(v) => json(&mut out, 1, v),
            Message::Accept(v) => json(&mut out, 2, v),
            Message::Segment(bytes) => {
                out.push(3);
                out.extend_from_slice(bytes);
            }
            Message::ManifestEnd(count) => {
                out.push(4);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Message::Problem { root, path, what } => {
                out.push(5);
                out.extend_from_slice(&root.to_le_bytes());
                put_short(&mut out, path);
                put_short(&mut out, what.as_bytes());
            }
            Message::Credit(count) => {
                out.push(6);
                out.extend_from_slice(&count.to_le_bytes());
            }
            Message::Bind(files) => {
                out.push(7);
                for file in files {
                    out.extend_from_slice(&file.handle.0.to_le_bytes());
                    out.extend_from_slice(&file.root.to_le_bytes());
                    out.extend_from_slice(&file.size.to_le_bytes());
                    out.extend_from_slice(&file.mtime.secs.to_le_bytes());
                    out.extend_from_slice(&file.mtime.nanos.to_le_bytes());
                    out.push(u8::from(file.sparse));
                    put_short(&mut out, file.path.as_bytes());
                }
            }
            Message::Bound(files) => {
                out.push(8);
                for file in files {
                    out.extend_from_slice(&file.handle.0.to_le_bytes());
                    out.push(file.status as u8);
                    out.extend_from_slice(&file.object.0.to_le_bytes());
                    out.extend_from_slice(&file.object.1.to_le_bytes());
                    let mut spans = Vec::new();
                    for span in file.extents.iter().flatten() {
                        spans.extend_from_slice(&span.offset.to_le_bytes());
                        spans.extend_from_slice(&span.len.to_le_bytes());
                    }
                    out.push(u8::from(file.extents.is_some()));
                    put_long(&mut out, &spans);
                }
            }
            Message::Seal(handles) => put_handles(&mut out, 9, handles),
            Message::Sealed(files) => {
                out.push(10);
                for file in files {
                    out.extend_from_slice(&file.handle.0.to_le_bytes());
                    out.push(file.status as u8);
                }
            }
            Message::Unbind(handles) => put_handles(&mut out, 11, handles),
            Message::Progress(v) => json(&mut out, 12, v),
            Message::StatsRequest => out.push(13),
            Message::Stats(v) => json(&mut out, 14, v),
            Message::Verdict(report) => {
                out.push(15);
                out.extend_from_slice(report);
            }
            Message::Error(v) => json(&mut out, 16, v),
            Message::Ping => out.push(17),
            Message::Bye => out.push(18),
            Message::Digests(files) => {
                out.push(19);
                for (key, digest) in files {
                    out.extend_from_slice(&key.0);
                    out.extend_from_slice(&digest.0);
                }
            }
            Message::Lost { stream, attempt } => {
                out.push(20);
                out.extend_from_slice(&stream.0.to_le_bytes());
                out.extend_from_slice(&attempt.to_le_bytes());
            }
            Message::Retune(v) => json(&mut out, 21, v),
            Message::Wish(v) => json(&mut out, 22, v),
            Message::Sample(v) => json(&mut out, 23, v),
        }
        out
    }

    /// Reads the body of a Control frame.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        if body.len() > CONTROL_BODY_MAX {
            return Err(WireError::Range("control length"));
        }
        let mut fields = Reader::new(body, "control");
        let message = match fields.u8()? {
            1 => {
                let offer: Offer = from_json(fields.rest(), "offer")?;
                if offer.roots.is_empty() || offer.roots.len() > MAX_ROOTS {
                    return Err(WireError::Range("roots"));
                }
                Message::Offer(offer)
            }
            2 => Message::Accept(from_json(fields.rest(), "accept")?),
            3 => Message::Segment(fields.rest().to_vec()),
            4 => Message::ManifestEnd(fields.u32()?),
            5 => Message::Problem {
                root: fields.u16()?,
                path: fields.short()?.to_vec(),
                what: String::from_utf8_lossy(fields.short()?).into_owned(),
            },
            6 => Message::Credit(fields.u32()?),
            7 => Message::Bind(batch(&mut fields, read_bind)?),
            8 => Message::Bound(batch(&mut fields, read_bound)?),
            9 => Message::Seal(batch(&mut fields, |f| Ok(Handle(f.u32()?)))?),
            10 => Message::Sealed(batch(&mut fields, |f| {
                Ok(Sealed { handle: Handle(f.u32()?), status: Status::from_byte(f.u8()?)? })
            })?),
            11 => Message::Unbind(batch(&mut fields, |f| Ok(Handle(f.u32()?)))?),
            12 => Message::Progress(from_json(fields.rest(), "progress")?),
            13 => Message::StatsRequest,
            14 => Message::Stats(from_json(fields.rest(), "stats")?),
            15 => Message::Verdict(fields.rest().to_vec()),
            16 => Message::Error(from_json(fields.rest(), "error")?),
            17 => Message::Ping,
            18 => Message::Bye,
            19 => Message::Digests(batch(&mut fields, |f| Ok((PathKey(f.array()?), Digest(f.array()?))))?),
            20 => Message::Lost { stream: StreamIndex(fields.u16()?), attempt: fields.u32()? },
            21 => {
                let to: Retune = from_json(fields.rest(), "retune")?;
                if to.streams == 0
                    || to.streams > MAX_STREAMS
                    || to.rate.into_iter().chain(to.pacing).any(|rate| rate < MIN_RATE)
                    || to.asked.check().is_err()
                {
                    return Err(WireError::Range("retune"));
                }
                Message::Retune(to)
            }
            22 => {
                let wish: Wish = from_json(fields.rest(), "wish")?;
                if wish.steer.check().is_err() || wish.yields > 2 {
                    return Err(WireError::Range("wish"));
                }
                Message::Wish(wish)
            }
            23 => Message::Sample(from_json(fields.rest(), "sample")?),
            _ => return Err(WireError::Range("message")),
        };
        fields.end()?;
        Ok(message)
    }
}

fn put_handles(out: &mut Vec<u8>, tag: u8, handles: &[Handle]) {
    out.push(tag);
    for handle in handles {
        out.extend_from_slice(&handle.0.to_le_bytes());
    }
}

fn batch<'a, T>(
    fields: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let mut out = Vec::new();
    while !fields.is_empty() {
        if out.len() == BATCH_MAX {
            return Err(WireError::Range("count"));
        }
        out.push(read(fields)?);
    }
    Ok(out)
}

fn read_bind(fields: &mut Reader<'_>) -> Result<Bind, WireError> {
    let handle = Handle(fields.u32()?);
    let root = fields.u16()?;
    let size = fields.u64()?;
    let mtime = Mtime { secs: fields.u64()? as i64, nanos: fields.u32()? };
    let sparse = match fields.u8()? {
        0 => false,
        1 => true,
        _ => return Err(WireError::Range("sparse")),
    };
    Ok(Bind { handle, root, path: RelPath::new(fields.short()?)?, size, mtime, sparse })
}

fn read_bound(fields: &mut Reader<'_>) -> Result<Bound, WireError> {
    let handle = Handle(fields.u32()?);
    let status = Status::from_byte(fields.u8()?)?;
    let object = (fields.u64()?, fields.u64()?);
    let told = fields.u8()?;
    let spans = fields.long()?;
    if spans.len() > EXTENTS_MAX * 16 || !spans.len().is_multiple_of(16) {
        return Err(WireError::Range("extents"));
    }
    let mut spans = Reader::new(spans, "extents");
    let (mut extents, mut end) = (Vec::new(), 0u64);
    while !spans.is_empty() {
        let span = Span { offset: spans.u64()?, len: spans.u64()? };
        let past = span.offset.checked_add(span.len).ok_or(WireError::Range("extents"))?;
        if span.len == 0 || span.offset < end {
            return Err(WireError::Range("extents"));
        }
        end = past;
        extents.push(span);
    }
    let extents = match told {
        0 if extents.is_empty() => None,
        1 => Some(extents),
        _ => return Err(WireError::Range("extents")),
    };
    Ok(Bound { handle, status, object, extents })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let bind = Bind {
            handle: Handle(7),
            root: 2,
            path: RelPath::new(b"x/\xfe").unwrap(),
            size: 1 << 50,
            mtime: Mtime { secs: -1, nanos: 5 },
            sparse: true,
        };
        let bound = Bound {
            handle: Handle(7),
            status: Status::Ok,
            object: (1, 2),
            extents: Some(vec![Span { offset: 0, len: 4096 }, Span { offset: 8192, len: 1 }]),
        };
        vec![
            Message::Segment(vec![1, 2, 3]),
            Message::ManifestEnd(4),
            Message::Problem { root: 1, path: b"p\xff".to_vec(), what: "no".into() },
            Message::Credit(8),
            Message::Bind(vec![bind.clone(), bind]),
            Message::Bound(vec![bound.clone(), Bound { extents: None, status: Status::Gone, ..bound }]),
            Message::Seal(vec![Handle(1), Handle(2)]),
            Message::Sealed(vec![Sealed { handle: Handle(1), status: Status::Changed }]),
            Message::Unbind(vec![]),
            Message::StatsRequest,
            Message::Stats(SourceStats { sent_bytes: 5, ..Default::default() }),
            Message::Progress(Progress::default()),
            Message::Verdict(b"{}".to_vec()),
            Message::Error(PeerError { class: "retry".into(), what: "full".into() }),
            Message::Ping,
            Message::Bye,
            Message::Digests(vec![(PathKey([1; 16]), Digest([2; 16])), (PathKey([3; 16]), Digest([4; 16]))]),
            Message::Lost { stream: StreamIndex(3), attempt: 1001 },
            Message::Retune(Retune { rate: Some(8_000_000), streams: 4, ..Retune::default() }),
            Message::Wish(Wish { steer: Steer { rate: Some(0), ..Steer::default() }, yields: 1 }),
        ]
    }

    #[test]
    fn messages_come_back() {
        for message in samples() {
            assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }
    }

    /// Version 1's bytes: a source that does not ask says nothing of it, and is understood by older peers.
    #[test]
    fn digests_are_asked_for_and_told_in_these_bytes() {
        let mut offer = Offer {
            agent: AgentId([1; 16]),
            roots: vec![],
            engine: "epoll".into(),
            cpus: String::new(),
            notes: vec![],
            process: 7,
            digests: false,
        };
        let plain = "{\"agent\":\"01010101010101010101010101010101\",\"roots\":[],\"engine\":\"epoll\",\"notes\":[],\"process\":7}";
        assert_eq!(serde_json::to_string(&offer).unwrap(), plain);
        assert_eq!(serde_json::from_str::<Offer>(plain).unwrap(), offer);
        offer.cpus = "0-3: shared".into();
        let bound = plain.replace("\"notes\"", "\"cpus\":\"0-3: shared\",\"notes\"");
        assert_eq!(serde_json::to_string(&offer).unwrap(), bound);
        (offer.cpus, offer.digests) = (String::new(), true);
        assert_eq!(serde_json::to_string(&offer).unwrap(), plain.replace("7}", "7,\"digests\":true}"));
        let bytes = Message::Digests(vec![(PathKey([1; 16]), Digest([2; 16]))]).encode();
        assert_eq!(hex::encode(bytes), format!("13{}{}", "01".repeat(16), "02".repeat(16)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            &b"\x15{\"rate\":7999,\"streams\":1}"[..],
            b"\x15{\"rate\":null,\"streams\":0}",
            b"\x15{\"rate\":null,\"streams\":65}",
            b"\x16{\"yields\":3}",
            b"\x16{\"steer\":{\"streams\":0}}",
            b"\x16{\"steer\":{\"rate\":1}}",
        ] {
            assert!(matches!(Message::decode(bad), Err(WireError::Range("retune" | "wish"))), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn cut_off_messages_are_errors_or_shorter_batches_never_panics() {
        for message in samples() {
            let bytes = message.encode();
            for cut in 0..bytes.len() {
                let _ = Message::decode(&bytes[..cut]);
            }
        }
        assert!(Message::decode(&[]).is_err());
        assert!(Message::decode(&[99]).is_err());
    }

    #[test]
    fn overlapping_or_overflowing_extents_are_refused() {
        for spans in [[(10u64, 10u64), (15, 5)], [(0, 0), (5, 5)], [(0, 1), (u64::MAX, 2)]] {
            let extents = Some(spans.iter().map(|&(offset, len)| Span { offset, len }).collect());
            let bytes =
                Message::Bound(vec![Bound { handle: Handle(1), status: Status::Ok, object: (0, 0), extents }]).encode();
            assert!(Message::decode(&bytes).is_err(), "{spans:?}");
        }
    }
}
