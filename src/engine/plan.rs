//! What is to be done about one manifest entry: the entry, less what the checkpoint has, against what stands under its
//! final name. Pure: no I/O.

use super::spec::IfExists;
use crate::digest::Digest;
use crate::disk::{Existing, Signature};
use crate::ids::{PathKey, TransferId};
use crate::journal::{Checkpoint, FileState};
use crate::limits::PACK_FILE_MAX;
use crate::manifest::{Entry, EntryKind};

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the directory, or use the one that is there.
    Directory,
    /// Make the symlink once the files are there.
    Symlink,
    /// It is there: an earlier run of this transfer published it.
    Resumed,
    /// An earlier run was about to rename it, and it has been renamed: only the record is missing.
    Renamed(Digest),
    /// It is there and proved equal, or is to be left alone.
    Skip,
    /// Same size and time, but nothing recorded: digests decide.
    Prove,
    /// Small: in a pack.
    Pack,
    /// Bind and fetch by chunks.
    Fetch,
    /// Something else stands there.
    Conflict(&'static str),
    /// A FIFO, socket or device.
    Special,
}

/// Walk 5: decides. `existing` is what stands under the final name.
pub fn decide(
    entry: &Entry,
    key: PathKey,
    existing: &Existing,
    checkpoint: &Checkpoint,
    policy: IfExists,
    id: &TransferId,
) -> Action {
    match &entry.kind {
        EntryKind::Special => Action::Special,
        EntryKind::Dir => match existing {
            Existing::None | Existing::Dir(_) => Action::Directory,
            _ => Action::Conflict("there is something at the destination that is not a directory; move it away"),
        },
        EntryKind::Symlink { target } => match existing {
            Existing::None => Action::Symlink,
            Existing::Symlink { target: there, .. } if there[..] == target[..] => Action::Skip,
            Existing::Dir(_) => Action::Conflict("a directory stands where a symlink should be; move it away"),
            _ => replaceable(policy, Action::Symlink),
        },
        EntryKind::File { size, .. } => {
            file(Signature { transfer: *id, mtime: entry.mtime }, *size, key, existing, checkpoint, policy)
        }
    }
}

fn file(
    ours: Signature,
    size: u64,
    key: PathKey,
    existing: &Existing,
    checkpoint: &Checkpoint,
    policy: IfExists,
) -> Action {
    let fetch = if size <= PACK_FILE_MAX { Action::Pack } else { Action::Fetch };
    match existing {
        Existing::None => fetch,
        Existing::File { stat, record } => {
            let same = stat.size == size && stat.mtime == ours.mtime;
            if let Some(FileState::Publishing { inode, digest }) = checkpoint.files.get(&key).map(|f| f.state)
                && inode == stat.ino
                && stat.size == size
            {
                return Action::Renamed(digest);
            }
            if checkpoint.done.contains_key(&key) && stat.size == size && (same || record.is_some()) {
                return Action::Resumed;
            }
            match policy {
                IfExists::Skip => Action::Skip,
                IfExists::Replace if same && record.is_some() => Action::Skip,
                IfExists::Replace => fetch,
                // Its journal is gone: the run that published it may have died before it told anybody.
                IfExists::Error if stat.size == size && record.is_some_and(|proof| proof.signed == Some(ours)) => {
                    Action::Skip
                }
                IfExists::Error => Action::Conflict("exists already, and --if-exists error was given"),
                IfExists::Prove if same && record.is_some() => Action::Skip,
                IfExists::Prove if same => Action::Prove,
                IfExists::Prove => Action::Conflict(
                    "exists already with another size or time; --if-exists replace takes the source's, skip keeps this one",
                ),
            }
        }
        Existing::Dir(_) => Action::Conflict("a directory stands where a file should be; move it away"),
        Existing::Symlink { .. } | Existing::Other => replaceable(policy, fetch),
    }
}

