//! `longhaul catalog`: which files a main knows, and which agents have them.

use super::fail::{Fail, say, show};
use super::report::grouped;
use super::service::{self, Amount, MainArgs, moment, more, pages, say_json, table};
use crate::control::client::service::MainClient;
use crate::control::model::catalog::{FileFilter, FileView, GroupView, Locality, MAX_RECORDS, Record};
use crate::control::model::name::{AgentName, BlockName, DatasetName, Lfn};
use crate::control::model::page::PageQuery;
use crate::engine::error::Class;
use crate::units::{Bytes, parse_size};
use clap::Subcommand;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// Bytes of one line of a list of records: three names, every byte of them escaped, and the rest.
const LINE_MAX: u64 = 32 << 10;

/// Which files main knows, and which agents have them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    main: MainArgs,
    #[command(subcommand)]
    command: Command,
}

// One value in a process: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Command {
    /// Datasets, by name
    Datasets {
        /// At or below this name
        #[arg(long, value_name = "NAME")]
        prefix: Option<DatasetName>,
        #[command(flatten)]
        amount: Amount,
    },
    /// Blocks of a dataset, by name
    Blocks {
        /// The dataset
        dataset: DatasetName,
        #[command(flatten)]
        amount: Amount,
    },
    /// Files, by name
    Files(Files),
    /// One file and its replicas
    File {
        /// Its logical name
        lfn: Lfn,
    },
    /// Adds replicas: one, or a list
    Add(Add),
    /// Removes replicas of an agent; the files stay known
    Remove {
        /// Whose replicas
        #[arg(long, value_name = "AGENT")]
        agent: AgentName,
        /// The files
        #[arg(required = true)]
        lfns: Vec<Lfn>,
    },
}

#[derive(Debug, clap::Args)]
struct Files {
    /// Of this dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<DatasetName>,
    /// Of this block
    #[arg(long, value_name = "NAME")]
    block: Option<BlockName>,
    /// Below this path
    #[arg(long, value_name = "PATH")]
    prefix: Option<Lfn>,
    /// That this agent has
    #[arg(long, value_name = "AGENT")]
    agent: Option<AgentName>,
    #[command(flatten)]
    amount: Amount,
}

