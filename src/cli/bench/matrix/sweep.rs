//! Which settings have their turn when, and what their runs amount to. Pure.

use crate::engine::probe::Trial;
use crate::units::{BitRate, write_size};
use serde_json::{Value, json};
use std::fmt;
use std::fmt::Write as _;

/// A rate within this share of the best one is as good: runs of seconds know no better.
const AS_GOOD: f64 = 0.97;

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Streams.
    pub streams: u16,
    /// Congestion control of the sender.
    pub congestion: String,
    /// Bytes of one write, and of one read.
    pub block: u32,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}, {}", self.congestion, self.streams, write_size(self.block.into()))
    }
}

/// Every setting once, in the order in which they were named; what was named twice counts once.
pub fn cells(streams: &[u16], congestion: &[String], blocks: &[u32]) -> Vec<Cell> {
    let mut all: Vec<Cell> = Vec::new();
    for congestion in congestion {
        for &streams in streams {
            for &block in blocks {
                let cell = Cell { streams, congestion: congestion.clone(), block };
                if !all.contains(&cell) {
                    all.push(cell);
                }
            }
        }
    }
    all
}

/// Round and setting of every turn: each setting once a round, each round beginning one further, so that a path which changes
/// with time changes for all alike.
pub fn order(cells: usize, rounds: u32) -> Vec<(u32, usize)> {
    let turn = |round: u32| (0..cells).map(move |index| (round, (index + round as usize - 1) % cells.max(1)));
    (1..=rounds).flat_map(turn).collect()
}

/// A setting and its runs.
#[derive(Debug, Clone)]
pub struct Row {
    /// The setting.
    pub cell: Cell,
    runs: Vec<Trial>,
    /// Runs in which another congestion control was in force.
    refused: usize,
}

impl Row {
    /// Without runs.
    pub fn new(cell: Cell) -> Self {
        Self { cell, runs: Vec::new(), refused: 0 }
    }

    /// Takes a run. `true`: it does not count, since the sender's kernel did not give what was asked for.
    pub fn add(&mut self, trial: Trial) -> bool {
        let refused = trial.congestion != self.cell.congestion;
        if refused {
            self.refused += 1
        } else {
            self.runs.push(trial)
        }
        refused
    }

    /// Sorted rates, bits per second.
    fn rates(&self) -> Vec<u64> {
        let mut rates: Vec<u64> = self.runs.iter().map(Trial::rate).collect();
        rates.sort_unstable();
        rates
    }

