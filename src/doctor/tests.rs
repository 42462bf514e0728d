use super::facts::{Clock, Interface, Pcie, Peer, Rings, Storage};
use super::*;

/// `longhaul doctor --root . --json` of the machine that this was written on: a virtual one, little tuned.
fn recorded() -> Facts {
    serde_json::from_str(include_str!("records/firecracker-2vcpu.json")).unwrap()
}

/// A data transfer node as ESnet would have it, on a 100 Gbit/s link of 50 ms. Composed, not recorded.
fn tuned() -> Facts {
    let sysctls = [
        ("kernel.io_uring_disabled", "0"),
        ("net.core.default_qdisc", "fq"),
        ("net.core.netdev_max_backlog", "250000"),
        ("net.core.rmem_max", "2147483647"),
        ("net.core.wmem_max", "2147483647"),
        ("net.ipv4.tcp_allowed_congestion_control", "reno cubic bbr"),
        ("net.ipv4.tcp_available_congestion_control", "reno cubic bbr"),
        ("net.ipv4.tcp_congestion_control", "cubic"),
        ("net.ipv4.tcp_mem", "3091440 4121920 6182880"),
        ("net.ipv4.tcp_moderate_rcvbuf", "1"),
        ("net.ipv4.tcp_mtu_probing", "1"),
        ("net.ipv4.tcp_no_metrics_save", "1"),
        ("net.ipv4.tcp_rmem", "4096 131072 2147483647"),
        ("net.ipv4.tcp_sack", "1"),
        ("net.ipv4.tcp_slow_start_after_idle", "0"),
        ("net.ipv4.tcp_timestamps", "1"),
        ("net.ipv4.tcp_window_scaling", "1"),
        ("net.ipv4.tcp_wmem", "4096 16384 2147483647"),
    ];
    let interface = Interface {
        name: "ens1f0np0".to_owned(),
        driver: Some("mlx5_core".to_owned()),
        mtu: 9000,
        speed_mbit: Some(100_000),
        duplex: Some("full".to_owned()),
        qdisc: Some("mq".to_owned()),
        rings: Some(Rings { rx: 8192, rx_max: 8192, tx: 8192, tx_max: 8192 }),
        offloads: ["tx-checksum", "tso", "gso", "gro"].map(|name| (name.to_owned(), true)).into_iter().collect(),
        pcie: Some(Pcie { speed: 16.0, width: 16, speed_max: 16.0, width_max: 16 }),
        numa_node: Some(0),
        queues: 8,
        interrupts: (100..108).map(|irq| (irq, vec![irq - 100])).collect(),
        near_cores: (0..16).collect(),
    };
    Facts {
        kernel: "6.8.0".to_owned(),
        cores: 32,
        sysctls: sysctls.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        tcp_pages: Some(20_000),
        page_bytes: 4096,
        interfaces: vec![interface],
        memlock: None,
        descriptors: 1_048_576,
        huge_pages: Some("madvise".to_owned()),
        governors: [("performance".to_owned(), 32)].into(),
        numa_nodes: 2,
        aes: Some(true),
        clock: Clock { source: Some("tsc".to_owned()), kept: Some(true), error_us: Some(900) },
        storage: Some(Storage {
            path: "/data".to_owned(),
            kind: "xfs".to_owned(),
            free_bytes: 40 << 40,
            total_bytes: 80 << 40,
            free_inodes: Some(1 << 30),
            direct_refused: Some(String::new()),
            device: Some("nvme0n1".to_owned()),
            scheduler: Some("none".to_owned()),
            rotational: Some(false),
            queue_depth: Some(1023),
            ..Storage::default()
        }),
        peer: Some(Peer {
            name: "dtn2.example.org".to_owned(),
            address: Some("192.0.2.9:8470".to_owned()),
            interface: Some("ens1f0np0".to_owned()),
            rtt_us: Some(50_400),
            segment: Some(8960),
            route_mtu: Some(9000),
            ..Peer::default()
        }),
        ..Facts::default()
    }
}

fn judged(facts: &Facts) -> Vec<Finding> {
    check(facts, &Target::of(facts, None, None))
}

fn of<'a>(findings: &'a [Finding], topic: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.topic == topic).unwrap_or_else(|| panic!("{topic}: {findings:#?}"))
}

#[test]
fn a_tuned_host_has_nothing_to_mend() {
    let findings = judged(&tuned());
    let others: Vec<&Finding> = findings.iter().filter(|finding| finding.level != Level::Fine).collect();
    assert!(others.is_empty(), "{others:#?}");
    assert!(findings.len() > 30 && findings.iter().all(|finding| finding.command.is_none()), "{}", findings.len());
    let target = Target::of(&tuned(), None, None);
    assert_eq!((target.rate, target.rtt_us, target.bdp()), (100_000_000_000, 50_400, 630_000_000));
}

