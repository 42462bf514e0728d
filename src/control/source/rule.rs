//! Which files can be read at once, told without opening them.

use super::super::root::ServedRoot;
use super::super::settings::StageRule;
use crate::relpath::RelPath;
use nix::errno::Errno;

/// Bytes of a sidecar that are read.
const SIDECAR_MAX: u64 = 64;

/// How a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readable {
    /// At once.
    Online,
    /// After a recall.
    Offline {
        /// Its size, where the rule knows it.
        bytes: Option<u64>,
    },
    /// A recall runs, whoever began it.
    Recalling {
        /// As above.
        bytes: Option<u64>,
    },
}

/// A rule in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule(pub StageRule);

/// `.NAME.tape` beside `path`.
pub fn sidecar(path: &RelPath) -> Option<RelPath> {
    let (parent, name) = path.split_last()?;
    parent.join(&[b".", name, b".tape"].concat()).ok()
}

/// The file that a sidecar of this name stands for.
pub fn of_sidecar(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b".")?.strip_suffix(b".tape").filter(|name| !name.is_empty())
}

/// What a sidecar says.
pub fn parse(text: &[u8]) -> Readable {
    let text = String::from_utf8_lossy(text);
    let mut words = text.split_whitespace();
    let state = words.next();
    let bytes = words.next().and_then(|word| word.parse().ok());
    match state {
        Some("online") => Readable::Online,
        Some("recalling") => Readable::Recalling { bytes },
        // One that cannot be understood may not lead to a recall by accident.
        _ => Readable::Offline { bytes },
    }
}

impl Rule {
    /// How the file stands. Blocks, opens nothing but the sidecar.
    ///
    /// # Errors
    /// `ENOENT`: there is neither file nor sidecar.
    pub fn look(self, root: &ServedRoot, path: &RelPath) -> Result<Readable, Errno> {
        if self.0 == StageRule::Sidecar
            && let Some(sidecar) = sidecar(path)
        {
            match root.read_small(&sidecar, SIDECAR_MAX) {
                Ok(text) => return Ok(parse(&text)),
                Err(Errno::ENOENT | Errno::ENAMETOOLONG) => {}
                Err(errno) => return Err(errno),
            }
        }
        root.stat(path).map(|_| Readable::Online)
    }
}
