//! Paths below a root, as a peer may name them. Bytes, not text: names need not be UTF-8.
//!
//! A [`RelPath`] has no empty, `.` or `..` component, no NUL, no leading or trailing slash, no component above 255
//! bytes, and is shorter than `PATH_MAX`. The empty path is the root itself. That it cannot leave the root through a
//! symlink is the business of `disk::confined`.

use std::fmt;
use std::sync::Arc;

/// `PATH_MAX` of Linux, the terminating NUL counted.
pub const PATH_MAX: usize = 4096;
/// `NAME_MAX` of every file system that matters here.
pub const NAME_MAX: usize = 255;

/// A checked path below a root. Clones share its bytes: a path may be 4 KiB long and is named in many places at once.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Arc<[u8]>);

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Starts with a slash.
    #[error("the path is absolute")]
    Absolute,
    /// Has an empty, `.` or `..` component.
    #[error("the path has an empty, `.` or `..` component")]
    Component,
    /// Has a NUL byte.
    #[error("the path has a NUL byte")]
    Nul,
    /// A component is longer than 255 bytes or the whole is longer than 4095.
    #[error("the path or a name in it is too long")]
    TooLong,
}

impl RelPath {
    /// Checks `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute);
        }
        if bytes.len() >= PATH_MAX {
            return Err(PathError::TooLong);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        for part in bytes.split(|&b| b == b'/') {
            match part {
                b"" | b"." | b".." => return Err(PathError::Component),
                long if long.len() > NAME_MAX => return Err(PathError::TooLong),
                _ => {}
            }
        }
        Ok(Self(bytes.into()))
    }

    /// The path's bytes; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components from the top down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|part| !part.is_empty())
    }

    /// `self/name`, checked.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        if self.is_root() {
            return Self::new(name);
        }
        if name.is_empty() {
            return Ok(self.clone());
        }
        Self::new(&[&self.0, b"/".as_slice(), name].concat())
    }

    /// The parent and the last component; `None` for the root.
    pub fn split_last(&self) -> Option<(RelPath, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&b| b == b'/') {
            Some(at) => (Self(self.0[..at].into()), &self.0[at + 1..]),
            None => (Self::default(), &self.0),
        })
    }

    /// The last name; empty for the root.
    pub fn name(&self) -> &[u8] {
        let start = self.0.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        &self.0[start..]
    }

    /// The last name, if the path lies directly in `dir`.
    pub fn name_in(&self, dir: &RelPath) -> Option<&[u8]> {
        let name = match dir.is_root() {
            true => &self.0[..],
            false => self.0.strip_prefix(dir.as_bytes())?.strip_prefix(b"/")?,
        };
        (!name.is_empty() && !name.contains(&b'/')).then_some(name)
    }

    /// Whether `self` is `other` or lies below it, by whole components.
    pub fn starts_with(&self, other: &RelPath) -> bool {
        other.is_root() || self.0.strip_prefix(other.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }
}

/// Escaped for logs and terminals: bytes outside printable ASCII as `\xNN`, except valid UTF-8 letters.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c == ' ' || c.is_alphanumeric() || c.is_ascii_graphic() => out.push(c),
                c => out.extend(c.to_string().bytes().map(|b| format!("\\x{b:02x}"))),
            }
        }
        out.extend(chunk.invalid().iter().map(|b| format!("\\x{b:02x}")));
    }
    out
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { f.write_str(&escape(&self.0)) }
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelPath({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_in_its_own_directory_and_in_no_other() {
        let path = |text: &str| RelPath::new(text.as_bytes()).unwrap();
        let name =
            |text: &str, dir: &RelPath| path(text).name_in(dir).map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(name("a/b", &path("a")).as_deref(), Some("b"));
        assert_eq!(name("a", &RelPath::default()).as_deref(), Some("a"));
        for (text, dir) in [
            ("ab", path("a")),
            ("ab/c", path("a")),
            ("a/b/c", path("a")),
            ("a", path("a")),
            ("a/b", RelPath::default()),
        ] {
            assert_eq!(name(text, &dir), None, "{text} in {dir}");
        }
        assert_eq!((path("a/b").name(), path("a").name(), RelPath::default().name()), (&b"b"[..], &b"a"[..], &b""[..]));
    }

    #[test]
    fn hostile_paths_are_refused() {
        for (bytes, want) in [
            (b"/etc".as_slice(), PathError::Absolute),
            (b"..", PathError::Component),
            (b"a/../b", PathError::Component),
            (b"a//b", PathError::Component),
            (b"a/", PathError::Component),
            (b"./a", PathError::Component),
            (b"a\0b", PathError::Nul),
            (&[b'x'; 256], PathError::TooLong),
        ] {
            assert_eq!(RelPath::new(bytes), Err(want), "{bytes:?}");
        }
        assert_eq!(RelPath::new(&b"a/".repeat(2047)[..4093]).map(|p| p.components().count()), Ok(2047));
        assert_eq!(RelPath::new(&b"aa/".repeat(2047)[..4100]), Err(PathError::TooLong));
    }

    #[test]
    fn prefixes_match_whole_components() {
        let p = |s: &str| RelPath::new(s.as_bytes()).unwrap();
        assert!(p("a/b").starts_with(&p("a")) && p("a").starts_with(&p("a")) && p("a").starts_with(&p("")));
        assert!(!p("ab").starts_with(&p("a")));
        assert_eq!(p("a/b/c").split_last(), Some((p("a/b"), b"c".as_slice())));
        assert_eq!(p("").join(b"x").unwrap(), p("x"));
    }

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(escape(b"a\n\x1b[31m\xff\\ \xc3\xa9\xe2\x80\xae"), "a\\x0a\\x1b[31m\\xff\\\\ \u{e9}\\xe2\\x80\\xae");
    }
}
