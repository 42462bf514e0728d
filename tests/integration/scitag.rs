//! SciTags as the network sees them: flow labels in captured packets, fireflies at a collector.

use crate::support::{Agent, Outcome, Running, SOON, Sandbox, noise, root_or_skip, wait_for};
use longhaul::profile::SciTag;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const SIZE: u64 = 4 << 20;
/// At this rate the copy takes 0.6 s: several times what is between two fireflies of a stream.
const SLOWLY: [&str; 4] = ["--rate", "56Mbit", "--streams", "2"];
const EVERY: &str = "LONGHAUL_FIREFLY_EVERY_MS=100";

fn tag(id: u16) -> SciTag {
    SciTag::try_from(id).unwrap()
}

/// What is needed to read along; without it the test is skipped.
fn can_capture() -> bool {
    let there = Command::new("tcpdump").arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        crate::support::skip("needs tcpdump to read along");
    }
    there && root_or_skip("to capture")
}

/// A packet of TCP over IPv6.
struct Packet {
    label: u32,
    from: u16,
    to: u16,
    payload: u64,
}

/// The packets of a capture of loopback, whose frames are those of Ethernet.
fn packets(capture: &[u8]) -> Vec<Packet> {
    assert_eq!(capture[..4], 0xa1b2_c3d4u32.to_ne_bytes(), "a capture in this host's order");
    let mut rest = &capture[24..];
    let mut all = Vec::new();
    while rest.len() >= 16 {
        let kept = u32::from_ne_bytes(rest[8..12].try_into().unwrap()) as usize;
        let Some(frame) = rest.get(16..16 + kept) else { break };
        rest = &rest[16 + kept..];
        let (short, long) = (
            |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]),
            |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap()),
        );
        assert_eq!((short(12), frame[20]), (0x86dd, 6), "TCP over IPv6");
        let head = u64::from(frame[66] >> 4) * 4;
        // A segment larger than the field can say has no length in it.
        let length = match u64::from(short(18)) {
            0 => u64::from(u32::from_ne_bytes(capture_length(capture, frame))) - 54,
            length => length,
        };
        all.push(Packet { label: long(14) & 0xf_ffff, from: short(54), to: short(56), payload: length - head });
    }
    all
}

/// The original length of a frame, which stands before it.
fn capture_length(capture: &[u8], frame: &[u8]) -> [u8; 4] {
    let at = frame.as_ptr() as usize - capture.as_ptr() as usize;
    capture[at - 4..at].try_into().unwrap()
}

struct Capture<'a> {
    dump: Running,
    file: PathBuf,
    data: u16,
    _sandbox: &'a Sandbox,
}

impl<'a> Capture<'a> {
    /// Of an agent's data port on loopback.
    fn start(sandbox: &'a Sandbox, wrap: &[&str], agent: &Agent, name: &str) -> Self {
        let file = sandbox.at(name);
        let words =
            [wrap, &["tcpdump", "-i", "lo", "--immediate-mode", "-U", "-s", "96", "-B", "16384", "-Z", "root", "-w"]]
                .concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&file).arg(format!("ip6 and tcp port {}", agent.data)).stdin(Stdio::null());
        let dump = sandbox.start(command);
        wait_for("tcpdump", SOON, || dump.stderr().contains("listening on"));
        Self { dump, file, data: agent.data, _sandbox: sandbox }
    }

    /// The labels of packets with payload from the agent or to it, by the other end's port, and the bytes of each.
    fn labels(self, from_agent: bool) -> BTreeMap<(u16, u32), u64> {
        std::thread::sleep(Duration::from_millis(200));
        self.dump.signal(Signal::SIGINT);
        let ended = self.dump.wait(SOON);
        assert!(ended.err.contains("0 packets dropped by kernel"), "{}", ended.err);
        let mut found = BTreeMap::new();
        for packet in packets(&std::fs::read(self.file).unwrap()) {
            let (own, other) = if from_agent { (packet.from, packet.to) } else { (packet.to, packet.from) };
            if own == self.data && packet.payload > 0 {
                *found.entry((other, packet.label)).or_default() += packet.payload;
            }
        }
        found
    }
}

/// A collector that listens.
struct Collector(UdpSocket);

impl Collector {
    fn new() -> Self {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self(socket)
    }

    fn name(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// Everything that has come, as JSON.
    fn heard(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let mut bytes = [0; 2048];
        while let Ok(len) = self.0.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[..len]).unwrap();
            let (head, json) = text.split_at(text.find('{').unwrap());
            assert!(head.starts_with("<134>1 20") && head.ends_with(" longhaul - firefly-json - "), "{head}");
            all.push(serde_json::from_str(json).unwrap());
        }
        all
    }
}

