//! What `cp`'s operands mean: which ends are here, which are agents, and what becomes of which name.

use super::fail::{Fail, show};
use crate::control::messages::WirePath;
use crate::control::url::{Operand, PeerUrl};
use crate::engine::spec::SourceSpec;
use crate::limits::MAX_ROOTS;
use crate::relpath::{RelPath, escape};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// Files of this host.
    Here(Vec<Source>),
    /// Files of an agent; the URL's own path does not count.
    Agent(PeerUrl, Vec<Vec<u8>>),
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A path of this host.
    Here(PathBuf),
    /// A path of an agent.
    Agent(PeerUrl),
}

/// A local SRC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Absolute; symlinks are resolved in all but the last component, whose name a copy gets.
    pub path: PathBuf,
    /// Whether it is (or leads to) a directory.
    pub is_dir: bool,
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// SRC...
    pub from: From,
    /// DST.
    pub to: To,
    /// The one SRC becomes DST; otherwise every SRC goes below DST under its own name.
    pub becomes: bool,
    /// DST has to be a directory that is there: several SRC, and DST was typed without a slash.
    pub needs_directory: bool,
}

/// Reads the operands, the last of which is DST. Looks at local names, dials nobody.
///
/// One SRC and a DST without a trailing slash: SRC becomes DST, whether or not DST exists. Otherwise SRC goes below DST.
/// A local DST of `.` or `..` counts as one with a slash, since it can only be a directory.
pub fn plan(operands: &[OsString], recursive: bool) -> Result<Plan, Fail> {
    let parse = |typed: &OsString| Operand::parse(typed).map_err(|e| Fail::usage(e.to_string()));
    let Some((last, first)) = operands.split_last().filter(|(_, first)| !first.is_empty()) else {
        return Err(Fail::usage("cp needs a source and a destination"));
    };
    if first.len() > MAX_ROOTS {
        return Err(Fail::usage(format!(
            "one copy takes at most {MAX_ROOTS} sources: name a directory that holds them"
        )));
    }
    let sources = first.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let below = match parse(last)? {
        Operand::Local(_) => is_directory_form(last),
        Operand::Remote(url) => url.is_directory(),
    };
    let from = sources_of(sources, recursive)?;
    let becomes = first.len() == 1 && !below;
    let to = match parse(last)? {
        Operand::Local(typed) => To::Here(destination(&typed, below)?),
        Operand::Remote(url) => {
            url.rel_path().map_err(|e| Fail::usage(format!("{url}: {e}")))?;
            To::Agent(url)
        }
    };
    let plan = Plan { from, to, becomes, needs_directory: first.len() > 1 && !below };
    plan.check_names()?;
    plan.check_overlap()?;
    Ok(plan)
}

fn is_directory_form(typed: &OsStr) -> bool {
    let bytes = typed.as_bytes();
    bytes.ends_with(b"/") || matches!(bytes.rsplit(|&b| b == b'/').next(), Some(b"." | b".."))
}

fn sources_of(sources: Vec<Operand>, recursive: bool) -> Result<From, Fail> {
    let (mut here, mut there): (Vec<Source>, Vec<PeerUrl>) = (Vec::new(), Vec::new());
    for source in sources {
        match source {
            Operand::Local(typed) => here.push(local_source(&typed, recursive)?),
            Operand::Remote(url) => there.push(url),
        }
    }
    let Some(first) = there.first().cloned() else { return Ok(From::Here(here)) };
    if !here.is_empty() || there.iter().any(|url| (&url.host, url.port) != (&first.host, first.port)) {
        return Err(Fail::usage(
            "the sources of one copy lie on one host: use a command for each (--also names equal copies)",
        ));
    }
    for url in &there {
        url.rel_path().map_err(|e| Fail::usage(format!("{url}: {e}")))?;
    }
    Ok(From::Agent(first, there.into_iter().map(|url| url.path).collect()))
}

fn local_source(typed: &Path, recursive: bool) -> Result<Source, Fail> {
    let meta = fs::metadata(typed).map_err(|e| Fail::io("read", typed, &e))?;
    if meta.is_dir() && !recursive {
        return Err(Fail::usage(format!("{} is a directory: copy it with -r", show(typed))));
    }
    let path = named(typed).map_err(|e| Fail::io("read", typed, &e))?;
    relative(&path)?;
    Ok(Source { path, is_dir: meta.is_dir() })
}

/// Absolute, every symlink but the last component's resolved. `.` and `..` have no name of their own and are resolved
/// whole.
fn named(typed: &Path) -> std::io::Result<PathBuf> {
    match typed.file_name() {
        Some(name) => {
            let parent = typed.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(fs::canonicalize(parent)?.join(name))
        }
        None => fs::canonicalize(typed),
    }
}

fn destination(typed: &Path, below: bool) -> Result<PathBuf, Fail> {
    // With a slash behind it a symlink to a directory is that directory; without one it is a name to be replaced.
    let path = match below {
        true if fs::metadata(typed).is_ok() => fs::canonicalize(typed),
        _ => named(typed),
    };
    let path = path.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Fail::new(
            super::fail::NOT_FOUND,
            format!("the directory that {} would be in does not exist: make it first", show(typed)),
        ),
        _ => Fail::io("write to", typed, &e),
    })?;
    relative(&path)?;
    Ok(path)
}

