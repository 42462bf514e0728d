//! Everything an agent can be told, by default, file and flag.

use super::model::name::AgentName;
use super::store::Leases;
use super::tls::{ClientCertificates, ClientTrust, Fingerprint, OwnTls, TlsFiles};
use super::url::{DATA_PORT, HTTP_PORT, PeerUrl};
use crate::config::{ConfigError, Picker, Shown};
use crate::engine::spec::{EngineChoice, Synthetic, Verify};
use crate::limits::{DEFAULT_ARENA_BYTES, MAX_COLLECTORS, MAX_SESSIONS};
use crate::profile::{Collector, CpuMap, Marking, SciTag};
use crate::units::parse_size;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Worker threads: more than any machine has use for.
const MAX_WORKERS: usize = 256;
/// The least memory in which one stream each way can work with the largest blocks.
const MIN_MEMORY: u64 = 8 << 20;
/// Transfers for main at once, when nothing is said.
const DEFAULT_TRANSFERS: usize = 4;
/// See [`ServiceConfig::max_transfers`].
pub const MAX_TRANSFERS: usize = 64;
/// Of a lease: shorter ones end by a busy moment of either host, longer ones hide that an agent is gone.
const LEASE_SECS: RangeInclusive<u64> = 2..=3600;
/// The longest that work waits for an agent that is gone.
const MAX_REATTACH_SECS: u64 = 7 * 24 * 3600;
/// Addresses to tell, as many as a client will try.
const MAX_ADVERTISED: usize = 8;

/// What an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves files.
    Source,
    /// Takes files.
    Destination,
    /// Keeps requests, agents and the catalog.
    Main,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Destination => "destination",
            Role::Main => "main",
        })
    }
}

/// How a source tells whether a file can be read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum StageRule {
    /// Every file that is there can.
    #[default]
    Online,
    /// A file `.NAME.tape` beside it says `offline BYTES` or `recalling BYTES`; without one it can.
    Sidecar,
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Where the agent's own log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// stderr in systemd's form: a priority before each line, no time.
    Journal,
    /// stderr with times.
    Stderr,
    /// A file, appended to.
    File(PathBuf),
}

impl LogTarget {
    fn parse(text: &str) -> Self {
        match text {
            "journal" => LogTarget::Journal,
            "stderr" => LogTarget::Stderr,
            path => LogTarget::File(path.into()),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogTarget::Journal => f.write_str("journal"),
            LogTarget::Stderr => f.write_str("stderr"),
            LogTarget::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Parses one word as serde knows it, for flags: `auto`, `disk`, `source`. The error lists the words.
pub fn parse_word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    T::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(text)).map_err(|e| e.to_string())
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    parse_size(&String::deserialize(d)?).map(Some).map_err(serde::de::Error::custom)
}

/// What one layer says: a file's content, or the flags.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentLayer {
    /// The directory that is served and never left; not needed by main alone.
    pub root: Option<PathBuf>,
    /// Keys, tokens, identity.
    pub state: Option<PathBuf>,
    /// Where HTTP listens; port 0 picks one.
    pub http: Option<SocketAddr>,
    /// Where data streams arrive; port 0 picks one.
    pub data: Option<SocketAddr>,
    /// `source`, `destination`, `main`.
    pub roles: Option<Vec<Role>>,
    /// `HOST:PORT` told to clients instead of the data address.
    pub advertise_data: Option<Vec<String>>,
    /// Plain HTTP off loopback.
    pub insecure_http: Option<bool>,
    /// For requests that do not say.
    pub verify: Option<Verify>,
    /// `off` lets a client that says off go without.
    pub encrypt: Option<Switch>,
    /// `auto`, `uring`, `epoll`.
    pub engine: Option<EngineChoice>,
    /// Worker threads.
    pub workers: Option<usize>,
    /// CPUs that the engine's threads keep to: `0-3,8` or `node:1`.
    pub cpus: Option<CpuMap>,
    /// Block buffers, as a size.
    #[serde(deserialize_with = "size")]
    pub memory: Option<u64>,
    /// `journal`, `stderr` or a path.
    pub log: Option<String>,
    /// A file for one line of JSON a transfer.
    pub transfer_log: Option<PathBuf>,
    /// Transfers at once.
    pub max_sessions: Option<usize>,
    /// Seconds that main knows an agent alive without hearing of it.
    pub lease_secs: Option<u64>,
    /// Seconds after that in which an agent gets its work back.
    pub reattach_secs: Option<u64>,
    /// PEM.
    pub tls_cert: Option<PathBuf>,
    /// PEM, 0600.
    pub tls_key: Option<PathBuf>,
    /// The private authority that other agents' certificates are of, PEM.
    pub tls_ca: Option<PathBuf>,
    /// `off`, `optional`, `required`.
    pub client_certificates: Option<ClientCertificates>,
    /// A directory of tuning profiles.
    pub profiles: Option<PathBuf>,
    /// What flows are that nobody tags.
    pub scitag: Option<SciTag>,
    /// Who is sent fireflies of tagged flows.
    pub firefly: Option<Vec<Collector>>,
    /// Its name in the service; needed with `main` and with the role main.
    pub name: Option<AgentName>,
    /// `lh://host[:port]` of main; by default itself when it has that role.
    pub main: Option<String>,
    /// The token for main.
    pub main_token_file: Option<PathBuf>,
    /// `sha256:hex` of main's certificate.
    pub main_fingerprint: Option<String>,
    /// A directory with a token file for each other agent, by its name; else main's token counts for all.
    pub peer_tokens: Option<PathBuf>,
    /// `lh://host:port` under which others reach the HTTP port.
    pub advertise_http: Option<String>,
    /// The same for agents over the same storage.
    pub storage: Option<String>,
    /// Where it is, for people and the router.
    pub site: Option<String>,
    /// Transfers for main at once.
    pub max_transfers: Option<usize>,
    /// Program and arguments that recall files; run without a shell.
    pub stage_command: Option<Vec<String>>,
    /// Which files need a recall.
    pub stage_rule: Option<StageRule>,
    /// `off`, `source`, `destination`, `both`: which ends here touch no storage, for `longhaul bench`.
    pub synthetic: Option<Synthetic>,
}

