//! Which certificate belongs to which agent, as the user has said: lines `host:port sha256:HEX`, `#` for comments.

use super::tls::Fingerprint;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// About ten thousand peers; what lies beyond is not read.
const FILE_MAX: u64 = 1 << 20;

/// Why the file was refused.
#[derive(Debug, thiserror::Error)]
pub enum KnownPeersError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not `host:port sha256:HEX`.
    #[error("{}, line {line}: write `host:port sha256:HEX`", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
    },
}

/// Where the file lies unless the user says otherwise.
pub fn default_path() -> Option<PathBuf> {
    let config = match std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").filter(|v| !v.is_empty())?).join(".config"),
    };
    Some(config.join("longhaul/known_peers"))
}

/// The pin of `authority` (`host:port`). A file that is not there knows nobody; the last line for a peer counts.
pub fn lookup(path: &Path, authority: &str) -> Result<Option<Fingerprint>, KnownPeersError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = match read() {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KnownPeersError::Read { path: path.to_owned(), source }),
    };
    let mut found = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = line.split_once(char::is_whitespace).and_then(|(peer, pin)| {
            let pin: Fingerprint = pin.trim().strip_prefix("sha256:")?.parse().ok()?;
            Some((peer, pin))
        });
        let (peer, pin) = parsed.ok_or_else(|| KnownPeersError::Line { path: path.to_owned(), line: number + 1 })?;
        if peer.eq_ignore_ascii_case(authority) {
            found = Some(pin);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_found_by_host_and_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_peers");
        assert_eq!(lookup(&path, "h:1").unwrap(), None);
        let (a, b) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        std::fs::write(&path, format!("# mine\n\nH:1 sha256:{a}\n[::1]:2\tsha256:{b}\n")).unwrap();
        assert_eq!(lookup(&path, "h:1").unwrap(), Some(a));
        assert_eq!(lookup(&path, "[::1]:2").unwrap(), Some(b));
        assert_eq!(lookup(&path, "h:2").unwrap(), None);
        for bad in ["h:1", "h:1 abc", &format!("h:1 {a}"), "h:1 sha256:00"] {
            std::fs::write(&path, format!("# x\n{bad}\n")).unwrap();
            assert!(matches!(lookup(&path, "h:1"), Err(KnownPeersError::Line { line: 2, .. })), "{bad}");
        }
    }
}