#[test]
fn the_recorded_host_is_judged_as_measured_there() {
    let facts = recorded();
    let findings = judged(&facts);
    // 4 MiB hold 3.4 MB in flight: 8 streams over 100 ms, 2.1 Gbit/s. Measured there with iperf3: 285 Mbit/s a stream.
    let send = of(&findings, "net.ipv4.tcp_wmem");
    assert_eq!((send.level, send.measured.as_str()), (Level::Wrong, "4.0 MiB"));
    assert!(
        send.why.contains("one stream carries 268.4 Mbit/s") && send.why.contains("8 together 2.1 Gbit/s"),
        "{}",
        send.why
    );
    assert_eq!(send.command.as_deref(), Some("sysctl -w net.ipv4.tcp_wmem=\"4096 16384 268435456\""));
    // 32 MiB are half a window: eight of them fill the link, one does not.
    assert_eq!(of(&findings, "net.ipv4.tcp_rmem").level, Level::Advice);
    assert_eq!(of(&findings, "congestion control cubic").measured, "for root only");
    assert_eq!(of(&findings, "congestion control bbr").level, Level::Fine);
    assert_eq!(of(&findings, "eth0 link").level, Level::Unknown, "a virtual card does not know its speed");
    assert_eq!(of(&findings, "eth0 queueing discipline").measured, "pfifo_fast");
    assert_eq!((of(&findings, "io_uring").level, of(&findings, "CPU governor").level), (Level::Fine, Level::Unknown));
    // The same host is good enough for a link of 1 Gbit/s within a city.
    let near = check(&facts, &Target::of(&facts, Some(1_000_000_000), Some(Duration::from_millis(5))));
    assert_eq!(of(&near, "net.ipv4.tcp_wmem").level, Level::Fine);
    assert!(near.iter().all(|finding| finding.level != Level::Wrong), "{near:#?}");
}

/// Every way to be wrong: the change that makes it so, its topic, the level, and what the command must contain.
#[test]
fn each_fault_is_found_and_comes_with_its_command() {
    type Change = fn(&mut Facts);
    let table: [(Change, &str, Level, &str); 30] = [
        (|f| set(f, "net.ipv4.tcp_window_scaling", "0"), "net.ipv4.tcp_window_scaling", Level::Wrong, "=1"),
        (|f| set(f, "net.ipv4.tcp_sack", "0"), "net.ipv4.tcp_sack", Level::Wrong, "=1"),
        (|f| set(f, "net.ipv4.tcp_timestamps", "0"), "net.ipv4.tcp_timestamps", Level::Wrong, "=1"),
        (|f| set(f, "net.ipv4.tcp_moderate_rcvbuf", "0"), "net.ipv4.tcp_moderate_rcvbuf", Level::Wrong, "=1"),
        (
            |f| set(f, "net.ipv4.tcp_slow_start_after_idle", "1"),
            "net.ipv4.tcp_slow_start_after_idle",
            Level::Advice,
            "=0",
        ),
        (|f| set(f, "net.ipv4.tcp_no_metrics_save", "0"), "net.ipv4.tcp_no_metrics_save", Level::Advice, "=1"),
        (|f| set(f, "net.ipv4.tcp_mtu_probing", "0"), "net.ipv4.tcp_mtu_probing", Level::Advice, "=1"),
        (|f| set(f, "net.core.netdev_max_backlog", "1000"), "net.core.netdev_max_backlog", Level::Advice, "250000"),
        (|f| set(f, "net.core.rmem_max", "212992"), "net.core.rmem_max", Level::Advice, "rmem_max="),
        (
            |f| set(f, "net.ipv4.tcp_congestion_control", "reno"),
            "net.ipv4.tcp_congestion_control",
            Level::Advice,
            "=cubic",
        ),
        (
            |f| set(f, "net.ipv4.tcp_available_congestion_control", "reno cubic"),
            "congestion control bbr",
            Level::Advice,
            "modprobe tcp_bbr",
        ),
        (
            |f| set(f, "net.ipv4.tcp_allowed_congestion_control", "reno cubic"),
            "congestion control bbr",
            Level::Advice,
            "\"reno cubic bbr\"",
        ),
        (|f| set(f, "net.ipv4.tcp_mem", "30000 40000 60000"), "net.ipv4.tcp_mem", Level::Wrong, "tcp_mem="),
        (|f| f.tcp_pages = Some(5_000_000), "TCP memory in use", Level::Wrong, "ss -tm"),
        (
            |f| set(f, "net.core.default_qdisc", "fq_codel"),
            "ens1f0np0 queueing discipline",
            Level::Advice,
            "default_qdisc=fq",
        ),
        (|f| f.interfaces[0].mtu = 1500, "ens1f0np0 MTU", Level::Advice, "mtu 9000"),
        (|f| f.interfaces[0].duplex = Some("half".into()), "ens1f0np0 link", Level::Wrong, "autoneg on"),
        (|f| f.interfaces[0].pcie.as_mut().unwrap().width = 4, "ens1f0np0 PCIe", Level::Wrong, "lspci"),
        (
            |f| f.interfaces[0].offloads.extend([("tso".to_owned(), false)]),
            "ens1f0np0 tso",
            Level::Wrong,
            "ethtool -K ens1f0np0 tso on",
        ),
        (|f| f.interfaces[0].offloads.extend([("lro".to_owned(), true)]), "ens1f0np0 lro", Level::Advice, "lro off"),
        (
            |f| f.interfaces[0].rings.as_mut().unwrap().rx = 512,
            "ens1f0np0 rx ring",
            Level::Advice,
            "ethtool -G ens1f0np0 rx 8192",
        ),
        (
            |f| f.interfaces[0].interrupts = (0..8).map(|irq| (irq, vec![3])).collect(),
            "ens1f0np0 interrupts",
            Level::Advice,
            "smp_affinity",
        ),
        (|f| f.interfaces[0].near_cores = (16..32).collect(), "ens1f0np0 NUMA", Level::Advice, "--cpus node:0"),
        (|f| f.governors = [("powersave".into(), 32)].into(), "CPU governor", Level::Advice, "cpupower"),
        (|f| f.aes = Some(false), "CPU AES instructions", Level::Wrong, "--encrypt off"),
        (|f| f.huge_pages = Some("never".into()), "transparent huge pages", Level::Wrong, "echo madvise"),
        (|f| f.memlock = Some(8 << 20), "RLIMIT_MEMLOCK", Level::Advice, "LimitMEMLOCK"),
        (|f| f.descriptors = 1024, "RLIMIT_NOFILE, hard", Level::Advice, "LimitNOFILE"),
        (|f| f.io_uring_refused = Some("Operation not permitted".into()), "io_uring", Level::Advice, "seccomp"),
        (|f| f.clock.kept = Some(false), "clock", Level::Advice, "chronyd"),
    ];
    for (change, topic, level, command) in table {
        let mut facts = tuned();
        change(&mut facts);
        let findings = judged(&facts);
        let finding = of(&findings, topic);
        assert_eq!(finding.level, level, "{finding:#?}");
        assert!(finding.command.as_deref().unwrap_or_default().contains(command), "{finding:#?}");
        assert!(!finding.why.is_empty() && !finding.wanted.is_empty() && !finding.source.is_empty());
        let wrong = findings.iter().filter(|finding| finding.level < Level::Unknown).count();
        assert_eq!(wrong, 1, "one fault, one finding: {findings:#?}");
    }
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.sysctls.insert(name.to_owned(), value.to_owned());
}

