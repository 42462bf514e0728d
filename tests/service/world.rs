//! A main that can be killed and started again on its port, its tokens, and agents' HTTP ports for it to knock at.

use crate::http::Client;
use crate::support::{Agent, SOON, Sandbox, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Whether the long form was asked for.
pub fn long() -> bool {
    std::env::var_os("LONGHAUL_LONG").is_some()
}

/// A main in a directory of its own.
pub struct World {
    pub sandbox: Sandbox,
    pub port: u16,
    flags: Vec<String>,
    agent: Mutex<Option<Agent>>,
}

impl World {
    pub fn new(flags: &[&str]) -> Self {
        let sandbox = Sandbox::in_memory();
        let agent = sandbox.main_agent("main", flags);
        let port = agent.http;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self { sandbox, port, flags, agent: Mutex::new(Some(agent)) }
    }

    /// Starts it again, on the port it had.
    pub fn start(&self) {
        let mut flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let http = format!("127.0.0.1:{}", self.port);
        flags.extend(["--http", &http]);
        *self.agent.lock().unwrap() = Some(self.sandbox.main_agent("main", &flags));
    }

    /// SIGKILL, and until it is gone.
    pub fn kill(&self) {
        let agent = self.agent.lock().unwrap().take().unwrap();
        agent.running.signal(Signal::SIGKILL);
        agent.running.wait(SOON);
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&self) {
        self.agent.lock().unwrap().take().unwrap().stop().expect(0);
    }

    pub fn signal(&self, signal: Signal) {
        self.agent.lock().unwrap().as_ref().unwrap().running.signal(signal);
    }

    pub fn log(&self) -> String {
        self.agent.lock().unwrap().as_ref().unwrap().running.stderr()
    }

    /// Everything is allowed to it.
    pub fn admin(&self) -> Client {
        let token = std::fs::read_to_string(self.sandbox.at("main.state/token")).unwrap().trim().to_owned();
        Client { port: self.port, token }
    }

    /// A token with these roles, made by the command.
    pub fn token(&self, name: &str, roles: &[&str]) -> Client {
        let state = self.sandbox.arg("main.state");
        let mut args = vec!["token", "add", name, "--state", &state];
        args.extend(roles.iter().flat_map(|role| ["--role", role]));
        let token = self.sandbox.run(&args).expect(0).out.trim().to_owned();
        Client { port: self.port, token }
    }

    /// Waits for a request to get into `state`.
    #[track_caller]
    pub fn becomes(&self, id: &str, state: &str) -> Value {
        let client = self.admin();
        let mut view = Value::Null;
        wait_for(&format!("the request is {state}"), SOON, || {
            view = client.get(&format!("/v1/requests/{id}")).expect(200).json();
            view["state"] == state
        });
        view
    }
}

/// A spec of a request whose files are uploaded.
pub fn by_manifest(sources: &[&str], to: &str) -> Value {
    json!({"select": "manifest", "source": {"agents": sources}, "destinations": [to]})
}

/// Asks for `spec`; the id.
#[track_caller]
pub fn create(client: &Client, spec: &Value) -> String {
    client.post("/v1/requests", spec).expect(201).json()["id"].as_str().unwrap().to_owned()
}

/// Lines for these files of ten bytes.
pub fn manifest(files: impl IntoIterator<Item = String>) -> String {
    files.into_iter().map(|lfn| format!("{}\n", json!({"lfn": lfn, "bytes": 10}))).collect()
}

/// Creates, uploads and approves; the id.
#[track_caller]
pub fn active(client: &Client, spec: &Value, files: impl IntoIterator<Item = String>) -> String {
    let id = create(client, spec);
    let lines = manifest(files);
    let view = client.raw("POST", &format!("/v1/requests/{id}/manifest"), &[], lines.as_bytes()).unwrap();
    approve(client, &view.expect(200).json());
    id
}

/// Says yes to what `view` shows.
#[track_caller]
pub fn approve(client: &Client, view: &Value) -> Value {
    let decision = json!({"decision": "approve", "digest": view["digest"]});
    let path = format!("/v1/requests/{}/approval", view["id"].as_str().unwrap());
    let tag = format!("\"{}\"", view["version"]);
    client.ask("POST", &path, &[("if-match", &tag)], &decision).expect(200).json()
}

/// Files `/d/0` to `/d/n-1`.
pub fn files(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("/d/{n}")).collect()
}

/// An agent's HTTP port as main sees it: healthy, and with a list of files.
pub struct Endpoint {
    pub port: u16,
    /// Path and authorization of every request that came.
    pub asked: Arc<Mutex<Vec<(String, String)>>>,
    gone: Arc<AtomicBool>,
}

/// Files of a page.
const PAGE: usize = 3;

impl Endpoint {
    pub fn new(files: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, gone) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let files: Vec<String> = files.iter().map(|name| (*name).to_owned()).collect();
        let (notes, over) = (asked.clone(), gone.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let _ = answer(stream.unwrap(), &files, &notes);
            }
        });
        Self { port, asked, gone }
    }

    pub fn url(&self) -> String {
        format!("lh://127.0.0.1:{}", self.port)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        // Wakes the thread, which lets go of the port.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(stream: TcpStream, files: &[String], asked: &Mutex<Vec<(String, String)>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(&stream);
    let (mut first, mut token) = (String::new(), String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if line.to_ascii_lowercase().starts_with("authorization: ") {
            token = line["authorization: ".len()..].trim().to_owned();
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = match path.as_str() {
        "/healthz" => json!({"status": "ok"}),
        _ => {
            let after = path.split_once("cursor=").and_then(|(_, cursor)| cursor.parse::<usize>().ok()).unwrap_or(0);
            let items: Vec<_> = files.iter().skip(after).take(PAGE).map(|f| json!({"lfn": f, "bytes": 5})).collect();
            let next = (after + PAGE < files.len()).then(|| (after + PAGE).to_string());
            json!({"items": items, "next": next})
        }
    };
    asked.lock().unwrap().push((path, token));
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    write!(&stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
