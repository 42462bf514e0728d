//! What a source's refusal or a failed write means, in words.

use super::*;
use crate::disk::FsKind;

pub(super) fn status_words(status: Status) -> Option<(Class, &'static str)> {
    Some(match status {
        Status::Ok => return None,
        Status::Changed => (Class::Retry, "changed at the source while it was moved; repeat when nobody writes it"),
        Status::Gone => (Class::OtherSource, "was deleted at the source while it was moved"),
        Status::Denied => (Class::Denied, "may not be read at the source: check its owner and mode"),
        Status::Unwanted => (Class::OtherSource, "was left out by the source"),
        Status::Failed => (Class::OtherSource, "cannot be read at the source: its storage reports an error"),
    })
}

pub(super) fn write_error(
    kind: std::io::ErrorKind,
    errno: Option<i32>,
    path: &RelPath,
    on: Option<FsKind>,
) -> TransferError {
    let (class, what) = match kind {
        std::io::ErrorKind::StorageFull => (
            Class::NoRoom,
            "the destination is full: make room, then repeat the command; what is durable is kept".to_owned(),
        ),
        std::io::ErrorKind::QuotaExceeded => (Class::NoRoom, "the disk quota is used up".to_owned()),
        _ => (
            Class::Permanent,
            format!(
                "the destination cannot write{}: {}",
                on.map(|kind| format!(" on {kind}")).unwrap_or_default(),
                std::io::Error::from_raw_os_error(errno.unwrap_or(5))
            ),
        ),
    };
    TransferError::new(class, what).at(escape(path.as_bytes()))
}
