//! Whole transfers, source and destination as processes of their own, the candidates taking turns: A B C A B C ...
//!
//! `cargo bench --bench transfer -- [--size 1GiB] [--files 10000] [--rounds 3] [--dir DIR] [--only NAME,...] [--tiny]`
//!
//! Prints one JSON line per run and a table of medians. What it needs and how to read it: benches/README.md.

mod transfer_parts;

use std::path::{Path, PathBuf};
use transfer_parts::{Candidate, Outcome, Work, candidates, host_line, pair_role, prepare_memory, same_tree};

struct Options {
    size: u64,
    files: usize,
    rounds: usize,
    dir: PathBuf,
    only: Vec<String>,
    works: Vec<Work>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        size: 1 << 30,
        files: 10_000,
        rounds: 3,
        dir: PathBuf::from("/dev/shm"),
        only: Vec::new(),
        works: vec![Work::Big, Work::Small, Work::One],
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
            "--tiny" => (options.size, options.files, options.rounds) = (16 << 20, 100, 1),
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(options)
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
    // What is served lies beside the agent's state, not above it.
    let tree = base.path().join("tree");
    std::fs::create_dir(&tree).map_err(|e| e.to_string())?;
    println!("{}", host_line());
    for work in &options.works {
        let source = tree.join(work.name());
        work.make(&source, options.size, options.files).map_err(|e| format!("test data: {e}"))?;
        let mut all = candidates(*work, base.path(), &source)?;
        all.retain(|c| options.only.is_empty() || options.only.iter().any(|name| name == c.name()));
        let mut outcomes: Vec<(String, Vec<Outcome>)> = all.iter().map(|c| (c.name().to_owned(), Vec::new())).collect();
        for round in 1..=options.rounds {
            for (candidate, (_, results)) in all.iter_mut().zip(&mut outcomes) {
                results.push(one(candidate.as_mut(), *work, base.path(), &source, round)?);
            }
        }
        drop(all);
        table(*work, &outcomes);
        std::fs::remove_dir_all(&source).or_else(|_| std::fs::remove_file(&source)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn one(candidate: &mut dyn Candidate, work: Work, base: &Path, source: &Path, round: usize) -> Result<Outcome, String> {
    let out = base.join("out");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir(&out).map_err(|e| e.to_string())?;
    let (bytes, files) = work.totals(source).map_err(|e| e.to_string())?;
    prepare_memory(base, bytes).map_err(|e| format!("preparing memory: {e}"))?;
    let mut outcome = candidate.run(&out).map_err(|e| format!("{}: {e}", candidate.name()))?;
    (outcome.bytes, outcome.files) = (bytes, files);
    if candidate.moves_files() {
        // Every round of every candidate: a fast wrong copy is no result.
        let got = out.join(source.file_name().expect("made by us"));
        outcome.checked = same_tree(source, &got).map_err(|e| format!("{}: {e}", candidate.name()))?;
        if !outcome.checked {
            return Err(format!("{}: the copy differs from its source", candidate.name()));
        }
    }
    println!("{}", outcome.json(work, candidate.name(), round));
    std::fs::remove_dir_all(&out).map_err(|e| e.to_string())?;
    Ok(outcome)
}

fn table(work: Work, outcomes: &[(String, Vec<Outcome>)]) {
    let median = |results: &[Outcome], of: &dyn Fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = results.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    println!("\n{}: medians", work.name());
    println!(
        "{:<20} {:>9} {:>9} {:>10} {:>12} {:>9}",
        "candidate", "wall s", "Gbit/s", "files/s", "CPU-s/GiB", "us/file"
    );
    for (name, results) in outcomes {
        let wall = median(results, &|o| o.wall);
        let cpu = median(results, &|o| o.cpu_source + o.cpu_destination);
        let Some(one) = results.first() else { continue };
        let (bytes, files) = (one.bytes as f64, one.files as f64);
        println!(
            "{name:<20} {wall:>9.3} {:>9.1} {:>10.0} {:>12.2} {:>9.1}",
            bytes * 8e-9 / wall,
            files / wall,
            cpu / (bytes / (1u64 << 30) as f64),
            cpu * 1e6 / files
        );
    }
    println!();
}
