//! Whole transfers, source and destination as processes of their own, the candidates taking turns: A B C A B C ...
//!
//! `cargo bench --bench transfer -- [--size 1GiB] [--files 10000] [--rounds 3] [--dir DIR] [--work LIST] [--only LIST]
//! [--cold] [--peers] [--peer-bin NAME=PATH] [--streams LIST] [--at-once LIST] [--resume] [--name NAME --out DIR] [--tiny]`
//!
//! Prints one JSON line per run and a table of medians. What it needs and how to read it: benches/README.md.

mod transfer_parts;

use std::path::{Path, PathBuf};
use std::time::Instant;
use transfer_parts::{
    Candidate, Field, Outcome, Scale, Watch, Work, candidates, drop_caches, host_line, pair_role, prepare_memory,
    same_tree, table, write_results,
};

struct Options {
    size: u64,
    files: usize,
    rounds: usize,
    dir: PathBuf,
    only: Vec<String>,
    works: Vec<Work>,
    /// Caches are dropped before each run; yardsticks go by O_DIRECT.
    cold: bool,
    peers: bool,
    named: Vec<(String, PathBuf)>,
    scale: Scale,
    out: Option<PathBuf>,
    name: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        size: 1 << 30,
        files: 10_000,
        rounds: 3,
        dir: PathBuf::from("/dev/shm"),
        only: Vec::new(),
        works: vec![Work::Big, Work::Small, Work::Medium, Work::One],
        cold: false,
        peers: false,
        named: Vec::new(),
        scale: Scale::default(),
        out: None,
        name: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {} // cargo's own
            "--size" => {
                let text = value()?;
                options.size = longhaul::units::parse_size(&text).map_err(|e| format!("--size {text}: {e}"))?;
            }
            "--files" => options.files = value()?.parse().map_err(|e| format!("--files: {e}"))?,
            "--rounds" => options.rounds = value()?.parse().map_err(|e| format!("--rounds: {e}"))?,
            "--dir" => options.dir = value()?.into(),
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--work" => options.works = value()?.split(',').map(Work::named).collect::<Result<_, _>>()?,
            "--cold" => options.cold = true,
            "--peers" => options.peers = true,
            "--peer-bin" => {
                let text = value()?;
                let (name, path) = text.split_once('=').ok_or(format!("--peer-bin {text}: NAME=PATH"))?;
                options.named.push((name.to_owned(), path.into()));
            }
            "--streams" => options.scale.streams = list(&arg, &value()?)?,
            "--at-once" => options.scale.at_once = list(&arg, &value()?)?,
            "--resume" => options.scale.resume = true,
            "--out" => options.out = Some(value()?.into()),
            "--name" => options.name = Some(value()?),
            "--tiny" => {
                (options.size, options.files, options.rounds) = (16 << 20, 100, 1);
                (options.scale.streams, options.scale.at_once) = (vec![1, 2], vec![1, 2]);
            }
            other => return Err(format!("unknown option {other}")),
        }
    }
    if options.rounds == 0 || options.size == 0 || options.files == 0 {
        return Err("--rounds, --size and --files are at least 1".to_owned());
    }
    Ok(options)
}

fn list<T: std::str::FromStr>(arg: &str, text: &str) -> Result<Vec<T>, String> {
    text.split(',').map(|n| n.parse().map_err(|_| format!("{arg} {text}: numbers with commas"))).collect()
}

fn main() {
    // The bare pair runs as two further processes of this program.
    if let Some(end) = pair_role() {
        return end;
    }
    let run = options().and_then(|options| measure(&options));
    if let Err(error) = run {
        eprintln!("transfer: {error}");
        std::process::exit(1);
    }
}

