//! Named bearer tokens. A token is 256 random bits; the file `tokens.toml` of the state directory keeps its SHA-256,
//! its rights, its path prefixes and its end. What is not said is denied: no prefix, no right, no file, no entry.

use super::access::{MAX_SCOPES, Role};
use super::model::name::DatasetName;
use super::state::{self, StateDir, StateError};
use crate::relpath::RelPath;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What every token starts with, so that scanners for leaked secrets can know one.
pub const TOKEN_MARK: &str = "lht_";
/// Characters of a token: the mark and 64 hex digits. Anything longer is refused before it is hashed.
pub const TOKEN_LEN: usize = TOKEN_MARK.len() + 64;
/// Tokens of one agent: each check compares with all of them.
pub const MAX_TOKENS: usize = 1000;
/// Prefixes of one token.
pub const MAX_PREFIXES: usize = 64;
/// Characters of a token's name: it stands in every log line.
pub const MAX_NAME: usize = 64;
/// The name of the token that is made on first start.
pub const ADMIN: &str = "admin";
/// How long a change waits for another one.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// What a token may do beneath its prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Fetch, list and look.
    Read,
    /// Upload.
    Write,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Read => "read",
            Right::Write => "write",
        })
    }
}

/// A token's text: never in `Debug`, logs, URLs or argv.
#[derive(Clone)]
pub struct TokenText(String);

impl TokenText {
    /// Takes what stands in a token file or header; surrounding white space is not part of it.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.trim().strip_prefix(TOKEN_MARK)?;
        (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| Self(text.trim().to_owned()))
    }

    fn generate() -> Result<Self, StateError> {
        Ok(Self(format!("{TOKEN_MARK}{}", hex::encode(state::random::<32>()?))))
    }

    /// The secret itself, for a header or a 0600 file.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn hash(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, self.0.as_bytes()).as_ref());
        out
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(..)")
    }
}

/// Why a token or a change of tokens was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No such token here.
    #[error("the token is not known to this agent")]
    Unknown,
    /// Its connection has made room for another one meanwhile.
    #[error("{}", super::http::NO_PLACE)]
    NoPlace,
    /// Past its end.
    #[error("the token `{0}` has expired: ask for a new one")]
    Expired(String),
    /// Taken back.
    #[error("the token `{0}` was revoked")]
    Revoked(String),
    /// The token has no such right there.
    #[error("the token `{name}` may not {right} {path}")]
    Denied {
        /// Its name.
        name: String,
        /// What was asked for.
        right: Right,
        /// Where, escaped.
        path: String,
    },
    /// The name is in use.
    #[error("there is a token `{0}` already: revoke it first, or choose another name")]
    Exists(String),
    /// No token of that name.
    #[error("there is no token `{0}`: `longhaul token list` shows the names")]
    NoSuchName(String),
    /// A name that logs and files could not carry.
    #[error("`{0}` is no token name: use 1 to 64 letters, digits, `.`, `_` and `-`")]
    BadName(String),
    /// A prefix that is no path.
    #[error("`{0}` is no prefix: write a path below the root, without `.` or `..`")]
    BadPrefix(String),
    /// Neither right nor role was asked for.
    #[error("a token without rights is of no use: say --read, --write or --role")]
    NoRight,
    /// Too many of something.
    #[error(
        "an agent keeps at most {MAX_TOKENS} tokens of {MAX_PREFIXES} prefixes each: revoked ones count until they expire"
    )]
    TooMany,
    /// Another process is changing the tokens.
    #[error("another process is changing the tokens: try again")]
    Busy,
    /// The file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    /// Hex where a prefix is not UTF-8, as `hex:…`; empty is the root.
    prefixes: Vec<String>,
    #[serde(default)]
    read: bool,
    #[serde(default)]
    write: bool,
    /// At main.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    roles: BTreeSet<Role>,
    /// Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    datasets: Vec<DatasetName>,
    created: u64,
    expires: Option<u64>,
    revoked: Option<u64>,
}

