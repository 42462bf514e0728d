//! What stands where on a command line: a path of this host, or `lh://host[:port]/path`, the HTTP address of an agent
//! and a path below its root. Paths are bytes: `%XX` is decoded, other bytes are taken as they are.

use crate::relpath::{RelPath, escape};
use std::ffi::OsStr;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where agents answer HTTP.
pub const HTTP_PORT: u16 = 8470;
/// Where agents answer data streams.
pub const DATA_PORT: u16 = 8471;
/// The longest host name of the DNS.
const HOST_MAX: usize = 253;
/// An operand is not longer than a host and a path whose every byte is encoded.
const OPERAND_MAX: usize = HOST_MAX + 16 + 3 * crate::relpath::PATH_MAX;

/// An agent's HTTP address and a path below its root.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerUrl {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The HTTP port.
    pub port: u16,
    /// Decoded; begins with a slash, may end with one.
    pub path: Vec<u8>,
}

/// Why an operand was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Nothing was typed.
    #[error("an operand is empty")]
    Empty,
    /// Longer than any host with any path.
    #[error("an operand is longer than {OPERAND_MAX} bytes")]
    TooLong,
    /// `user:password@`.
    #[error(
        "a URL must not carry a user or password, which would show in process lists: remove what stands before the `@` and use --token-file"
    )]
    UserInfo,
    /// No host, or one that cannot be.
    #[error("`{0}` has no usable host: write lh://host/path, lh://192.0.2.1/path or lh://[2001:db8::1]/path")]
    Host(String),
    /// No port number.
    #[error("`{0}` has a bad port: it is a number from 1 to 65535")]
    Port(String),
    /// `%` without two hex digits, or `%00`.
    #[error("`{0}` has a bad `%` escape: write `%25` for a percent sign; `%00` is no part of a name")]
    Escape(String),
    /// `?` or `#`.
    #[error("`{0}` has a `?` or `#`: an lh URL has no query; in a file name write `%3F` or `%23`")]
    Query(String),
    /// `host:path`.
    #[error("`{0}` reads as host:path over ssh, which is not built yet: use lh://host/path, or ./{0} for a local file")]
    Ssh(String),
    /// `lh+agent://`.
    #[error("`{0}` names an agent of a control plane, which is not built yet: use lh://host/path")]
    Agent(String),
    /// Another scheme.
    #[error("`{0}` has a scheme that is not known here: use lh://host/path, or ./NAME for a local file")]
    Scheme(String),
}

/// One SRC or DST of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// A path of this host, as typed.
    Local(PathBuf),
    /// A path of an agent.
    Remote(PeerUrl),
}

impl Operand {
    /// Sorts what was typed. `host:path` with a colon before the first slash is ssh's form, as for `scp`.
    pub fn parse(typed: &OsStr) -> Result<Self, UrlError> {
        let bytes = typed.as_bytes();
        let shown = || escape(&bytes[..bytes.len().min(200)]);
        if bytes.is_empty() {
            return Err(UrlError::Empty);
        }
        if bytes.len() > OPERAND_MAX {
            return Err(UrlError::TooLong);
        }
        if starts_with_ignoring_case(bytes, b"lh://") {
            return PeerUrl::parse(bytes).map(Operand::Remote);
        }
        if starts_with_ignoring_case(bytes, b"lh+agent://") {
            return Err(UrlError::Agent(shown()));
        }
        let head = bytes.split(|&b| b == b'/').next().unwrap_or_default();
        if let Some(colon) = head.iter().position(|&b| b == b':') {
            let rest = &bytes[colon..];
            let scheme = head[..colon].iter().all(|&b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            return Err(match rest.starts_with(b"://") && scheme && colon > 0 {
                true => UrlError::Scheme(shown()),
                false => UrlError::Ssh(shown()),
            });
        }
        Ok(Operand::Local(PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))))
    }
}

fn starts_with_ignoring_case(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

impl PeerUrl {
    /// Parses `lh://host[:port][/path]`.
    pub fn parse(bytes: &[u8]) -> Result<Self, UrlError> {
        let shown = || escape(&bytes[..bytes.len().min(200)]);
        if bytes.len() > OPERAND_MAX {
            return Err(UrlError::TooLong);
        }
        if !starts_with_ignoring_case(bytes, b"lh://") {
            return Err(UrlError::Scheme(shown()));
        }
        let rest = &bytes[b"lh://".len()..];
        let slash = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        if authority.contains(&b'@') {
            return Err(UrlError::UserInfo);
        }
        if rest.contains(&b'?') || rest.contains(&b'#') {
            return Err(UrlError::Query(shown()));
        }
        let authority = std::str::from_utf8(authority).map_err(|_| UrlError::Host(shown()))?;
        let (host, port) = split_authority(authority).ok_or_else(|| UrlError::Host(shown()))?;
        let port = match port {
            None => HTTP_PORT,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|&p| p != 0).ok_or_else(|| UrlError::Port(shown()))?
            }
            Some(_) => return Err(UrlError::Port(shown())),
        };
        let path = if path.is_empty() { vec![b'/'] } else { decode(path).ok_or_else(|| UrlError::Escape(shown()))? };
        Ok(Self { host, port, path })
    }

    /// `host:port`, an IPv6 address in brackets: how `known_peers` names the peer.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the path ends with a slash (or is the root).
    pub fn is_directory(&self) -> bool {
        self.path.ends_with(b"/")
    }

    /// The path below the agent's root.
    pub fn rel_path(&self) -> Result<RelPath, crate::relpath::PathError> {
        below_root(&self.path)
    }
}

