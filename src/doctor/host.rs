//! CPU, memory, io_uring, clock and storage.

use super::facts::Storage;
use super::{Facts, Finding, Level, Look, size};

const ESNET: &str = "ESnet fasterdata, host tuning";
const MEASURED: &str = "tuning/README.md, measured";
/// Buffers of a busy agent that may be registered with the kernel.
const MEMLOCK: u64 = 512 << 20;
/// Descriptors of an agent that handles many small files at once.
const DESCRIPTORS: u64 = 65_536;
/// Below this a transfer of any size is in danger of ending for want of space.
const FREE_LEAST: u64 = 10 << 30;
/// The clock's error from which on tickets (60 s) and tokens may be refused, µs.
const CLOCK_ERROR: u64 = 5_000_000;

pub(super) fn check(facts: &Facts, into: &mut Vec<Finding>) {
    cpu(facts, into);
    memory(facts, into);
    ring(facts, into);
    clock(facts, into);
    if let Some(storage) = &facts.storage {
        check_storage(storage, into);
    }
}

fn cpu(facts: &Facts, into: &mut Vec<Finding>) {
    match facts.aes {
        Some(has) => Look::at(into, "CPU AES instructions", if has { "there" } else { "missing" }, "benches/README.md")
            .judge(
                has,
                Level::Wrong,
                "there",
                "encryption costs a core for each Gbit/s without them",
                Some("on a circuit that nobody else reaches: --encrypt off at both ends".to_owned()),
            ),
        None => Look::at(into, "CPU AES instructions", "not told", "benches/README.md").end(
            Level::Unknown,
            "there",
            "encryption costs a core for each Gbit/s without them",
            None,
        ),
    }
    let slow: u32 = facts.governors.iter().filter(|(name, _)| *name != "performance").map(|(_, count)| count).sum();
    if facts.governors.is_empty() {
        let why = if facts.hypervisor { "the host of this virtual machine decides" } else { "the firmware decides" };
        Look::at(into, "CPU governor", "none here", ESNET).end(Level::Unknown, "performance", why, None);
    } else {
        let names =
            facts.governors.iter().map(|(name, count)| format!("{name} on {count}")).collect::<Vec<_>>().join(", ");
        Look::at(into, "CPU governor", names, ESNET).judge(
            slow == 0,
            Level::Advice,
            "performance",
            "cores that change their frequency answer late, and windows suffer",
            Some("cpupower frequency-set -g performance".to_owned()),
        );
    }
}

fn memory(facts: &Facts, into: &mut Vec<Finding>) {
    if let Some(word) = &facts.huge_pages {
        Look::at(into, "transparent huge pages", word, MEASURED).judge(
            word != "never",
            Level::Wrong,
            "madvise or always",
            "one direct I/O of 1 MiB is 256 pieces without: 8-9 against 20-24 Gbit/s of cold reads",
            Some("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".to_owned()),
        );
    }
    let measured = match (facts.may_lock, facts.memlock) {
        (true, _) => "CAP_IPC_LOCK: no limit counts".to_owned(),
        (false, None) => "unlimited".to_owned(),
        (false, Some(bytes)) => size(bytes),
    };
    let good = facts.may_lock || facts.memlock.is_none_or(|bytes| bytes >= MEMLOCK);
    Look::at(into, "RLIMIT_MEMLOCK", measured, MEASURED).judge(
        good,
        Level::Advice,
        format!("{} or CAP_IPC_LOCK", size(MEMLOCK)),
        "buffers that io_uring knows count against it; without it the engine goes on unregistered and says so",
        Some("LimitMEMLOCK=512M in the agent's unit (tuning/host/longhaul-agent.service)".to_owned()),
    );
    Look::at(into, "RLIMIT_NOFILE, hard", facts.descriptors, "src/engine/pool.rs").judge(
        facts.descriptors >= DESCRIPTORS,
        Level::Advice,
        DESCRIPTORS.to_string(),
        "fewer small files are kept open at once",
        Some(format!("LimitNOFILE={DESCRIPTORS} in the agent's unit")),
    );
}

fn ring(facts: &Facts, into: &mut Vec<Finding>) {
    let disabled = facts.sysctls.get("kernel.io_uring_disabled").map_or("0", String::as_str);
    let measured = match &facts.io_uring_refused {
        None => "works".to_owned(),
        Some(why) => format!("refused: {why} (kernel.io_uring_disabled = {disabled})"),
    };
    let command = match disabled {
        "0" => "a container's seccomp filter, most likely: allow io_uring_setup, io_uring_enter, io_uring_register",
        _ => "sysctl -w kernel.io_uring_disabled=0",
    };
    Look::at(into, "io_uring", measured, "benches/README.md").judge(
        facts.io_uring_refused.is_none(),
        Level::Advice,
        "works",
        "epoll and a pool of threads take its place, at a higher cost for direct I/O",
        Some(command.to_owned()),
    );
}

