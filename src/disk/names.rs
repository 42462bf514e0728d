//! Names that this program keeps for itself beside the user's own: part files and the state directory.

use crate::digest;
use crate::ids::TransferId;
use crate::relpath::{NAME_MAX, RelPath};

/// The directory at the top of a destination that holds journals and locks.
pub const STATE_DIR: &[u8] = b".longhaul";
/// Hex digits of the transfer id in a part name: 64 bits tell the transfers of one directory apart.
const ID_DIGITS: usize = 16;
const MARK: &[u8] = b".lh-";
const END: &[u8] = b".part";

/// The part file's name for the final name `name`: `.NAME.lh-ID.part`, or, where that is too long for a directory
/// entry, `.lh-HASH-ID.part` with a hash of the name.
pub fn part_name(name: &[u8], id: &TransferId) -> Vec<u8> {
    let hex = id.to_string();
    let id = &hex.as_bytes()[..ID_DIGITS];
    if 1 + name.len() + MARK.len() + ID_DIGITS + END.len() <= NAME_MAX {
        return [b".", name, MARK, id, END].concat();
    }
    let hash = digest::of(name).to_string();
    [MARK, &hash.as_bytes()[..ID_DIGITS], b"-", id, END].concat()
}

/// The id digits of a name that [`part_name`] may have made.
pub fn part_id(name: &[u8]) -> Option<&[u8]> {
    let is_id = |s: &[u8]| s.len() == ID_DIGITS && s.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let rest = name.strip_suffix(END)?;
    let (head, id) = rest.split_at_checked(rest.len().checked_sub(ID_DIGITS)?)?;
    if !is_id(id) {
        return None;
    }
    if let Some(named) = head.strip_suffix(MARK) {
        return (named.len() > 1 && named[0] == b'.').then_some(id);
    }
    let hash = head.strip_prefix(MARK)?.strip_suffix(b"-")?;
    is_id(hash).then_some(id)
}

/// Whether a name is kept for this program.
pub fn is_reserved_name(name: &[u8]) -> bool {
    name == STATE_DIR || part_id(name).is_some()
}

/// Whether any component of a path is. A peer that asks for such a path is refused: it could reach journals and locks.
pub fn is_reserved(path: &RelPath) -> bool {
    path.components().any(is_reserved_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_fit_and_are_known_again() {
        let id = TransferId([0xab; 16]);
        assert_eq!(part_name(b"data", &id), b".data.lh-abababababababab.part");
        for len in [1, 228, 229, 230, 255] {
            let name = vec![b'n'; len];
            let part = part_name(&name, &id);
            assert!(part.len() <= NAME_MAX, "{len}");
            assert_eq!(part_id(&part), Some(b"abababababababab".as_slice()), "{len}");
        }
        let (a, b) = (part_name(&[b'a'; 255], &id), part_name(&[b'b'; 255], &id));
        assert_ne!(a, b, "long names do not share a part file");
        for other in [
            b"data".as_slice(),
            b".x.lh-abab.part",
            b".x.lh-ABABABABABABABAB.part",
            b"x.lh-abababababababab.part",
            b".lh-abababababababab.part",
            b".part",
        ] {
            assert_eq!(part_id(other), None, "{other:?}");
        }
        assert!(is_reserved(&RelPath::new(b"a/.longhaul/x").unwrap()));
        assert!(!is_reserved(&RelPath::new(b"a/.longhaul2/x").unwrap()));
    }
}
