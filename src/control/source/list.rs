//! What lies below a prefix, in pages, for main's resolver.

use super::{Answer, Errno, Lfn, Problem, Readable, RelPath, Request, Right, Role, Shared, Source, State, StatusCode};
use super::{WirePath, blocking, problem_of, query, reply, rule};
use crate::control::model::page::{DEFAULT_PAGE, MAX_PAGE, Page};
use crate::engine::is_reserved_name;
use serde::{Deserialize, Serialize};

/// Directories below each other that are walked.
const MAX_DEPTH: usize = 128;

/// One file of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Its name.
    pub lfn: Lfn,
    /// Its size; of one on tape, where that is known.
    pub bytes: Option<u64>,
    /// Whether it can be read at once.
    pub online: bool,
}

/// `GET /v1/list?prefix=&cursor=&limit=`: the cursor is the last name of the page before.
pub async fn list(State(source): Shared, request: Request) -> Answer {
    let principal = source.app.principal(request.headers())?;
    source.app.has(Role::Source)?;
    let (mut prefix, mut after, mut limit) = (None, None, DEFAULT_PAGE);
    let bad = |e: crate::control::model::name::NameError| Problem::bad(e.to_string());
    for (name, value) in query(&request)? {
        match name.as_str() {
            "prefix" if value == "/" => prefix = Some(RelPath::default()),
            "prefix" => prefix = Some(value.parse::<Lfn>().map_err(bad)?.rel_path()),
            "cursor" => after = Some(value.parse::<Lfn>().map_err(bad)?.rel_path()),
            "limit" => limit = value.parse().map_err(|_| Problem::bad("`limit` is a number"))?,
            _ => return Err(Problem::bad("the query takes `prefix`, `cursor` and `limit`")),
        }
    }
    let prefix = prefix.ok_or_else(|| Problem::bad("name a `prefix`: /v1/list?prefix=/run7"))?;
    let prefix = source.app.authorised(&principal, Right::Read, &WirePath(prefix.as_bytes().to_vec()))?;
    let limit = limit.clamp(1, MAX_PAGE);
    let page = blocking(move || page(&source, &prefix, after.as_ref(), limit)).await??;
    reply(StatusCode::OK, &page)
}

fn page(source: &Source, prefix: &RelPath, after: Option<&RelPath>, limit: usize) -> Result<Page<ListedFile>, Problem> {
    let mut walk = Walk { source, after, limit, found: Vec::new() };
    let directory = match source.app.root.list(prefix) {
        Ok(_) => walk.directory(prefix, 0),
        // A file is a prefix of itself.
        Err(Errno::ENOTDIR) => walk.file(prefix).map(|()| true),
        Err(errno) => Err(errno),
    };
    let more = !directory.map_err(|errno| problem_of(errno, &format!("/{prefix}")))?;
    let next = walk.found.last().filter(|_| more).map(|file| file.lfn.to_string());
    Ok(Page { items: walk.found, next })
}

struct Walk<'a> {
    source: &'a Source,
    after: Option<&'a RelPath>,
    limit: usize,
    found: Vec<ListedFile>,
}

impl Walk<'_> {
    /// Names in the order of their components; `false`: there is more than fits.
    fn directory(&mut self, path: &RelPath, depth: usize) -> Result<bool, Errno> {
        if depth > MAX_DEPTH {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut names = self.source.app.root.list(path)?;
        // A file on tape may be there as its sidecar only.
        let hidden: Vec<_> = names
            .iter()
            .filter(|entry| !entry.directory && self.source.rule.0 == crate::control::settings::StageRule::Sidecar)
            .filter_map(|entry| rule::of_sidecar(&entry.name).map(<[u8]>::to_vec))
            .collect();
        names.retain(|entry| entry.directory || !hidden.iter().any(|name| sidecar_name(name) == entry.name));
        for name in hidden {
            if !names.iter().any(|entry| entry.name == name) {
                names.push(crate::control::root::Listed { name, directory: false, bytes: 0 });
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in names.into_iter().filter(|entry| !is_reserved_name(&entry.name)) {
            let Ok(path) = path.join(&entry.name) else { continue };
            if self.after.is_some_and(|after| before(&path, after, entry.directory)) {
                continue;
            }
            if self.found.len() == self.limit {
                return Ok(false);
            }
            match entry.directory {
                true => match self.directory(&path, depth + 1) {
                    Ok(true) | Err(Errno::ENOENT) => {}
                    other => return other,
                },
                false => self.file(&path)?,
            }
        }
        Ok(true)
    }

    fn file(&mut self, path: &RelPath) -> Result<(), Errno> {
        // What has no logical name (not UTF-8, control characters) cannot be asked for.
        let Some(lfn) = std::str::from_utf8(path.as_bytes()).ok().and_then(|p| format!("/{p}").parse().ok()) else {
            tracing::debug!(%path, "a file has no logical name and is not listed");
            return Ok(());
        };
        let (bytes, online) = match self.source.rule.look(&self.source.app.root, path) {
            Ok(Readable::Online) => (Some(self.source.app.root.stat(path)?.size), true),
            Ok(Readable::Offline { bytes } | Readable::Recalling { bytes }) => (bytes, false),
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        self.found.push(ListedFile { lfn, bytes, online });
        Ok(())
    }
}

fn sidecar_name(name: &[u8]) -> Vec<u8> {
    [b".", name, b".tape"].concat()
}

/// Whether nothing at or below `path` comes after `after`.
fn before(path: &RelPath, after: &RelPath, directory: bool) -> bool {
    if directory && after.starts_with(path) {
        return false;
    }
    path.components().cmp(after.components()).is_le()
}