/// What is told of each stream: by the port that is not the agent's, states in order, and bytes out and in at the end.
fn flows(told: &[Value], tag: SciTag, (own, other): (&str, &str), data: u16) -> BTreeMap<u16, (Vec<String>, u64, u64)> {
    let mut flows: BTreeMap<u16, (Vec<String>, u64, u64)> = BTreeMap::new();
    for firefly in told {
        let id = &firefly["flow-id"];
        assert_eq!(
            (&id["afi"], &id["protocol"], &id["src-ip"], &id["dst-ip"]),
            (&"ipv6".into(), &"tcp".into(), &"::1".into(), &"::1".into())
        );
        assert_eq!(id[own], data, "{firefly}");
        let context = &firefly["context"];
        assert_eq!(
            (&context["experiment-id"], &context["activity-id"]),
            (&tag.community().into(), &tag.activity().into())
        );
        let flow = flows.entry(id[other].as_u64().unwrap() as u16).or_default();
        let life = &firefly["flow-lifecycle"];
        flow.0.push(life["state"].as_str().unwrap().to_owned());
        let (sent, received) =
            (firefly["usage"]["sent"].as_u64().unwrap(), firefly["usage"]["received"].as_u64().unwrap());
        assert!(sent >= flow.1 && received >= flow.2, "counters only grow: {firefly}");
        (flow.1, flow.2) = (sent, received);
        assert!(life["start-time"].as_str() <= life["current-time"].as_str(), "{life}");
        assert_eq!(life.get("end-time").is_some(), life["state"] == "end", "{life}");
    }
    for (port, (states, ..)) in &flows {
        let n = states.len();
        assert!(n >= 3 && states[0] == "start" && states[n - 1] == "end", "{port}: {states:?}");
        assert!(states[1..n - 1].iter().all(|state| state == "ongoing"), "{port}: {states:?}");
    }
    flows
}

fn copy(sandbox: &Sandbox, wrap: &[&str], agent: &Agent, words: &[&str]) -> Outcome {
    let token = agent.token_file();
    let args = [&["cp", "--json", "--token-file", &token][..], &SLOWLY, words].concat();
    sandbox.start(sandbox.command(wrap, &args)).wait(SOON).expect(0)
}

/// All bytes of these packets, and of those alone that bear the tag.
fn borne(labels: &BTreeMap<(u16, u32), u64>, tag: SciTag) -> (u64, u64) {
    let with = labels.iter().filter(|((_, label), _)| tag.is_in(*label)).map(|(_, bytes)| bytes).sum();
    (labels.values().sum(), with)
}

#[test]
fn a_push_bears_its_scitag_and_a_collector_hears_of_every_stream() {
    if !can_capture() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("near", &noise(SIZE as usize, 1));
    let agent = sandbox.agent("far", &["--data", "[::1]:0"]);
    let collector = Collector::new();
    let capture = Capture::start(&sandbox, &[], &agent, "push.pcap");
    let (up, name) = (agent.url("up"), collector.name());
    let report = copy(&sandbox, &["env", EVERY], &agent, &["--scitag", "1038", "--firefly", &name, "near", &up]);
    assert!(!report.notes().contains("SciTag") && !report.notes().contains("firefly"), "{}", report.notes());
    let labels = capture.labels(false);
    let (all, with) = borne(&labels, tag(1038));
    assert!(with == all && all > SIZE, "every packet with payload from the source: {labels:x?}");
    // Community 16, activity 14, by the specification's layout.
    assert!(labels.keys().all(|(_, label)| label & 0x3_fefc == 0x2038), "{labels:x?}");

    let told = collector.heard();
    let flows = self::flows(&told, tag(1038), ("dst-port", "src-port"), agent.data);
    assert_eq!(flows.len(), 2, "{told:?}");
    let captured: BTreeSet<u16> = labels.keys().map(|(port, _)| *port).collect();
    assert!(flows.keys().all(|port| captured.contains(port)), "{flows:?} {captured:?}");
    let sent: u64 = flows.values().map(|(_, sent, _)| sent).sum();
    assert!(sent > SIZE && sent < SIZE + SIZE / 10, "what the source has sent: {flows:?}");
    assert!(flows.values().all(|(_, _, received)| *received > 0), "and the Wants that came in: {flows:?}");

    // An agent's own tag is for whoever pulls from it, and its own collectors hear of it; another's tag it cannot bear.
    let (flags, own) = (["--data", "[::1]:0", "--scitag", "65", "--firefly", &name], "src/data");
    sandbox.write(&format!("own/{own}"), &noise(SIZE as usize, 2));
    let agent = sandbox.agent_in("own", &["env", EVERY], &flags);
    let capture = Capture::start(&sandbox, &[], &agent, "pull.pcap");
    let report = copy(&sandbox, &[], &agent, &[&agent.url(own), "pulled"]);
    assert!(!report.notes().contains("SciTag") && !report.notes().contains("firefly"), "{}", report.notes());
    let (all, with) = borne(&capture.labels(true), tag(65));
    assert!(with == all && all > SIZE, "{with} of {all}");
    wait_for("the last firefly", SOON, || agent.transfers().len() == 1);
    let told = collector.heard();
    let flows = self::flows(&told, tag(65), ("src-port", "dst-port"), agent.data);
    let sent: u64 = flows.values().map(|(_, sent, _)| sent).sum();
    assert!(flows.len() == 2 && sent > SIZE && sent < SIZE + SIZE / 10, "{flows:?}");
}

