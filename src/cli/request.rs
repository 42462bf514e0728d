//! `longhaul request`: asks a main for transfers, and steers them.

mod create;
mod words;

use super::fail::{Fail, printable, say, show as show_path};
use super::service::{self, Amount, MainArgs, more, pages, parse_moment, say_json};
use crate::control::client::service::MainClient;
use crate::control::model::name::{AgentName, DatasetName, ItemId, RequestId};
use crate::control::model::page::PageQuery;
use crate::control::model::request::{ApprovalRule, Decision, RequestFilter, RequestPatch, RequestView, Verdict};
use crate::control::model::states::{ItemState, RequestState};
use crate::control::model::time::Time;
use crate::engine::error::Class;
use crate::units::parse_rate;
use clap::Subcommand;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks of `watch`.
const LOOK: Duration = Duration::from_secs(1);
/// How long main may be out of reach while `watch` looks: it may be restarted meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of a file of rules: as many as main takes in one request.
const RULES_MAX: u64 = 1 << 20;
/// Exit code of a wait that was not long enough.
const TIMED_OUT: u8 = 11;

/// Asks a main for transfers, and steers them.
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
    /// Asks for a transfer; prints the request's id
    Create(create::Create),
    /// Uploads the manifest of a request that waits for one
    Upload {
        /// The request
        id: RequestId,
        /// One file a line, as for `create --manifest`
        manifest: PathBuf,
    },
    /// Requests, the newest first
    List(List),
    /// One request
    Show {
        /// The request
        id: RequestId,
    },
    /// Waits until a request has ended. Exit code 0 succeeded, 3 partial, 7 failed, 10 rejected, 11 expired, 130 cancelled
    Watch {
        /// The request
        id: RequestId,
        /// Give up waiting after so long (exit code 11), as in 90s, 2h
        #[arg(long, value_name = "TIME", value_parser = super::token::parse_life)]
        timeout: Option<Duration>,
    },
    /// The files of a request
    Items(Items),
    /// The tries of one file
    Attempts {
        /// The item, as `items` names it
        item: ItemId,
    },
    /// Says yes to what was resolved
    Approve(Decide),
    /// Says no
    Reject(Decide),
    /// Begins nothing more of it until `resume`
    Pause(Ids),
    /// Goes on after `pause`
    Resume(Ids),
    /// Stops it
    Cancel(Ids),
    /// Tries its failed files again
    RetryFailed(Ids),
    /// Changes priority, deadline, rate or labels
    Change(Change),
    /// Forgets a request that has ended
    Delete(Ids),
    /// Prints the approval rules, the first that fits counts; with --set replaces them
    Rules {
        /// JSON: a list of {"name", "owner", "dataset_prefix", "destination", "max_bytes", "then"}, `then` automatic, required or second_person
        #[arg(long, value_name = "FILE")]
        set: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Ids {
    /// The requests
    #[arg(required = true)]
    ids: Vec<RequestId>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// resolving, pending_approval, active, succeeded, partial, failed, cancelled, rejected or expired
    #[arg(long, value_name = "STATE", value_parser = parse_request_state)]
    state: Option<RequestState>,
    /// Of this token
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// To this agent
    #[arg(long, value_name = "AGENT")]
    to: Option<AgentName>,
    /// Of this dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<DatasetName>,
    /// With this label
    #[arg(long, value_name = "KEY=VALUE")]
    label: Option<String>,
    #[command(flatten)]
    amount: Amount,
}

#[derive(Debug, clap::Args)]
struct Items {
    /// The request
    id: RequestId,
    /// queued, claimed, hold, transferring, verifying, committing, done, skipped, failed or cancelled
    #[arg(long, value_name = "STATE", value_parser = parse_item_state)]
    state: Option<ItemState>,
    #[command(flatten)]
    amount: Amount,
}

#[derive(Debug, clap::Args)]
struct Decide {
    /// The request
    id: RequestId,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Only if this is what was resolved: the digest that `show` told [default: what is there now]
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Change {
    /// The request
    id: RequestId,
    /// 0 to 9; higher first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Given up after this: 2026-12-01T08:00:00Z, or from now: 12h, 3d
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    deadline: Option<Time>,
    /// 2Gbit, 100MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_rate: Option<u64>,
    /// Replaces all labels; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = create::parse_label)]
    labels: Vec<(String, String)>,
}

fn parse_request_state(text: &str) -> Result<RequestState, String> {
    let words = || RequestState::ALL.iter().map(|s| s.word()).collect::<Vec<_>>().join(", ");
    RequestState::from_word(text).ok_or_else(|| format!("one of {}", words()))
}

fn parse_item_state(text: &str) -> Result<ItemState, String> {
    let words = || ItemState::ALL.iter().map(|s| s.word()).collect::<Vec<_>>().join(", ");
    ItemState::from_word(text).ok_or_else(|| format!("one of {}", words()))
}

/// Runs the command.
pub fn run(args: Args) -> u8 {
    let json = args.main.json;
    service::run(&args.main, |main| async move {
        let code = execute(&main, args.command, json).await?;
        for note in main.notes() {
            eprintln!("longhaul: {note}");
        }
        Ok(code)
    })
}

async fn execute(main: &MainClient, command: Command, json: bool) -> Result<u8, Fail> {
    let show = |request: &RequestView| match json {
        true => say_json(request),
        false => say(&words::request(request)),
    };
    match command {
        Command::Create(create) => return create::create(main, create, json).await,
        Command::Upload { id, manifest } => show(&create::upload(main, id, &manifest).await?),
        Command::List(list) => self::list(main, list, json).await?,
        Command::Show { id } => show(&main.request(id).await?),
        Command::Watch { id, timeout } => return watch(main, id, timeout, json).await,
        Command::Items(items) => self::items(main, items, json).await?,
        Command::Attempts { item } => {
            let tries = main.attempts(item).await?;
            if json { say_json(&tries) } else { say(&words::attempts(&tries)) }
        }
        Command::Approve(decide) => show(&self::decide(main, decide, Verdict::Approve).await?),
        Command::Reject(decide) => show(&self::decide(main, decide, Verdict::Reject).await?),
        Command::Pause(ids) => each(main, ids, Some("pause"), json).await?,
        Command::Resume(ids) => each(main, ids, Some("resume"), json).await?,
        Command::Cancel(ids) => each(main, ids, Some("cancel"), json).await?,
        Command::RetryFailed(ids) => each(main, ids, Some("retry-failed"), json).await?,
        Command::Delete(ids) => each(main, ids, None, json).await?,
        Command::Rules { set } => {
            let rules = match set {
                Some(path) => main.set_rules(&read_rules(&path)?).await?,
                None => main.rules().await?,
            };
            if json { say_json(&rules) } else { say(&words::rules(&rules)) }
        }
        Command::Change(change) => show(&self::change(main, change).await?),
    }
    Ok(0)
}

async fn list(main: &MainClient, list: List, json: bool) -> Result<(), Fail> {
    let List { state, owner, to, dataset, label, amount } = list;
    let filter = RequestFilter { state, owner, destination: to, dataset, label };
    let filter = &filter;
    let (rows, there_is_more) =
        pages(amount, |page: PageQuery| async move { main.requests(filter, &page).await }).await?;
    if json {
        say_json(&serde_json::json!({"items": rows, "more": there_is_more}));
    } else {
        say(&words::requests(&rows));
        more(there_is_more);
    }
    Ok(())
}

async fn items(main: &MainClient, items: Items, json: bool) -> Result<(), Fail> {
    let Items { id, state, amount } = items;
    let (rows, there_is_more) =
        pages(amount, |page: PageQuery| async move { main.items(id, state, &page).await }).await?;
    if json {
        say_json(&serde_json::json!({"items": rows, "more": there_is_more}));
    } else {
        say(&words::items(&rows));
        more(there_is_more);
    }
    Ok(())
}

/// What was seen is what is decided about: main compares version and digest.
async fn decide(main: &MainClient, decide: Decide, verdict: Verdict) -> Result<RequestView, Fail> {
    let Decide { id, comment, digest } = decide;
    let seen = main.request(id).await?;
    let resolved = seen.digest.clone().ok_or_else(|| {
        Fail::new(Class::Permanent.exit_code(), format!("{id} is {}: there is nothing to decide about yet", seen.state))
    })?;
    if digest.is_some_and(|d| d != resolved) {
        let what = format!("{id} resolved to the digest {resolved}, which is not the one given: look at it again");
        return Err(Fail::new(Class::Permanent.exit_code(), what));
    }
    Ok(main.decide(id, seen.version, &Decision { decision: verdict, digest: resolved, comment }).await?)
}

/// The same for each; the first that fails ends it.
async fn each(main: &MainClient, ids: Ids, action: Option<&str>, json: bool) -> Result<(), Fail> {
    let mut done = Vec::with_capacity(ids.ids.len());
    for id in ids.ids {
        match action {
            Some(action) => {
                let request = main.act(id, action).await?;
                if !json {
                    say(&format!("{id} {}\n", words::state(&request)));
                }
                done.push(serde_json::json!(request));
            }
            None => {
                main.delete(id).await?;
                if !json {
                    say(&format!("{id} deleted\n"));
                }
                done.push(serde_json::json!({"id": id, "deleted": true}));
            }
        }
    }
    if json {
        match &done[..] {
            [one] => say_json(one),
            many => say_json(&many),
        }
    }
    Ok(())
}

fn read_rules(path: &Path) -> Result<Vec<ApprovalRule>, Fail> {
    let mut text = String::new();
    let file = File::open(path).map_err(|e| Fail::io("read", path, &e))?;
    file.take(RULES_MAX).read_to_string(&mut text).map_err(|e| Fail::io("read", path, &e))?;
    serde_json::from_str(&text)
        .map_err(|e| Fail::new(Class::Permanent.exit_code(), format!("{}: {e}", show_path(path))))
}

async fn change(main: &MainClient, change: Change) -> Result<RequestView, Fail> {
    let Change { id, priority, deadline, max_rate, labels } = change;
    let labels = (!labels.is_empty()).then(|| labels.into_iter().collect());
    let patch = RequestPatch { priority, deadline, max_rate, labels };
    if patch == RequestPatch::default() {
        return Err(Fail::usage("nothing is to be changed: see --priority, --deadline, --max-rate and --label"));
    }
    let seen = main.request(id).await?;
    Ok(main.change(id, seen.version, &patch).await?)
}

/// The exit code of a request that has ended.
fn exit_code(state: RequestState) -> u8 {
    match state {
        RequestState::Succeeded => 0,
        RequestState::Partial => super::fail::PARTIAL,
        RequestState::Rejected => super::fail::DENIED,
        RequestState::Expired => TIMED_OUT,
        RequestState::Cancelled => super::fail::INTERRUPTED,
        RequestState::Failed => super::fail::PERMANENT,
        RequestState::Resolving | RequestState::PendingApproval | RequestState::Active => TIMED_OUT,
    }
}

/// Tells every change in a line, and the end.
async fn watch(main: &MainClient, id: RequestId, timeout: Option<Duration>, json: bool) -> Result<u8, Fail> {
    let (began, mut heard, mut told) = (Instant::now(), Instant::now(), String::new());
    loop {
        match main.request(id).await {
            Ok(request) => {
                heard = Instant::now();
                let line = words::progress(&request);
                if line != told {
                    if !json {
                        say(&format!("{line}\n"));
                    }
                    told = line;
                }
                let late = timeout.is_some_and(|t| began.elapsed() >= t);
                if request.state.has_ended() || late {
                    if json {
                        say_json(&request);
                    } else if let Some(reason) = &request.reason {
                        say(&format!("{}\n", printable(reason)));
                    }
                    return Ok(exit_code(request.state));
                }
            }
            Err(error) if matches!(error.class, Class::Retry | Class::Reconnect) && heard.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        let left = timeout.map_or(LOOK, |t| t.saturating_sub(began.elapsed()).max(Duration::from_millis(1)));
        tokio::time::sleep(LOOK.min(left)).await;
    }
}

#[cfg(test)]
mod tests;