/// A client's absolute path as a path below the root: slashes at both ends do not count.
pub fn below_root(path: &[u8]) -> Result<RelPath, crate::relpath::PathError> {
    let start = path.iter().position(|&b| b != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|&b| b != b'/').map_or(start, |at| at + 1);
    RelPath::new(&path[start..end])
}

fn split_authority(text: &str) -> Option<(String, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let (address, zone) = match address.split_once("%25").or_else(|| address.split_once('%')) {
            Some((address, zone)) => (address, Some(zone)),
            None => (address, None),
        };
        let ip: Ipv6Addr = address.parse().ok()?;
        // IFNAMSIZ: an interface's name has at most 15 characters.
        let good = |z: &str| {
            (1..=15).contains(&z.len()) && z.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let host = match zone {
            Some(zone) if good(zone) => format!("{ip}%{zone}"),
            Some(_) => return None,
            None => ip.to_string(),
        };
        return match after {
            "" => Some((host, None)),
            after => Some((host, Some(after.strip_prefix(':')?))),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let good = !host.is_empty()
        && host.len() <= HOST_MAX
        && !host.starts_with('-')
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    good.then(|| (host.to_ascii_lowercase(), port))
}

/// Decodes `%XX`; `None` for a broken escape or a NUL byte.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let digits = tail.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    (!out.contains(&0)).then_some(out)
}

/// Encodes everything but letters, digits, `-._~` and slashes.
pub fn encode(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lh://{}{}", self.authority(), encode(&self.path))
    }
}

impl fmt::Debug for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<(String, u16, Vec<u8>), UrlError> {
        PeerUrl::parse(text.as_bytes()).map(|u| (u.host, u.port, u.path))
    }

    #[test]
    fn urls_parse_and_print() {
        let good = |host: &str, port, path: &[u8]| Ok((host.to_owned(), port, path.to_vec()));
        assert_eq!(url("lh://dtn1"), good("dtn1", 8470, b"/"));
        assert_eq!(url("lh://DTN1.example.org:99/a/b/"), good("dtn1.example.org", 99, b"/a/b/"));
        assert_eq!(url("LH://192.0.2.7/x"), good("192.0.2.7", 8470, b"/x"));
        assert_eq!(url("lh://[2001:DB8::1]/x"), good("2001:db8::1", 8470, b"/x"));
        assert_eq!(url("lh://[::1]:1/"), good("::1", 1, b"/"));
        assert_eq!(url("lh://[fe80::1%25eth0]:1/"), good("fe80::1%eth0", 1, b"/"));
        assert_eq!(url("lh://h/a%20b%ff%25"), good("h", 8470, b"/a b\xff%"));
        let parsed = PeerUrl::parse(b"lh://[::1]:7/a b\xff?".split_last().unwrap().1).unwrap();
        assert_eq!(parsed.to_string(), "lh://[::1]:7/a%20b%FF");
        assert_eq!(PeerUrl::parse(parsed.to_string().as_bytes()), Ok(parsed));
    }

    #[test]
    fn bad_urls_say_why() {
        for (text, want) in [
            ("lh://", "usable host"),
            ("lh:///x", "usable host"),
            ("lh://::1/x", "usable host"),
            ("lh://[::1/x", "usable host"),
            ("lh://[::1]x/x", "usable host"),
            ("lh://-oProxy/x", "usable host"),
            ("lh://a b/x", "usable host"),
            ("lh://h:/x", "bad port"),
            ("lh://h:0/x", "bad port"),
            ("lh://h:65536/x", "bad port"),
            ("lh://h:+1/x", "bad port"),
            ("lh://user:secret@h/x", "token-file"),
            ("lh://user@h/x", "token-file"),
            ("lh://h/x%2", "escape"),
            ("lh://h/x%zz", "escape"),
            ("lh://h/x%00", "escape"),
            ("lh://h/x?y", "query"),
            ("lh://h/x#y", "query"),
        ] {
            let error = url(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn operands_are_sorted() {
        let local =
            |text: &str| assert_eq!(Operand::parse(OsStr::new(text)), Ok(Operand::Local(text.into())), "{text}");
        for text in ["a", "/a/b", "./a:b", "a/b:c", "../x", "-", "lh", "~/x"] {
            local(text);
        }
        assert!(matches!(Operand::parse(OsStr::new("lh://h/x")), Ok(Operand::Remote(_))));
        let refused = |text: &str| Operand::parse(OsStr::new(text)).unwrap_err();
        assert!(matches!(refused("host:path"), UrlError::Ssh(_)));
        assert!(matches!(refused("u@host:/path"), UrlError::Ssh(_)));
        assert!(refused("a:b").to_string().contains("./a:b"));
        assert!(matches!(refused("lh+agent://n/x"), UrlError::Agent(_)));
        assert!(matches!(refused("https://h/x"), UrlError::Scheme(_)));
        assert_eq!(refused(""), UrlError::Empty);
        assert_eq!(refused(&"x".repeat(OPERAND_MAX + 1)), UrlError::TooLong);
        let odd = OsStr::from_bytes(b"a\xff");
        assert_eq!(Operand::parse(odd), Ok(Operand::Local(odd.into())));
    }

    #[test]
    fn absolute_paths_mean_below_the_root() {
        let p = |b: &[u8]| below_root(b).map(|p| p.as_bytes().to_vec());
        assert_eq!(p(b"/"), Ok(vec![]));
        assert_eq!(p(b"//"), Ok(vec![]));
        assert_eq!(p(b"/a/b/"), Ok(b"a/b".to_vec()));
        assert_eq!(p(b"a"), Ok(b"a".to_vec()));
        assert!(p(b"/a/../b").is_err() && p(b"/..").is_err() && p(b"/a//b").is_err());
    }
}