/// What an agent is told about the service: who it is there, and how it recalls.
#[derive(Debug, Clone, Default)]
pub struct ServiceConfig {
    /// See [`AgentLayer::name`].
    pub name: Option<AgentName>,
    /// See [`AgentLayer::main`].
    pub main: Option<PeerUrl>,
    /// See [`AgentLayer::main_token_file`].
    pub main_token_file: Option<PathBuf>,
    /// See [`AgentLayer::main_fingerprint`].
    pub main_fingerprint: Option<Fingerprint>,
    /// See [`AgentLayer::peer_tokens`].
    pub peer_tokens: Option<PathBuf>,
    /// See [`AgentLayer::advertise_http`].
    pub advertise_http: Option<PeerUrl>,
    /// See [`AgentLayer::storage`].
    pub storage: Option<String>,
    /// See [`AgentLayer::site`].
    pub site: Option<String>,
    /// 1 to [`MAX_TRANSFERS`].
    pub max_transfers: usize,
    /// Empty: nothing is recalled.
    pub stage_command: Vec<String>,
    /// See [`StageRule`].
    pub stage_rule: StageRule,
}

/// An agent's settings, checked, and where each came from.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// See [`AgentLayer::root`]; `None`: nothing is served.
    pub root: Option<PathBuf>,
    /// See [`AgentLayer::state`].
    pub state: PathBuf,
    /// See [`AgentLayer::http`].
    pub http: SocketAddr,
    /// See [`AgentLayer::data`].
    pub data: SocketAddr,
    /// See [`AgentLayer::roles`].
    pub roles: Vec<Role>,
    /// Resolved when the agent starts.
    pub advertise_data: Vec<String>,
    /// See [`AgentLayer::insecure_http`].
    pub insecure_http: bool,
    /// See [`AgentLayer::verify`].
    pub verify: Verify,
    /// The policy.
    pub encrypt: bool,
    /// See [`AgentLayer::engine`].
    pub engine: EngineChoice,
    /// `None`: as many as the engine likes.
    pub workers: Option<usize>,
    /// `None`: wherever the process may run.
    pub cpus: Option<CpuMap>,
    /// Bytes.
    pub memory: u64,
    /// See [`LogTarget`].
    pub log: LogTarget,
    /// `None`: with the log.
    pub transfer_log: Option<PathBuf>,
    /// 1 to 256.
    pub max_sessions: usize,
    /// Main's.
    pub leases: Leases,
    /// `None`: self-signed, in the state directory.
    pub tls: Option<TlsFiles>,
    /// See [`AgentLayer::tls_ca`].
    pub tls_ca: Option<PathBuf>,
    /// See [`AgentLayer::client_certificates`].
    pub client_certificates: ClientCertificates,
    /// See [`AgentLayer::profiles`].
    pub profiles: Option<PathBuf>,
    /// See [`AgentLayer::scitag`] and [`AgentLayer::firefly`].
    pub marking: Marking,
    /// See [`AgentLayer::synthetic`].
    pub synthetic: Synthetic,
    /// Its place in the service.
    pub service: ServiceConfig,
    /// Every setting with its origin.
    pub shown: Vec<Shown>,
}

