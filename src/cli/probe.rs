//! `longhaul probe`: measures the path to an agent in a bounded time, and writes what it found as a profile.

mod plan;
mod plot;

use super::cp::{PeerArgs, parse_peer};
use super::fail::{Fail, finish, printable, say, show};
use crate::clock;
use crate::control::client::PeerTickets;
use crate::control::messages::{PartialOptions, TicketRequest};
use crate::control::profiles::{self, user_dir};
use crate::control::url::PeerUrl;
use crate::doctor::gather::{gather, reach};
use crate::engine::handle::{Engine, EngineConfig};
use crate::engine::probe::ProbeSpec;
use crate::engine::spec::{EngineChoice, TransferOptions};
use crate::ids::AgentId;
use crate::limits::DEFAULT_BLOCK;
use crate::profile::{Marking, Profile, SharedProfiles, check_congestion, split_congestion};
use crate::units::{BitRate, parse_span, write_span};
use plan::{Origin, Setting, Tried, best, limiter, next, profile, trial_cost, trial_length};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Buffers of the client's engine: its workers have nothing to do here.
const ARENA: usize = 8 << 20;
/// The shortest time in which a trial of each algorithm fits.
const FOR_MIN: Duration = Duration::from_secs(3);
/// Others use the path as well.
const FOR_MAX: Duration = Duration::from_secs(300);
/// The command that a profile of ours says it comes from.
const COMMAND: &str = "longhaul probe";

/// Arguments of `probe`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The agent: a host, or `lh://host[:port]`
    #[arg(value_name = "PEER")]
    pub target: String,
    /// Write the profile NAME (or to a file, with a slash or `.toml` in it)
    #[arg(long, value_name = "NAME")]
    pub save: Option<String>,
    /// How long, in all
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = parse_for)]
    pub time: Duration,
    /// pull: the agent sends; push: this host does
    #[arg(long, value_name = "pull|push", default_value = "pull", value_parser = parse_direction)]
    pub direction: Direction,
    /// Congestion controls of the sender to try, the preferred one first
    #[arg(long, value_name = "NAMES", default_value = "cubic,bbr", value_parser = parse_names)]
    pub cc: Names,
    /// Write the ramp as a picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Replace a profile that somebody wrote by hand
    #[arg(long)]
    pub force: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Agents and tokens.
    #[command(flatten)]
    pub peer: PeerArgs,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The agent.
    Pull,
    /// This host.
    Push,
}

/// Names of congestion controls.
#[derive(Debug, Clone)]
pub struct Names(pub Vec<String>);

fn parse_for(text: &str) -> Result<Duration, String> {
    let time = parse_span(text).map_err(|error| error.to_string())?;
    if (FOR_MIN..=FOR_MAX).contains(&time) { Ok(time) } else { Err("3s to 5m".to_owned()) }
}

fn parse_direction(text: &str) -> Result<Direction, String> {
    match text {
        "pull" => Ok(Direction::Pull),
        "push" => Ok(Direction::Push),
        _ => Err("pull or push".to_owned()),
    }
}

fn parse_names(text: &str) -> Result<Names, String> {
    let names = split_congestion(text);
    check_congestion(&names).map(|()| Names(names))
}

/// Runs the command. The exit code.
pub fn run(args: Args) -> u8 {
    finish(args.json, execute(&args))
}

