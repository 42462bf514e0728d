//! How a source opens what it is asked for, and the words for it.

use crate::disk::names;
use crate::disk::{Expect, IoWish, ProbeCache, Root, SourceError, SourceFile};
use crate::engine::spec::Synthetic;
use crate::engine::worker::SourceIo;
use crate::grid::Span;
use crate::relpath::RelPath;
use crate::sys::FileMode;
use crate::wire::control::{Bind, EXTENTS_MAX};
use crate::wire::data::Status;

/// Reads in flight for a stream: the page cache needs one ahead, a device several (datapath research, section 1.5).
const DEPTH_CACHED: usize = 1;
const DEPTH_DEVICE: usize = 8;

/// The word for [`crate::engine::spec::IoChoice::Splice`] in [`crate::wire::control::Accept`].
pub(in crate::engine) const SPLICE: &str = "splice";

/// What the destination asks for. That bytes are made up is this end's own setting: a peer has no word for it.
pub(super) fn wish(word: &str, synthetic: Synthetic) -> IoWish {
    match word {
        _ if synthetic.source() => IoWish::Synthetic,
        "buffered" | SPLICE => IoWish::Buffered,
        "dontcache" => IoWish::DontCache,
        "direct" => IoWish::Direct,
        _ => IoWish::Auto,
    }
}

/// The word for a mode in reports.
pub fn mode_word(mode: FileMode) -> &'static str {
    match mode {
        FileMode::PageCache => "page cache",
        FileMode::DontCache => "RWF_DONTCACHE",
        FileMode::Direct => "O_DIRECT",
        FileMode::Deferred => "buffered, several in flight",
        FileMode::Synthetic => "synthetic",
    }
}

pub(super) fn status_of(error: &SourceError) -> Status {
    match error {
        SourceError::Changed { .. } | SourceError::NotRegular { .. } => Status::Changed,
        SourceError::Gone { .. } => Status::Gone,
        SourceError::Denied { .. } => Status::Denied,
        SourceError::Disk(_) => Status::Failed,
    }
}

pub(super) fn place(roots: &[RelPath], root: u16, path: &RelPath) -> Option<RelPath> {
    // Journals, locks and part files of other transfers are no part of what is offered; the scan leaves them out too.
    if names::is_reserved(path) {
        return None;
    }
    roots.get(usize::from(root))?.join(path.as_bytes()).ok()
}

pub(super) fn open_one(
    root: &Root,
    roots: &[RelPath],
    probes: &ProbeCache,
    wish: IoWish,
    bind: &Bind,
) -> Result<SourceFile, Status> {
    // Only what was offered: the path is taken beneath the root it names.
    let path = place(roots, bind.root, &bind.path).ok_or(Status::Gone)?;
    let expect = Expect::Version { size: bind.size, mtime: bind.mtime };
    SourceFile::open(root, &path, expect, probes, wish).map_err(|error| status_of(&error))
}

pub(super) fn source_io(file: &SourceFile, splice: bool) -> SourceIo {
    let chosen = file.file_ref();
    let direct = (chosen.mode == FileMode::Direct).then(|| chosen.clone());
    let depth = match chosen.mode {
        FileMode::PageCache | FileMode::DontCache | FileMode::Synthetic => DEPTH_CACHED,
        FileMode::Direct | FileMode::Deferred => DEPTH_DEVICE,
    };
    SourceIo {
        file: if direct.is_some() { file.buffered() } else { chosen },
        direct,
        size: file.identity().size,
        extents: file.extents().filter(|e| e.len() <= EXTENTS_MAX).map(<[Span]>::to_vec),
        depth,
        // Only what a plain read brings into the page cache lies there to be sent.
        splice: splice && file.plan().mode == FileMode::PageCache,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_no_word_for_made_up_bytes() {
        for word in ["synthetic", "Synthetic", "made up", "auto", ""] {
            assert_eq!(wish(word, Synthetic::Off), IoWish::Auto, "{word}");
            assert_eq!(wish(word, Synthetic::Destination), IoWish::Auto, "{word}");
        }
        assert_eq!(wish("direct", Synthetic::Off), IoWish::Direct);
        assert_eq!(wish("direct", Synthetic::Source), IoWish::Synthetic, "the operator's word counts");
        assert!(serde_json::from_str::<crate::engine::spec::IoChoice>("\"synthetic\"").is_err());
    }
}
