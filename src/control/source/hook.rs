//! The stage command: one process a batch, no shell, JSON lines in and out, nothing inherited but PATH and HOME.

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Bytes of one line of its answer.
const LINE_MAX: u64 = 16 << 10;
/// Results that are kept together.
const TOGETHER: usize = 100;
/// Bytes of its stderr that are told.
const WORDS_MAX: u64 = 500;

/// What it reads: one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// For its own logs.
    pub stage: String,
    /// The logical name.
    pub lfn: String,
    /// Below the root, which is its working directory.
    pub path: String,
}

#[derive(Debug, Deserialize)]
struct Said {
    lfn: String,
    state: String,
    #[serde(default)]
    reason: Option<String>,
}

/// What became of a file, by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Online,
    /// It is on its way: the directory rule will say when it is there.
    Accepted,
    /// It is not.
    Failed,
}

/// What it said of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Result {
    /// Which.
    pub lfn: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why not.
    pub reason: Option<String>,
}

/// Why a process did not end well.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is none.
    #[error("no stage_command is configured")]
    None,
    /// It cannot be started.
    #[error("the stage command {program} cannot be started: {source}")]
    Start {
        /// argv[0].
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended otherwise than with 0.
    #[error("the stage command ended with {status}: {words}")]
    Ended {
        /// How.
        status: std::process::ExitStatus,
        /// The beginning of its stderr, escaped.
        words: String,
    },
    /// Its answer broke off.
    #[error("the stage command's answer cannot be read: {0}")]
    Answer(std::io::Error),
}

/// Runs `command` in `root` on `batch`; `each` gets results as they come. Blocks until the process has ended.
pub fn run(
    command: &[String],
    root: &Path,
    batch: &[Line],
    mut each: impl FnMut(Vec<Result>),
) -> std::result::Result<(), HookError> {
    let (program, args) = command.split_first().ok_or(HookError::None)?;
    let mut process = Command::new(program);
    process.args(args).current_dir(root).env_clear();
    for name in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(name) {
            process.env(name, value);
        }
    }
    let start = |source| HookError::Start { program: program.clone(), source };
    let spawned = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(start)?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // All three pipes at once: a process that fills one must not wait for us to serve another.
    let (answer, words) = std::thread::scope(|scope| {
        scope.spawn(move || {
            let Some(mut input) = input else { return };
            for line in batch {
                let mut text = serde_json::to_vec(line).unwrap_or_default();
                text.push(b'\n');
                // It may end without having read all: its exit code counts.
                if input.write_all(&text).is_err() {
                    return;
                }
            }
        });
        let words = scope.spawn(move || {
            let mut text = Vec::new();
            if let Some(errors) = errors {
                let mut errors = BufReader::new(errors);
                let _ = errors.by_ref().take(WORDS_MAX).read_to_end(&mut text);
                let _ = std::io::copy(&mut errors, &mut std::io::sink());
            }
            crate::relpath::escape(&text)
        });
        let answer = output.map_or(Ok(()), |output| read(BufReader::new(output), &mut each));
        (answer, words.join().unwrap_or_default())
    });
    let status = child.wait().map_err(HookError::Answer)?;
    answer.map_err(HookError::Answer)?;
    if status.success() { Ok(()) } else { Err(HookError::Ended { status, words }) }
}

fn read(mut output: impl BufRead, each: &mut impl FnMut(Vec<Result>)) -> std::io::Result<()> {
    let mut results = Vec::new();
    loop {
        let mut line = Vec::new();
        let count = output.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        match serde_json::from_slice::<Said>(&line) {
            Ok(said) => {
                let outcome = match said.state.as_str() {
                    "online" => Outcome::Online,
                    "recalling" => Outcome::Accepted,
                    _ => Outcome::Failed,
                };
                let reason = said.reason.filter(|_| outcome == Outcome::Failed);
                results.push(Result { lfn: said.lfn, outcome, reason });
            }
            Err(_) if count == 0 || line.iter().all(u8::is_ascii_whitespace) => {}
            Err(error) => tracing::warn!(%error, "a line of the stage command cannot be understood"),
        }
        if !results.is_empty() && (count == 0 || results.len() == TOGETHER) {
            each(std::mem::take(&mut results));
        }
        if count == 0 {
            return Ok(());
        }
    }
}
