//! `longhaul tape`: a tape library to try holds with, for demo and tests. A file on tape is a sidecar `.NAME.tape` at its
//! place and its bytes in the library's directory; `tape recall` is a stage command (see `stage_command` of the agent).

use super::{EXIT_OTHER, fail};
use crate::relpath::RelPath;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Files that one process recalls; an agent gives it as many at most.
const MAX_FILES: usize = 1000;
/// Bytes of one line of the input.
const LINE_MAX: u64 = 16 << 10;
/// How often a gate is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long it may stay shut.
const GATE_MAX: Duration = Duration::from_secs(24 * 3600);
/// One line for each process that recalls: how many files it was given.
pub const MOUNTS: &str = "mounts";

/// A tape library in a directory, to try holds with.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Moves files below the current directory onto tape
    Migrate {
        /// Where the library keeps its bytes
        #[arg(long, value_name = "DIR")]
        library: PathBuf,
        /// Below the current directory
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Brings files back, as an agent's stage command: JSON lines on stdin and stdout, in the agent's root
    Recall(Recall),
}

/// How `tape recall` works.
#[derive(Debug, Clone, clap::Args)]
struct Recall {
    /// Where the library keeps its bytes
    #[arg(long, value_name = "DIR")]
    library: PathBuf,
    /// Seconds until a tape is mounted and wound
    #[arg(long, value_name = "SECS", default_value_t = 1.0)]
    mount: f64,
    /// Nothing is read before this file is there
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Say that they are on their way, and end: somebody else brings them
    #[arg(long)]
    submit: bool,
}

/// Runs the command; the exit code.
pub fn run(args: Args) -> u8 {
    let done = match args.command {
        Command::Migrate { library, paths } => migrate(&library, Path::new("."), &paths),
        Command::Recall(how) => recall(&how, Path::new("."), &mut io::stdin().lock(), &mut io::stdout()),
    };
    match done {
        Ok(()) => 0,
        Err(error) => fail(EXIT_OTHER, &error),
    }
}

fn checked(path: &str) -> io::Result<PathBuf> {
    let path = path.trim_start_matches('/');
    RelPath::new(path.as_bytes()).map_err(|e| io::Error::other(format!("{path}: {e}")))?;
    Ok(PathBuf::from(path))
}

/// `.NAME.tape` beside it.
fn sidecar(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tape"))
}

/// Bytes first, then the sidecar, then the file away: at no moment is it nowhere.
fn migrate(library: &Path, root: &Path, paths: &[String]) -> io::Result<()> {
    for path in paths {
        let path = checked(path)?;
        let (from, to) = (root.join(&path), library.join(&path));
        fs::create_dir_all(to.parent().unwrap_or(library))?;
        let bytes = fs::copy(&from, &to)?;
        File::open(&to)?.sync_all()?;
        fs::write(sidecar(&from), format!("offline {bytes}\n"))?;
        fs::remove_file(&from)?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Line {
    lfn: String,
    path: String,
}

fn recall(how: &Recall, root: &Path, input: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    let mut lines = Vec::new();
    loop {
        let mut text = Vec::new();
        if io::Read::take(&mut *input, LINE_MAX).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        let line: Line = serde_json::from_slice(&text)?;
        if lines.len() == MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files at once")));
        }
        lines.push((checked(&line.path)?, line));
    }
    let mut mounts = File::options().append(true).create(true).open(how.library.join(MOUNTS))?;
    mounts.write_all(format!("{}\n", lines.len()).as_bytes())?;
    if how.submit {
        for (_, line) in lines {
            writeln!(output, "{}", serde_json::json!({ "lfn": line.lfn, "state": "recalling" }))?;
        }
        return output.flush();
    }
    for (path, _) in &lines {
        if let Ok(meta) = fs::metadata(how.library.join(path)) {
            fs::write(sidecar(&root.join(path)), format!("recalling {}\n", meta.len()))?;
        }
    }
    std::thread::sleep(Duration::try_from_secs_f64(how.mount).unwrap_or_default());
    wait_for(how.gate.as_deref())?;
    for (path, line) in lines {
        let said = match bring(&how.library, root, &path) {
            Ok(()) => serde_json::json!({ "lfn": line.lfn, "state": "online" }),
            Err(error) => serde_json::json!({ "lfn": line.lfn, "state": "failed", "reason": error.to_string() }),
        };
        writeln!(output, "{said}")?;
        output.flush()?;
    }
    Ok(())
}

/// Until the gate is there; an agent that has gone is not waited for.
fn wait_for(gate: Option<&Path>) -> io::Result<()> {
    let Some(gate) = gate else { return Ok(()) };
    let (began, parent) = (Instant::now(), nix::unistd::getppid());
    while !gate.exists() {
        if began.elapsed() > GATE_MAX || nix::unistd::getppid() != parent {
            return Err(io::Error::other("nobody waits any more"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Whole under its name, or not at all; then the sidecar away. What is there already is left.
fn bring(library: &Path, root: &Path, path: &Path) -> io::Result<()> {
    let (from, to) = (library.join(path), root.join(path));
    if !to.exists() {
        let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = to.with_file_name(format!(".{name}.{}.recall", std::process::id()));
        fs::copy(&from, &part)?;
        File::open(&part)?.sync_all()?;
        fs::rename(&part, &to)?;
    }
    match fs::remove_file(sidecar(&to)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onto_tape_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let (root, library) = (dir.path().join("root"), dir.path().join("library"));
        fs::create_dir_all(root.join("d")).unwrap();
        fs::create_dir(&library).unwrap();
        fs::write(root.join("d/f"), b"12345").unwrap();
        migrate(&library, &root, &["d/f".to_owned()]).unwrap();
        assert!(!root.join("d/f").exists());
        assert_eq!(fs::read(root.join("d/.f.tape")).unwrap(), b"offline 5\n");
        let gate = dir.path().join("gate");
        let how = Recall { library: library.clone(), mount: 0.0, gate: Some(gate.clone()), submit: false };
        let lines = b"{\"lfn\":\"/d/f\",\"path\":\"d/f\",\"stage\":\"s\"}\n{\"lfn\":\"/g\",\"path\":\"g\"}\n";
        let said = std::thread::scope(|scope| {
            let at_work = scope.spawn(|| {
                let mut said = Vec::new();
                recall(&how, &root, &mut &lines[..], &mut said).unwrap();
                said
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(!root.join("d/f").exists(), "the gate is shut");
            assert_eq!(fs::read(root.join("d/.f.tape")).unwrap(), b"recalling 5\n");
            fs::write(&gate, b"").unwrap();
            at_work.join().unwrap()
        });
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("{\"lfn\":\"/d/f\",\"state\":\"online\"}\n{\"lfn\":\"/g\",\"reason\":"), "{said}");
        assert_eq!(fs::read(root.join("d/f")).unwrap(), b"12345");
        assert!(!root.join("d/.f.tape").exists());
        assert_eq!(fs::read_to_string(library.join(MOUNTS)).unwrap(), "2\n");
        let out = b"{\"lfn\":\"/x\",\"path\":\"../x\"}\n";
        assert!(recall(&how, &root, &mut &out[..], &mut Vec::new()).is_err(), "out of the root");
    }
}
