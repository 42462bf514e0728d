//! Ids and logical names, checked when they come in: what holds one of these may use it.

use crate::relpath::RelPath;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Bytes of a logical file name.
pub const MAX_LFN: usize = 1024;
/// Bytes of a dataset's, block's or agent's name.
pub const MAX_NAME: usize = 255;

/// Why a name or an id is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not the form of an id.
    #[error("`{0}` is no id of this kind: it begins with `{1}_` and goes on with 32 hex digits")]
    Id(String, &'static str),
    /// Not a logical file name.
    #[error(
        "a logical file name is `/` and a path of at most 1024 bytes of UTF-8, without `.`, `..`, `//` and control characters"
    )]
    Lfn,
    /// Not a name.
    #[error(
        "a {0} name is 1 to 255 letters, digits and `._-/+@=:` (a block's also `#`), and begins with a letter, digit or `/`"
    )]
    Name(&'static str),
}

fn shown(text: &str) -> String {
    crate::relpath::escape(text.as_bytes()).chars().take(80).collect()
}

macro_rules! text_serde {
    ($name:ident, $pattern:expr) => {
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                use utoipa::openapi::schema::{ObjectBuilder, Type};
                ObjectBuilder::new().schema_type(Type::String).pattern(Some($pattern)).into()
            }
        }
        impl utoipa::ToSchema for $name {}

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub uuid::Uuid);

        impl $name {
            /// What its text begins with.
            pub const PREFIX: &str = $prefix;

            /// A new one, later than all before it (UUID version 7).
            pub fn new() -> Self {
                Self(uuid::Uuid::now_v7())
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, self.0.simple())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let fail = || NameError::Id(shown(text), $prefix);
                let digits = text.strip_prefix(concat!($prefix, "_")).filter(|d| d.len() == 32).ok_or_else(fail)?;
                uuid::Uuid::try_parse(digits).map(Self).map_err(|_| fail())
            }
        }
        text_serde!($name, concat!("^", $prefix, "_[0-9a-f]{32}$"));
    };
}

typed_id!(/** A request. */ RequestId, "req");
typed_id!(/** One file of a request. */ ItemId, "itm");
typed_id!(/** One opening of an agent: what its leases hang on. */ SessionKey, "ses");
typed_id!(/** A recall from tape that a source has begun. */ StageId, "stg");
typed_id!(/** A resumable upload. */ UploadId, "upl");

/// A logical file name: absolute, slash-separated, UTF-8. Below an agent's root it is also the default path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lfn(String);

impl Lfn {
    /// With its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Below a root.
    pub fn rel_path(&self) -> RelPath {
        // Checked when it was made.
        RelPath::new(&self.0.as_bytes()[1..]).unwrap_or_default()
    }
}

impl FromStr for Lfn {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let path = text.strip_prefix('/').filter(|p| !p.is_empty() && text.len() <= MAX_LFN).ok_or(NameError::Lfn)?;
        if path.chars().any(char::is_control) || path.split('/').any(|part| part.is_empty()) {
            return Err(NameError::Lfn);
        }
        RelPath::new(path.as_bytes()).map(|_| Self(text.to_owned())).map_err(|_| NameError::Lfn)
    }
}

impl fmt::Display for Lfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Lfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
text_serde!(Lfn, "^/.+$");

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $extra:literal, $more:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'/');
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-/+@=:".contains(&b) || $extra.contains(&b);
                match first && text.len() <= MAX_NAME && text.bytes().all(allowed) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(NameError::Name($kind)),
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
        text_serde!($name, concat!("^[A-Za-z0-9/][A-Za-z0-9._/+@=:", $more, "-]{0,254}$"));
    };
}

name!(/** A dataset, such as `/cosmics/run7/raw`. */ DatasetName, "dataset", b"", "");
name!(/** A block: by custom its dataset's name, `#` and more. */ BlockName, "block", b"#", "#");
name!(/** An agent, by the name its operator gave it. */ AgentName, "agent", b"", "");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for bad in ["", "/", "a", "/a//b", "/a/", "/../a", "/a/./b", "/a\n", "/a\0"] {
            assert_eq!(bad.parse::<Lfn>(), Err(NameError::Lfn), "{bad:?}");
        }
        assert!(format!("/{}", "a".repeat(MAX_LFN)).parse::<Lfn>().is_err());
        assert_eq!("/a/b c".parse::<Lfn>().unwrap().rel_path().to_string(), "a/b c");
        for bad in ["", "-a", "a b", "a#b", "a\n", "é"] {
            assert!(bad.parse::<DatasetName>().is_err(), "{bad:?}");
        }
        assert!("/a/b#c".parse::<BlockName>().is_ok() && "cern-1".parse::<AgentName>().is_ok());
    }

    #[test]
    fn ids_tell_their_kind() {
        let id = RequestId::new();
        assert_eq!(id.to_string().parse::<RequestId>().unwrap(), id);
        assert!(id.to_string().parse::<ItemId>().is_err() && "req_1".parse::<RequestId>().is_err());
    }
}
