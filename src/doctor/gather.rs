//! Looks at this host. Only reads: `/proc`, `/sys`, and a nameless file that is gone when it is closed.

use super::facts::{Clock, Facts, Interface, Pcie, Peer, Rings, Storage};
use super::netlink;
use crate::disk::{AlignedBuf, DIRECT_ALIGN, FsKind};
use crate::net::{DialOptions, SocketOptions, dial};
use crate::sys::TcpInfo;
use crate::sys::host::{Offload, clock_kept, offload, rings};
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use nix::sys::statvfs::FsFlags;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Settings that the checks look at.
pub const SYSCTLS: [&str; 24] = [
    "kernel.io_uring_disabled",
    "net.core.default_qdisc",
    "net.core.netdev_max_backlog",
    "net.core.optmem_max",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.tcp_adv_win_scale",
    "net.ipv4.tcp_allowed_congestion_control",
    "net.ipv4.tcp_available_congestion_control",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_ecn",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_moderate_rcvbuf",
    "net.ipv4.tcp_mtu_probing",
    "net.ipv4.tcp_no_metrics_save",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_sack",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_window_scaling",
    "net.ipv4.tcp_wmem",
    "vm.dirty_background_ratio",
    "vm.dirty_ratio",
];
/// Connects to a peer, of which the quickest counts.
const CONNECTS: usize = 5;
/// How long one of them may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// CAP_IPC_LOCK of `linux/capability.h`.
const CAP_IPC_LOCK: u32 = 14;

/// A file of `/proc` or `/sys` as one line, if it can be read.
fn line(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    line(path)?.parse().ok()
}

/// `0-3,8` as numbers.
fn listed(text: &str) -> Vec<u32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().take(4096).collect()
}

/// The word in brackets of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Everything about this host. `data` is a directory whose storage is looked at.
pub fn gather(data: Option<&Path>) -> Facts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim);
    let capabilities = capabilities.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let has = |name: &str| flags.map(|line| line.split_whitespace().any(|word| word == name));
    let sysctl = |name: &&str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        line(path).map(|value| ((*name).to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
    };
    let limit = |resource| getrlimit(resource).ok();
    Facts {
        kernel: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        root: nix::unistd::geteuid().is_root(),
        sysctls: SYSCTLS.iter().filter_map(sysctl).collect(),
        tcp_pages: tcp_pages(&fs::read_to_string("/proc/net/sockstat").unwrap_or_default()),
        page_bytes: nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |n| n as u64),
        interfaces: interfaces(),
        memlock: limit(Resource::RLIMIT_MEMLOCK).map(|(soft, _)| soft).filter(|soft| *soft != u64::MAX),
        may_lock: capabilities >> CAP_IPC_LOCK & 1 == 1,
        descriptors: limit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard),
        io_uring_refused: crate::sys::probe_ring(8).err().map(|error| error.to_string()),
        huge_pages: line("/sys/kernel/mm/transparent_hugepage/enabled").as_deref().and_then(chosen),
        governors: governors(),
        numa_nodes: line("/sys/devices/system/node/online").map_or(1, |nodes| listed(&nodes).len().max(1) as u32),
        aes: has("aes"),
        hypervisor: has("hypervisor") == Some(true),
        clock: clock(),
        storage: data.map(storage),
        peer: None,
    }
}

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let words = sockstat.lines().find_map(|l| l.strip_prefix("TCP:"))?;
    words.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()
}

fn governors() -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for cpu in fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        if let Some(governor) = line(cpu.path().join("cpufreq/scaling_governor")) {
            *found.entry(governor).or_default() += 1;
        }
    }
    found
}