    /// The median rate, bits per second; of an even number of runs the lower of the middle two. 0 without runs.
    pub fn median(&self) -> u64 {
        let rates = self.rates();
        rates.get(rates.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    }

    /// The run of the median rate.
    pub fn median_run(&self) -> Option<&Trial> {
        let median = self.median();
        self.runs.iter().find(|run| run.rate() == median)
    }

    /// The median share of bytes sent again.
    fn again(&self) -> f64 {
        let mut shares: Vec<f64> = self.runs.iter().map(|run| run.sender.loss()).collect();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    }

    /// The median round trip under load, µs.
    fn rtt_us(&self) -> u64 {
        let mut times: Vec<u64> = self.runs.iter().map(|run| run.sender.rtt_us).collect();
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    }

    /// For documents.
    pub fn json(&self) -> Value {
        let rates = self.rates();
        json!({
            "streams": self.cell.streams, "congestion": self.cell.congestion, "block": self.cell.block, "runs": rates.len(),
            "bits_per_second": { "median": self.median(), "least": rates.first(), "most": rates.last() },
            "sent_again": self.again(), "rtt_us": self.rtt_us(), "refused": self.refused,
        })
    }
}

/// The row to use: of those that are as good as the fastest the one with the fewest streams, of equals the first.
pub fn best(rows: &[Row]) -> Option<usize> {
    let worked = || rows.iter().enumerate().filter(|(_, row)| !row.runs.is_empty());
    let fastest = worked().map(|(_, row)| row.median()).max()?;
    let good = worked().filter(|(_, row)| row.median() as f64 >= AS_GOOD * fastest as f64);
    good.min_by_key(|(_, row)| row.cell.streams).map(|(index, _)| index)
}

/// Medians and spread, as a page has them.
pub fn table(rows: &[Row]) -> String {
    let chosen = best(rows);
    let mut out =
        "| | congestion control | streams | block | median | least to most | sent again, % | round trip, ms | runs |\n\
                   |---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (index, row) in rows.iter().enumerate() {
        let mark = if chosen == Some(index) { "best" } else { "" };
        let Cell { streams, congestion, block } = &row.cell;
        let rates = row.rates();
        let block = write_size((*block).into());
        let _ = match (rates.first(), rates.last()) {
            (Some(least), Some(most)) => writeln!(
                out,
                "| {mark} | {congestion} | {streams} | {block} | {} | {} to {} | {:.3} | {:.2} | {} |",
                BitRate(row.median()),
                BitRate(*least),
                BitRate(*most),
                row.again() * 100.0,
                row.rtt_us() as f64 / 1e3,
                rates.len()
            ),
            _ if row.refused > 0 => writeln!(out, "| | {congestion} | {streams} | {block} | not to be had | | | | 0 |"),
            _ => writeln!(out, "| | {congestion} | {streams} | {block} | failed | | | | 0 |"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(streams: u16, congestion: &str, mbit: &[u64]) -> Row {
        let mut row = Row::new(Cell { streams, congestion: congestion.to_owned(), block: 262_144 });
        for rate in mbit {
            let samples = (1..=10).map(|n| (n * 100_000, rate * 12_500)).collect();
            let mut trial = Trial { samples, congestion: congestion.to_owned(), ..Trial::default() };
            (trial.sender.rtt_us, trial.sender.bytes_sent, trial.sender.bytes_retransmitted) = (50_000, 1_000, 10);
            assert!(!row.add(trial));
        }
        row
    }

    #[test]
    fn every_setting_has_its_turn_in_every_round() {
        let names = ["cubic".to_owned(), "bbr".to_owned()];
        let all = cells(&[1, 2, 1], &names, &[65_536, 1 << 20]);
        assert_eq!(all.len(), 8, "what is named twice counts once: {all:?}");
        assert_eq!(all[0].to_string(), "cubic x 1, 64KiB");
        let turns = order(3, 4);
        assert_eq!(turns.len(), 12);
        assert_eq!(turns[..6], [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 0)]);
        for round in 1..=4 {
            let mut of: Vec<usize> = turns.iter().filter(|(r, _)| *r == round).map(|(_, cell)| *cell).collect();
            of.sort_unstable();
            assert_eq!(of, [0, 1, 2]);
        }
        assert_eq!(order(0, 2), []);
    }

    #[test]
    fn medians_and_spread_make_the_table_and_fewer_streams_win_a_tie() {
        let mut refused = row(1, "bbr", &[]);
        assert!(refused.add(Trial { congestion: "cubic".to_owned(), ..Trial::default() }));
        let rows = vec![
            row(1, "cubic", &[500, 300, 400]),
            row(16, "cubic", &[905, 900, 100]),
            row(4, "cubic", &[890]),
            refused,
        ];
        assert_eq!((rows[0].median(), rows[1].median()), (400_000_000, 900_000_000));
        assert_eq!(best(&rows), Some(2), "within three in a hundred of the fastest, with a quarter of its streams");
        let table = table(&rows);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines[0],
            "|  | cubic | 1 | 256KiB | 400.0 Mbit/s | 300.0 Mbit/s to 500.0 Mbit/s | 1.000 | 50.00 | 3 |"
        );
        assert!(lines[2].starts_with("| best | cubic | 4 |") && lines[3].contains("not to be had"), "{table}");
        assert_eq!(table.matches("best").count(), 1);
        assert_eq!(rows[1].median_run().unwrap().rate(), 900_000_000);
        assert_eq!(rows[1].json()["bits_per_second"]["least"], 100_000_000);
        assert_eq!((best(&rows[3..]), rows[3].median()), (None, 0));
    }
}