fn execute(args: &Args) -> Result<u8, Fail> {
    let began = Instant::now();
    let url = parse_peer(&args.target)?;
    let target = args.save.as_deref().map(|name| place(name, args.force)).transpose()?;
    let found = (url.host.as_str(), url.port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
    let way = reach(&url.host, &addresses, None);
    if let Some(error) = &way.error {
        return Err(Fail::new(5, format!("{}: {error}", url.host)));
    }
    let rtt = Duration::from_micros(way.rtt_us.unwrap_or(0));
    let tell = |text: &str| if args.json { eprint!("{text}") } else { say(text) };
    tell(&format!(
        "{} answers in {}; trials of {} each, {} in all.\n",
        printable(&url.host),
        write_span(rtt),
        write_span(trial_length(rtt)),
        write_span(args.time)
    ));
    let tried = measure(args, &url, rtt, began, &tell)?;
    let Some((setting, trial)) = best(&tried) else {
        return Err(Fail::new(5, "no trial worked: see the notes above"));
    };
    let origin = origin(args, &url, way.interface.as_deref());
    let profile = profile(&tried, &origin).expect("a trial worked");
    let title = format!("{} {}, round trip {}", args.target, direction(args), write_span(rtt));
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&tried, &title)).map_err(|error| Fail::io("write", path, &error))?;
    }
    if let Some(path) = &target {
        write(path, &profile)?;
    }
    let held_back = limiter(&trial);
    if args.json {
        let trials: Vec<_> = tried
            .iter()
            .map(|(setting, trial)| {
                serde_json::json!({
                    "streams": setting.streams, "congestion": setting.congestion, "trial": trial,
                    "bits_per_second": trial.as_ref().map(plan_rate),
                })
            })
            .collect();
        let document = serde_json::json!({
            "peer": args.target, "rtt_us": rtt.as_micros() as u64, "trials": trials, "profile": profile, "limiter": held_back,
            "saved": target.as_ref().map(|path| path.display().to_string()),
            "duration_ns": began.elapsed().as_nanos() as u64, "exit_code": 0,
        });
        say(&format!("{document}\n"));
        return Ok(0);
    }
    say(&format!("\n{}\n", plot::chart(&tried)));
    say(&format!("best: {} at {}, held back by the {held_back}\n", plot::label(&setting), BitRate(trial.rate())));
    if let Some(sysctl) = sysctl(held_back) {
        say(&format!(
            "note: raise the third value of {sysctl} at the {}\n",
            if held_back.starts_with("sender") { "sender" } else { "receiver" }
        ));
    }
    let mut notes: Vec<&String> = tried.iter().filter_map(|(_, trial)| trial.as_ref()).flat_map(|t| &t.notes).collect();
    notes.sort();
    notes.dedup();
    notes.iter().for_each(|note| say(&format!("note: {}\n", printable(note))));
    match &target {
        Some(path) => {
            say(&format!("saved: {}; `longhaul cp` takes it for {} from now on\n", show(path), printable(&url.host)))
        }
        None => say(&format!("\n{}", profile.to_toml())),
    }
    Ok(0)
}

fn plan_rate(trial: &crate::engine::probe::Trial) -> u64 {
    trial.rate()
}

fn direction(args: &Args) -> &'static str {
    if args.direction == Direction::Pull { "pull" } else { "push" }
}

fn sysctl(limiter: &str) -> Option<&'static str> {
    match limiter {
        "sender window" => Some("net.ipv4.tcp_wmem"),
        "receiver window" => Some("net.ipv4.tcp_rmem"),
        _ => None,
    }
}

/// Runs trials as long as one more fits.
fn measure(args: &Args, url: &PeerUrl, rtt: Duration, began: Instant, tell: &dyn Fn(&str)) -> Result<Vec<Tried>, Fail> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Fail::new(1, format!("cannot start the program's threads: {error}")))?;
    let engine = Engine::start(EngineConfig {
        workers: Some(1),
        arena_bytes: ARENA,
        engine: EngineChoice::Epoll,
        data_listen: None,
        advertise: Vec::new(),
        agent: AgentId([0; 16]),
        block: DEFAULT_BLOCK,
        retry_for: Duration::ZERO,
        profiles: SharedProfiles::default(),
        marking: Marking::default(),
    })?;
    let handle = engine.handle();
    let client = Arc::new(args.peer.client(url, args.direction == Direction::Pull)?);
    let algorithms: Vec<Option<String>> = args.cc.0.iter().cloned().map(Some).collect();
    let length = trial_length(rtt).min(args.time / 2);
    let mut tried: Vec<Tried> = Vec::new();
    while let Some(setting) = next(&tried, &algorithms) {
        if !tried.is_empty() && began.elapsed() + trial_cost(rtt) > args.time {
            break;
        }
        let options = TransferOptions { congestion: setting.congestion.clone(), ..TransferOptions::default() };
        let spec = ProbeSpec {
            agent_sends: args.direction == Direction::Pull,
            streams: setting.streams,
            duration_ms: length.as_millis() as u32,
            options,
        };
        let request = TicketRequest::Probe {
            agent_sends: spec.agent_sends,
            streams: spec.streams,
            duration_ms: spec.duration_ms,
            options: PartialOptions::from(&spec.options),
        };
        let outcome = runtime.block_on(handle.probe(spec, Arc::new(PeerTickets::new(client.clone(), request))));
        let trial = match outcome {
            Ok(trial) => trial,
            // The first trial's failure is the answer; a later one's costs that setting alone.
            Err(error) if tried.is_empty() => return Err(error.into()),
            Err(error) => {
                tell(&format!("  {:<14} failed: {}\n", plot::label(&setting), printable(&error.to_string())));
                tried.push((setting, None));
                continue;
            }
        };
        let got = setting.congestion.as_deref().is_none_or(|asked| asked == trial.congestion);
        let trial = if got { Some(trial) } else { fell_back(&setting, trial, tell) };
        let top = tried.iter().filter_map(|(_, trial)| trial.as_ref()).chain(&trial).map(plan_rate).max().unwrap_or(0);
        tell(&plot::line(&setting, trial.as_ref(), top));
        tried.push((setting, trial));
    }
    runtime.block_on(handle.shutdown(Duration::from_secs(1)));
    Ok(tried)
}