fn measure(options: &Options) -> Result<(), String> {
    let base = tempfile::Builder::new().prefix("lh-bench-").tempdir_in(&options.dir).map_err(|e| e.to_string())?;
    // What is served lies beside the agent's state, not above it. Servers that give up root have to get here.
    let tree = base.path().join("tree");
    std::fs::create_dir(&tree).map_err(|e| e.to_string())?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let host = host_line();
    println!("{host}");
    let mut lines = format!("{host}\n");
    for work in &options.works {
        let source = tree.join(work.name());
        work.make(&source, options.size, options.files).map_err(|e| format!("test data: {e}"))?;
        let totals = Work::totals(&source).map_err(|e| format!("test data: {e}"))?;
        let field = Field {
            peers: options.peers,
            named: options.named.clone(),
            direct: options.cold,
            scale: options.scale.clone(),
        };
        let mut all = candidates(*work, base.path(), &source, &field)?;
        all.retain(|c| options.only.is_empty() || options.only.iter().any(|name| name == c.name()));
        if all.is_empty() {
            return Err(format!("--only {}: nobody of that name does {}", options.only.join(","), work.name()));
        }
        let mut results: Vec<Vec<Outcome>> = vec![Vec::new(); all.len()];
        let mut standing = Vec::new();
        for round in 1..=options.rounds {
            for (candidate, results) in all.iter_mut().zip(&mut results) {
                let (outcome, out) = one(candidate.as_mut(), options, base.path(), &source, totals)?;
                // ext4 without a journal gives no inode out anew for minutes (`recently_deleted`) and steps over each such: who
                // follows the removal of many files would pay for it.
                standing.extend((options.cold && *work == Work::Small).then_some(out));
                let line = outcome.json(*work, candidate.as_ref(), round);
                println!("{line}");
                lines += &format!("{line}\n");
                results.push(outcome);
            }
        }
        println!("{}", table(*work, &all, &results));
        if let Some(out) = &options.out {
            let name = options.name.clone().unwrap_or(work.name().to_owned());
            write_results(out, &name, *work, &all, &results).map_err(|e| format!("{}: {e}", out.display()))?;
            std::fs::write(out.join(format!("{name}.jsonl")), &lines).map_err(|e| e.to_string())?;
        }
        drop(all);
        std::fs::remove_dir_all(&source).or_else(|_| std::fs::remove_file(&source)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// One run, of a source of so many bytes and files, and where the copy is.
fn one(
    candidate: &mut dyn Candidate,
    options: &Options,
    base: &Path,
    source: &Path,
    (bytes, files): (u64, u64),
) -> Result<(Outcome, tempfile::TempDir), String> {
    let text = |e: std::io::Error| e.to_string();
    // A new name every time: ext4 is slow where names have just been removed.
    let out = tempfile::Builder::new().prefix("out-").tempdir_in(base).map_err(text)?;
    if options.cold {
        drop_caches().map_err(|e| format!("--cold: caches cannot be dropped: {e}"))?;
    } else {
        prepare_memory(base, bytes).map_err(|e| format!("preparing memory: {e}"))?;
    }
    let watch = Watch::start(&[]);
    let run = candidate.run(out.path());
    let tcp = watch.end().tcp;
    let mut outcome = run.map_err(|e| format!("{}: {e}", candidate.name()))?;
    if options.cold {
        // What it has not synced itself is part of a durable copy.
        let began = Instant::now();
        nix::unistd::syncfs(std::fs::File::open(out.path()).map_err(text)?).map_err(|e| e.to_string())?;
        outcome.wall += began.elapsed().as_secs_f64();
    }
    (outcome.bytes, outcome.files, outcome.tcp) = (bytes, files, tcp);
    if candidate.moves_files() {
        // Every round of every candidate: a fast wrong copy is no result.
        let got = out.path().join(source.file_name().expect("made by us"));
        outcome.checked = same_tree(source, &got).map_err(|e| format!("{}: {e}", candidate.name()))?;
        if !outcome.checked {
            return Err(format!("{}: the copy differs from its source", candidate.name()));
        }
    }
    Ok((outcome, out))
}
