//! One line of JSON for each transfer that has ended: who, where, what, how much, how it went. Names are escaped, so
//! that a file name can neither break the line nor write to a terminal.

use super::metrics::verdict_word;
use crate::engine::handle::TransferStatus;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the lines go.
#[derive(Debug)]
pub struct TransferLog {
    path: Option<PathBuf>,
    file: Mutex<Option<File>>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    principal: &'a str,
    role: &'a str,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    path: &'a str,
    transfer: Option<String>,
    bytes: u64,
    files: u64,
    duration_ns: u64,
    streams: u16,
    encrypted: bool,
    digest: Option<String>,
    verdict: &'static str,
    error_class: Option<&'a str>,
    resent_bytes: u64,
    sent_bytes: u64,
}

/// The line, without its newline; `None` while the transfer runs.
pub fn line(status: &TransferStatus, now: SystemTime) -> Option<String> {
    let report = status.report.as_ref()?;
    serde_json::to_string(&Line {
        time: rfc3339(now),
        principal: &status.principal,
        role: status.role,
        peer: status.peer,
        local: status.local,
        path: &status.path,
        transfer: status.transfer.map(|id| id.to_string()),
        bytes: report.bytes,
        files: report.files,
        duration_ns: report.duration_ns,
        streams: report.streams,
        encrypted: report.encrypted,
        digest: report.digest.map(|d| d.to_string()),
        verdict: verdict_word(report.verdict),
        error_class: report.error_class.as_deref(),
        resent_bytes: report.resent_bytes,
        sent_bytes: report.sent_bytes,
    })
    .ok()
}

impl TransferLog {
    /// Opens `path` for appending (0640, made if missing, never through a link); `None` is stderr, and so the journal.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let log = Self { path, file: Mutex::new(None) };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file again, after it was rotated.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file =
            OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Writes one transfer's line, in one call, so that lines of several processes do not mix.
    pub fn write(&self, status: &TransferStatus) -> io::Result<()> {
        let Some(mut text) = line(status, SystemTime::now()) else { return Ok(()) };
        text.push('\n');
        match self.file.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(file) => file.write_all(text.as_bytes()),
            None => io::stderr().lock().write_all(text.as_bytes()),
        }
    }
}

/// UTC with milliseconds, as in `2026-11-22T04:42:23.007Z`. Howard Hinnant's days-to-civil algorithm.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::ended_transfer;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |s| rfc3339(UNIX_EPOCH + Duration::from_millis(s));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_795_322_543_007), "2026-11-22T04:42:23.007Z");
        assert_eq!(at(4_107_542_399_999), "2100-02-28T23:59:59.999Z");
        assert_eq!(at(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn one_line_with_every_field_after_rotation_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transfers.log");
        let log = TransferLog::open(Some(path.clone())).unwrap();
        log.write(&ended_transfer()).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(&ended_transfer()).unwrap();
        for name in ["old", "transfers.log"] {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert_eq!(text.lines().count(), 1);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["principal"], "alice");
            assert_eq!((&value["bytes"], &value["verdict"]), (&1000.into(), &"VERIFIED".into()));
            assert_eq!(value["path"], "in/a\\x0ab");
            for key in ["time", "role", "peer", "local", "files", "duration_ns", "streams", "digest", "error_class"] {
                assert!(value.get(key).is_some(), "{key}");
            }
            assert_eq!(value["resent_bytes"], 7);
        }
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(TransferLog::open(Some(dir.path().join("link"))).is_err());
    }
}
