//! `longhaul token`: named tokens of an agent on this host, effective at once.

use super::fail;
use crate::control::access::Role;
use crate::control::model::name::DatasetName;
use crate::control::state::{StateDir, StateError, write_secret};
use crate::control::tokens::{NewToken, TokenError, TokenStore, parse_prefix};
use crate::control::transfer_log::rfc3339;
use crate::engine::error::Class;
use clap::{Args as ClapArgs, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// The longest life of a token: ten years.
const MAX_LIFE_SECS: u64 = 10 * 366 * 86_400;

/// Makes, lists and revokes tokens.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a token and prints it once
    Add(Add),
    /// Lists tokens: names, rights, prefixes, ends; never the tokens themselves
    List(List),
    /// Takes a token back, from the next request on
    Revoke(Revoke),
}

#[derive(Debug, ClapArgs)]
struct Add {
    /// A name for logs and for `revoke`
    name: String,
    /// The agent's state directory
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// What it reaches, below the agent's root; may be repeated [default: everything]
    #[arg(long = "prefix", value_name = "PATH")]
    prefixes: Vec<String>,
    /// It may fetch
    #[arg(long)]
    read: bool,
    /// It may upload
    #[arg(long)]
    write: bool,
    /// What it may do at main; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<Role>,
    /// Its roles count for datasets at or below this one; may be repeated [default: for all]
    #[arg(long = "dataset", value_name = "NAME", requires = "roles")]
    datasets: Vec<DatasetName>,
    /// How long it lives, as in 12h, 30d, 8w [default: until revoked]
    #[arg(long, value_name = "TIME", value_parser = parse_life)]
    expires: Option<Duration>,
    /// Write it into this file (0600) instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
struct List {
    /// The agent's state directory
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct Revoke {
    /// The token's name
    name: String,
    /// The agent's state directory
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

/// `90s`, `15m`, `12h`, `30d`, `8w`; at most ten years.
pub fn parse_life(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a time: write for example 12h, 30d or 8w, at most ten years");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        Some('w') => 7 * 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    let seconds = number.checked_mul(unit).filter(|&s| s <= MAX_LIFE_SECS).ok_or_else(bad)?;
    Ok(Duration::from_secs(seconds))
}

/// Runs the command.
pub fn run(args: Args) -> u8 {
    let done = match args.command {
        Command::Add(add) => self::add(add),
        Command::List(list) => self::list(&list),
        Command::Revoke(revoke) => open(&revoke.state).and_then(|tokens| tokens.revoke(&revoke.name)),
    };
    match done {
        Ok(()) => 0,
        Err(error) => fail(exit_code(&error), &error),
    }
}

fn exit_code(error: &TokenError) -> u8 {
    match error {
        TokenError::NoSuchName(_) => Class::NotFound.exit_code(),
        TokenError::BadName(_) | TokenError::BadPrefix(_) | TokenError::NoRight => super::EXIT_USAGE,
        TokenError::Busy => Class::Retry.exit_code(),
        TokenError::State(StateError::Owner { .. } | StateError::Exposed { .. }) => Class::Denied.exit_code(),
        TokenError::State(StateError::Io { source, .. }) => match source.kind() {
            io::ErrorKind::PermissionDenied => Class::Denied.exit_code(),
            io::ErrorKind::NotFound => Class::NotFound.exit_code(),
            _ => Class::Permanent.exit_code(),
        },
        _ => Class::Permanent.exit_code(),
    }
}

fn open(state: &std::path::Path) -> Result<TokenStore, TokenError> {
    Ok(TokenStore::new(&StateDir::open(state)?))
}

fn add(add: Add) -> Result<(), TokenError> {
    let typed = match add.prefixes.is_empty() && (add.read || add.write) {
        true => vec!["/".to_owned()],
        false => add.prefixes,
    };
    let mut prefixes = Vec::with_capacity(typed.len());
    for text in &typed {
        let bad = || TokenError::BadPrefix(crate::relpath::escape(text.as_bytes()));
        prefixes.push(parse_prefix(text).ok_or_else(bad)?);
    }
    let tokens = open(&add.state)?;
    let new = NewToken {
        name: add.name,
        prefixes,
        read: add.read,
        write: add.write,
        lifetime: add.expires,
        roles: add.roles.into_iter().collect(),
        datasets: add.datasets,
    };
    let text = tokens.add(&new)?;
    let line = format!("{}\n", text.expose());
    let told = match &add.out {
        Some(path) => write_secret(path, line.as_bytes()),
        None => io::stdout().lock().write_all(line.as_bytes()).map_err(|source| StateError::Io {
            doing: "print the token to",
            path: "stdout".into(),
            source,
        }),
    };
    if told.is_err() {
        // A token that nobody has seen is of no use to anybody.
        tokens.revoke(&new.name)?;
    }
    Ok(told?)
}

fn list(list: &List) -> Result<(), TokenError> {
    let tokens = open(&list.state)?.list()?;
    let mut out = String::new();
    if list.json {
        out = format!("{}\n", serde_json::json!({ "tokens": tokens }));
    } else {
        for token in tokens {
            let rights = match (token.read, token.write) {
                (true, true) => "read,write",
                (true, false) => "read",
                (false, true) => "write",
                (false, false) => "none",
            };
            let end = token.expires.map_or_else(
                || "never".to_owned(),
                |s| rfc3339(UNIX_EPOCH.checked_add(Duration::from_secs(s)).unwrap_or(UNIX_EPOCH)),
            );
            let prefixes = token.prefixes.join(" ");
            let roles: Vec<_> = token.roles.iter().map(Role::to_string).collect();
            let datasets: Vec<_> = token.datasets.iter().map(DatasetName::to_string).collect();
            let (roles, datasets) = (roles.join(","), datasets.join(" "));
            out.push_str(&format!(
                "{}\t{}\t{rights}\texpires {end}\t{prefixes}\t{roles}\t{datasets}\n",
                token.name, token.state
            ));
        }
    }
    io::stdout()
        .lock()
        .write_all(out.as_bytes())
        .map_err(|source| TokenError::State(StateError::Io { doing: "print to", path: "stdout".into(), source }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::read_secret;

    #[test]
    fn lives_as_typed() {
        assert_eq!(parse_life("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(parse_life("8w"), Ok(Duration::from_secs(56 * 86_400)));
        assert_eq!(parse_life("0s"), Ok(Duration::ZERO));
        for bad in ["", "d", "-1d", "30", "30x", "99999999999999999999d", "11000d", "9é"] {
            assert!(parse_life(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn add_list_revoke_with_their_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let out = dir.path().join("token");
        let add = |name: &str, read, prefix: &str| {
            let add = Add {
                name: name.to_owned(),
                state: state.clone(),
                prefixes: vec![prefix.to_owned()],
                read,
                write: false,
                roles: vec![],
                datasets: vec![],
                expires: None,
                out: Some(out.clone()),
            };
            run(Args { command: Command::Add(add) })
        };
        let revoke =
            |name: &str| run(Args { command: Command::Revoke(Revoke { name: name.into(), state: state.clone() }) });
        assert_eq!(add("a", true, "/data"), 0);
        let text = read_secret(&out).unwrap();
        let tokens = open(&state).unwrap();
        assert_eq!(tokens.authenticate(&text).unwrap().name, "a");
        assert_eq!(run(Args { command: Command::List(List { state: state.clone(), json: true }) }), 0);
        assert_eq!(add("a", true, "/data"), 7);
        assert_eq!(add("b", false, "/data"), 2);
        assert_eq!(add("b", true, "/../data"), 2);
        assert_eq!(revoke("b"), 4);
        assert_eq!(revoke("a"), 0);
        assert!(tokens.authenticate(&text).is_err());

        // Nobody could read it: it is not left valid.
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let lost = Add {
            name: "lost".into(),
            state: state.clone(),
            prefixes: vec![],
            read: true,
            write: true,
            roles: vec![],
            datasets: vec![],
            expires: None,
            out: Some(dir.path().join("d/none/x")),
        };
        assert_ne!(run(Args { command: Command::Add(lost) }), 0);
        assert!(tokens.list().unwrap().iter().all(|t| t.state != "active"));
    }
}
