//! Tuning profiles as their users meet them: chosen by pattern or by name, and really in force on the sockets.

use crate::support::{Agent, SOON, Sandbox, noise, root_or_skip, wait_for};
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};

fn copy(sandbox: &Sandbox, agent: &Agent, flags: &[&str], dst: &str) -> crate::support::Outcome {
    let (token, url) = (agent.token_file(), agent.url("data"));
    sandbox.cp(&[&["--token-file", &token][..], flags, &[&url, dst]].concat())
}

#[test]
fn the_report_says_which_profile_and_why() {
    let sandbox = Sandbox::new();
    sandbox.write("far/data", &noise(1 << 20, 1));
    let agent = sandbox.agent("far", &[]);
    let told = |flags: &[&str], dst: &str| {
        let report = copy(&sandbox, &agent, flags, dst).expect(0);
        (report.text("profile").to_owned(), report.text("profile_why").to_owned(), report)
    };
    let (name, why, report) = told(&[], "a");
    assert_eq!((name.as_str(), why.as_str()), ("loopback", "127.0.0.1 matches 127.0.0.0/8 of shipped"));
    assert_eq!(report.json["profile_measured"], true);
    let (name, why, report) = told(&["--profile", "none"], "b");
    assert_eq!((name.as_str(), why.as_str(), report.json["profile_measured"].is_null()), ("default (near)", "", true));
    let (name, why, report) = told(&["--profile", "lan-10g"], "c");
    assert_eq!((name.as_str(), why.as_str()), ("lan-10g", "--profile"));
    assert!(
        report.json["profile_measured"] == false && report.notes().contains("lan-10g is not measured"),
        "{}",
        report.out
    );

    // One's own come first, and a flag before any profile.
    sandbox.write("home/.config/longhaul/profiles/here.toml", b"peers = [\"127.0.0.1\"]\n[sockets]\nstreams = 5\n");
    let (name, _, report) = told(&[], "d");
    assert_eq!((name.as_str(), report.number("streams")), ("here", 5));
    assert_eq!(told(&["--streams", "3"], "e").2.number("streams"), 3);
    copy(&sandbox, &agent, &["--profile", "moon"], "f").says(2, &["no profile `moon`", "loopback"]);
    sandbox.write("home/.config/longhaul/profiles/here.toml", b"[sockets]\nstream = 5\n");
    copy(&sandbox, &agent, &[], "g").says(2, &["here.toml, line 2", "stream"]);
}

#[test]
fn an_agents_own_profile_fills_gaps_caps_the_rate_and_is_read_again() {
    let sandbox = Sandbox::new();
    sandbox.write("far/data", &noise(6 << 20, 2));
    let profile = |rate: &str| {
        let text =
            format!("peers = [\"127.0.0.0/8\"]\n[sockets]\nrate = \"{rate}\"\ncongestion = [\"nosuch\", \"reno\"]\n");
        sandbox.write("site/cap.toml", text.as_bytes());
    };
    profile("48Mbit");
    let dir = sandbox.arg("site");
    let agent = sandbox.agent("far", &["--profiles", &dir]);
    // 6 MiB at 48 Mbit/s: 1.05 s, whatever the client asks for.
    let capped = copy(&sandbox, &agent, &["--rate", "10Gbit"], "a").expect(0);
    assert!(capped.number("duration_ns") > 800_000_000, "{}", capped.out);
    assert!(capped.notes().contains("source: profile cap fills in what was not asked for"), "{}", capped.notes());
    assert!(capped.notes().contains("instead of nosuch"), "the source's own socket notes: {}", capped.notes());
    profile("100Gbit");
    agent.running.signal(Signal::SIGHUP);
    wait_for("a copy at full speed after SIGHUP", SOON, || {
        let _ = std::fs::remove_file(sandbox.at("b"));
        copy(&sandbox, &agent, &[], "b").expect(0).number("duration_ns") < 700_000_000
    });
}

/// A namespace of its own, with nothing but loopback, which goes with the value.
struct Space(String);

impl Space {
    fn new() -> Self {
        let space = Self(format!("lhtp{}", std::process::id()));
        for words in [&["netns", "add", &space.0][..], &["-n", &space.0, "link", "set", "lo", "up"]] {
            assert!(Command::new("ip").args(words).status().unwrap().success(), "ip {words:?}");
        }
        space
    }

    fn exec(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.0]
    }

    fn run(&self, words: &[&str]) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.0]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

/// What `ss` and a capture see of the sockets while a slow copy runs, each way.
#[test]
fn what_a_profile_says_is_in_force_on_the_sockets() {
    if !root_or_skip("to make a network namespace and to capture") {
        return;
    }
    let sandbox = Sandbox::new();
    let space = Space::new();
    sandbox.write("far/data", &noise(12 << 20, 3));
    sandbox.write("near", &noise(12 << 20, 4));
    let text = "[sockets]\nstreams = 3\nwindow = \"300000B\"\ncongestion = [\"nosuch\", \"reno\"]\npacing = \"8Mbit\"\n\
                notsent_lowat = \"64KiB\"\nuser_timeout = \"33s\"\nmss = 1400\ndscp = \"af11\"\nbind = \"127.0.0.9\"\n\
                [files]\ndepth = 1\nblock = \"64KiB\"\n";
    let profile = sandbox.write("p.toml", text.as_bytes());
    let agent = sandbox.agent_in("far", &space.exec(), &[]);
    let (token, url) = (agent.token_file(), agent.url("data"));
    let up = agent.url("up");
    for (src, dst) in [(url.as_str(), "down"), ("near", up.as_str())] {
        let args = ["cp", "--json", "--token-file", &token, "--profile", profile.to_str().unwrap(), src, dst];
        let copy = sandbox.start(sandbox.command(&space.exec(), &args));
        let senders = || -> Vec<String> {
            // Streams that have sent a MiB: their end of the connection is the source's.
            let table = space.run(&["ss", "-tinHO", "state", "established"]);
            let sent = |line: &&str| number_after(line, "bytes_sent:").is_some_and(|bytes| bytes > 1 << 20);
            table.lines().filter(sent).map(str::to_owned).collect()
        };
        wait_for("three streams that send", SOON, || senders().len() == 3);
        let seen = senders();
        let capture = space
            .run(&["timeout", "20", "tcpdump", "-i", "lo", "-n", "-v", "-c", "200", "tcp", "and", "greater", "1000"]);
        for line in &seen {
            // Timestamps take twelve bytes of a segment.
            let mss = number_after(line, "mss:").unwrap();
            assert!((1380..=1400).contains(&mss) && line.contains(" reno "), "{src} -> {dst}: {line}");
            assert!(line.contains("127.0.0.9:"), "dialled from elsewhere: {line}");
            assert!(line.contains("pacing_rate 8Mbps") || line.contains("pacing_rate 8000"), "{line}");
        }
        let marked = capture.matches("tos 0x28").count();
        assert!(marked >= 150, "{marked} of 200 large packets are AF11:\n{capture}");
        let report = copy.wait(SOON).expect(0);
        assert_eq!((report.number("streams"), report.text("profile")), (3, "p"));
        // 12 MiB over three streams of 8 Mbit/s: 4.2 s.
        assert!(report.number("duration_ns") > 3_500_000_000, "{}", report.out);
        assert!(report.notes().contains("reno instead of nosuch"), "{}", report.notes());
    }
}

fn number_after(line: &str, key: &str) -> Option<u64> {
    let rest = &line[line.find(key)? + key.len()..];
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}