#[test]
fn storage_and_the_way_to_the_peer() {
    let with = |change: fn(&mut Storage)| {
        let mut facts = tuned();
        change(facts.storage.as_mut().unwrap());
        judged(&facts)
    };
    assert_eq!(of(&with(|s| s.free_bytes = 1 << 30), "/data free space").level, Level::Wrong);
    assert_eq!(of(&with(|s| s.free_bytes = 1 << 40), "/data free space").level, Level::Advice, "a hundredth of it");
    assert_eq!(of(&with(|s| s.read_only = true), "/data mount").level, Level::Wrong);
    assert_eq!(of(&with(|s| s.free_inodes = Some(3)), "/data free file names").level, Level::Wrong);
    assert_eq!(of(&with(|s| s.volatile = true), "/data file system").level, Level::Advice);
    assert_eq!(
        of(&with(|s| s.direct_refused = Some("Invalid argument".into())), "/data O_DIRECT").level,
        Level::Advice
    );
    assert_eq!(of(&with(|s| s.direct_refused = None), "/data O_DIRECT").level, Level::Unknown);
    assert_eq!(of(&with(|s| s.scheduler = Some("bfq".into())), "nvme0n1 scheduler").level, Level::Advice);
    let turning = with(|s| (s.rotational, s.device) = (Some(true), Some("sda".into())));
    assert_eq!(of(&turning, "sda scheduler").level, Level::Advice, "none, for a disk that turns");
    let to = |change: fn(&mut Peer)| {
        let mut facts = tuned();
        change(facts.peer.as_mut().unwrap());
        judged(&facts)
    };
    let small = to(|p| p.segment = Some(1460));
    let mtu = of(&small, "peer dtn2.example.org MTU");
    assert_eq!((mtu.level, mtu.measured.as_str()), (Level::Advice, "1500 of our 9000"));
    assert!(mtu.command.as_deref().unwrap().contains("ping -M do -s 8972"));
    assert_eq!(
        of(&to(|p| p.data_error = Some("refuses".into())), "peer dtn2.example.org data port").level,
        Level::Wrong
    );
    let gone = to(|p| (p.error, p.rtt_us) = (Some("no answer".into()), None));
    assert_eq!(of(&gone, "peer dtn2.example.org").level, Level::Wrong);
    // Other interfaces than the one that leads there are left out.
    let mut two = tuned();
    two.interfaces.push(Interface { name: "eno1".into(), speed_mbit: Some(1000), ..Interface::default() });
    assert!(judged(&two).iter().all(|finding| !finding.topic.starts_with("eno1")));
    two.peer = None;
    assert!(judged(&two).iter().any(|finding| finding.topic.starts_with("eno1")));
}
