//! Settings from three layers, default < file < flag, each value with its origin; and TOML files whose mistakes are
//! named with file, line and key. What an agent can be told is in `control::settings`.

use serde::de::DeserializeOwned;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// No configuration is longer; a mistyped path to a data file is refused before it is read whole.
pub const CONFIG_FILE_MAX: u64 = 1 << 20;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Flag => f.write_str("flag"),
        }
    }
}

/// One line of `--show-config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The setting's name in a file; the flag is the same with dashes.
    pub name: &'static str,
    /// The value as it would be typed.
    pub value: String,
    /// Who said so.
    pub origin: Origin,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is longer than [`CONFIG_FILE_MAX`].
    #[error("{} is longer than 1 MiB: that is no configuration", path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// A mistake in the file: unknown key, wrong type, broken syntax. The message names the key.
    #[error("{}, line {line}: {message}", path.display())]
    Mistake {
        /// Which file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// What is wrong, with the key.
        message: String,
    },
    /// A value that parses but cannot be.
    #[error("`{name}` ({origin}): {reason}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Who said so.
        origin: Origin,
        /// Why not.
        reason: String,
    },
}

/// Reads a TOML file into `T`, whose `deny_unknown_fields` makes typing errors visible.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let fail = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(CONFIG_FILE_MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > CONFIG_FILE_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    parse_toml(&text, path)
}

/// [`read_toml`] for text that is there already; `path` is for messages.
pub fn parse_toml<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        let key = text.lines().nth(line - 1).and_then(|l| l.split_once('=')).map(|(key, _)| key.trim());
        let message = match key {
            Some(key) if !error.message().contains(key) => format!("`{key}`: {}", error.message()),
            _ => error.message().to_owned(),
        };
        ConfigError::Mistake { path: path.to_owned(), line, message }
    })
}

/// Picks values and remembers where each came from.
#[derive(Debug, Default)]
pub struct Picker {
    file: PathBuf,
    shown: Vec<Shown>,
}

impl Picker {
    /// `file` is the configuration file that the second layer was read from.
    pub fn new(file: Option<&Path>) -> Self {
        Self { file: file.map(Path::to_owned).unwrap_or_default(), shown: Vec::new() }
    }

    /// The flag's value, else the file's, else the default.
    pub fn pick<T>(
        &mut self,
        name: &'static str,
        flag: Option<T>,
        file: Option<T>,
        default: T,
        show: impl Fn(&T) -> String,
    ) -> T {
        let (value, origin) = match (flag, file) {
            (Some(value), _) => (value, Origin::Flag),
            (None, Some(value)) => (value, Origin::File(self.file.clone())),
            (None, None) => (default, Origin::Default),
        };
        self.shown.push(Shown { name, value: show(&value), origin });
        value
    }

    /// Refuses the value that was picked last under `name`.
    pub fn refuse(&self, name: &'static str, reason: impl Into<String>) -> ConfigError {
        let origin = self.shown.iter().rev().find(|s| s.name == name).map_or(Origin::Default, |s| s.origin.clone());
        ConfigError::Value { name, origin, reason: reason.into() }
    }

    /// Everything that was picked, in order.
    pub fn finish(self) -> Vec<Shown> {
        self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        workers: Option<usize>,
    }

    #[test]
    fn a_mistake_names_file_line_and_key() {
        let parse = |text| parse_toml::<Sample>(text, Path::new("/etc/l.toml")).unwrap_err().to_string();
        let unknown = parse("# first\n\nworkerz = 3\n");
        assert!(unknown.starts_with("/etc/l.toml, line 3:") && unknown.contains("`workerz`"), "{unknown}");
        let kind = parse("workers = \"many\"\n");
        assert!(kind.starts_with("/etc/l.toml, line 1:") && kind.contains("`workers`"), "{kind}");
    }

    #[test]
    fn the_nearest_layer_wins_and_is_named() {
        let mut picker = Picker::new(Some(Path::new("f.toml")));
        let show = |v: &u32| v.to_string();
        assert_eq!(picker.pick("a", Some(1), Some(2), 3, show), 1);
        assert_eq!(picker.pick("b", None, Some(2), 3, show), 2);
        assert_eq!(picker.pick("c", None, None, 3, show), 3);
        let origins: Vec<_> = picker.finish().into_iter().map(|s| s.origin.to_string()).collect();
        assert_eq!(origins, ["flag", "file f.toml", "default"]);
    }

    #[test]
    fn a_data_file_is_not_read_as_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        std::fs::write(&path, vec![b' '; CONFIG_FILE_MAX as usize + 1]).unwrap();
        assert!(matches!(read_toml::<Sample>(&path), Err(ConfigError::TooLong { .. })));
    }
}
