//! `longhaul agent`: the daemon around `control::agent`, with signals, systemd and the log.

use super::fail;
use crate::config::{ConfigError, Shown, read_toml};
use crate::control::agent::{Agent, AgentError, engine_config};
use crate::control::model::name::AgentName;
use crate::control::settings::{AgentConfig, AgentLayer, LogTarget, Role, StageRule, Switch, parse_word};
use crate::control::tls::ClientCertificates;
use crate::engine::handle::{Engine, EngineConfig};
use crate::engine::spec::{EngineChoice, Synthetic, Verify};
use crate::ids::AgentId;
use crate::profile::{Collector, CpuMap, SciTag};
use crate::units::parse_size;
use sd_notify::NotifyState;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Threads for HTTP: work per request, never per chunk.
const CONTROL_THREADS: usize = 2;
/// For tasks that are left when the agent has stopped.
const RUNTIME_END: Duration = Duration::from_millis(200);
/// Filter of the agent's log, as in `longhaul=debug`.
const LOG_VAR: &str = "LONGHAUL_LOG";

/// Serves a directory: HTTP for tickets and status, one port for data.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// TOML file with any of these settings, dashes as underscores; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print every setting with its origin and what the engine's probes found, then exit
    #[arg(long)]
    show_config: bool,
    /// With --show-config: one JSON document
    #[arg(long, requires = "show_config")]
    json: bool,
    /// The directory that is served and never left; not needed by main alone
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where identity, tokens and keys lie
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where HTTP listens [default: [::]:8470]; port 0 picks one
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// Where data streams arrive [default: [::]:8471]; port 0 picks one
    #[arg(long, value_name = "ADDR:PORT")]
    data: Option<SocketAddr>,
    /// What it does: source, destination, main, or a list of them [default: source,destination]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_word::<Role>)]
    roles: Option<Vec<Role>>,
    /// Data addresses told to clients instead of the one they dialled
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    advertise_data: Option<Vec<String>>,
    /// Speak plain HTTP off loopback as well
    #[arg(long)]
    insecure_http: bool,
    /// For requests that do not say: wire or disk [default: disk]
    #[arg(long, value_name = "LEVEL", value_parser = parse_word::<Verify>)]
    verify: Option<Verify>,
    /// on, or off for trusted circuits: then clients may go without [default: on]
    #[arg(long, value_name = "ON|OFF", value_parser = parse_word::<Switch>)]
    encrypt: Option<Switch>,
    /// auto, uring or epoll [default: auto]
    #[arg(long, value_name = "NAME", value_parser = parse_word::<EngineChoice>)]
    engine: Option<EngineChoice>,
    /// Worker threads [default: one per core, at most 8]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// CPUs that the engine's threads keep to: a list as 0-3,8, or node:N for those of a NUMA node [default: all]
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuMap>,
    /// Memory for block buffers [default: 96MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// journal, stderr or a file
    #[arg(long, value_name = "WHERE")]
    log: Option<String>,
    /// A file for one line of JSON per ended transfer [default: with the log, on stderr]
    #[arg(long, value_name = "FILE")]
    transfer_log: Option<PathBuf>,
    /// Main: seconds that an agent is taken for alive without a word [default: 30]
    #[arg(long, value_name = "N")]
    lease_secs: Option<u64>,
    /// Main: seconds after that in which an agent gets its work back [default: 300]
    #[arg(long, value_name = "N")]
    reattach_secs: Option<u64>,
    /// Transfers at once, 1 to 256 [default: 256]
    #[arg(long, value_name = "N")]
    max_sessions: Option<usize>,
    /// Certificate in PEM instead of the self-signed one
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its key in PEM, mode 0600
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificate of the authority of other agents, from `longhaul pki init`
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// off, optional or required: certificates of clients over TLS [default: optional with --tls-ca]
    #[arg(long, value_name = "WHICH", value_parser = parse_word::<ClientCertificates>)]
    client_certificates: Option<ClientCertificates>,
    /// A directory of tuning profiles
    #[arg(long, value_name = "DIR")]
    profiles: Option<PathBuf>,
    /// SciTag of flows that nobody tags: 65 to 65535, in the flow labels of IPv6 and in fireflies
    #[arg(long, value_name = "N")]
    scitag: Option<SciTag>,
    /// A collector that is sent fireflies of tagged flows by UDP, port 10514 if none is said; can be repeated
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    firefly: Option<Vec<Collector>>,
    /// Its name in the service
    #[arg(long, value_name = "NAME")]
    name: Option<AgentName>,
    /// Work for this main, `lh://host[:port]` [default: itself, with the role main]
    #[arg(long, value_name = "URL")]
    main: Option<String>,
    /// File with the token for main
    #[arg(long, value_name = "FILE")]
    main_token_file: Option<PathBuf>,
    /// Main's certificate, sha256:hex
    #[arg(long, value_name = "HEX")]
    main_fingerprint: Option<String>,
    /// Directory with a token file for each other agent, by its name
    #[arg(long, value_name = "DIR")]
    peer_tokens: Option<PathBuf>,
    /// `lh://host:port` told to other agents instead of the address HTTP listens on
    #[arg(long, value_name = "URL")]
    advertise_http: Option<String>,
    /// The same name for agents over the same storage
    #[arg(long, value_name = "NAME")]
    storage: Option<String>,
    /// Where it is
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// Transfers for main at once, 1 to 64 [default: 4]
    #[arg(long, value_name = "N")]
    max_transfers: Option<usize>,
    /// Program that recalls files, run without a shell; once for each word of it
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    stage_command: Option<Vec<String>>,
    /// Which files need a recall: online (none) or sidecar [default: online]
    #[arg(long, value_name = "RULE", value_parser = parse_word::<StageRule>)]
    stage_rule: Option<StageRule>,
    /// For `longhaul bench`: off, source (what is sent is made up), destination (what arrives is thrown away) or both [default: off]
    #[arg(long, value_name = "END", value_parser = parse_word::<Synthetic>)]
    synthetic: Option<Synthetic>,
}

