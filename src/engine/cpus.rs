//! Where an engine's threads run, and which memory its buffers take: on the CPUs that it was told, which are best those of
//! the NUMA node that the network's interface is plugged into.
//!
//! Nothing is trusted but the kernel: a mask is set and read back, since CPUs outside the cgroup's cpuset are left out in
//! silence. What cannot be had whole is not taken in part: the threads stay unbound, and the report says why.

use crate::profile::{CpuMap, cpu_list, cpu_ranges};
use crate::sys::{Arena, bind_ring_threads, bind_thread, thread_cpus};
use std::path::Path;

const CPU_DIR: &str = "/sys/devices/system/cpu";
const NODE_DIR: &str = "/sys/devices/system/node";

/// What came of a map of CPUs. The default is none: threads run where the process may.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// Ascending; empty: unbound.
    cpus: Vec<usize>,
    /// Where the buffers are.
    nodes: Vec<u32>,
    /// What is not as asked, for the report.
    notes: Vec<String>,
}

impl Bound {
    /// Binds the calling thread, and so those that it will start, to the CPUs of a map; where that fails it stays where it
    /// was, with a note. `ring`: also the kernel's threads of its rings.
    pub fn calling_thread(map: Option<&CpuMap>, ring: bool) -> Self {
        let Some(map) = map else { return Self::default() };
        match bind(map) {
            Ok(cpus) => {
                let mut bound = Self { nodes: nodes_of(&cpus), cpus, notes: Vec::new() };
                bound.notes.extend(
                    ring.then(bind_ring_threads)
                        .and_then(Result::err)
                        .map(|error| format!("cpus {map}: the kernel's own I/O threads are not bound: {error}")),
                );
                bound
            }
            Err(why) => Self {
                notes: vec![format!("cpus {map}: {why}; the engine's threads are not bound")],
                ..Self::default()
            },
        }
    }

    /// Whether there is a set of CPUs that threads keep to.
    pub fn is_bound(&self) -> bool {
        !self.cpus.is_empty()
    }

    /// Has the buffers, still untouched, lie on the CPUs' NUMA nodes.
    pub fn place(&mut self, arena: &Arena) {
        if let Some(error) = (!self.nodes.is_empty()).then(|| arena.prefer_nodes(&self.nodes)).and_then(Result::err) {
            self.notes.push(format!("buffers are not bound to NUMA node {}: {error}", joined(&self.nodes)));
            self.nodes.clear();
        }
    }

    /// Binds the calling thread, the worker of that number of `count`: to one CPU where there is one for each, in turn.
    /// Otherwise it stays on all of them. After its queue is open: the queue's own threads keep to all of them.
    pub fn worker(&self, number: usize, count: usize) {
        if self.cpus.len() < count || self.cpus.is_empty() {
            return;
        }
        if let Err(error) = bind_thread(&self.cpus[number..=number]) {
            tracing::warn!(%error, cpu = self.cpus[number], "worker {number} stays on all CPUs of its set");
        }
    }

    /// In a line, for reports; empty when nothing is bound.
    pub fn describe(&self, workers: usize) -> String {
        let share = match (self.cpus.len(), workers) {
            (0, _) => return String::new(),
            (1, 1) => "one worker".to_owned(),
            (cpus, workers) if cpus >= workers => format!("one for each of {workers} workers"),
            (_, workers) => format!("shared by {workers} workers"),
        };
        let nodes = match self.nodes.as_slice() {
            [] => String::new(),
            nodes => format!("; buffers on NUMA node {}", joined(nodes)),
        };
        format!("{}: {share}{nodes}", cpu_ranges(&self.cpus))
    }

    /// What is not as asked.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Whether this process may run on all CPUs of a map, tried in a thread of its own.
///
/// # Errors
/// A sentence that says which not, and why.
pub fn check(map: &CpuMap) -> Result<(), String> {
    std::thread::scope(|scope| scope.spawn(|| bind(map).map(drop)).join()).expect("nothing in it panics")
}

/// Binds the calling thread to all CPUs of a map, or leaves it where it was.
fn bind(map: &CpuMap) -> Result<Vec<usize>, String> {
    let cpus = named(map)?;
    let denied = |error: std::io::Error| format!("threads cannot be bound: {error}");
    let before = thread_cpus().map_err(denied)?;
    match bind_thread(&cpus) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return Err(refused(&cpus)),
        Err(error) => return Err(denied(error)),
    }
    let now = thread_cpus().map_err(denied)?;
    let missing: Vec<usize> = cpus.iter().copied().filter(|cpu| !now.contains(cpu)).collect();
    if missing.is_empty() {
        return Ok(cpus);
    }
    bind_thread(&before).map_err(denied)?;
    Err(refused(&missing))
}

fn named(map: &CpuMap) -> Result<Vec<usize>, String> {
    let node = match map {
        CpuMap::List(cpus) => return Ok(cpus.clone()),
        CpuMap::Node(node) => node,
    };
    match listed(&format!("{NODE_DIR}/node{node}/cpulist")) {
        Some(cpus) if !cpus.is_empty() => Ok(cpus),
        Some(_) => Err(format!("NUMA node {node} has memory and no CPU")),
        None => {
            let online = std::fs::read_to_string(format!("{NODE_DIR}/online"));
            let there = online.map_or_else(|_| "none".to_owned(), |text| text.trim().to_owned());
            Err(format!("there is no NUMA node {node} here; there is {there}"))
        }
    }
}

