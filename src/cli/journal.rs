//! `longhaul journal FILE`: what a journal says, for people and scripts.

use super::fail::{Fail, PERMANENT, finish, printable, say};
use crate::digest::Digest;
use crate::journal::{Forget, Found, JournalError, Record, Recovered, Run, recover, scan};
use crate::units::Bytes;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

/// The largest journal that is read into memory: that of some 100 million files or 1 PiB of open chunks.
const FILE_MAX: u64 = 8 << 30;

/// Arguments of `journal`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The journal of a transfer, below `.longhaul/` in its destination directory
    pub file: PathBuf,
    /// Print one JSON document, with every digest
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

/// Runs the command; a corrupt journal ends with exit code 7 and the offset.
fn execute(args: &Args) -> Result<u8, Fail> {
    let failed = |e: std::io::Error| Fail::io("read", &args.file, &e);
    let file = File::open(&args.file).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(Fail::new(PERMANENT, format!("{} is larger than any journal", super::fail::show(&args.file))));
    }
    let mut records = Vec::new();
    let scanned = scan(&bytes, |found| {
        records.push(found);
        Ok(())
    });
    let recovered = scanned.and_then(|_| recover(&bytes));
    let code = if recovered.is_ok() { 0 } else { PERMANENT };
    say(&if args.json { format!("{}\n", json_of(&records, &recovered)) } else { text_of(&records, &recovered) });
    Ok(code)
}

fn text_of(records: &[Found], recovered: &Result<Recovered, JournalError>) -> String {
    let mut out = String::from("  offset   seq  record\n");
    for found in records {
        let batch = if found.batch { '*' } else { ' ' };
        let (name, what) = (found.record.name(), describe(&found.record));
        out.push_str(&format!("{:>8} {:>5}{batch} {name:<11}{}\n", found.offset, found.sequence, printable(&what)));
    }
    match recovered {
        Ok(recovered) => {
            let checkpoint = &recovered.checkpoint;
            out.push_str(&format!(
                "{} records (* begins a batch), {}; {} files done, {} open with {} durable chunks, epoch {}\n",
                recovered.records,
                Bytes(recovered.len),
                checkpoint.done.len(),
                checkpoint.files.len(),
                checkpoint.durable_chunks(),
                checkpoint.epoch.0,
            ));
            if recovered.dropped > 0 {
                out.push_str(&format!(
                    "{} bytes behind the last whole record are a batch that was not finished: normal after a crash\n",
                    recovered.dropped
                ));
            }
        }
        Err(error) => out.push_str(&format!("{error}\n")),
    }
    out
}