#[derive(Debug, clap::Args)]
struct Add {
    /// The file's logical name
    #[arg(required_unless_present = "records", requires_all = ["agent", "bytes"])]
    lfn: Option<Lfn>,
    /// The agent that has it
    #[arg(long, value_name = "AGENT")]
    agent: Option<AgentName>,
    /// Its size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bytes: Option<u64>,
    /// Its digest: 32 hex digits (XXH3-128)
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    /// Its dataset
    #[arg(long, value_name = "NAME", requires = "block")]
    dataset: Option<DatasetName>,
    /// Its block
    #[arg(long, value_name = "NAME", requires = "dataset")]
    block: Option<BlockName>,
    /// Where it lies below the agent's root [default: its logical name]
    #[arg(long, value_name = "PATH")]
    path: Option<Lfn>,
    /// It has to be recalled before it can be read
    #[arg(long)]
    offline: bool,
    /// Instead: a file with a JSON record a line {"lfn", "bytes", "agent", "dataset", "block", "digest", "path", "locality"}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lfn", "agent", "bytes", "digest", "dataset", "block", "path", "offline"])]
    records: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> u8 {
    let json = args.main.json;
    service::run(&args.main, |main| async move {
        execute(&main, args.command, json).await?;
        for note in main.notes() {
            eprintln!("longhaul: {note}");
        }
        Ok(0)
    })
}

async fn execute(main: &MainClient, command: Command, json: bool) -> Result<(), Fail> {
    match command {
        Command::Datasets { prefix, amount } => {
            let prefix = prefix.as_ref();
            let found = pages(amount, |page: PageQuery| async move { main.datasets(prefix, &page).await }).await?;
            tell(found, json, groups);
        }
        Command::Blocks { dataset, amount } => {
            let dataset = &dataset;
            let found = pages(amount, |page: PageQuery| async move { main.blocks(dataset, &page).await }).await?;
            tell(found, json, groups);
        }
        Command::Files(Files { dataset, block, prefix, agent, amount }) => {
            let filter = &FileFilter { dataset, block, prefix, agent };
            let found = pages(amount, |page: PageQuery| async move { main.files(filter, &page).await }).await?;
            tell(found, json, files);
        }
        Command::File { lfn } => {
            let found = main.file(&lfn).await?;
            if json { say_json(&found) } else { say(&file(&found)) }
        }
        Command::Add(add) => {
            let added = self::add(main, add).await?;
            if json { say_json(&json!({"added": added})) } else { say(&format!("added {}\n", grouped(added))) }
        }
        Command::Remove { agent, lfns } => {
            let mut removed = 0;
            for some in lfns.chunks(MAX_RECORDS) {
                removed += main.remove_records(&agent, some).await?;
            }
            if json { say_json(&json!({"removed": removed})) } else { say(&format!("removed {}\n", grouped(removed))) }
        }
    }
    Ok(())
}

fn tell<T: serde::Serialize>((rows, there_is_more): (Vec<T>, bool), json: bool, words: impl Fn(&[T]) -> String) {
    if json {
        say_json(&json!({"items": rows, "more": there_is_more}));
    } else {
        say(&words(&rows));
        more(there_is_more);
    }
}

fn groups(groups: &[GroupView]) -> String {
    let rows = groups.iter().map(|group| {
        let blocks = group.blocks.map_or_else(|| "-".to_owned(), grouped);
        [group.name.clone(), blocks, grouped(group.files), Bytes(group.bytes).to_string()]
    });
    table(["NAME", "BLOCKS", "FILES", "SIZE"], rows)
}

fn files(files: &[FileView]) -> String {
    let rows = files.iter().map(|file| {
        let replicas = file.replicas.iter().map(|replica| match replica.locality {
            Locality::Online => replica.agent.to_string(),
            Locality::Offline => format!("{} (offline)", replica.agent),
        });
        let block = file.block.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        [file.lfn.to_string(), Bytes(file.bytes).to_string(), block, replicas.collect::<Vec<_>>().join(", ")]
    });
    table(["FILE", "SIZE", "BLOCK", "REPLICAS"], rows)
}

fn file(file: &FileView) -> String {
    let mut out = format!("{}\n", super::fail::printable(file.lfn.as_str()));
    let mut line =
        |name: &str, value: String| out.push_str(&format!("  {name:<12}{}\n", super::fail::printable(&value)));
    line("size", format!("{} ({} bytes)", Bytes(file.bytes), grouped(file.bytes)));
    line("digest", file.digest.clone().unwrap_or_else(|| "not known yet".to_owned()));
    if let (Some(dataset), Some(block)) = (&file.dataset, &file.block) {
        line("dataset", dataset.to_string());
        line("block", block.to_string());
    }
    for replica in &file.replicas {
        let state = match replica.locality {
            Locality::Online => "online",
            Locality::Offline => "offline",
        };
        let verified =
            replica.verified.map_or_else(|| "never verified".to_owned(), |t| format!("verified {}", moment(t)));
        line("replica", format!("{} at {}, {state}, {verified}", replica.agent, replica.path));
    }
    out
}

/// Adds them in batches. All of a batch or none; how many were added before is said with an error.
async fn add(main: &MainClient, add: Add) -> Result<u64, Fail> {
    let Add { lfn, agent, bytes, digest, dataset, block, path, offline, records } = add;
    let records = match (records, lfn, agent, bytes) {
        (Some(list), ..) => read_records(&list)?,
        (None, Some(lfn), Some(agent), Some(bytes)) => {
            let locality = if offline { Locality::Offline } else { Locality::Online };
            vec![Record { dataset, block, lfn, bytes, digest, agent, path, locality }]
        }
        _ => return Err(Fail::usage("a file, its --agent and its --bytes, or --records FILE")),
    };
    let mut added = 0;
    for batch in records.chunks(MAX_RECORDS) {
        main.add_records(batch).await.map_err(|error| {
            let fail = Fail::from(error);
            match added {
                0 => fail,
                n => Fail::new(fail.code, format!("{} (the first {} were added)", fail.what, grouped(n))),
            }
        })?;
        added += batch.len() as u64;
    }
    Ok(added)
}

/// All of them before the first is sent, so that a mistake in the last line adds nothing.
fn read_records(path: &Path) -> Result<Vec<Record>, Fail> {
    let file = File::open(path).map_err(|e| Fail::io("read", path, &e))?;
    let mut reader = BufReader::new(file);
    let (mut out, mut line, mut number) = (Vec::new(), Vec::new(), 0u64);
    loop {
        line.clear();
        let read =
            reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).map_err(|e| Fail::io("read", path, &e))?;
        if read == 0 {
            return Ok(out);
        }
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record = serde_json::from_slice(&line)
            .map_err(|e| Fail::new(Class::Permanent.exit_code(), format!("{} line {number}: {e}", show(path))))?;
        out.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_record_is_named_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let good = r#"{"lfn": "/a", "bytes": 1, "agent": "s1"}"#;
        std::fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
        assert_eq!(read_records(&path).unwrap().len(), 2);
        std::fs::write(&path, format!("{good}\n\n{{\"lfn\": \"a\"}}\n")).unwrap();
        let fail = read_records(&path).unwrap_err();
        assert!(fail.code == 7 && fail.what.contains("line 3"), "{}", fail.what);
        std::fs::write(&path, vec![b'x'; 2 * LINE_MAX as usize]).unwrap();
        assert!(read_records(&path).unwrap_err().what.contains("line 1"));
        assert_eq!(read_records(&dir.path().join("none")).unwrap_err().code, 4);
    }
}