fn clock() -> Clock {
    let (kept, error_us) = clock_kept().map_or((None, None), |(kept, error)| (Some(kept), Some(error)));
    Clock { source: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"), kept, error_us }
}

/// Interfaces that are up and have a device, or that are neither loopback nor dummies where none has one.
fn interfaces() -> Vec<Interface> {
    let disciplines = netlink::disciplines().unwrap_or_default();
    let mut all: Vec<(bool, Interface)> = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let up = number::<String>(path.join("operstate")).is_some_and(|state| state == "up" || state == "unknown");
        if up && name != "lo" {
            all.push((path.join("device").exists(), interface(&path, name, &disciplines)));
        }
    }
    let real = all.iter().any(|(device, _)| *device);
    let mut found: Vec<Interface> =
        all.into_iter().filter(|(device, _)| *device || !real).map(|(_, interface)| interface).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn interface(path: &Path, name: String, disciplines: &BTreeMap<String, String>) -> Interface {
    let device = fs::canonicalize(path.join("device")).ok();
    // A virtio device lies below its PCI function, which has the interrupts and the node.
    let function = device.as_ref().map(|device| {
        let above = device.parent().filter(|parent| parent.join("msi_irqs").is_dir());
        if device.join("msi_irqs").is_dir() { device.clone() } else { above.unwrap_or(device).to_owned() }
    });
    let driver =
        |device: &PathBuf| Some(fs::canonicalize(device.join("driver")).ok()?.file_name()?.to_str()?.to_owned());
    let offloads = [
        ("tx-checksum", Offload::TxChecksum),
        ("tso", Offload::Tso),
        ("gso", Offload::Gso),
        ("gro", Offload::Gro),
        ("lro", Offload::Lro),
    ];
    let near = function.as_ref().and_then(|f| line(f.join("local_cpulist"))).map(|list| listed(&list));
    Interface {
        driver: device.as_ref().and_then(driver),
        mtu: number(path.join("mtu")).unwrap_or(0),
        speed_mbit: device.as_ref().and_then(|_| speed(path)),
        duplex: line(path.join("duplex")).filter(|duplex| duplex != "unknown"),
        qdisc: disciplines.get(&name).cloned(),
        rings: rings(&name).ok().map(|r| Rings { rx: r.rx, rx_max: r.rx_max, tx: r.tx, tx_max: r.tx_max }),
        offloads: offloads
            .into_iter()
            .filter_map(|(word, which)| Some((word.to_owned(), offload(&name, which).ok()?)))
            .collect(),
        pcie: function.as_ref().and_then(|function| pcie(function)),
        numa_node: function
            .as_ref()
            .and_then(|f| number::<i64>(f.join("numa_node")))
            .and_then(|n| u32::try_from(n).ok()),
        queues: fs::read_dir(path.join("queues"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|queue| queue.file_name().to_string_lossy().starts_with("rx-"))
            .count() as u32,
        interrupts: function.as_ref().map(|function| interrupts(function)).unwrap_or_default(),
        near_cores: near.unwrap_or_default(),
        name,
    }
}

/// In Mbit/s. A device that does not know says -1; what has no device (a tunnel) says anything.
fn speed(path: &Path) -> Option<u32> {
    number::<i64>(path.join("speed")).and_then(|mbit| u32::try_from(mbit).ok()).filter(|mbit| *mbit > 0)
}

fn pcie(function: &Path) -> Option<Pcie> {
    // `16.0 GT/s PCIe`.
    let speed = |name| line(function.join(name))?.split_whitespace().next()?.parse().ok();
    Some(Pcie {
        speed: speed("current_link_speed")?,
        width: number(function.join("current_link_width"))?,
        speed_max: speed("max_link_speed")?,
        width_max: number(function.join("max_link_width"))?,
    })
}

fn interrupts(function: &Path) -> BTreeMap<u32, Vec<u32>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(function.join("msi_irqs")).into_iter().flatten().flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let cores = line(format!("/proc/irq/{number}/effective_affinity_list"));
        let cores = cores.or_else(|| line(format!("/proc/irq/{number}/smp_affinity_list")));
        if let Some(cores) = cores {
            found.insert(number, listed(&cores));
        }
    }
    found
}

/// The storage below a directory.
fn storage(path: &Path) -> Storage {
    let mut storage = Storage { path: path.display().to_string(), ..Storage::default() };
    let Ok(dir) = fs::File::open(path) else {
        storage.kind = "cannot be opened".to_owned();
        return storage;
    };
    if let Ok(kind) = FsKind::of(dir.as_fd()) {
        (storage.kind, storage.volatile, storage.remote) = (kind.to_string(), kind.is_volatile(), kind.is_remote());
    }
    if let Ok(vfs) = nix::sys::statvfs::fstatvfs(&dir) {
        storage.read_only = vfs.flags().contains(FsFlags::ST_RDONLY);
        storage.free_bytes = vfs.blocks_available().saturating_mul(vfs.fragment_size());
        storage.total_bytes = vfs.blocks().saturating_mul(vfs.fragment_size());
        storage.free_inodes = (vfs.files() > 0).then(|| vfs.files_available());
    }
    storage.direct_refused = direct(path);
    if let Ok(stat) = nix::sys::stat::fstat(&dir) {
        let (major, minor) = (nix::sys::stat::major(stat.st_dev), nix::sys::stat::minor(stat.st_dev));
        if let Ok(device) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) {
            // A partition has its queue one level up.
            let whole = if device.join("queue").is_dir() { device.clone() } else { device.join("..") };
            storage.device = device.file_name().map(|name| name.to_string_lossy().into_owned());
            storage.scheduler = line(whole.join("queue/scheduler")).map(|text| chosen(&text).unwrap_or(text));
            storage.rotational = number::<u8>(whole.join("queue/rotational")).map(|turns| turns == 1);
            storage.queue_depth = number(whole.join("queue/nr_requests"));
        }
    }
    storage
}

