//! Agents of one service on loopback, each in a directory of its own, that can be killed and started again on their ports.

use crate::http::Client;
use crate::support::{Agent, SOON, Sandbox, noise, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Digests and sizes of one place, by logical name.
pub type Files = Vec<(String, u64)>;

/// One agent, running or not.
pub struct Member {
    pub name: String,
    pub root: PathBuf,
    flags: Vec<String>,
    ports: Option<(u16, u16)>,
    /// A fault point, for the next start only.
    pub fault: Option<String>,
    pub agent: Option<Agent>,
}

impl Member {
    fn new(sandbox: &Sandbox, name: &str, root: &str, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self { name: name.to_owned(), root: sandbox.dir(root), flags, ports: None, fault: None, agent: None }
    }

    /// Starts it, on the ports that it had.
    pub fn start(&mut self, sandbox: &Sandbox) {
        let ports = self.ports.map(|(http, data)| (format!("127.0.0.1:{http}"), format!("127.0.0.1:{data}")));
        let mut flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        if let Some((http, data)) = &ports {
            flags.extend(["--http", http, "--data", data]);
        }
        let fault = self.fault.take().map(|fault| format!("LONGHAUL_FAULT={fault}"));
        let wrap: Vec<&str> = fault.iter().flat_map(|fault| ["env", fault.as_str()]).collect();
        let agent = sandbox.agent_at(&self.name, &self.root, &wrap, &flags);
        self.ports = Some((agent.http, agent.data));
        self.agent = Some(agent);
    }

    pub fn running(&self) -> &Agent {
        self.agent.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    pub fn signal(&self, signal: Signal) {
        self.running().running.signal(signal);
    }

    /// SIGKILL, and until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.dies();
    }

    /// Waits until it has died by itself.
    pub fn dies(&mut self) {
        self.agent.take().unwrap().running.wait(SOON);
    }

    /// Resident bytes.
    pub fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.running().running.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Payload that its sessions have sent as a source, by its own account.
    pub fn sent(&self) -> u64 {
        let all = self.running().transfers();
        all.iter().filter(|t| t["role"] == "source").map(|t| t["sent_bytes"].as_u64().unwrap()).sum()
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) {
        self.agent.take().unwrap().stop().expect(0);
    }

    /// With the token that may do everything there.
    pub fn admin(&self) -> Client {
        let agent = self.running();
        Client { port: agent.http, token: agent.token() }
    }

    pub fn log(&self) -> String {
        self.running().running.stderr()
    }

    /// Below its root.
    pub fn at(&self, lfn: &str) -> PathBuf {
        self.root.join(lfn.trim_start_matches('/'))
    }

    pub fn read(&self, lfn: &str) -> Vec<u8> {
        std::fs::read(self.at(lfn)).unwrap_or_else(|error| panic!("{lfn} at {}: {error}", self.name))
    }

    /// A file of bytes that do not repeat.
    pub fn write(&self, lfn: &str, bytes: usize, seed: u64) {
        let path = self.at(lfn);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, noise(bytes, seed)).unwrap();
    }
}

/// A main, and what every test does with one.
pub struct Fleet {
    pub sandbox: Sandbox,
    pub main: Member,
}

impl Fleet {
    /// In memory, where a test needs no medium.
    pub fn new(flags: &[&str]) -> Self {
        Self::over(Sandbox::in_memory(), flags)
    }

    pub fn over(sandbox: Sandbox, flags: &[&str]) -> Self {
        let mut main = Member::new(&sandbox, "main", "main", &[&["--roles", "main"], flags].concat());
        main.start(&sandbox);
        Self { sandbox, main }
    }

    /// An agent of this main, started, that serves a directory of its own name.
    pub fn member(&self, name: &str, roles: &str, flags: &[&str]) -> Member {
        self.member_over(name, name, roles, flags)
    }

    /// A source `src` and a destination `dst` with these flags, who know each other and have joined.
    pub fn pair(&self, source: &[&str], target: &[&str]) -> (Member, Member) {
        let (source, target) = (self.member("src", "source", source), self.member("dst", "destination", target));
        self.introduce(&[&source, &target]);
        self.joined(&source);
        self.joined(&target);
        (source, target)
    }

    /// One that serves another's directory.
    pub fn member_over(&self, name: &str, root: &str, roles: &str, flags: &[&str]) -> Member {
        let token =
            self.token_for(name, &self.main.name, &["--role", "agent"], &self.sandbox.at(&format!("{name}.main")));
        let main = format!("lh://127.0.0.1:{}", self.main.running().http);
        let given = ["--roles", roles, "--name", name, "--main", &main, "--main-token-file", &token];
        let mut member = Member::new(&self.sandbox, name, root, &[&given, flags].concat());
        member.start(&self.sandbox);
        member
    }

    /// A token that `at` gives `holder`, in `file`.
    fn token_for(&self, holder: &str, at: &str, rights: &[&str], file: &Path) -> String {
        let (state, out) = (self.sandbox.arg(&format!("{at}.state")), file.to_str().unwrap().to_owned());
        let args = [&["token", "add", holder, "--state", &state, "--out", &out], rights].concat();
        self.sandbox.run(&args).expect(0);
        out
    }