fn describe(record: &Record) -> String {
    match record {
        Record::Header(header) => format!(
            "transfer {} from {} (agent {}) to {}, epoch {}, created {}",
            header.transfer, header.source, header.agent, header.destination, header.epoch.0, header.created
        ),
        Record::Epoch(epoch) => format!("{}", epoch.0),
        Record::File(file) => format!(
            "{} {} (root {}), {} bytes, mode {:04o}, mtime {}.{:09}",
            file.key, file.path, file.root, file.size, file.mode, file.mtime.secs, file.mtime.nanos
        ),
        Record::Chunks { key, runs } => format!("{key} {}", runs.iter().map(run_of).collect::<Vec<_>>().join(", ")),
        Record::Forget { key, what: Forget::All } => format!("{key} all chunks"),
        Record::Forget { key, what: Forget::Chunks(chunks) } => {
            format!("{key} {}", chunks.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
        }
        Record::Publishing(files) => {
            let each =
                files.iter().map(|f| format!("{} inode {} digest {} {} bytes", f.key, f.inode, f.digest, f.size));
            each.collect::<Vec<_>>().join("; ")
        }
        Record::Done(files) => {
            files.iter().map(|f| format!("{} digest {}", f.key, f.digest)).collect::<Vec<_>>().join("; ")
        }
        Record::End(verdict) => format!("{verdict:?}").to_uppercase(),
    }
}

fn run_of(run: &Run) -> String {
    let last = u64::from(run.first) + run.digests.len().saturating_sub(1) as u64;
    if last == u64::from(run.first) { run.first.to_string() } else { format!("{}-{last}", run.first) }
}

fn json_of(records: &[Found], recovered: &Result<Recovered, JournalError>) -> Value {
    let list: Vec<Value> = records
        .iter()
        .map(|found| {
            let (offset, sequence, batch) = (found.offset, found.sequence, found.batch);
            let (kind, body) = (found.record.name(), record_json(&found.record));
            json!({ "offset": offset, "sequence": sequence, "batch": batch, "kind": kind, "body": body })
        })
        .collect();
    match recovered {
        Ok(recovered) => json!({
            "records": list,
            "bytes": recovered.len,
            "dropped_bytes": recovered.dropped,
            "done_files": recovered.checkpoint.done.len(),
            "open_files": recovered.checkpoint.files.len(),
            "durable_chunks": recovered.checkpoint.durable_chunks(),
            "epoch": recovered.checkpoint.epoch,
            "exit_code": 0,
        }),
        Err(error) => json!({
            "records": list,
            "error": error.to_string(),
            "offset": error.offset(),
            "exit_code": PERMANENT,
        }),
    }
}

fn record_json(record: &Record) -> Value {
    let digests = |list: &[Digest]| list.iter().map(Digest::to_string).collect::<Vec<_>>();
    match record {
        Record::Header(header) => json!({
            "transfer": header.transfer, "agent": header.agent, "epoch": header.epoch, "created": header.created,
            "source": header.source, "destination": header.destination.to_string(),
        }),
        Record::Epoch(epoch) => json!({ "epoch": epoch }),
        Record::File(file) => json!({
            "key": file.key, "root": file.root, "path": file.path.to_string(), "size": file.size,
            "mtime": file.mtime.secs, "mtime_nanos": file.mtime.nanos, "mode": format!("{:04o}", file.mode),
        }),
        Record::Chunks { key, runs } => {
            let runs: Vec<_> =
                runs.iter().map(|run| json!({ "first": run.first, "digests": digests(&run.digests) })).collect();
            json!({ "key": key, "runs": runs })
        }
        Record::Forget { key, what: Forget::All } => json!({ "key": key, "all": true }),
        Record::Forget { key, what: Forget::Chunks(chunks) } => json!({ "key": key, "chunks": chunks }),
        Record::Publishing(files) => {
            let one = |f: &crate::journal::Publishing| json!({ "key": f.key, "inode": f.inode, "digest": f.digest, "size": f.size, "mtime": f.mtime.secs });
            json!({ "files": files.iter().map(one).collect::<Vec<_>>() })
        }
        Record::Done(files) => {
            json!({ "files": files.iter().map(|f| json!({ "key": f.key, "digest": f.digest })).collect::<Vec<_>>() })
        }
        Record::End(verdict) => json!({ "verdict": format!("{verdict:?}").to_uppercase() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::CHUNK_SIZE;
    use crate::ids::{AgentId, Epoch, TransferId};
    use crate::journal::{FileRecord, Header, Writer};
    use crate::manifest::Mtime;
    use crate::relpath::RelPath;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::create(Header {
            transfer: TransferId([1; 16]),
            agent: AgentId([2; 16]),
            epoch: Epoch(1),
            created: 5,
            source: "lh://h/\x1b[2J".into(),
            destination: RelPath::new(b"to/here").unwrap(),
        });
        let path = RelPath::new(b"a\nb").unwrap();
        let key = crate::digest::path_key(0, path.as_bytes());
        let (size, mtime) = (3 * CHUNK_SIZE, Mtime::default());
        writer.record(&Record::File(FileRecord { key, root: 0, path, size, mtime, mode: 0o644 }));
        let digest = crate::digest::of(b"");
        let runs = vec![Run { first: 0, digests: vec![digest; 2] }, Run { first: 2, digests: vec![digest] }];
        writer.record(&Record::Chunks { key, runs });
        let mut bytes = writer.take();
        writer.record(&Record::Epoch(Epoch(2)));
        bytes.extend(writer.take());
        bytes
    }

    fn both(bytes: &[u8]) -> (String, Value) {
        let mut records = Vec::new();
        let scanned = scan(bytes, |found| {
            records.push(found);
            Ok(())
        });
        let recovered = scanned.and_then(|_| recover(bytes));
        (text_of(&records, &recovered), json_of(&records, &recovered))
    }

    #[test]
    fn prints_records_and_drives_no_terminal() {
        let (text, json) = both(&sample());
        assert!(text.contains("chunks     ") && text.contains("0-1, 2") && text.contains("a\\x0ab"), "{text}");
        assert!(text.contains("4 records") && text.contains("epoch 2"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        assert_eq!(json["records"][2]["body"]["runs"][1]["first"], 2);
        assert_eq!((&json["durable_chunks"], &json["exit_code"]), (&json!(3), &json!(0)));
    }

    #[test]
    fn corruption_has_its_code_and_offset() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal");
        let mut bytes = sample();
        bytes[30] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(execute(&Args { file: file.clone(), json: false }), Ok(7));
        assert_eq!(both(&bytes).1["offset"], 0);
        let (text, _) = both(&sample()[..sample().len() - 1]);
        assert!(text.contains("normal after a crash"), "{text}");
        assert_eq!(execute(&Args { file: file.with_extension("none"), json: true }).unwrap_err().code, 4);
    }
}
