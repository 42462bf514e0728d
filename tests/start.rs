//! What the program settles at its start, seen from outside.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The kernel gives the files below /proc of a process that may not be dumped to root; so the agent must run as somebody
/// else for that to be seen.
const NOBODY: u32 = 65534;

/// An agent's ready line says that `main` is past its start; then it is looked at what the kernel knows of the process.
#[test]
fn many_descriptors_and_no_core_dump() {
    let dir = tempfile::tempdir().unwrap();
    // The build folder may be closed to others.
    let program = dir.path().join("longhaul");
    std::fs::copy(env!("CARGO_BIN_EXE_longhaul"), &program).unwrap();
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    let is_root = nix::unistd::geteuid().is_root();
    for folder in [&root, &state] {
        std::fs::create_dir(folder).unwrap();
        if is_root {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();

    // A soft limit below the hard one, as login shells have it.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 256; exec \"$@\"", "sh"])
        .arg(&program)
        .args(["agent", "--http", "127.0.0.1:0", "--data", "127.0.0.1:0", "--workers", "1", "--root"])
        .arg(&root)
        .arg("--state")
        .arg(&state)
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if is_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut agent = command.spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(agent.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.id()));
    let owner = std::fs::metadata(format!("/proc/{}/environ", agent.id())).map(|m| m.uid());
    agent.kill().unwrap();
    agent.wait().unwrap();

    assert!(ready.starts_with('{'), "{ready}");
    let limits = limits.unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = files.split_whitespace().skip(3).take(2).collect();
    assert_ne!(numbers[0], "256", "{files}");
    assert_eq!(numbers[0], numbers[1], "{files}");
    assert_eq!(owner.unwrap(), 0, "the process can be dumped");
}