/// Why O_DIRECT is refused, with a file that never has a name. `Some("")`: it works.
fn direct(dir: &Path) -> Option<String> {
    let open =
        |flags| nix::fcntl::open(dir, OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | flags, Mode::S_IRUSR);
    open(OFlag::empty()).ok()?;
    let file = match open(OFlag::O_DIRECT) {
        Ok(file) => file,
        Err(error) => return Some(error.desc().to_owned()),
    };
    let block = AlignedBuf::new(DIRECT_ALIGN);
    match nix::sys::uio::pwrite(&file, &block, 0) {
        Ok(_) => Some(String::new()),
        Err(error) => Some(error.desc().to_owned()),
    }
}

/// The way to a peer: its agent's HTTP address, and the data port if it is to be tried.
pub fn reach(name: &str, addresses: &[SocketAddr], data_port: Option<u16>) -> Peer {
    let mut peer = Peer { name: name.to_owned(), ..Peer::default() };
    let options = DialOptions { timeout: CONNECT_TIMEOUT, socket: SocketOptions::default() };
    if addresses.is_empty() {
        peer.error = Some("the name has no address".to_owned());
    }
    for address in addresses {
        match measure(*address, &options, &mut peer) {
            Ok(()) => {
                (peer.address, peer.error) = (Some(address.to_string()), None);
                peer.interface = way_to(*address);
                if let Some(port) = data_port {
                    peer.data_error = dial(SocketAddr::new(address.ip(), port), &options).err().map(|e| e.to_string());
                }
                break;
            }
            Err(error) => peer.error = Some(error),
        }
    }
    peer
}

fn measure(address: SocketAddr, options: &DialOptions, peer: &mut Peer) -> Result<(), String> {
    for _ in 0..CONNECTS {
        let began = Instant::now();
        let (socket, _) = dial(address, options).map_err(|error| error.to_string())?;
        let took = began.elapsed().as_micros() as u64;
        let Ok(info) = TcpInfo::of(&socket) else { continue };
        // What the kernel saw of the handshake, or our clock, which includes our own wake-up.
        let rtt = u64::from(info.rtt_us).min(took).max(1);
        peer.rtt_us = Some(peer.rtt_us.map_or(rtt, |least| least.min(rtt)));
        // Timestamps take 12 bytes of each segment.
        let options = if line("/proc/sys/net/ipv4/tcp_timestamps").as_deref() == Some("0") { 0 } else { 12 };
        peer.segment = Some(info.snd_mss + options);
        peer.route_mtu = Some(info.pmtu);
    }
    Ok(())
}

/// The interface that packets to an address leave by: the one with the address that the route chooses.
fn way_to(address: SocketAddr) -> Option<String> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(address).ok()?;
    let own = socket.local_addr().ok()?.ip();
    let has = |interface: &nix::ifaddrs::InterfaceAddress| {
        let address = interface.address.as_ref()?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
        (ip == own).then(|| interface.interface_name.clone())
    };
    nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| has(&interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let facts = gather(Some(dir.path()));
        assert!(!facts.kernel.is_empty() && facts.cores > 0 && facts.page_bytes >= 4096);
        assert!(facts.sysctls.contains_key("net.ipv4.tcp_rmem"), "{:?}", facts.sysctls);
        let storage = facts.storage.unwrap();
        assert!(storage.total_bytes > 0 && !storage.kind.is_empty(), "{storage:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        let text = serde_json::to_string(&gather(None)).unwrap();
        assert_eq!(serde_json::from_str::<Facts>(&text).unwrap().sysctls, facts.sysctls, "a record reads back");
    }

    #[test]
    fn a_peer_is_measured_and_its_absence_said() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let peer = reach("here", &[silent, address], Some(silent.port()));
        assert_eq!(
            (peer.address, peer.interface.as_deref(), peer.error),
            (Some(address.to_string()), Some("lo"), None)
        );
        assert!(peer.rtt_us.unwrap() < 100_000 && peer.segment.unwrap() > 1000 && peer.route_mtu.unwrap() > 1000);
        assert!(peer.data_error.unwrap().contains("refuses connections"));
        let gone = reach("gone", &[silent], None);
        assert!(gone.rtt_us.is_none() && gone.error.unwrap().contains("refuses connections"));
        assert!(reach("nowhere", &[], None).error.is_some());
    }

    #[test]
    fn lists_and_words_of_the_kernel() {
        assert_eq!(listed("0-2,8,x"), [0, 1, 2, 8]);
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(tcp_pages("sockets: used 3\nTCP: inuse 1 orphan 0 tw 9 alloc 1 mem 357\n"), Some(357));
    }
}
