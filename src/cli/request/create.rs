//! `longhaul request create`, and manifests.

use super::super::fail::{Fail, say, show};
use super::super::service::{parse_moment, say_json};
use super::words;
use crate::control::client::service::{Lines, MainClient};
use crate::control::main_role::check::{MAX_STAGE_TIMEOUT_SECS, MAX_TRIES};
use crate::control::model::name::{AgentName, BlockName, DatasetName, Lfn, RequestId};
use crate::control::model::request::{
    DEFAULT_STAGE_TIMEOUT_SECS, DEFAULT_TRIES, MAX_LISTED, ManifestLine, Model, RequestSpec, RequestView, Selection,
    SourceChoice,
};
use crate::control::model::time::Time;
use crate::control::settings::parse_word;
use crate::engine::error::Class;
use crate::engine::spec::{IfExists, Verify};
use crate::units::parse_rate;
use hyper::body::Bytes;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes of one line of a manifest: two names of 1024 bytes, every byte escaped, and the rest.
const LINE_MAX: u64 = 16 << 10;
/// Bytes that are sent at once.
const PIECE: usize = 64 << 10;
/// Pieces that may be read ahead of what main takes.
const AHEAD: usize = 4;

/// Arguments of `request create`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("select").required(true).multiple(false))]
pub struct Create {
    /// All files of this dataset
    #[arg(long, value_name = "NAME", group = "select")]
    dataset: Option<DatasetName>,
    /// All files of this block
    #[arg(long, value_name = "NAME", group = "select")]
    block: Option<BlockName>,
    /// This file, by its logical name; may be repeated
    #[arg(long = "file", value_name = "LFN", group = "select")]
    files: Vec<Lfn>,
    /// What lies below this path at the one agent of --from
    #[arg(long, value_name = "PATH", group = "select", requires = "from")]
    prefix: Option<Lfn>,
    /// The files of this list: a line each, a logical name or JSON {"lfn", "bytes", "digest", "path"}
    #[arg(long, value_name = "FILE", group = "select")]
    manifest: Option<PathBuf>,
    /// The agent that has them; may be repeated [default: any that the catalog knows]
    #[arg(long, value_name = "AGENT")]
    from: Vec<AgentName>,
    /// The agent that gets them; may be repeated: each gets every file
    #[arg(long, value_name = "AGENT", required = true)]
    to: Vec<AgentName>,
    /// Below this path of the destination's root [default: the root]
    #[arg(long, value_name = "PATH")]
    path: Option<Lfn>,
    /// pull (the destination fetches), push (the source uploads) or auto
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_word::<Model>)]
    model: Model,
    /// 0 to 9; higher first
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: u8,
    /// Given up after this: 2026-12-01T08:00:00Z, or from now: 12h, 3d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    deadline: Option<Time>,
    /// Not begun before this
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    not_before: Option<Time>,
    /// Cap at one destination: 2Gbit, 100MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_rate: Option<u64>,
    /// prove (skip what is proved equal, fail on the rest), error, skip or replace
    #[arg(long, value_name = "WHAT", default_value = "prove", value_parser = parse_word::<IfExists>)]
    if_exists: IfExists,
    /// wire or disk [default: the destination's own]
    #[arg(long, value_name = "LEVEL", value_parser = parse_word::<Verify>)]
    verify: Option<Verify>,
    /// How long a source may take to get a file ready [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = super::super::token::parse_life)]
    stage_timeout: Option<Duration>,
    /// Tries of a file that failed for a reason that may pass
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TRIES, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TRIES)))]
    tries: u32,
    /// For people and filters; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Why, for whoever approves
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// The same key again is the same request again, for 24 hours [default: a new one]
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// Only ask whether main would take it
    #[arg(long, conflicts_with_all = ["watch", "key"])]
    preflight: bool,
    /// Wait until it has ended, as `watch` does
    #[arg(long)]
    watch: bool,
}

/// `key=value`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    parts.map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| "a label is KEY=VALUE".to_owned())
}