/// Who speaks, and what is theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's name.
    pub name: String,
    /// May fetch.
    pub read: bool,
    /// May upload.
    pub write: bool,
    /// Beneath these; the root stands for everything.
    pub prefixes: Vec<RelPath>,
    /// What it may do at main.
    pub roles: BTreeSet<Role>,
    /// For datasets at or below these; none: for all.
    pub datasets: Vec<DatasetName>,
}

impl Principal {
    /// Whether `right` is granted on `path`, by whole components.
    pub fn check(&self, right: Right, path: &RelPath) -> Result<(), TokenError> {
        let has = match right {
            Right::Read => self.read,
            Right::Write => self.write,
        };
        if has && self.prefixes.iter().any(|prefix| path.starts_with(prefix)) {
            return Ok(());
        }
        let path = if path.is_root() { "the agent's root".to_owned() } else { format!("/{path}") };
        Err(TokenError::Denied { name: self.name.clone(), right, path })
    }

    /// Whether it may do everything everywhere, and so see everybody's transfers.
    pub fn is_unlimited(&self) -> bool {
        self.read && self.write && self.prefixes.iter().any(RelPath::is_root)
    }
}

/// What `token add` is asked for.
#[derive(Debug, Clone, Default)]
pub struct NewToken {
    /// Unique; letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Empty is refused by the caller; the root is `RelPath::default()`.
    pub prefixes: Vec<RelPath>,
    /// May fetch.
    pub read: bool,
    /// May upload.
    pub write: bool,
    /// From now.
    pub lifetime: Option<Duration>,
    /// At main.
    pub roles: BTreeSet<Role>,
    /// For datasets at or below these; none: for all.
    pub datasets: Vec<DatasetName>,
}

/// One line of `token list`. No secret and no hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// As typed, with a leading slash; escaped.
    pub prefixes: Vec<String>,
    /// May fetch.
    pub read: bool,
    /// May upload.
    pub write: bool,
    /// At main.
    pub roles: BTreeSet<Role>,
    /// For these datasets; none: for all.
    pub datasets: Vec<DatasetName>,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds.
    pub expires: Option<u64>,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

#[derive(Debug, Default)]
struct Cache {
    stamp: Option<Stamp>,
    entries: Vec<Checked>,
}

#[derive(Debug)]
struct Checked {
    hash: [u8; 32],
    principal: Principal,
    expires: Option<u64>,
    revoked: bool,
}

/// The tokens of one agent, read again whenever the file changes.
#[derive(Debug)]
pub struct TokenStore {
    path: PathBuf,
    lock: PathBuf,
    cache: Mutex<Cache>,
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl TokenStore {
    /// The tokens of `state`; the file need not exist yet.
    pub fn new(state: &StateDir) -> Self {
        Self { path: state.file("tokens.toml"), lock: state.file("tokens.lock"), cache: Mutex::default() }
    }

    /// Makes the `admin` token and its file `STATE/token` on the first start. A later start changes nothing; a start
    /// that was cut off between the two files finishes the work.
    pub fn ensure_admin(&self, state: &StateDir) -> Result<PathBuf, TokenError> {
        let path = state.file("token");
        self.change(|file| {
            if file.token.iter().any(|entry| entry.name == ADMIN) {
                return Ok(());
            }
            let text = match state::read_secret(&path) {
                Ok(found) => TokenText::parse(&found).ok_or_else(|| StateError::Damaged {
                    path: path.clone(),
                    reason: "it does not hold a token; remove it and start again".to_owned(),
                })?,
                Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    let text = TokenText::generate()?;
                    state::write_secret(&path, format!("{}\n", text.expose()).as_bytes())?;
                    text
                }
                Err(error) => return Err(error.into()),
            };
            let root = vec![RelPath::default()];
            let roles = Role::ALL.into_iter().collect();
            let admin = NewToken {
                name: ADMIN.to_owned(),
                prefixes: root,
                read: true,
                write: true,
                roles,
                ..NewToken::default()
            };
            file.token.push(Entry::new(&admin, &text));
            Ok(())
        })?;
        if path.exists() {
            // Refuses to serve with a token that others may have read.
            state::read_secret(&path)?;
        }
        Ok(path)
    }