/// A namespace with nothing but loopback, where accepted streams answer with the dialler's label.
struct Space(String);

impl Space {
    fn new() -> Self {
        let space = Self(format!("lhts{}", std::process::id()));
        let run = |words: &[&str]| {
            assert!(Command::new(words[0]).args(&words[1..]).output().unwrap().status.success(), "{words:?}")
        };
        run(&["ip", "netns", "add", &space.0]);
        run(&["ip", "-n", &space.0, "link", "set", "lo", "up"]);
        run(&["ip", "netns", "exec", &space.0, "sysctl", "-w", "net.ipv6.flowlabel_consistency=0"]);
        space
    }

    fn exec(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.0]
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_pulls_scitag_is_borne_where_the_kernel_reflects_and_said_where_not() {
    if !can_capture() {
        return;
    }
    let sandbox = Sandbox::new();
    let space = Space::new();
    for (wrap, name, reflects) in [(&space.exec()[..], "reflecting", true), (&[][..], "plain", false)] {
        sandbox.write(&format!("{name}/data"), &noise(SIZE as usize, 3));
        let agent = sandbox.agent_in(name, wrap, &["--data", "[::1]:0"]);
        let capture = Capture::start(&sandbox, wrap, &agent, &format!("{name}.pcap"));
        let report = copy(&sandbox, wrap, &agent, &["--scitag", "66", &agent.url("data"), &format!("{name}.down")]);
        let (all, with) = borne(&capture.labels(true), tag(66));
        assert!(all > SIZE && with == if reflects { all } else { 0 }, "{name}: {with} of {all}");
        let note = "source: packets do not bear the SciTag 66 (community 1, activity 2): the kernel takes a label";
        assert_eq!(report.notes().contains(note), !reflects, "{}", report.notes());
    }
}

#[test]
fn without_the_option_no_scitag_is_borne_and_nothing_told() {
    if !can_capture() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write("near", &noise(SIZE as usize, 4));
    sandbox.write("far/data", &noise(SIZE as usize, 5));
    // It knows a collector, and has nothing to tell it.
    let collector = Collector::new();
    let agent = sandbox.agent_in("far", &["env", EVERY], &["--data", "[::1]:0", "--firefly", &collector.name()]);
    for (from_agent, words) in
        [(false, ["near".to_owned(), agent.url("up")]), (true, [agent.url("data"), "down".to_owned()])]
    {
        let capture = Capture::start(&sandbox, &[], &agent, "off.pcap");
        let report = copy(&sandbox, &[], &agent, &[&words[0], &words[1]]);
        assert!(!report.notes().contains("SciTag"), "{}", report.notes());
        let labels = capture.labels(from_agent);
        assert!(borne(&labels, tag(65)).0 > SIZE);
        for id in [65, 66, 1038] {
            assert_eq!(borne(&labels, tag(id)).1, 0, "{labels:x?}");
        }
    }
    assert_eq!(collector.heard(), Vec::<Value>::new());
    // The same agent tells of a stream that somebody tags: over IPv4 as well, where no packet can.
    let v4 = sandbox.agent_in("far4", &["env", EVERY], &["--firefly", &collector.name()]);
    sandbox.write("far4/data", b"some");
    let report = copy(&sandbox, &[], &v4, &["--scitag", "65", &v4.url("data"), "down4"]);
    assert!(
        report.notes().contains("source: packets do not bear the SciTag 65 (community 1, activity 1): IPv4 has"),
        "{}",
        report.notes()
    );
    wait_for("the transfer's end", SOON, || v4.transfers().len() == 1);
    let told = collector.heard();
    assert!(told.len() >= 4 && told.iter().all(|firefly| firefly["flow-id"]["afi"] == "ipv4"), "{told:?}");
}

#[test]
fn scitags_that_cannot_be_are_refused_with_a_sentence() {
    let sandbox = Sandbox::new();
    sandbox.write("a", b"a");
    for (words, said) in [
        (&["--scitag", "64"][..], "65 to 65535, not 64"),
        (&["--scitag", "65536"], "65 to 65535"),
        (&["--scitag", "atlas"], "65 to 65535"),
        (&["--scitag", "65", "--firefly", "a:0"], "is no collector"),
        (&["--firefly", "collector.example.org"], "say which tag with --scitag"),
    ] {
        sandbox.cp(&[words, &["a", "b"]].concat()).says(2, &[said]);
        assert!(!sandbox.at("b").exists());
    }
    let theirs = ["--scitag", "65", "--firefly", "c", "lh://127.0.0.1:9/a", "lh://127.0.0.1:9/b"];
    sandbox.cp(&theirs).says(2, &["each tells its own collectors"]);
    // A collector that nobody finds costs a note and no more.
    let lost = sandbox.cp(&["--scitag", "65", "--firefly", "nobody.invalid", "a", "b"]).expect(0);
    assert_eq!(std::fs::read(sandbox.at("b")).unwrap(), b"a");
    assert_eq!(lost.text("verdict"), "DURABLE");
}