impl Create {
    fn spec(&self) -> Result<RequestSpec, Fail> {
        let select = match (&self.dataset, &self.block, &self.prefix, &self.manifest) {
            (Some(name), ..) => Selection::Dataset(name.clone()),
            (_, Some(name), ..) => Selection::Block(name.clone()),
            (_, _, Some(path), _) => Selection::Prefix(path.clone()),
            (.., Some(_)) => Selection::Manifest,
            _ => Selection::Files(self.files.clone()),
        };
        if self.files.len() > MAX_LISTED {
            return Err(Fail::usage(format!("more than {MAX_LISTED} files come as a list: --manifest FILE")));
        }
        let stage_timeout_secs = self.stage_timeout.map_or(DEFAULT_STAGE_TIMEOUT_SECS, |t| t.as_secs());
        if stage_timeout_secs > MAX_STAGE_TIMEOUT_SECS {
            return Err(Fail::usage("--stage-timeout is at most 90d"));
        }
        Ok(RequestSpec {
            select,
            source: match self.from.is_empty() {
                true => SourceChoice::Any,
                false => SourceChoice::Agents(self.from.clone()),
            },
            destinations: self.to.clone(),
            path: self.path.clone(),
            model: self.model,
            priority: self.priority,
            deadline: self.deadline,
            not_before: self.not_before,
            max_rate: self.max_rate,
            if_exists: self.if_exists,
            verify: self.verify,
            stage_timeout_secs,
            tries: self.tries,
            labels: self.labels.iter().cloned().collect(),
            comment: self.comment.clone(),
        })
    }
}

pub(super) async fn create(main: &MainClient, args: Create, json: bool) -> Result<u8, Fail> {
    let spec = args.spec()?;
    if let Some(path) = &args.manifest {
        // Every line is looked at before anything is asked for.
        for_each_line(path, |_| Ok(()))?;
    }
    if args.preflight {
        let answer = main.preflight(&spec).await?;
        if json {
            say_json(&answer)
        } else {
            say("main would take it\n")
        }
        return Ok(0);
    }
    let key = args.key.clone().unwrap_or_else(|| format!("cli-{}", RequestId::new()));
    let mut request = main.create(&spec, &key).await?;
    if let Some(path) = &args.manifest {
        let id = request.id;
        request = upload(main, id, path).await.map_err(|fail| {
            let what = format!(
                "{id} was created, but waits for its files ({fail}); `longhaul request upload {id} {}` tries again",
                show(path)
            );
            Fail::new(fail.code, what)
        })?;
    }
    if args.watch {
        if !json {
            say(&format!("{}\n", request.id));
        }
        return super::watch(main, request.id, None, json).await;
    }
    if json {
        say_json(&request);
    } else {
        say(&format!("{}\n", request.id));
        eprintln!("{}", words::progress(&request));
    }
    Ok(0)
}

/// Sends the manifest as it is read: a million lines take no more memory than one.
pub(super) async fn upload(main: &MainClient, id: RequestId, path: &Path) -> Result<RequestView, Fail> {
    let (pieces, body) = mpsc::channel::<Bytes>(AHEAD);
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let mut piece = Vec::with_capacity(PIECE);
        for_each_line(&path, |line| {
            serde_json::to_writer(&mut piece, &line).map_err(|e| Fail::new(1, e.to_string()))?;
            piece.push(b'\n');
            if piece.len() >= PIECE {
                let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE));
                // Main has answered already: its answer says why.
                pieces.blocking_send(full.into()).map_err(|_| Fail::new(1, "main read no further"))?;
            }
            Ok(())
        })?;
        pieces.blocking_send(piece.into()).map_err(|_| Fail::new(1, "main read no further"))
    });
    let sent = main.manifest(id, Lines(body)).await;
    let read = reading.await.map_err(|e| Fail::new(1, format!("a thread ended early: {e}")))?;
    match (sent, read) {
        // A list that ends early is not what was meant, whatever main made of it.
        (Ok(_), Err(fail)) => Err(fail),
        (sent, _) => Ok(sent?),
    }
}

/// Reads a list of files; the first line that is none ends it with its number.
fn for_each_line(path: &Path, mut each: impl FnMut(ManifestLine) -> Result<(), Fail>) -> Result<(), Fail> {
    let file = File::open(path).map_err(|e| Fail::io("read", path, &e))?;
    let mut reader = BufReader::with_capacity(PIECE, file);
    let (mut line, mut number, mut files) = (Vec::new(), 0u64, 0u64);
    loop {
        line.clear();
        let read =
            reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).map_err(|e| Fail::io("read", path, &e))?;
        if read == 0 {
            break;
        }
        number += 1;
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let parsed = if read as u64 == LINE_MAX { Err("it is too long".to_owned()) } else { parse_line(text) };
        let parsed = parsed
            .map_err(|why| Fail::new(Class::Permanent.exit_code(), format!("{} line {number}: {why}", show(path))))?;
        files += 1;
        each(parsed)?;
    }
    match files {
        0 => Err(Fail::io("use", path, &io::Error::other("it names no file"))),
        _ => Ok(()),
    }
}

fn parse_line(text: &[u8]) -> Result<ManifestLine, String> {
    if text.starts_with(b"{") {
        return serde_json::from_slice(text).map_err(|e| e.to_string());
    }
    let name = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let lfn = name.parse::<Lfn>().map_err(|e| e.to_string())?;
    Ok(ManifestLine { lfn, bytes: None, digest: None, path: None })
}