impl Args {
    fn layer(self) -> AgentLayer {
        AgentLayer {
            root: self.root,
            state: self.state,
            http: self.http,
            data: self.data,
            roles: self.roles,
            advertise_data: self.advertise_data,
            insecure_http: self.insecure_http.then_some(true),
            verify: self.verify,
            encrypt: self.encrypt,
            engine: self.engine,
            workers: self.workers,
            cpus: self.cpus,
            memory: self.memory,
            log: self.log,
            transfer_log: self.transfer_log,
            max_sessions: self.max_sessions,
            lease_secs: self.lease_secs,
            reattach_secs: self.reattach_secs,
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            tls_ca: self.tls_ca,
            client_certificates: self.client_certificates,
            profiles: self.profiles,
            scitag: self.scitag,
            firefly: self.firefly,
            name: self.name,
            main: self.main,
            main_token_file: self.main_token_file,
            main_fingerprint: self.main_fingerprint,
            peer_tokens: self.peer_tokens,
            advertise_http: self.advertise_http,
            storage: self.storage,
            site: self.site,
            max_transfers: self.max_transfers,
            stage_command: self.stage_command,
            stage_rule: self.stage_rule,
            synthetic: self.synthetic,
        }
    }
}

fn config_exit(error: &ConfigError) -> u8 {
    match error {
        ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => 4,
        ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 10,
        _ => super::EXIT_USAGE,
    }
}

fn load(config: Option<&Path>, flags: AgentLayer) -> Result<AgentConfig, ConfigError> {
    let file = config.map(|path| read_toml::<AgentLayer>(path).map(|layer| (path, layer))).transpose()?;
    AgentConfig::resolve(file, flags)
}

/// Runs the command.
pub fn run(mut args: Args) -> u8 {
    let (show, json, file) = (args.show_config, args.json, args.config.take());
    let config = match load(file.as_deref(), args.layer()) {
        Ok(config) => config,
        Err(error) => return fail(config_exit(&error), &error),
    };
    if show {
        return show_config(&config, json);
    }
    let log = match start_log(&config.log) {
        Ok(log) => log,
        Err(error) => return fail(7, &format_args!("cannot write the log {}: {error}", config.log)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(7, &format_args!("cannot start threads: {error}")),
    };
    let code = match runtime.block_on(serve(&config, &log)) {
        Ok(()) => 0,
        Err(ServeError::Agent(error)) => fail(error.exit_code(), &error),
        Err(ServeError::Signals(error)) => fail(7, &format_args!("cannot wait for signals: {error}")),
    };
    runtime.shutdown_timeout(RUNTIME_END);
    code
}

enum ServeError {
    Agent(AgentError),
    Signals(io::Error),
}

async fn serve(config: &AgentConfig, log: &LogFile) -> Result<(), ServeError> {
    // Before the ready line, so that whoever reads it may send signals at once.
    let watch = |kind| -> Result<Signal, ServeError> { signal(kind).map_err(ServeError::Signals) };
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut hangup = watch(SignalKind::hangup())?;
    let agent = Agent::start(config).await.map_err(ServeError::Agent)?;
    say_ready(&agent);
    tell_systemd(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    tell_systemd(&[NotifyState::Reloading, now]);
                }
                for error in agent.reload() {
                    tracing::error!(%error, "reload");
                }
                if let Err(error) = log.reopen() {
                    tracing::error!(%error, "the log cannot be opened again");
                }
                tell_systemd(&[NotifyState::Ready]);
            }
        }
    }
    tell_systemd(&[NotifyState::Stopping]);
    tracing::info!("stopping: transfers are checkpointed");
    agent.stop().await;
    Ok(())
}

