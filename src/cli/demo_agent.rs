//! An agent as a child process of the demo: started from the own binary, ended whatever happens.

use super::fail::Fail;
use crate::control::client::{ClientOptions, PeerClient};
use crate::control::url::PeerUrl;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// From start to the ready line.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// From SIGTERM to the end; the agent promises ten seconds.
const END_PATIENCE: Duration = Duration::from_secs(12);
/// No ready line is longer.
const READY_LINE_MAX: u64 = 64 << 10;
/// How much of a log is shown when an agent failed.
const LOG_SHOWN: u64 = 2000;

/// What is the same for every start of one agent.
#[derive(Debug, Clone)]
pub struct Home {
    /// For messages.
    pub name: &'static str,
    /// `--roles`.
    pub roles: &'static str,
    /// The binary.
    pub program: PathBuf,
    /// `--root`; a main needs none.
    pub root: Option<PathBuf>,
    /// `--state`, and the log beside it.
    pub state: PathBuf,
    /// The policy that lets a client go without encryption.
    pub encrypt: bool,
    /// More flags.
    pub more: Vec<OsString>,
}

#[derive(Debug, serde::Deserialize)]
struct Ready {
    http: SocketAddr,
    token_file: PathBuf,
}

/// A running agent. Dropping it kills the process.
#[derive(Debug)]
pub struct DemoAgent {
    child: Child,
    ready: Ready,
}

impl DemoAgent {
    /// Starts it on loopback ports of the kernel's choice and waits for its ready line. Blocks.
    pub fn start(home: &Home) -> Result<Self, Fail> {
        let log_path = home.state.with_extension("log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|e| Fail::io("write", &log_path, &e))?;
        let pairs: [(&str, &OsStr); 6] = [
            ("--state", home.state.as_os_str()),
            ("--http", OsStr::new("127.0.0.1:0")),
            ("--data", OsStr::new("127.0.0.1:0")),
            ("--roles", OsStr::new(home.roles)),
            ("--encrypt", OsStr::new(if home.encrypt { "on" } else { "off" })),
            ("--log", OsStr::new("stderr")),
        ];
        let mut command = Command::new(&home.program);
        command.arg("agent").args(pairs.into_iter().flat_map(|(flag, value)| [OsStr::new(flag), value]));
        if let Some(root) = &home.root {
            command.arg("--root").arg(root);
        }
        command.args(&home.more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // Its own service manager, if there is one, is not ours to notify.
        command.env_remove("NOTIFY_SOCKET");
        let mut child = command.spawn().map_err(|e| Fail::io("start", &home.program, &e))?;
        match ready_line(&mut child) {
            Ok(ready) => Ok(Self { child, ready }),
            Err(what) => {
                end(&mut child);
                let log = tail(&log_path);
                Err(Fail::new(1, format!("the {} agent {what}; its log ends with:\n{log}", home.name)))
            }
        }
    }

    /// A client for `path` below its root.
    pub fn client(&self, path: &str) -> Result<PeerClient, Fail> {
        let options = ClientOptions { token_file: Some(self.ready.token_file.clone()), ..ClientOptions::default() };
        self.client_with(path, options)
    }

    /// The same with another token.
    pub fn client_with(&self, path: &str, options: ClientOptions) -> Result<PeerClient, Fail> {
        let (host, port) = (self.ready.http.ip().to_string(), self.ready.http.port());
        let url = PeerUrl { host, port, path: path.as_bytes().to_vec() };
        Ok(PeerClient::new(url, options)?)
    }

    /// Where its HTTP port listens.
    pub fn address(&self) -> SocketAddr {
        self.ready.http
    }

    /// The same as other agents are told it.
    pub fn url(&self) -> String {
        format!("lh://{}", self.ready.http)
    }

    /// SIGKILL, as a crash is, and waits until the process is gone.
    pub fn crash(mut self) {
        end(&mut self.child);
    }

    /// SIGTERM; whether it ended by itself and well. Blocks.
    pub fn stop(mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        if nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).is_err() {
            return false;
        }
        let since = Instant::now();
        while since.elapsed() < END_PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Err(_) => return false,
            }
        }
        false
    }
}

impl Drop for DemoAgent {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Both fail only if it is gone already.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn ready_line(child: &mut Child) -> Result<Ready, String> {
    let stdout = child.stdout.take().ok_or("has no output")?;
    let (send, receive) = mpsc::channel();
    // Reads on, so that the agent never writes into a closed pipe; ends with the agent.
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        let _ = send.send((&mut reader).take(READY_LINE_MAX).read_line(&mut line).map(|_| line));
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    });
    match receive.recv_timeout(READY_PATIENCE) {
        Ok(Ok(line)) if line.is_empty() => Err("ended at once".to_owned()),
        Ok(Ok(line)) => {
            serde_json::from_str(&line).map_err(|_| format!("said `{}`", super::fail::printable(line.trim())))
        }
        Ok(Err(error)) => Err(format!("cannot be read: {error}")),
        Err(_) => Err(format!("was not ready within {} s", READY_PATIENCE.as_secs())),
    }
}

fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_SHOWN)))?;
        let mut bytes = Vec::new();
        file.take(LOG_SHOWN).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    text.lines().map(|line| format!("  {}\n", super::fail::printable(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn home(dir: &Path, script: &str) -> Home {
        let program = dir.join("agent.sh");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (root, state) = (Some(dir.into()), dir.join("state"));
        Home { name: "source", roles: "source", program, root, state, encrypt: true, more: Vec::new() }
    }

    /// A child that was just written may still be open for writing in a sibling test's fork: then exec says ETXTBSY.
    fn start(home: &Home) -> Result<DemoAgent, Fail> {
        for _ in 0..50 {
            match DemoAgent::start(home) {
                Err(fail) if fail.what.contains("busy") => std::thread::sleep(Duration::from_millis(20)),
                other => return other,
            }
        }
        DemoAgent::start(home)
    }

    #[test]
    fn an_agent_that_does_not_start_shows_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let fail = start(&home(dir.path(), "echo 'no such \x1b port' >&2; exit 7")).unwrap_err();
        assert!(fail.what.contains("ended at once") && fail.what.contains("no such \\u{1b} port"), "{}", fail.what);
        let fail = start(&home(dir.path(), "echo hello; sleep 60")).unwrap_err();
        assert!(fail.what.contains("said `hello`"), "{}", fail.what);
    }

    #[test]
    fn no_agent_outlives_the_demo() {
        let dir = tempfile::tempdir().unwrap();
        let line = r#"echo '{"http":"127.0.0.1:1","token_file":"t","more":1}'"#;
        let alive = |agent: &DemoAgent| {
            let pid = nix::unistd::Pid::from_raw(agent.child.id() as i32);
            move || nix::sys::signal::kill(pid, None).is_ok()
        };
        let agent = start(&home(dir.path(), &format!("{line}; exec sleep 60"))).unwrap();
        let is_alive = alive(&agent);
        assert!(is_alive());
        drop(agent);
        assert!(!is_alive(), "dropped, so killed and waited for");
        let agent = start(&home(dir.path(), &format!("{line}; exec sleep 60"))).unwrap();
        let is_alive = alive(&agent);
        assert!(!agent.stop(), "killed by SIGTERM is no orderly end");
        assert!(!is_alive());
        let agent =
            start(&home(dir.path(), &format!("trap 'exit 0' TERM; {line}; while :; do sleep 0.02; done"))).unwrap();
        assert!(agent.stop());
    }
}
