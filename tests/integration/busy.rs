//! Agents that have no place for one more connection or transfer: whoever comes then waits, and nobody fails.

use crate::support::tree::{Compare, assert_same};
use crate::support::{Agent, SOON, Sandbox, noise, wait_for};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Connections of one address that an agent takes.
const PER_ADDRESS: usize = 64;

/// So many connections that have shown a token.
fn hold(agent: &Agent, count: usize) -> Vec<TcpStream> {
    let token = agent.token();
    let one = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.http)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
        stream
    };
    (0..count).map(one).collect()
}

#[test]
fn a_copy_waits_for_a_connection() {
    let sandbox = Sandbox::new();
    let (from, to) = (sandbox.agent("from", &[]), sandbox.agent("to", &[]));
    sandbox.write("from/src/a", &noise(3 << 20, 1));
    let (token, token_to) = (from.token_file(), to.token_file());
    let third = ["-r", "--token-file", &token_to, "--source-token-file", &token];
    let copies: [(&str, Vec<String>, &Agent); 4] = [
        ("pull", vec![from.url("src"), "pulled".into()], &from),
        ("push", vec!["from/src".into(), from.url("pushed")], &from),
        ("from the source", vec![from.url("src"), to.url("third")], &from),
        ("to the destination", vec![from.url("src"), to.url("last")], &to),
    ];
    for (name, operands, full) in copies {
        let held = hold(full, PER_ADDRESS);
        let mut args = if name.contains("the") { third.to_vec() } else { vec!["-r", "--token-file", &token] };
        args.extend(operands.iter().map(String::as_str));
        let mut running = sandbox.start_cp(&args);
        wait_for("a word about the wait", SOON, || running.ended() || running.stderr().contains("busy"));
        assert!(!running.ended(), "{name}: {}", running.stderr());
        drop(held);
        let outcome = running.wait(SOON).expect(0);
        assert!(outcome.err.contains("as many connections are open"), "{name}: {}", outcome.err);
    }
    for copy in ["pulled", "from/pushed", "to/third", "to/last"] {
        assert_same(&sandbox.at("from/src"), &sandbox.at(copy), Compare::DEFAULT);
    }
}

#[test]
fn more_transfers_than_an_agent_runs_take_turns() {
    let sandbox = Sandbox::new();
    let agent = sandbox.agent("far", &["--max-sessions", "2"]);
    sandbox.write("far/src/a", &noise(6 << 20, 1));
    let token = agent.token_file();
    let name = |number: usize| format!("dst{number}");
    let start = |number: usize| {
        let to = if number.is_multiple_of(2) { name(number) } else { agent.url(&name(number)) };
        let from = if number.is_multiple_of(2) { agent.url("src") } else { "far/src".to_owned() };
        sandbox.start_cp(&["-r", "--token-file", &token, "--rate", "2MiB", &from, &to])
    };
    let running = || {
        let (_, list) = agent.request("GET", "/v1/transfers", &agent.token(), "");
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        list["transfers"].as_array().unwrap().iter().filter(|transfer| transfer["report"].is_null()).count()
    };
    let mut copies: Vec<_> = (0..2).map(start).collect();
    wait_for("two that run", SOON, || running() == 2);
    copies.extend((2..7).map(start));
    let outcomes: Vec<_> = copies.into_iter().map(|copy| copy.wait(SOON).expect(0)).collect();
    let waited = outcomes.iter().filter(|outcome| outcome.err.contains("runs its 2 transfers already")).count();
    assert!(waited >= 3, "only {waited} had to wait");
    for number in 0..7 {
        let at = if number % 2 == 0 { name(number) } else { format!("far/{}", name(number)) };
        assert_same(&sandbox.at("far/src"), &sandbox.at(&at), Compare::DEFAULT);
    }
}

/// A wait may be ended like anything else.
#[test]
fn a_wait_ends_at_a_signal() {
    let sandbox = Sandbox::new();
    let (from, to) = (sandbox.agent("from", &[]), sandbox.agent("to", &[]));
    sandbox.write("from/src/a", b"a");
    let _held = hold(&to, PER_ADDRESS);
    let (token, token_to, source, target) = (from.token_file(), to.token_file(), from.url("src"), to.url("dst"));
    let third = ["-r", "--token-file", &token_to, "--source-token-file", &token, &source, &target];
    let running = sandbox.start_cp(&third);
    wait_for("a word about the wait", SOON, || running.stderr().contains("busy"));
    running.signal(nix::sys::signal::Signal::SIGINT);
    let outcome = running.wait(Duration::from_secs(10)).expect(130);
    assert!((outcome.err + &outcome.out).contains("stopped while an agent was asked"));
}