fn say_ready(agent: &Agent) {
    let line = serde_json::to_string(agent.ready()).unwrap_or_default();
    let mut out = io::stdout().lock();
    // Nobody may be listening; the agent serves all the same.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    let ready = agent.ready();
    tracing::info!(http = %ready.http, data = %ready.data, fingerprint = %ready.fingerprint, "ready");
}

fn tell_systemd(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn show_config(config: &AgentConfig, json: bool) -> u8 {
    // Nothing listens: the probes are all that is wanted.
    let probing = EngineConfig { data_listen: None, ..engine_config(config, AgentId([0; 16]), Vec::new()) };
    let facts = match Engine::start(probing) {
        Ok(engine) => engine.handle().facts(),
        Err(error) => return fail(error.class.exit_code(), &error),
    };
    let text = if json { shown_json(&config.shown, &facts) } else { shown_text(&config.shown, &facts) };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => super::EXIT_OTHER,
    }
}

fn shown_text(settings: &[Shown], facts: &[(String, String)]) -> String {
    let mut out = String::new();
    for Shown { name, value, origin } in settings {
        out.push_str(&format!("{name} = {value}  # {origin}\n"));
    }
    for (name, value) in facts {
        out.push_str(&format!("{name}: {value}\n"));
    }
    out
}

fn shown_json(settings: &[Shown], facts: &[(String, String)]) -> String {
    let settings: serde_json::Map<_, _> = settings
        .iter()
        .map(|s| (s.name.to_owned(), serde_json::json!({"value": s.value, "origin": s.origin.to_string()})))
        .collect();
    let facts: serde_json::Map<_, _> = facts.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    format!("{}\n", serde_json::json!({"settings": settings, "engine": facts}))
}

/// A log file that can be opened again after rotation; without a path it is stderr.
#[derive(Debug, Clone)]
struct LogFile(Option<(PathBuf, Arc<Mutex<File>>)>);

impl LogFile {
    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(nix::libc::O_NOFOLLOW).open(path)
    }

    fn reopen(&self) -> io::Result<()> {
        let Some((path, file)) = &self.0 else { return Ok(()) };
        *file.lock().unwrap_or_else(PoisonError::into_inner) = Self::open(path)?;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some((_, file)) => file.lock().unwrap_or_else(PoisonError::into_inner).write(bytes),
            None => io::stderr().lock().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// systemd's form: `<6>` for information, then the line; the journal has the time.
struct JournalForm(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for JournalForm
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

fn start_log(target: &LogTarget) -> io::Result<LogFile> {
    let log = LogFile(match target {
        LogTarget::File(path) => Some((path.clone(), Arc::new(Mutex::new(LogFile::open(path)?)))),
        LogTarget::Journal | LogTarget::Stderr => None,
    });
    let filter = EnvFilter::try_from_env(LOG_VAR).unwrap_or_else(|_| EnvFilter::new("info"));
    let writer = log.clone();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || writer.clone());
    // A second agent in one process (tests) keeps the first one's log.
    let _ = match target {
        LogTarget::Journal => builder.event_format(JournalForm(Format::default().without_time())).try_init(),
        _ => builder.try_init(),
    };
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Alone::try_parse_from([&["agent"], line].concat()).map(|a| a.args).unwrap()
    }

    #[test]
    fn flags_stand_over_the_file_and_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, "root = \"/srv\"\nworkers = 3\nroles = [\"source\"]\n").unwrap();
        let flags = args(&["--workers", "5", "--memory", "32MiB", "--roles", "destination", "--insecure-http"]).layer();
        let config = load(Some(&file), flags).unwrap();
        assert_eq!((config.workers, config.memory, config.insecure_http), (Some(5), 32 << 20, true));
        assert_eq!(config.roles, [Role::Destination]);
        let facts = [("ring".to_owned(), "io_uring".to_owned())];
        let text = shown_text(&config.shown, &facts);
        assert!(text.contains("workers = 5  # flag\n"), "{text}");
        assert!(text.contains(&format!("root = /srv  # file {}\n", file.display())), "{text}");
        assert!(text.contains("verify = disk  # default\n") && text.ends_with("ring: io_uring\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&shown_json(&config.shown, &facts)).unwrap();
        assert_eq!(json["settings"]["workers"]["origin"], "flag");
        assert_eq!(json["engine"]["ring"], "io_uring");
    }

    #[test]
    fn a_root_that_is_missing_is_4_and_a_bad_file_2() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let start = |root: &str| {
            run(args(&["--root", root, "--state", &at("s"), "--http", "127.0.0.1:0", "--data", "127.0.0.1:0"]))
        };
        assert_eq!(start(&at("nothing")), 4);
        std::fs::write(at("c"), "rooot = 1").unwrap();
        assert_eq!(run(args(&["--config", &at("c")])), super::super::EXIT_USAGE);
        assert_eq!(run(args(&["--config", &at("none")])), 4);
        assert_eq!(run(args(&["--state", &at("s")])), super::super::EXIT_USAGE);
    }
}
