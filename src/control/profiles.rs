//! Tuning profiles in files: `NAME.toml`, in directories of which an earlier one's names hide a later one's.

use crate::config::{ConfigError, Origin, read_toml};
use crate::profile::{Profile, Profiles};
use std::io;
use std::path::{Path, PathBuf};

/// Profiles of one directory.
const MAX_PROFILES: usize = 1000;
/// Where a host keeps its profiles.
pub const SYSTEM_DIR: &str = "/etc/longhaul/profiles.d";

/// Why profiles were refused.
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// The directory cannot be read.
    #[error("cannot read the profiles in {}: {source}", path.display())]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A profile is wrong.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// More than a directory may have.
    #[error("{} has more than {MAX_PROFILES} profiles", path.display())]
    TooMany {
        /// Which directory.
        path: PathBuf,
    },
}

/// Where this user keeps profiles, for `probe --save`.
pub fn user_dir() -> Option<PathBuf> {
    let config = match std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").filter(|v| !v.is_empty())?).join(".config"),
    };
    Some(config.join("longhaul/profiles"))
}

/// One profile from a file.
pub fn read(path: &Path) -> Result<Profile, ProfilesError> {
    let profile: Profile = read_toml(path)?;
    let wrong = |(name, reason)| ConfigError::Value { name, origin: Origin::File(path.to_owned()), reason };
    profile.check().map_err(wrong)?;
    Ok(profile)
}

/// A directory that somebody named, or else those that are there of the user's (for `cp`) and the system's; behind them
/// what the program brings along.
pub fn load(named: Option<&Path>, user: Option<&Path>) -> Result<Profiles, ProfilesError> {
    let mut profiles = Profiles::default();
    match named {
        Some(dir) => add_directory(&mut profiles, dir)?,
        None => {
            for dir in user.into_iter().chain([Path::new(SYSTEM_DIR)]).filter(|dir| dir.is_dir()) {
                add_directory(&mut profiles, dir)?;
            }
        }
    }
    Ok(profiles.with_shipped())
}

fn add_directory(profiles: &mut Profiles, dir: &Path) -> Result<(), ProfilesError> {
    let fail = |source| ProfilesError::Directory { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
        if files.len() > MAX_PROFILES {
            return Err(ProfilesError::TooMany { path: dir.to_owned() });
        }
    }
    files.sort();
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let origin = path.display().to_string();
        profiles.add(&name, &origin, read(&path)?).expect("it was checked when it was read");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_by_name_and_hides_what_is_shipped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("wan.toml"), "peers = [\"*.example.org\"]\n[sockets]\nstreams = 12\n").unwrap();
        std::fs::write(dir.path().join("lossy.toml"), "about = \"ours\"\n").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no profile").unwrap();
        let profiles = load(Some(dir.path()), None).unwrap();
        assert_eq!(profiles.named("wan").unwrap().profile.sockets.streams, Some(12));
        assert_eq!(profiles.named("lossy").unwrap().profile.about, "ours");
        assert_eq!(profiles.named("loopback").unwrap().origin, "shipped");
        assert!(profiles.named("notes").is_none());
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line_or_key() {
        let dir = tempfile::tempdir().unwrap();
        let error = |text: &str| {
            std::fs::write(dir.path().join("bad.toml"), text).unwrap();
            load(Some(dir.path()), None).unwrap_err().to_string()
        };
        let unknown = error("\n[sockets]\nstream = 1\n");
        assert!(unknown.contains("bad.toml, line 3") && unknown.contains("stream"), "{unknown}");
        let range = error("[sockets]\nstreams = 1000\n");
        assert!(range.contains("sockets.streams") && range.contains("bad.toml"), "{range}");
        let gone = load(Some(Path::new("/nonexistent/profiles")), None).unwrap_err().to_string();
        assert!(gone.contains("/nonexistent/profiles"), "{gone}");
        assert!(load(None, Some(Path::new("/nonexistent"))).is_ok(), "what nobody named need not be there");
    }
}
