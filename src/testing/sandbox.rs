//! `lh-sandbox [--deny WHAT]... [--] COMMAND...`: runs a command on a kernel that refuses something. For tests.

use std::ffi::OsString;
use std::process::ExitCode;

use longhaul::sys::seccomp::{Deny, deny_and_exec};

const USAGE: &str = "usage: lh-sandbox [--deny io-uring|ring-flags|openat2|dontcache|flock|fallocate|renameat2]... \
                     [--] COMMAND [ARGUMENT...]";

fn parse(mut words: impl Iterator<Item = OsString>) -> Option<(Vec<Deny>, Vec<OsString>)> {
    let mut denies = Vec::new();
    loop {
        let word = words.next()?;
        match word.to_str() {
            Some("--deny") => denies.push(Deny::parse(words.next()?.to_str()?)?),
            Some("--") => {
                let argv: Vec<OsString> = words.collect();
                return (!argv.is_empty()).then_some((denies, argv));
            }
            _ => return Some((denies, std::iter::once(word).chain(words).collect())),
        }
    }
}

fn main() -> ExitCode {
    let Some((denies, argv)) = parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = deny_and_exec(&denies, &argv);
    eprintln!("lh-sandbox: cannot run {}: {error}", argv[0].display());
    ExitCode::from(127)
}
