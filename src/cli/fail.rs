//! How a command ends when it does not end well: an exit code and a sentence.

use crate::engine::error::TransferError;
use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;

/// Exit code of a wrong command line.
pub const USAGE: u8 = 2;
/// Exit code when some files did not arrive, or could not.
pub const PARTIAL: u8 = 3;
/// Exit code when something named does not exist.
pub const NOT_FOUND: u8 = 4;
/// Exit code of a failed verification.
pub const VERIFICATION: u8 = 6;
/// Exit code of what fails again until somebody changes something.
pub const PERMANENT: u8 = 7;
/// Exit code when access is denied.
pub const DENIED: u8 = 10;
/// Exit code after Ctrl-C or SIGTERM.
pub const INTERRUPTED: u8 = 130;

/// An exit code and the sentence that goes to stderr (or into the JSON document).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fail {
    /// One of the codes of the command line's contract.
    pub code: u8,
    /// What happened and what helps.
    pub what: String,
}

impl Fail {
    /// With a code.
    pub fn new(code: u8, what: impl Into<String>) -> Self {
        Self { code, what: what.into() }
    }

    /// A wrong command line.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(USAGE, what)
    }

    /// An I/O error on a file that somebody named.
    pub fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            io::ErrorKind::PermissionDenied => DENIED,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => 5,
            _ => 1,
        };
        Self::new(code, format!("cannot {doing} {}: {error}", show(path)))
    }

    /// As the one JSON document that `--json` promises.
    pub fn json(&self) -> String {
        serde_json::json!({ "error": self.what, "exit_code": self.code }).to_string()
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fail {}

impl From<TransferError> for Fail {
    fn from(error: TransferError) -> Self {
        Self::new(error.class.exit_code(), error.to_string())
    }
}

/// The exit code of a command that ended in `result`; a failure is said on stderr, and on stdout if `json` promised a
/// document there.
pub fn finish(json: bool, result: Result<u8, Fail>) -> u8 {
    result.unwrap_or_else(|fail| {
        eprintln!("longhaul: {fail}");
        if json {
            say(&format!("{}\n", fail.json()));
        }
        fail.code
    })
}

/// Writes `text` to stdout. A reader that has seen enough (`| head`) is no error.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A local path for messages: no byte of it drives a terminal.
pub fn show(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    crate::relpath::escape(path.as_os_str().as_bytes())
}

/// Text that may come from a peer, for messages: control characters and what reorders text are shown, not obeyed.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let obeyed =
            c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if obeyed { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::error::Class;

    #[test]
    fn messages_drive_no_terminal() {
        assert_eq!(printable("a\x1b[2J\u{202e}\n\\x é"), "a\\u{1b}[2J\\u{202e}\\n\\x é");
        assert_eq!(show(Path::new("/a\nb")), "/a\\x0ab");
    }

    #[test]
    fn codes_follow_the_cause() {
        let io = |kind: io::ErrorKind| Fail::io("read", Path::new("x"), &kind.into()).code;
        assert_eq!((io(io::ErrorKind::NotFound), io(io::ErrorKind::PermissionDenied)), (4, 10));
        assert_eq!(Fail::from(TransferError::new(Class::Interrupted, "stopped")).code, 130);
    }
}
