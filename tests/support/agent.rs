//! Agents as processes, as every test starts them: their command line, and the ready line that says where they listen.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `longhaul agent` after the words of `wrap`, serving `dir/root`, with its state in `dir/state`.
pub fn command(wrap: &[String], dir: &Path, http: &str, data: &str) -> Command {
    let words = [wrap, &[env!("CARGO_BIN_EXE_longhaul").to_owned()]].concat();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["agent", "--http", http, "--data", data]);
    command.arg("--root").arg(dir.join("root")).arg("--state").arg(dir.join("state"));
    command.stdin(Stdio::null());
    command
}

/// Starts it, with its log appended to `dir/log`; the process and its ready line.
pub fn spawn(mut command: Command, dir: &Path) -> (Child, Value) {
    let log = std::fs::OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the agent did not start: {}", log()));
    (child, ready)
}

/// What an agent answers to a GET on its HTTP port, head and body.
pub fn get(mut stream: TcpStream, path: &str, token: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let token = token.trim();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// Sends a signal by its name.
pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap().success());
}