/// A congestion control that the sender's kernel does not give: that trial says nothing about it.
fn fell_back(
    setting: &Setting,
    trial: crate::engine::probe::Trial,
    tell: &dyn Fn(&str),
) -> Option<crate::engine::probe::Trial> {
    trial.notes.iter().for_each(|note| tell(&format!("  {:<14} {}\n", plot::label(setting), printable(note))));
    None
}

fn origin(args: &Args, url: &PeerUrl, interface: Option<&str>) -> Origin {
    let facts = gather(None);
    let nic = interface.map(|name| {
        let driver = facts.interfaces.iter().find(|i| i.name == name).and_then(|i| i.driver.clone());
        driver.map_or_else(|| name.to_owned(), |driver| format!("{name} ({driver})"))
    });
    Origin {
        peer: url.host.clone(),
        agent_sends: args.direction == Direction::Pull,
        command: format!("{COMMAND} {} --direction {} --for {}", args.target, direction(args), write_span(args.time)),
        kernel: facts.kernel,
        nic: nic.unwrap_or_default(),
        now: clock::unix_now(),
    }
}

/// Where a profile goes. One that a probe wrote is replaced; another one only if that is asked for.
fn place(name: &str, force: bool) -> Result<PathBuf, Fail> {
    let path = if name.contains('/') || name.ends_with(".toml") {
        PathBuf::from(name)
    } else {
        let sound = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(sound) {
            return Err(Fail::usage(format!(
                "`{}` is no name for a profile: letters, digits, -, _ and .",
                printable(name)
            )));
        }
        let dir = user_dir().ok_or_else(|| Fail::usage("there is no home directory for profiles: name a file"))?;
        dir.join(format!("{name}.toml"))
    };
    if path.exists() && !force {
        let ours = profiles::read(&path).is_ok_and(|profile| profile.provenance.command.starts_with(COMMAND));
        if !ours {
            return Err(Fail::usage(format!("{} was not written by a probe: --force replaces it", show(&path))));
        }
    }
    Ok(path)
}

/// Writes beside and renames over: nobody reads half a profile.
fn write(path: &Path, profile: &Profile) -> Result<(), Fail> {
    let fail = |error: std::io::Error| Fail::io("write", path, &error);
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    let beside = path.with_extension(format!("new{}", std::process::id()));
    std::fs::write(&beside, profile.to_toml()).and_then(|()| std::fs::rename(&beside, path)).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_by_hand_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site.toml");
        let name = path.to_str().unwrap();
        assert_eq!(place(name, false).unwrap(), path);
        write(&path, &Profile { about: "by hand".to_owned(), ..Profile::default() }).unwrap();
        assert!(place(name, false).unwrap_err().what.contains("--force"));
        assert_eq!(place(name, true).unwrap(), path);
        let mut ours = Profile::default();
        ours.provenance.command = format!("{COMMAND} dtn1");
        write(&path, &ours).unwrap();
        assert_eq!(place(name, false).unwrap(), path);
        assert_eq!(profiles::read(&path).unwrap(), ours);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        for bad in ["", ".hidden", "a b", "x\u{e9}"] {
            assert!(place(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_and_names_are_checked() {
        assert!(parse_for("2s").is_err() && parse_for("10m").is_err() && parse_for("10s").is_ok());
        assert!(parse_names("cubic,a b").is_err() && parse_names("cubic,bbr").unwrap().0.len() == 2);
        assert!(parse_direction("sideways").is_err());
    }
}