/// Below `/`, as the engine takes it.
pub fn relative(absolute: &Path) -> Result<RelPath, Fail> {
    let bytes = absolute.as_os_str().as_bytes();
    RelPath::new(bytes.strip_prefix(b"/").unwrap_or(bytes)).map_err(|e| Fail::usage(format!("{}: {e}", show(absolute))))
}

fn last_name(path: &[u8]) -> Option<&[u8]> {
    path.split(|&b| b == b'/').rfind(|part| !part.is_empty())
}

impl From {
    fn paths(&self) -> Vec<&[u8]> {
        match self {
            From::Here(sources) => sources.iter().map(|source| source.path.as_os_str().as_bytes()).collect(),
            From::Agent(_, paths) => paths.iter().map(Vec::as_slice).collect(),
        }
    }
}

impl Plan {
    /// The source end for the engine, if it is here.
    pub fn source_spec(&self, recursive: bool, encrypt: Option<bool>) -> Result<Option<SourceSpec>, Fail> {
        let From::Here(sources) = &self.from else { return Ok(None) };
        let roots = sources.iter().map(|source| relative(&source.path)).collect::<Result<_, _>>()?;
        Ok(Some(SourceSpec { base: PathBuf::from("/"), roots, recursive, encrypt, rows: None }))
    }

    /// The sources' paths for a ticket, if they are an agent's.
    pub fn wire_paths(&self) -> Vec<WirePath> {
        match &self.from {
            From::Here(_) => Vec::new(),
            From::Agent(_, paths) => paths.iter().cloned().map(WirePath).collect(),
        }
    }

    /// Where each local SRC ends up, or each name of a remote one, for a local DST: with the name it has there.
    pub fn local_targets(&self) -> Vec<PathBuf> {
        let To::Here(destination) = &self.to else { return Vec::new() };
        if self.becomes {
            return vec![destination.clone()];
        }
        let names = self.from.paths();
        names.iter().filter_map(|path| last_name(path)).map(|name| destination.join(OsStr::from_bytes(name))).collect()
    }

    /// Below DST every SRC needs a name, and no two the same.
    fn check_names(&self) -> Result<(), Fail> {
        if self.becomes {
            return Ok(());
        }
        let mut seen = HashSet::new();
        for path in self.from.paths() {
            let Some(name) = last_name(path) else {
                return Err(Fail::usage(
                    "a root directory has no name to go below DST with: write DST without a slash at its end",
                ));
            };
            if !seen.insert(name) {
                return Err(Fail::usage(format!("two sources are called {}: copy them one at a time", escape(name))));
            }
        }
        Ok(())
    }

