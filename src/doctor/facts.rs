//! What was seen of a host. Plain values, so that a record of another host can be judged as well.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A host, and the way to a peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// Cores that this process may use.
    pub cores: u32,
    /// Whether this process is root.
    pub root: bool,
    /// Values below `/proc/sys` by their dotted names. What is missing, this kernel (or namespace) does not have.
    pub sysctls: BTreeMap<String, String>,
    /// Pages that TCP holds now (`/proc/net/sockstat`).
    pub tcp_pages: Option<u64>,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Interfaces that lead to other hosts.
    pub interfaces: Vec<Interface>,
    /// Soft limit of locked memory in bytes; `None` is none.
    pub memlock: Option<u64>,
    /// Whether that limit does not count (CAP_IPC_LOCK).
    pub may_lock: bool,
    /// Hard limit of descriptors.
    pub descriptors: u64,
    /// Why io_uring is refused; `None`: it works.
    pub io_uring_refused: Option<String>,
    /// Of `/sys/kernel/mm/transparent_hugepage/enabled`, the word in brackets.
    pub huge_pages: Option<String>,
    /// Frequency governors and how many cores have each; none in most virtual machines.
    pub governors: BTreeMap<String, u32>,
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Whether the CPU has AES instructions.
    pub aes: Option<bool>,
    /// Whether the CPU can be seen to be virtual.
    pub hypervisor: bool,
    /// The clock.
    pub clock: Clock,
    /// Where the data lies, if that was asked for.
    pub storage: Option<Storage>,
    /// The way to the peer, if one was named.
    pub peer: Option<Peer>,
}

/// The system's clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// What ticks: `tsc`, `kvm-clock`, `hpet`, …
    pub source: Option<String>,
    /// Whether something keeps it (NTP, PTP).
    pub kept: Option<bool>,
    /// Its largest error, µs, as the kernel believes.
    pub error_us: Option<u64>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// As in `ip link`.
    pub name: String,
    /// Of its device; none for what has no device.
    pub driver: Option<String>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Link speed in Mbit/s, where it is known.
    pub speed_mbit: Option<u32>,
    /// `full` or `half`.
    pub duplex: Option<String>,
    /// Root queueing discipline.
    pub qdisc: Option<String>,
    /// Ring sizes.
    pub rings: Option<Rings>,
    /// Offloads that are on or off; what is missing the driver does not say.
    pub offloads: BTreeMap<String, bool>,
    /// PCIe: transfers per second and lane in units of 10^9, and lanes; now and at most.
    pub pcie: Option<Pcie>,
    /// NUMA node of the device.
    pub numa_node: Option<u32>,
    /// Receive queues.
    pub queues: u32,
    /// Interrupts and the cores that take each.
    pub interrupts: BTreeMap<u32, Vec<u32>>,
    /// Cores of the device's node.
    pub near_cores: Vec<u32>,
}

/// Sizes of rings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rings {
    /// In use.
    pub rx: u32,
    /// At most.
    pub rx_max: u32,
    /// In use.
    pub tx: u32,
    /// At most.
    pub tx_max: u32,
}

/// A device's place on the bus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pcie {
    /// GT/s of a lane now.
    pub speed: f64,
    /// Lanes now.
    pub width: u32,
    /// GT/s of a lane that the device can do.
    pub speed_max: f64,
    /// Lanes that the device has.
    pub width_max: u32,
}

/// Where data lies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// The directory that was looked at.
    pub path: String,
    /// Of its file system.
    pub kind: String,
    /// Whether it is gone after a power cut.
    pub volatile: bool,
    /// Whether it is reached over a network.
    pub remote: bool,
    /// Mounted read-only.
    pub read_only: bool,
    /// Free for this user, bytes.
    pub free_bytes: u64,
    /// In all, bytes.
    pub total_bytes: u64,
    /// Free file names; `None` where the file system makes them as needed.
    pub free_inodes: Option<u64>,
    /// Why O_DIRECT is refused; `Some("")`: it works; `None`: it could not be tried.
    pub direct_refused: Option<String>,
    /// The block device, where there is one.
    pub device: Option<String>,
    /// Its scheduler.
    pub scheduler: Option<String>,
    /// Whether it turns.
    pub rotational: Option<bool>,
    /// Requests in its queue at most.
    pub queue_depth: Option<u64>,
}

/// The way to a peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// As it was named.
    pub name: String,
    /// Where it answered.
    pub address: Option<String>,
    /// The interface that packets to it leave by.
    pub interface: Option<String>,
    /// Round trips of a few connects, least, µs.
    pub rtt_us: Option<u64>,
    /// The largest segment that both ends take, bytes, without options.
    pub segment: Option<u32>,
    /// MTU of our route to it.
    pub route_mtu: Option<u32>,
    /// Why it cannot be reached.
    pub error: Option<String>,
    /// Of the data port: why it cannot be reached.
    pub data_error: Option<String>,
}