fn replaceable(policy: IfExists, action: Action) -> Action {
    match policy {
        IfExists::Replace => action,
        IfExists::Skip => Action::Skip,
        IfExists::Prove | IfExists::Error => {
            Action::Conflict("something else stands there; --if-exists replace takes the source's, skip keeps this one")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Kind, Proof, Stat};
    use crate::manifest::Mtime;
    use crate::relpath::RelPath;

    const T: Mtime = Mtime { secs: 5, nanos: 0 };
    const KEY: PathKey = PathKey([1; 16]);
    const ID: TransferId = TransferId([2; 16]);

    fn there(size: u64, mtime: Mtime, record: bool) -> Existing {
        let stat = Stat {
            kind: Kind::File,
            mode: 0o644,
            size,
            allocated: size,
            mtime,
            ctime: mtime,
            dev: 1,
            ino: 77,
            links: 1,
            uid: 0,
        };
        Existing::File { stat, record: record.then(|| crate::digest::of(b"x").into()) }
    }

    fn plan(existing: &Existing, checkpoint: &Checkpoint, policy: IfExists) -> Action {
        let kind = EntryKind::File { size: 1 << 20, sparse: false };
        let entry = Entry { root: 0, path: RelPath::new(b"f").unwrap(), kind, mode: 0o644, mtime: T };
        decide(&entry, KEY, existing, checkpoint, policy, &ID)
    }

    #[test]
    fn an_existing_file_is_never_taken_over_unproved() {
        let none = Checkpoint::default();
        let other = Mtime { secs: 6, nanos: 0 };
        assert_eq!(plan(&Existing::None, &none, IfExists::Prove), Action::Fetch);
        assert_eq!(plan(&there(1 << 20, T, true), &none, IfExists::Prove), Action::Skip);
        assert_eq!(plan(&there(1 << 20, T, false), &none, IfExists::Prove), Action::Prove);
        assert!(matches!(plan(&there(1 << 20, other, false), &none, IfExists::Prove), Action::Conflict(_)));
        assert!(matches!(plan(&there(1, T, true), &none, IfExists::Prove), Action::Conflict(_)));
        assert!(matches!(plan(&there(1 << 20, T, true), &none, IfExists::Error), Action::Conflict(_)));
        assert_eq!(plan(&there(1, other, false), &none, IfExists::Skip), Action::Skip);
        assert_eq!(plan(&there(1, other, false), &none, IfExists::Replace), Action::Fetch);
        assert!(matches!(plan(&Existing::Other, &none, IfExists::Prove), Action::Conflict(_)));
    }

    #[test]
    fn what_this_transfer_published_is_no_conflict() {
        let mut checkpoint = Checkpoint::default();
        checkpoint.done.insert(KEY, crate::digest::of(b"x"));
        assert_eq!(plan(&there(1 << 20, T, false), &checkpoint, IfExists::Error), Action::Resumed);
        assert_eq!(plan(&Existing::None, &checkpoint, IfExists::Error), Action::Fetch, "it was removed since");
        assert!(matches!(plan(&there(5, T, false), &checkpoint, IfExists::Error), Action::Conflict(_)));
    }

    /// Its journal is gone, its verdict was not told: only the signature says whose it is.
    #[test]
    fn what_this_transfer_has_signed_is_no_conflict() {
        let none = Checkpoint::default();
        let signed = |size, transfer, mtime| {
            let Existing::File { stat, .. } = there(size, Mtime { secs: 9, nanos: 0 }, false) else { unreachable!() };
            let signed = Some(Signature { transfer, mtime });
            Existing::File { stat, record: Some(Proof { digest: crate::digest::of(b"x"), signed }) }
        };
        assert_eq!(plan(&signed(1 << 20, ID, T), &none, IfExists::Error), Action::Skip);
        let other = Mtime { secs: 6, nanos: 0 };
        for foreign in [
            signed(1 << 20, TransferId([3; 16]), T),
            signed(1 << 20, ID, other),
            signed(5, ID, T),
            there(1 << 20, T, true),
        ] {
            assert!(matches!(plan(&foreign, &none, IfExists::Error), Action::Conflict(_)), "{foreign:?}");
        }
    }
}