fn clock(facts: &Facts, into: &mut Vec<Finding>) {
    let clock = &facts.clock;
    if let Some(source) = &clock.source {
        let slow = ["hpet", "acpi_pm", "jiffies", "refined-jiffies"].contains(&source.as_str());
        Look::at(into, "clock source", source, "kernel documentation, timekeeping").judge(
            !slow,
            Level::Advice,
            "tsc, kvm-clock or arch_sys_counter",
            "reading it is a call into the kernel or a device: pacing and statistics cost more",
            Some("cat /sys/devices/system/clocksource/clocksource0/available_clocksource".to_owned()),
        );
    }
    match (clock.kept, clock.error_us) {
        (Some(kept), error) => {
            let off = error.unwrap_or(0);
            let measured = if kept { format!("kept, within {} ms", off / 1000) } else { "nobody keeps it".to_owned() };
            Look::at(into, "clock", measured, "adjtimex(2)").judge(
                kept && off < CLOCK_ERROR,
                Level::Advice,
                "kept by NTP or PTP",
                "tickets live 60 s and tokens until a date: hosts that disagree refuse each other",
                Some("systemctl enable --now chronyd   # or systemd-timesyncd".to_owned()),
            );
        }
        (None, _) => Look::at(into, "clock", "not told", "adjtimex(2)").end(
            Level::Unknown,
            "kept by NTP or PTP",
            "the call is refused here",
            None,
        ),
    }
}

fn check_storage(storage: &Storage, into: &mut Vec<Finding>) {
    let path = &storage.path;
    let device = storage.device.as_deref().map(|device| format!(" on {device}")).unwrap_or_default();
    let measured = format!("{}{device}", storage.kind);
    let why = "what lies there is gone after a power cut: reports say so";
    Look::at(into, format!("{path} file system"), measured, "SAFETY.md").judge(
        !storage.volatile,
        Level::Advice,
        "one that outlives a power cut",
        why,
        None,
    );
    if storage.read_only {
        let command = Some(format!("mount -o remount,rw {path}"));
        Look::at(into, format!("{path} mount"), "read-only", "mount(8)").end(
            Level::Wrong,
            "read-write, to be a destination",
            "nothing can arrive there",
            command,
        );
    }
    if storage.total_bytes > 0 {
        let share = storage.free_bytes as f64 / storage.total_bytes as f64;
        let measured = format!("{} of {}", size(storage.free_bytes), size(storage.total_bytes));
        let good = storage.free_bytes >= FREE_LEAST && share >= 0.05;
        let level = if storage.free_bytes < FREE_LEAST { Level::Wrong } else { Level::Advice };
        Look::at(into, format!("{path} free space"), measured, "statvfs(3)").judge(
            good,
            level,
            format!("{} and a twentieth", size(FREE_LEAST)),
            "a full disk ends a transfer; a nearly full one scatters files over it",
            Some(format!("du -xsh {path}/*")),
        );
    }
    if storage.free_inodes.is_some_and(|free| free < 10_000) {
        let free = storage.free_inodes.unwrap_or_default();
        Look::at(into, format!("{path} free file names"), free, "statvfs(3)").end(
            Level::Wrong,
            "10000",
            "no more files can be made there",
            Some(format!("df -i {path}")),
        );
    }
    match storage.direct_refused.as_deref() {
        Some(refused) => {
            Look::at(into, format!("{path} O_DIRECT"), if refused.is_empty() { "works" } else { refused }, MEASURED)
                .judge(
                    refused.is_empty() || storage.volatile,
                    Level::Advice,
                    "works",
                    "large files go through the page cache instead: twice the CPU for each byte",
                    None,
                )
        }
        None => Look::at(into, format!("{path} O_DIRECT"), "could not be tried", MEASURED).end(
            Level::Unknown,
            "works",
            "no nameless file can be made there by this user",
            None,
        ),
    }
    disk(storage, into);
}

fn disk(storage: &Storage, into: &mut Vec<Finding>) {
    let (Some(device), Some(scheduler)) = (&storage.device, &storage.scheduler) else { return };
    let turns = storage.rotational == Some(true);
    // Virtual disks claim to turn whatever they are: what is seen is not to be trusted there.
    let guest = device.starts_with("vd") || device.starts_with("xvd");
    let kind = match (guest, turns) {
        (true, _) => "virtual",
        (false, true) => "turns",
        (false, false) => "flash",
    };
    let good = match scheduler.as_str() {
        "bfq" => false,
        "none" => !turns || guest,
        _ => true,
    };
    let wanted = if turns && !guest { "mq-deadline" } else { "none or mq-deadline" };
    Look::at(
        into,
        format!("{device} scheduler"),
        format!("{scheduler} ({kind})"),
        "kernel documentation, block/switching-sched",
    )
    .judge(
        good,
        Level::Advice,
        wanted,
        "fairness between processes costs throughput when one of them is all there is",
        Some(format!("echo mq-deadline > /sys/block/{device}/queue/scheduler")),
    );
}