    /// Adds a token and returns its text, which is kept nowhere.
    pub fn add(&self, new: &NewToken) -> Result<TokenText, TokenError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if new.name.is_empty() || new.name.len() > MAX_NAME || !new.name.chars().all(good) {
            return Err(TokenError::BadName(crate::relpath::escape(new.name.as_bytes())));
        }
        if !new.read && !new.write && new.roles.is_empty() {
            return Err(TokenError::NoRight);
        }
        let text = TokenText::generate()?;
        self.change(|file| {
            let now = unix_now();
            if file.token.iter().any(|entry| entry.name == new.name && entry.is_active(now)) {
                return Err(TokenError::Exists(new.name.clone()));
            }
            file.token.retain(|entry| entry.name != new.name);
            if file.token.len() >= MAX_TOKENS || new.prefixes.len() > MAX_PREFIXES || new.datasets.len() > MAX_SCOPES {
                return Err(TokenError::TooMany);
            }
            file.token.push(Entry::new(new, &text));
            Ok(())
        })?;
        Ok(text)
    }

    /// Takes a token back, from the next request on.
    pub fn revoke(&self, name: &str) -> Result<(), TokenError> {
        self.change(|file| match file.token.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => {
                entry.revoked.get_or_insert(unix_now());
                Ok(())
            }
            None => Err(TokenError::NoSuchName(crate::relpath::escape(name.as_bytes()))),
        })
    }

    /// Every token, by name.
    pub fn list(&self) -> Result<Vec<Listed>, TokenError> {
        let now = unix_now();
        let mut listed: Vec<Listed> = self
            .read()?
            .token
            .iter()
            .map(|entry| Listed {
                name: entry.name.clone(),
                prefixes: entry.prefixes.iter().map(|p| format!("/{}", crate::relpath::escape(p.as_bytes()))).collect(),
                read: entry.read,
                write: entry.write,
                roles: entry.roles(),
                datasets: entry.datasets.clone(),
                created: entry.created,
                expires: entry.expires,
                state: if entry.revoked.is_some() {
                    "revoked"
                } else if entry.is_active(now) {
                    "active"
                } else {
                    "expired"
                },
            })
            .collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// Whose token `presented` is. An unreadable or damaged file denies everybody.
    pub fn authenticate(&self, presented: &str) -> Result<Principal, TokenError> {
        let presented = TokenText::parse(presented).ok_or(TokenError::Unknown)?.hash();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut cache)?;
        // All entries are compared, so that the time says nothing about which one it was.
        let mut found = None;
        for entry in &cache.entries {
            if verify_slices_are_equal(&entry.hash, &presented).is_ok() {
                found = Some(entry);
            }
        }
        let entry = found.ok_or(TokenError::Unknown)?;
        let name = || entry.principal.name.clone();
        if entry.revoked {
            return Err(TokenError::Revoked(name()));
        }
        if entry.expires.is_some_and(|end| unix_now() >= end) {
            return Err(TokenError::Expired(name()));
        }
        if !super::caps::credential_accepted() {
            return Err(TokenError::NoPlace);
        }
        Ok(entry.principal.clone())
    }

    /// Reads the file again whatever its times say (SIGHUP); how many tokens there are.
    pub fn reload(&self) -> Result<usize, TokenError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        *cache = Cache::default();
        self.refresh(&mut cache)?;
        Ok(cache.entries.len())
    }

    fn stamp(&self) -> Result<Stamp, StateError> {
        let meta = std::fs::metadata(&self.path).map_err(|source| StateError::Io {
            doing: "read",
            path: self.path.clone(),
            source,
        })?;
        Ok(Stamp {
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }

    fn refresh(&self, cache: &mut Cache) -> Result<(), TokenError> {
        let result = self.stamp().map_err(TokenError::from).and_then(|stamp| {
            if cache.stamp != Some(stamp) {
                // The stamp was taken before reading: a change in between is seen at the next check.
                cache.entries = self.read()?.token.iter().map(|e| e.checked(&self.path)).collect::<Result<_, _>>()?;
                cache.stamp = Some(stamp);
            }
            Ok(())
        });
        if result.is_err() {
            *cache = Cache::default();
        }
        result
    }

    fn read(&self) -> Result<TokenFile, TokenError> {
        match state::read_secret(&self.path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                // The message of the parser would quote the line, and with it a hash.
                let line = error.span().map_or(0, |s| text[..s.start].matches('\n').count() + 1);
                StateError::Damaged { path: self.path.clone(), reason: format!("line {line} cannot be read") }.into()
            }),
            Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(TokenFile::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn change<T>(&self, edit: impl FnOnce(&mut TokenFile) -> Result<T, TokenError>) -> Result<T, TokenError> {
        let _lock = state::lock(&self.lock, LOCK_PATIENCE)?.ok_or(TokenError::Busy)?;
        let mut file = self.read()?;
        let before = toml::to_string(&file).unwrap_or_default();
        let out = edit(&mut file)?;
        let after = toml::to_string(&file)
            .map_err(|e| StateError::Damaged { path: self.path.clone(), reason: e.to_string() })?;
        if before != after || !self.path.exists() {
            state::write_secret(&self.path, after.as_bytes())?;
        }
        Ok(out)
    }
}

impl Entry {
    fn new(new: &NewToken, text: &TokenText) -> Self {
        let now = unix_now();
        Self {
            name: new.name.clone(),
            sha256: hex::encode(text.hash()),
            prefixes: new.prefixes.iter().map(prefix_text).collect(),
            read: new.read,
            write: new.write,
            roles: new.roles.clone(),
            datasets: new.datasets.clone(),
            created: now,
            expires: new.lifetime.map(|life| now.saturating_add(life.as_secs())),
            revoked: None,
        }
    }

    /// An admin entry from before there were roles has all of them.
    fn roles(&self) -> BTreeSet<Role> {
        match self.name == ADMIN && self.roles.is_empty() && self.read && self.write {
            true => Role::ALL.into_iter().collect(),
            false => self.roles.clone(),
        }
    }

    fn is_active(&self, now: u64) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|end| now < end)
    }

    fn checked(&self, path: &std::path::Path) -> Result<Checked, TokenError> {
        let damaged = |what: &str| StateError::Damaged {
            path: path.to_owned(),
            reason: format!("token `{}` has a bad {what}", crate::relpath::escape(self.name.as_bytes())),
        };
        let mut hash = [0; 32];
        hex::decode_to_slice(&self.sha256, &mut hash).map_err(|_| damaged("hash"))?;
        let prefixes = self.prefixes.iter().map(|p| parse_prefix(p)).collect::<Option<_>>();
        Ok(Checked {
            hash,
            principal: Principal {
                name: self.name.clone(),
                read: self.read,
                write: self.write,
                prefixes: prefixes.ok_or_else(|| damaged("prefix"))?,
                roles: self.roles(),
                datasets: self.datasets.clone(),
            },
            expires: self.expires,
            revoked: self.revoked.is_some(),
        })
    }
}

fn prefix_text(path: &RelPath) -> String {
    match std::str::from_utf8(path.as_bytes()) {
        Ok(text) if !text.starts_with("hex:") => text.to_owned(),
        _ => format!("hex:{}", hex::encode(path.as_bytes())),
    }
}

/// A prefix as typed or stored: slashes around it do not count, `hex:…` gives bytes.
pub fn parse_prefix(text: &str) -> Option<RelPath> {
    let bytes = match text.strip_prefix("hex:") {
        Some(digits) => hex::decode(digits).ok()?,
        None => text.trim_matches('/').as_bytes().to_vec(),
    };
    RelPath::new(&bytes).ok()
}

#[cfg(test)]
mod tests;