fn listed(path: &str) -> Option<Vec<usize>> {
    cpu_list(&std::fs::read_to_string(path).ok()?).ok()
}

/// Why these CPUs are not to be had.
fn refused(cpus: &[usize]) -> String {
    let of = |name: &str| listed(&format!("{CPU_DIR}/{name}"));
    why_refused(cpus, of("present").as_deref(), of("online").as_deref())
}

/// The same, by what the kernel lists as `present` and `online`, where it says so.
fn why_refused(cpus: &[usize], present: Option<&[usize]>, online: Option<&[usize]>) -> String {
    let within = |list: Option<&[usize]>, cpu: &usize| list.is_none_or(|list| list.contains(cpu));
    let (here, absent): (Vec<usize>, Vec<usize>) = cpus.iter().partition(|cpu| within(present, cpu));
    let (running, offline): (Vec<usize>, Vec<usize>) = here.iter().partition(|cpu| within(online, cpu));
    let many = |cpus: &[usize], one: &'static str, more: &'static str| if cpus.len() == 1 { one } else { more };
    let told = |cpus: &[usize]| format!("{} {}", many(cpus, "CPU", "CPUs"), cpu_ranges(cpus));
    let mut why = Vec::new();
    if !absent.is_empty() {
        why.push(format!("{} {} not exist here", told(&absent), many(&absent, "does", "do")));
    }
    if !offline.is_empty() {
        why.push(format!("{} {} offline", told(&offline), many(&offline, "is", "are")));
    }
    if !running.is_empty() {
        why.push(format!("this process may not use {} (the cpuset of its cgroup)", told(&running)));
    }
    why.join(", ")
}

/// The NUMA nodes that CPUs belong to, ascending; none where the kernel does not say.
fn nodes_of(cpus: &[usize]) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(Path::new(NODE_DIR)) else { return Vec::new() };
    let number = |name: &str| name.strip_prefix("node")?.parse::<u32>().ok();
    let mut nodes: Vec<u32> = entries.filter_map(|e| number(e.ok()?.file_name().to_str()?)).collect();
    nodes.retain(|node| {
        listed(&format!("{NODE_DIR}/node{node}/cpulist")).is_some_and(|own| own.iter().any(|cpu| cpus.contains(cpu)))
    });
    nodes.sort_unstable();
    nodes
}

fn joined(nodes: &[u32]) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart<T: Send>(body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(body).join().unwrap())
    }

    #[test]
    fn a_map_is_bound_whole_or_not_at_all() {
        let all = thread_cpus().unwrap();
        let first = all[0];
        let (bound, on) = apart(|| {
            let bound = Bound::calling_thread(Some(&CpuMap::List(vec![first])), false);
            (bound, thread_cpus().unwrap())
        });
        assert_eq!((on, bound.notes().len()), (vec![first], 0));
        assert!(bound.describe(1).starts_with(&format!("{first}: one worker")), "{}", bound.describe(1));
        assert!(bound.describe(2).starts_with(&format!("{first}: shared by 2 workers")), "{}", bound.describe(2));
        for map in [CpuMap::List(vec![first, 1023]), CpuMap::List(vec![1023]), CpuMap::Node(1023)] {
            let why = check(&map).unwrap_err();
            assert!(why.contains("1023"), "{why}");
            let (bound, on) = apart(|| (Bound::calling_thread(Some(&map), false), thread_cpus().unwrap()));
            assert_eq!((on, bound.describe(1)), (all.clone(), String::new()), "{map}");
            assert!(bound.notes()[0].contains(&why) && bound.notes()[0].contains("not bound"), "{:?}", bound.notes());
        }
        assert_eq!(check(&CpuMap::List(all.clone())), Ok(()));
        assert_eq!(thread_cpus().unwrap(), all, "what is checked leaves no trace");
    }

    #[test]
    fn each_worker_has_a_cpu_where_there_are_enough() {
        let all = thread_cpus().unwrap();
        let bound = Bound { cpus: all.clone(), ..Bound::default() };
        let at = |number: usize, count: usize| {
            apart(|| {
                bound.worker(number, count);
                thread_cpus().unwrap()
            })
        };
        for number in 0..all.len() {
            assert_eq!(at(number, all.len()), [all[number]]);
        }
        assert_eq!(at(all.len(), all.len() + 1), all, "one worker more than CPUs: all of them on all");
        assert_eq!(apart(|| (Bound::default().worker(3, 4), thread_cpus().unwrap()).1), all);
    }

    #[test]
    fn a_refusal_says_which_cpu_and_why() {
        let why = why_refused(&[1, 2, 3, 8, 9], Some(&[0, 1, 2, 3]), Some(&[0, 1, 2]));
        let want = "CPUs 8-9 do not exist here, CPU 3 is offline, this process may not use CPUs 1-2 (the cpuset of its cgroup)";
        assert_eq!(why, want);
        assert_eq!(why_refused(&[1], None, None), "this process may not use CPU 1 (the cpuset of its cgroup)");
    }

    #[test]
    fn a_cpu_has_its_node_where_the_kernel_says_so() {
        let Some(cpus) = listed(&format!("{NODE_DIR}/node0/cpulist")).filter(|cpus| !cpus.is_empty()) else {
            return eprintln!("skipped: no NUMA node 0 with CPUs");
        };
        assert_eq!(nodes_of(&cpus[..1]), [0]);
        assert_eq!(named(&CpuMap::Node(0)), Ok(cpus));
        assert_eq!(nodes_of(&[]), [0u32; 0]);
    }
}