/// The state directory that systemd gives, else the system's or the user's.
fn default_state() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(given) = var("STATE_DIRECTORY") {
        return given;
    }
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/longhaul".into();
    }
    let home = || var("HOME").unwrap_or_else(|| "/".into()).join(".local/state");
    var("XDG_STATE_HOME").unwrap_or_else(home).join("longhaul")
}

fn default_log() -> LogTarget {
    // systemd says so when stderr is connected to its journal.
    if std::env::var_os("JOURNAL_STREAM").is_some() { LogTarget::Journal } else { LogTarget::Stderr }
}

fn listed<T: fmt::Display>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

fn word(value: &impl fmt::Debug) -> String {
    format!("{value:?}").to_ascii_lowercase()
}

fn path(value: &Option<PathBuf>) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), |p| p.display().to_string())
}

fn shown_option(value: &Option<impl fmt::Display>) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

impl AgentConfig {
    /// Lays `flags` over `file` (with its path) over the defaults.
    pub fn resolve(file: Option<(&Path, AgentLayer)>, flags: AgentLayer) -> Result<Self, ConfigError> {
        let mut picker = Picker::new(file.as_ref().map(|(path, _)| *path));
        let l = file.map(|(_, layer)| layer).unwrap_or_default();
        let (f, p) = (flags, &mut picker);
        let any = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let log_text = |text: Option<String>| text.map(|t| LogTarget::parse(&t));
        let root = p.pick("root", f.root.map(Some), l.root.map(Some), None, path);
        let state = p.pick("state", f.state, l.state, default_state(), |v| v.display().to_string());
        let http = p.pick("http", f.http, l.http, any(HTTP_PORT), SocketAddr::to_string);
        let data = p.pick("data", f.data, l.data, any(DATA_PORT), SocketAddr::to_string);
        let roles = p.pick("roles", f.roles, l.roles, vec![Role::Source, Role::Destination], |v| listed(v));
        let advertise_data = p.pick("advertise_data", f.advertise_data, l.advertise_data, Vec::new(), |v| listed(v));
        let insecure_http = p.pick("insecure_http", f.insecure_http, l.insecure_http, false, bool::to_string);
        let verify = p.pick("verify", f.verify, l.verify, Verify::Disk, word);
        let encrypt = p.pick("encrypt", f.encrypt, l.encrypt, Switch::On, word);
        let engine = p.pick("engine", f.engine, l.engine, EngineChoice::Auto, word);
        let auto = |v: &Option<usize>| v.map_or_else(|| "auto".to_owned(), |n| n.to_string());
        let workers = p.pick("workers", f.workers.map(Some), l.workers.map(Some), None, auto);
        let cpus = p.pick("cpus", f.cpus.map(Some), l.cpus.map(Some), None, shown_option);
        let memory = p.pick("memory", f.memory, l.memory, DEFAULT_ARENA_BYTES as u64, u64::to_string);
        let log = p.pick("log", log_text(f.log), log_text(l.log), default_log(), LogTarget::to_string);
        let transfer_log = p.pick("transfer_log", f.transfer_log.map(Some), l.transfer_log.map(Some), None, path);
        let max_sessions = p.pick("max_sessions", f.max_sessions, l.max_sessions, MAX_SESSIONS, usize::to_string);
        let Leases { lease_secs, reattach_secs } = Leases::default();
        let lease_secs = p.pick("lease_secs", f.lease_secs, l.lease_secs, lease_secs, u64::to_string);
        let reattach_secs = p.pick("reattach_secs", f.reattach_secs, l.reattach_secs, reattach_secs, u64::to_string);
        let tls_cert = p.pick("tls_cert", f.tls_cert.map(Some), l.tls_cert.map(Some), None, path);
        let tls_key = p.pick("tls_key", f.tls_key.map(Some), l.tls_key.map(Some), None, path);
        let tls_ca = p.pick("tls_ca", f.tls_ca.map(Some), l.tls_ca.map(Some), None, path);
        let client_certificates = p.pick(
            "client_certificates",
            f.client_certificates,
            l.client_certificates,
            if tls_ca.is_some() { ClientCertificates::Optional } else { ClientCertificates::Off },
            word,
        );
        let profiles = p.pick("profiles", f.profiles.map(Some), l.profiles.map(Some), None, path);
        let id = |tag: &Option<SciTag>| tag.map_or_else(|| "-".to_owned(), |tag| u16::from(tag).to_string());
        let scitag = p.pick("scitag", f.scitag.map(Some), l.scitag.map(Some), None, id);
        let collectors = p.pick("firefly", f.firefly, l.firefly, Vec::new(), |v| listed(v));

        let name = p.pick("name", f.name.map(Some), l.name.map(Some), None, shown_option);
        let main = p.pick("main", f.main.map(Some), l.main.map(Some), None, shown_option);
        let main_token_file =
            p.pick("main_token_file", f.main_token_file.map(Some), l.main_token_file.map(Some), None, path);
        let main_fingerprint =
            p.pick("main_fingerprint", f.main_fingerprint.map(Some), l.main_fingerprint.map(Some), None, shown_option);
        let peer_tokens = p.pick("peer_tokens", f.peer_tokens.map(Some), l.peer_tokens.map(Some), None, path);
        let advertise_http =
            p.pick("advertise_http", f.advertise_http.map(Some), l.advertise_http.map(Some), None, shown_option);
        let storage = p.pick("storage", f.storage.map(Some), l.storage.map(Some), None, shown_option);
        let site = p.pick("site", f.site.map(Some), l.site.map(Some), None, shown_option);
        let max_transfers =
            p.pick("max_transfers", f.max_transfers, l.max_transfers, DEFAULT_TRANSFERS, usize::to_string);
        let stage_command = p.pick("stage_command", f.stage_command, l.stage_command, Vec::new(), |v| format!("{v:?}"));
        let stage_rule = p.pick("stage_rule", f.stage_rule, l.stage_rule, StageRule::Online, word);
        let synthetic = p.pick("synthetic", f.synthetic, l.synthetic, Synthetic::Off, word);

        let works = roles.iter().any(|role| *role != Role::Main);
        if root.is_none() && works {
            return Err(picker.refuse("root", "name the directory to serve: --root DIR"));
        }
        if roles.is_empty() {
            return Err(picker.refuse("roles", "name at least one: source, destination, main"));
        }
        if !LEASE_SECS.contains(&lease_secs) {
            return Err(picker.refuse("lease_secs", "2 to 3600"));
        }
        if reattach_secs > MAX_REATTACH_SECS {
            return Err(picker.refuse("reattach_secs", "at most 604800: a week"));
        }
        if workers.is_some_and(|n| n == 0 || n > MAX_WORKERS) {
            return Err(picker.refuse("workers", format!("1 to {MAX_WORKERS}")));
        }
        if memory < MIN_MEMORY || usize::try_from(memory).is_err() {
            return Err(picker.refuse("memory", "at least 8MiB"));
        }
        if max_sessions == 0 || max_sessions > MAX_SESSIONS {
            return Err(picker.refuse("max_sessions", format!("1 to {MAX_SESSIONS}")));
        }
        if collectors.len() > MAX_COLLECTORS {
            return Err(picker.refuse("firefly", format!("at most {MAX_COLLECTORS} collectors")));
        }
        if advertise_data.len() > MAX_ADVERTISED {
            return Err(picker.refuse("advertise_data", format!("at most {MAX_ADVERTISED} addresses")));
        }
        let tls = match (tls_cert, tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            _ => return Err(picker.refuse("tls_cert", "tls_cert and tls_key go together")),
        };
        if client_certificates != ClientCertificates::Off && tls_ca.is_none() {
            return Err(picker.refuse("client_certificates", "name the authority that issues them: tls_ca"));
        }
        if name.is_none() && (main.is_some() || roles.contains(&Role::Main) && works) {
            return Err(picker.refuse("name", "an agent of the service needs a name: --name NAME"));
        }
        if synthetic != Synthetic::Off && (main.is_some() || roles.contains(&Role::Main)) {
            return Err(picker.refuse("synthetic", "is for benches: an agent of the service moves files"));
        }
        if max_transfers == 0 || max_transfers > MAX_TRANSFERS {
            return Err(picker.refuse("max_transfers", format!("1 to {MAX_TRANSFERS}")));
        }
        let url = |text: Option<String>| text.map(|t| PeerUrl::parse(t.as_bytes())).transpose();
        let main = url(main).map_err(|e| picker.refuse("main", e.to_string()))?;
        let advertise_http = url(advertise_http).map_err(|e| picker.refuse("advertise_http", e.to_string()))?;
        let main_fingerprint = main_fingerprint
            .map(|text| text.parse::<Fingerprint>())
            .transpose()
            .map_err(|e| picker.refuse("main_fingerprint", e.to_string()))?;
        if main.is_some() && main_token_file.is_none() {
            return Err(picker.refuse("main_token_file", "name the file with the token for main"));
        }
        let here = |host: &str| host == "localhost" || host.parse().is_ok_and(super::http::is_loopback);
        let far = main.as_ref().is_some_and(|main| !here(&main.host));
        if far && http.ip().is_unspecified() && advertise_http.is_none() {
            return Err(picker.refuse("advertise_http", "say under which name others reach this agent: lh://HOST:PORT"));
        }
        let service = ServiceConfig {
            name,
            main,
            main_token_file,
            main_fingerprint,
            peer_tokens,
            advertise_http,
            storage,
            site,
            max_transfers,
            stage_command,
            stage_rule,
        };
        let encrypt = encrypt == Switch::On;
        let shown = picker.finish();
        Ok(Self {
            root,
            state,
            http,
            data,
            roles,
            advertise_data,
            insecure_http,
            verify,
            encrypt,
            engine,
            workers,
            cpus,
            memory,
            log,
            transfer_log,
            max_sessions,
            leases: Leases { lease_secs, reattach_secs },
            tls,
            tls_ca,
            client_certificates,
            profiles,
            marking: Marking { scitag, collectors },
            synthetic,
            service,
            shown,
        })
    }
}