    /// Each of them may read and write at every other, and main may read.
    pub fn introduce(&self, members: &[&Member]) {
        let peers = |name: &str| self.sandbox.dir(&format!("{name}.state/peers"));
        for at in members {
            let file = peers("main").join(&at.name);
            self.token_for("main", &at.name, &["--read"], &file);
            for holder in members.iter().filter(|holder| holder.name != at.name) {
                let file = peers(&holder.name).join(&at.name);
                self.token_for(&holder.name, &at.name, &["--read", "--write"], &file);
            }
        }
    }

    pub fn admin(&self) -> Client {
        self.main.admin()
    }

    /// Says at main that `member` has these, in one block of `dataset`.
    pub fn register(&self, member: &Member, dataset: &str, files: &Files) {
        let block = format!("{dataset}#1");
        for part in files.chunks(1000) {
            let records: Vec<Value> = part
                .iter()
                .map(|(lfn, bytes)| {
                    json!({"lfn": lfn, "bytes": bytes, "agent": member.name, "dataset": dataset, "block": block})
                })
                .collect();
            let told = self.admin().post("/v1/catalog/records", &json!(records));
            assert!(told.status < 300, "{told:?}");
        }
    }

    /// Waits until main has heard of an agent's lease.
    pub fn joined(&self, member: &Member) {
        wait_for(&format!("{} has joined", member.name), SOON, || {
            let seen = self.admin().get(&format!("/v1/agents/{}", member.name));
            seen.status == 200 && seen.json()["alive"] == true
        });
    }

    /// Places a request; its id.
    #[track_caller]
    pub fn request(&self, spec: &Value) -> String {
        self.admin().post("/v1/requests", spec).expect(201).json()["id"].as_str().unwrap().to_owned()
    }

    pub fn view(&self, id: &str) -> Value {
        self.admin().get(&format!("/v1/requests/{id}")).expect(200).json()
    }

    /// Waits until it is in `state`.
    #[track_caller]
    pub fn becomes(&self, id: &str, state: &str) -> Value {
        self.becomes_within(id, state, SOON)
    }

    #[track_caller]
    pub fn becomes_within(&self, id: &str, state: &str, within: Duration) -> Value {
        let mut view = Value::Null;
        let began = std::time::Instant::now();
        loop {
            view = match self.admin().raw("GET", &format!("/v1/requests/{id}"), &[], b"") {
                Ok(reply) if reply.status == 200 => reply.json(),
                _ => view,
            };
            if view["state"] == state {
                return view;
            }
            assert!(began.elapsed() < within, "not {state} within {within:?}: {view:#}\n{:#?}", self.items(id));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Says yes to what was resolved.
    #[track_caller]
    pub fn approve(&self, id: &str) {
        let view = self.becomes(id, "pending_approval");
        let decision = json!({"decision": "approve", "digest": view["digest"]});
        let tag = format!("\"{}\"", view["version"]);
        self.admin().ask("POST", &format!("/v1/requests/{id}/approval"), &[("if-match", &tag)], &decision).expect(200);
    }

    /// Placed and approved.
    #[track_caller]
    pub fn active(&self, spec: &Value) -> String {
        let id = self.request(spec);
        self.approve(&id);
        id
    }

    pub fn items(&self, id: &str) -> Vec<Value> {
        self.admin().all(&format!("/v1/requests/{id}/items"))
    }

    pub fn attempts(&self, item: &Value) -> Vec<Value> {
        let path = format!("/v1/items/{}/attempts", item["id"].as_str().unwrap());
        self.admin().get(&path).expect(200).json().as_array().unwrap().clone()
    }

    /// The agents that have a file, by the central catalog.
    pub fn replicas(&self, lfn: &str) -> Vec<String> {
        let file = self.admin().get(&format!("/v1/catalog/file?lfn={}", crate::support::percent(lfn.as_bytes())));
        let file = file.expect(200).json();
        file["replicas"].as_array().unwrap().iter().map(|r| r["agent"].as_str().unwrap().to_owned()).collect()
    }
}

/// Lets a source recall with the tape simulator, `words` after its own; its library.
pub fn tape(sandbox: &Sandbox, words: &[&str]) -> (PathBuf, Vec<String>) {
    let library = sandbox.dir("library");
    let mut flags = vec!["--stage-rule".to_owned(), "sidecar".to_owned()];
    let own = [crate::support::BINARY, "tape", "recall", "--library", library.to_str().unwrap()];
    for word in own.iter().chain(words) {
        flags.extend(["--stage-command".to_owned(), (*word).to_owned()]);
    }
    (library, flags)
}

/// Files that each process of the simulator was given.
pub fn mounts(library: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(library.join("mounts")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

impl Member {
    /// Moves a file onto tape.
    pub fn migrate(&self, sandbox: &Sandbox, lfn: &str) {
        let library = sandbox.arg("library");
        let mut command = sandbox.command(&[], &["tape", "migrate", "--library", &library, lfn]);
        command.current_dir(&self.root);
        sandbox.start(command).wait(SOON).expect(0);
    }
}

/// A dataset to one destination.
pub fn dataset(name: &str, to: &str) -> Value {
    json!({"select": {"dataset": name}, "destinations": [to]})
}