    /// A copy onto itself, or into itself, is refused before anything is opened; the engine looks again at what it
    /// has open.
    fn check_overlap(&self) -> Result<(), Fail> {
        let From::Here(sources) = &self.from else { return Ok(()) };
        for (source, target) in sources.iter().zip(self.local_targets()) {
            let (Ok(real), Ok(meta)) = (fs::canonicalize(&source.path), fs::metadata(&source.path)) else { continue };
            let same = |other: &Metadata| (other.dev(), other.ino()) == (meta.dev(), meta.ino());
            if target == real || target == source.path || fs::metadata(&target).is_ok_and(|other| same(&other)) {
                return Err(Fail::usage(format!(
                    "{} and {} are the same file or directory",
                    show(&source.path),
                    show(&target)
                )));
            }
            // By identity as well as by name, which bind mounts change.
            let inside = |dir: &Path| dir == real || fs::metadata(dir).is_ok_and(|other| same(&other));
            if source.is_dir && target.ancestors().skip(1).any(inside) {
                return Err(Fail::usage(format!(
                    "{} lies inside {}: a tree cannot be copied into itself",
                    show(&target),
                    show(&source.path)
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = Self { dir };
            fs::create_dir_all(place.at("tree/sub")).unwrap();
            fs::create_dir(place.at("out")).unwrap();
            fs::write(place.at("file"), b"x").unwrap();
            fs::write(place.at("tree/file"), b"x").unwrap();
            symlink("tree", place.at("link")).unwrap();
            place
        }
        fn at(&self, name: &str) -> PathBuf {
            fs::canonicalize(self.dir.path()).unwrap().join(name)
        }
        fn plan(&self, operands: &[&str]) -> Result<Plan, Fail> {
            let typed = |text: &&str| match text.strip_prefix('@') {
                Some(local) => OsString::from(format!("{}/{local}", self.dir.path().display())),
                None => OsString::from(text),
            };
            plan(&operands.iter().map(typed).collect::<Vec<_>>(), true)
        }
        fn code(&self, operands: &[&str]) -> u8 {
            self.plan(operands).expect_err(&format!("{operands:?}")).code
        }
    }

    #[test]
    fn the_slash_decides_what_becomes_of_one_source() {
        let p = Place::new();
        for (dst, becomes, target) in [
            ("@new", true, "new"),
            ("@out", true, "out"),
            ("@out/", false, "out/file"),
            ("@out/.", false, "out/file"),
            ("@out/sub/..", false, "out/file"),
            ("@new/", false, "new/file"),
            ("@link", true, "link"),
            ("@link/", false, "tree/file"),
        ] {
            fs::create_dir_all(p.at("out/sub")).unwrap();
            let plan = p.plan(&["@file", dst]).unwrap();
            assert_eq!((plan.becomes, plan.local_targets()), (becomes, vec![p.at(target)]), "{dst}");
            assert!(!plan.needs_directory);
        }
        let remote = p.plan(&["@file", "lh://h/in"]).unwrap();
        assert!(remote.becomes && matches!(remote.to, To::Agent(_)));
        assert!(!p.plan(&["@file", "lh://h/in/"]).unwrap().becomes);
        assert!(!p.plan(&["@file", "lh://h"]).unwrap().becomes, "an agent's root is a directory");
    }

    #[test]
    fn several_sources_go_below() {
        let p = Place::new();
        let plan = p.plan(&["@file", "@tree/sub", "@out"]).unwrap();
        assert!(!plan.becomes && plan.needs_directory);
        assert_eq!(plan.local_targets(), [p.at("out/file"), p.at("out/sub")]);
        assert!(!p.plan(&["@file", "@tree/sub", "@out/"]).unwrap().needs_directory);
        assert_eq!(p.code(&["@file", "@tree/file", "@out/"]), 2, "two of one name");
        assert_eq!(p.code(&["@file", "lh://h/x", "@out/"]), 2, "two hosts");
        assert_eq!(p.code(&["lh://g/y", "lh://h/x", "@out/"]), 2, "two hosts");
        let remote = p.plan(&["lh://h/a/x", "lh://h/b/", "@out/"]).unwrap();
        assert_eq!(remote.local_targets(), [p.at("out/x"), p.at("out/b")]);
        assert_eq!(remote.wire_paths(), [WirePath(b"/a/x".to_vec()), WirePath(b"/b/".to_vec())]);
    }

    #[test]
    fn a_copy_onto_or_into_itself_is_refused() {
        let p = Place::new();
        fs::hard_link(p.at("file"), p.at("hard")).unwrap();
        for operands in [
            ["@file", "@file"],
            ["@file", "@hard"],
            ["@tree", "@tree"],
            ["@link", "@tree"],
            ["@tree", "@link"],
            ["@tree", "@tree/sub"],
            ["@tree", "@tree/sub/"],
            ["@tree", "@tree/sub/new"],
            ["@tree", "@link/new"],
            ["@link", "@tree/new"],
            ["@tree/file", "@tree/"],
        ] {
            let fail = p.plan(&operands).expect_err(&format!("{operands:?}"));
            assert!(fail.code == 2 && (fail.what.contains("itself") || fail.what.contains("same")), "{}", fail.what);
        }
        assert!(p.plan(&["@tree", "@tree2"]).is_ok());
        assert!(p.plan(&["@tree/sub", "@out"]).is_ok());
        assert!(
            p.plan(&["@file", "@tree/"]).is_ok(),
            "an older file of that name is replaced or not, as --if-exists says"
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_code() {
        let p = Place::new();
        assert_eq!(p.code(&["@none", "@out"]), 4);
        assert_eq!(p.code(&["@file", "@none/dir/x"]), 4);
        assert_eq!(p.code(&["@file"]), 2);
        assert_eq!(p.code(&[]), 2);
        assert_eq!(p.code(&["host:file", "@out"]), 2);
        assert_eq!(p.code(&["lh://h/a/../b", "@out"]), 2);
        assert_eq!(p.code(&["@file", "lh://h/a//b"]), 2);
        assert_eq!(p.code(&["lh://h", "@out/"]), 2, "a root has no name");
        let typed = [p.at("tree").into_os_string(), p.at("out/").into_os_string()];
        assert_eq!(plan(&typed, false).unwrap_err().code, 2, "a directory without -r");
    }

    #[test]
    fn symlinks_are_resolved_but_for_the_name() {
        let p = Place::new();
        let plan = p.plan(&["@link", "@out/"]).unwrap();
        assert_eq!(plan.from, From::Here(vec![Source { path: p.at("link"), is_dir: true }]));
        assert_eq!(plan.local_targets(), [p.at("out/link")]);
        let deep = p.plan(&["@link/file", "@out/"]).unwrap();
        assert_eq!(deep.from, From::Here(vec![Source { path: p.at("tree/file"), is_dir: false }]));
        let spec = deep.source_spec(true, None).unwrap().unwrap();
        assert_eq!(Path::new("/").join(spec.roots[0].to_string()), p.at("tree/file"));
        let odd = OsStr::from_bytes(b"odd \xff\n");
        fs::write(p.at("").join(odd), b"").unwrap();
        let typed = [p.at("").join(odd).into_os_string(), p.at("out/").into_os_string()];
        assert_eq!(super::plan(&typed, false).unwrap().local_targets(), [p.at("out").join(odd)]);
    }
}