impl AgentConfig {
    /// Which clients the HTTP port takes.
    pub fn clients(&self) -> Option<ClientTrust> {
        let certificates = self.client_certificates;
        self.tls_ca.clone().map(|authority| ClientTrust { authority, certificates })
    }

    /// What this agent shows to others, and whom it trusts beside those it has a fingerprint of.
    pub fn own_tls(&self) -> Option<OwnTls> {
        self.tls_ca.clone().map(|authority| OwnTls { files: self.tls.clone(), authority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_toml;

    fn file(text: &str) -> Result<AgentConfig, ConfigError> {
        let path = Path::new("/etc/longhaul.toml");
        AgentConfig::resolve(Some((path, parse_toml(text, path)?)), AgentLayer::default())
    }

    #[test]
    fn every_setting_can_stand_in_a_file() {
        let text = r#"
            root = "/srv"
            state = "/var/lib/x"
            http = "[::1]:0"
            data = "0.0.0.0:9"
            roles = ["source"]
            advertise_data = ["dtn1:8471"]
            insecure_http = true
            verify = "wire"
            encrypt = "off"
            engine = "epoll"
            workers = 3
            cpus = "0-3,8"
            memory = "64MiB"
            log = "/var/log/l"
            transfer_log = "/var/log/t"
            max_sessions = 7
            lease_secs = 20
            reattach_secs = 60
            tls_cert = "/c"
            tls_key = "/k"
            tls_ca = "/a"
            client_certificates = "required"
            profiles = "/p"
            scitag = 65
            firefly = ["collector.example.org"]
            name = "dtn1"
            main = "lh://main.example:8470"
            main_token_file = "/t"
            main_fingerprint = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
            peer_tokens = "/pt"
            advertise_http = "lh://dtn1.example"
            storage = "ceph"
            site = "here"
            max_transfers = 8
            stage_command = ["/bin/recall"]
            stage_rule = "sidecar"
            synthetic = "off"
        "#;
        let config = file(text).unwrap();
        assert_eq!((config.memory, config.encrypt, config.workers), (64 << 20, false, Some(3)));
        assert_eq!(config.cpus, Some(CpuMap::List(vec![0, 1, 2, 3, 8])));
        assert_eq!(config.log, LogTarget::File("/var/log/l".into()));
        assert_eq!((config.verify, config.engine, config.max_sessions), (Verify::Wire, EngineChoice::Epoll, 7));
        assert!(config.shown.iter().all(|s| s.origin.to_string() == "file /etc/longhaul.toml"), "{:?}", config.shown);
        assert_eq!(config.shown.len(), text.lines().filter(|l| l.contains('=')).count());
    }

    #[test]
    fn defaults_are_strict_and_flags_win() {
        let flags = AgentLayer { root: Some("/srv".into()), workers: Some(2), ..AgentLayer::default() };
        let config = AgentConfig::resolve(None, flags).unwrap();
        let alone = AgentLayer { roles: Some(vec![Role::Main]), ..AgentLayer::default() };
        assert_eq!(AgentConfig::resolve(None, alone).unwrap().root, None, "main alone serves nothing");
        assert!(config.encrypt && !config.insecure_http && config.verify == Verify::Disk);
        assert_eq!((config.http.to_string(), config.data.to_string()), ("[::]:8470".into(), "[::]:8471".into()));
        let origin = |name| config.shown.iter().find(|s| s.name == name).unwrap().origin.to_string();
        assert_eq!((origin("workers"), origin("verify")), ("flag".into(), "default".into()));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("root = \"/\"\nworker = 1\n", "line 2: unknown field `worker`"),
            ("root = \"/\"\nroles = [\"king\"]\n", "line 2: `roles`: unknown variant `king`"),
            ("root = \"/\"\nhttp = \"nowhere\"\n", "line 2: `http`: "),
            ("root = \"/\"\nmemory = \"lots\"\n", "line 2: `memory`: `lots` is not a size"),
            ("", "`root` (default): name the directory"),
            ("root = \"/\"\nworkers = 0\n", "`workers` (file /etc/longhaul.toml): 1 to 256"),
            ("root = \"/\"\ncpus = \"fast\"\n", "line 2: `cpus`: `fast` is no CPU: a list as 0-3,8"),
            ("root = \"/\"\nmax_sessions = 257\n", "`max_sessions` (file"),
            ("root = \"/\"\nmemory = \"1MiB\"\n", "`memory` (file"),
            ("root = \"/\"\ntls_cert = \"/c\"\n", "go together"),
            ("root = \"/\"\nroles = []\n", "`roles` (file"),
            ("root = \"/\"\nclient_certificates = \"required\"\n", "name the authority"),
            ("root = \"/\"\nroles = [\"main\", \"source\"]\n", "needs a name"),
            ("root = \"/\"\nname = \"a\"\nmain = \"lh://b\"\n", "token for main"),
            ("root = \"/\"\nname = \"a\"\nmain = \"lh://b\"\nmain_token_file = \"/t\"\n", "`advertise_http` (default)"),
            ("root = \"/\"\nmax_transfers = 0\n", "`max_transfers` (file"),
            ("roles = [\"main\", \"source\"]\n", "`root` (default): name the directory"),
            ("root = \"/\"\nsynthetic = \"sink\"\n", "line 2: `synthetic`: unknown variant `sink`"),
            ("roles = [\"main\"]\nname = \"a\"\nsynthetic = \"both\"\n", "an agent of the service moves files"),
            ("root = \"/\"\nlease_secs = 1\n", "`lease_secs` (file /etc/longhaul.toml): 2 to 3600"),
            ("root = \"/\"\nscitag = 64\n", "line 2: `scitag`: a SciTag is 65 to 65535, not 64"),
            ("root = \"/\"\nfirefly = [\"a:b\"]\n", "line 2: `firefly`: `a:b` is no collector"),
            ("root = \"/\"\nreattach_secs = 604801\n", "`reattach_secs` (file"),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
        assert!(parse_word::<Verify>("tape").unwrap_err().contains("`wire`"));
        assert_eq!(parse_word::<Role>("source"), Ok(Role::Source));
    }
}
