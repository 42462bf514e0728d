//! Which CPUs the engine's threads keep to, as people write it: `0-3,8` as the kernel lists CPUs, or `node:1`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// CPUs that a mask of the C library has bits for, `CPU_SETSIZE`: 0 to 1023.
const CPUS: usize = 1024;
/// NUMA nodes that a kernel can be built for, `MAX_NUMNODES`: 0 to 1023.
const NODES: u32 = 1024;

/// CPUs, named one by one or by their NUMA node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuMap {
    /// These: at least one, ascending, each once, 0 to 1023.
    List(Vec<usize>),
    /// Those of this node, whichever they are on the host, 0 to 1023.
    Node(u32),
}

impl FromStr for CpuMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(number) = text.strip_prefix("node:") {
            let node = number.parse::<u32>().ok().filter(|node| *node < NODES);
            return node
                .map(Self::Node)
                .ok_or_else(|| format!("`{text}`: a NUMA node is node:0 to node:{}", NODES - 1));
        }
        match cpu_list(text) {
            Ok(cpus) if !cpus.is_empty() => Ok(Self::List(cpus)),
            Ok(_) => Err("name at least one CPU: a list as 0-3,8, or node:0".to_owned()),
            Err(why) => Err(why),
        }
    }
}

impl fmt::Display for CpuMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(cpus) => f.write_str(&cpu_ranges(cpus)),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

impl Serialize for CpuMap {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuMap {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads a list as the kernel writes it (`0-3,8`; nothing at all for none): ascending, each once. The error is a sentence.
pub fn cpu_list(text: &str) -> Result<Vec<usize>, String> {
    let number = |word: &str| word.parse::<usize>().ok().filter(|cpu| *cpu < CPUS);
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return Err(format!("`{part}` is no CPU: a list as 0-3,8 of CPUs from 0 to {}, or node:0", CPUS - 1)),
        }
    }
    Ok(cpus.into_iter().collect())
}

/// The same list in the kernel's way. `cpus` ascend.
pub fn cpu_ranges(cpus: &[usize]) -> String {
    let runs = cpus.chunk_by(|a, b| a + 1 == *b);
    let told = runs.map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    told.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_nodes_are_read_and_written_back() {
        for (text, cpus, written) in [
            ("0", &[0][..], "0"),
            ("0-3,8", &[0, 1, 2, 3, 8], "0-3,8"),
            ("8,0-1,1-3", &[0, 1, 2, 3, 8], "0-3,8"),
            ("5-5", &[5], "5"),
            ("1023", &[1023], "1023"),
        ] {
            let map: CpuMap = text.parse().unwrap();
            assert_eq!(map, CpuMap::List(cpus.to_vec()), "{text}");
            assert_eq!(map.to_string(), written);
        }
        let node: CpuMap = "node:1".parse().unwrap();
        assert_eq!((&node, node.to_string().as_str()), (&CpuMap::Node(1), "node:1"));
        // sysfs: a line of its own, and an empty one for a node that is only memory.
        assert_eq!(cpu_list("0-1\n"), Ok(vec![0, 1]));
        assert_eq!((cpu_list("\n"), cpu_ranges(&[])), (Ok(Vec::new()), String::new()));
    }

    #[test]
    fn what_is_no_cpu_is_refused_with_the_word() {
        for text in ["", " ", "a", "0,", "0-", "-1", "3-1", "0-1024", "1024", "0:2", "0 1", "node:", "node:x"] {
            let read: Result<CpuMap, String> = text.parse();
            assert!(read.unwrap_err().contains("node:0"), "{text:?}");
        }
        assert!("node:1024".parse::<CpuMap>().unwrap_err().contains("node:1023"));
        assert!("0-3,x".parse::<CpuMap>().unwrap_err().contains("`x`"));
    }
}
