//! The sandbox that other tests rely on: its exit codes, and that what runs in it is really refused something.

use std::process::{Command, Output};

fn sandbox(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lh-sandbox")).args(arguments).output().unwrap()
}

#[test]
fn passes_exit_codes_and_arguments_on() {
    for deny in ["io-uring", "ring-flags"] {
        let run = sandbox(&["--deny", deny, "--", "sh", "-c", "echo \"$0 $1\"; exit 7", "a b", "c"]);
        assert_eq!((run.status.code(), run.stdout.as_slice()), (Some(7), &b"a b c\n"[..]), "{deny}");
    }
    let killed = sandbox(&["--deny", "ring-flags", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137));
}

#[test]
fn bad_usage_and_missing_commands_have_codes_of_their_own() {
    for arguments in [&[][..], &["--deny"], &["--deny", "everything", "true"], &["--deny", "flock", "--"]] {
        let run = sandbox(arguments);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}");
        assert!(run.stderr.starts_with(b"usage:"));
    }
    assert_eq!(sandbox(&["/no/such/command"]).status.code(), Some(127));
}

#[test]
fn a_command_is_refused_what_was_denied() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let file = file.to_str().unwrap();
    // util-linux has both.
    assert!(sandbox(&["--", "flock", file, "true"]).status.success());
    assert!(!sandbox(&["--deny", "flock", "--", "flock", file, "true"]).status.success());
    assert!(sandbox(&["--deny", "flock", "--", "fallocate", "-l", "4096", file]).status.success());
    assert!(!sandbox(&["--deny", "fallocate", "--", "fallocate", "-l", "4096", file]).status.success());
}
