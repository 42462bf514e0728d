//! A file's bytes for a plain client: one range or all, in bounded memory, and cut off when the file changes meanwhile.

use super::super::root::OpenedFile;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes of one read.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the client.
const AHEAD: usize = 4;

/// What is sent of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// From, and how many, at least one.
    Range(u64, u64),
    /// Nothing of it lies within the file.
    Outside,
}

/// RFC 9110 §14: one byte range. Several, other units and nonsense count as none, as they may.
pub fn part(range: Option<&str>, bytes: u64) -> Part {
    let Some(spec) = range.and_then(|r| r.trim().strip_prefix("bytes=")) else { return Part::Whole };
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else { return Part::Whole };
    let number = |text: &str| match text.trim() {
        "" => Some(None),
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => Some(Some(digits.parse::<u64>().unwrap_or(u64::MAX))),
        _ => None,
    };
    match (number(first), number(last)) {
        (Some(Some(first)), Some(last)) => match last {
            Some(last) if last < first => Part::Whole,
            _ if first >= bytes => Part::Outside,
            last => Part::Range(first, last.map_or(bytes, |l| l.saturating_add(1).min(bytes)) - first),
        },
        (Some(None), Some(Some(suffix))) => match suffix.min(bytes) {
            0 => Part::Outside,
            count => Part::Range(bytes - count, count),
        },
        _ => Part::Whole,
    }
}

struct FileBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = self.pieces.poll_recv(cx);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            self.left = self.left.saturating_sub(piece.len() as u64);
        }
        polled.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Reads until the client has gone or all is told; the place is given back then.
fn send(opened: &OpenedFile, from: u64, count: u64, to: &mpsc::Sender<io::Result<Bytes>>) {
    let mut done = 0;
    while done < count {
        let mut piece = vec![0; PIECE.min(usize::try_from(count - done).unwrap_or(PIECE))];
        let read = opened.file.read_exact_at(&mut piece, from + done);
        done += piece.len() as u64;
        // Of the last piece too: bytes of two versions are no file.
        let read = match read {
            Ok(()) if done == count && !opened.is_unchanged() => Err(io::Error::other("the file changed meanwhile")),
            read => read,
        };
        let failed = read.is_err();
        if to.blocking_send(read.map(|()| piece.into())).is_err() || failed {
            return;
        }
    }
}

/// The answer with the bytes, or for HEAD without. Needs a tokio runtime.
pub fn answer(
    head: bool,
    headers: &HeaderMap,
    opened: OpenedFile,
    digest: Option<&str>,
    place: OwnedSemaphorePermit,
) -> Response {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let matches = |value: &str| value.split(',').any(|tag| tag.trim() == "*" || tag.trim() == opened.etag);
    if text(header::IF_MATCH).is_some_and(|value| !matches(value)) {
        let problem = super::Problem::new(
            StatusCode::PRECONDITION_FAILED,
            crate::engine::error::Class::OtherSource,
            "the file has changed: begin anew",
        );
        return problem.into_response();
    }
    let unmodified = text(header::IF_NONE_MATCH).is_some_and(matches);
    let range = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|tag| tag == opened.etag));
    let (status, from, count) = match part(range, opened.bytes) {
        _ if unmodified => (StatusCode::NOT_MODIFIED, 0, 0),
        Part::Whole => (StatusCode::OK, 0, opened.bytes),
        Part::Range(from, count) => (StatusCode::PARTIAL_CONTENT, from, count),
        Part::Outside => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let (bytes, etag) = (opened.bytes, opened.etag.clone());
    let body = if head || count == 0 {
        Body::empty()
    } else {
        let (to, pieces) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            send(&opened, from, count, &to);
            drop(place);
        });
        Body::new(FileBody { pieces, left: count })
    };
    let mut response = (status, body).into_response();
    let mut set = |name: header::HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    set(header::ETAG, etag);
    set(header::CACHE_CONTROL, "no-store".to_owned());
    set(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    if status != StatusCode::NOT_MODIFIED {
        set(header::CONTENT_LENGTH, count.to_string());
    }
    match status {
        StatusCode::PARTIAL_CONTENT => {
            set(header::CONTENT_RANGE, format!("bytes {from}-{}/{bytes}", from + count - 1));
        }
        StatusCode::RANGE_NOT_SATISFIABLE => set(header::CONTENT_RANGE, format!("bytes */{bytes}")),
        _ => {}
    }
    if let Some(digest) = digest.and_then(|d| hex::decode(d).ok()) {
        // RFC 9530; a name of our own, as XXH3 trees have none.
        set(header::HeaderName::from_static("repr-digest"), format!("x-longhaul-xxh3=:{}:", base64(&digest)));
    }
    response
}

/// RFC 4648 §4, for one header.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().enumerate().fold(0u32, |word, (at, &b)| word | u32::from(b) << (16 - 8 * at));
        for at in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * at)) as usize & 63] as char;
            out.push(if at <= three.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (range, want) in [
            (None, Part::Whole),
            (Some("bytes=0-"), Part::Range(0, 10)),
            (Some("bytes=2-4"), Part::Range(2, 3)),
            (Some("bytes=9-99999999999999999999"), Part::Range(9, 1)),
            (Some("bytes=-3"), Part::Range(7, 3)),
            (Some("bytes=-30"), Part::Range(0, 10)),
            (Some("bytes=-0"), Part::Outside),
            (Some("bytes=10-"), Part::Outside),
            (Some("bytes=4-2"), Part::Whole),
            (Some("bytes=1-2,4-5"), Part::Whole),
            (Some("lines=1-2"), Part::Whole),
            (Some("bytes=+1-2"), Part::Whole),
        ] {
            assert_eq!(part(range, 10), want, "{range:?}");
        }
        assert_eq!(part(Some("bytes=0-0"), 0), Part::Outside);
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }
}
