//! The network by itself: one trial, as `longhaul probe` makes them.

use super::parts::{Cpu, Kind, Part};
use crate::cli::fail::Fail;
use crate::cli::trials::Trials;
use crate::engine::probe::{ProbeSpec, Trial};

/// The part of a trial.
pub fn part(trial: &Trial, cpu: Cpu, how: String) -> Part {
    let congestion = if trial.congestion.is_empty() { String::new() } else { format!(", {}", trial.congestion) };
    let again = match trial.sender.bytes_retransmitted {
        0 => String::new(),
        _ => format!(", {:.3} % sent again", trial.sender.loss() * 100.0),
    };
    Part {
        kind: Kind::Network,
        rate: trial.rate(),
        bytes: trial.samples.iter().map(|(_, bytes)| bytes).sum(),
        duration_ns: trial.samples.last().map_or(0, |(at, _)| at * 1_000),
        cpu,
        peer_cpu_ns: trial.peer_cpu_ns,
        samples: trial.samples.clone(),
        latency: None,
        how: format!("{how}{congestion}{again}"),
        needed: true,
        notes: trial.notes.clone(),
    }
}

/// Runs one trial. `how`: over what, in words.
pub fn measure(trials: &Trials, spec: ProbeSpec, how: String) -> Result<(Part, Trial), Fail> {
    let cpu = Cpu::now();
    let trial = trials.run(spec)?;
    Ok((part(&trial, Cpu::since(cpu), how), trial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_later_parts_and_the_bytes_are_all() {
        let samples = (1..=10).map(|n| (n * 100_000, if n < 4 { 0 } else { 1_000 })).collect();
        let mut trial = Trial { samples, congestion: "bbr".to_owned(), peer_cpu_ns: 7, ..Trial::default() };
        trial.sender.bytes_sent = 8_000;
        trial.sender.bytes_retransmitted = 1_000;
        let part = part(&trial, Cpu::default(), "loopback".to_owned());
        assert_eq!((part.rate, part.bytes, part.duration_ns), (80_000, 7_000, 1_000_000_000));
        assert_eq!(part.how, "loopback, bbr, 12.500 % sent again");
        assert!(part.needed && part.peer_cpu_ns == 7 && part.latency.is_none());
    }
}
