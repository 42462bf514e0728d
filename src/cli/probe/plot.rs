//! The ramp as a picture: a line for each trial.

use super::plan::{Setting, Tried, best};
use crate::cli::picture::{self, Line, bar, sparks};
use crate::engine::probe::Trial;
use crate::units::BitRate;

/// `cubic x 8`.
pub fn label(setting: &Setting) -> String {
    format!("{} x {}", setting.congestion.as_deref().unwrap_or("default"), setting.streams)
}

/// One trial as a line: setting, bar, rate, what went twice, and how it went over time. `top`: the rate of a full bar.
pub fn line(setting: &Setting, trial: Option<&Trial>, top: u64) -> String {
    let Some(trial) = trial else { return format!("  {:<14} not to be had\n", label(setting)) };
    let (rate, again) = (trial.rate(), trial.sender.loss() * 100.0);
    format!(
        "  {:<14} {} {:>14}  {again:>6.3} % twice  {}\n",
        label(setting),
        bar(rate, top),
        BitRate(rate).to_string(),
        sparks(&trial.samples, top as f64)
    )
}

/// All trials, the best one marked.
pub fn chart(tried: &[Tried]) -> String {
    let top = tried.iter().filter_map(|(_, trial)| trial.as_ref()).map(Trial::rate).max().unwrap_or(0);
    let chosen = best(tried).map(|(setting, _)| setting);
    let mut out = String::new();
    for (setting, trial) in tried {
        let line = line(setting, trial.as_ref(), top);
        let mark = if chosen.as_ref() == Some(setting) { "*" } else { " " };
        out.push_str(mark);
        out.push_str(&line[1..]);
    }
    out
}

/// Rates over time, a line for each trial.
pub fn svg(tried: &[Tried], title: &str) -> String {
    let chosen = best(tried).map(|(setting, _)| setting);
    let worked = tried.iter().filter_map(|(setting, trial)| Some((setting, trial.as_ref()?)));
    let lines: Vec<Line<'_>> = worked
        .map(|(setting, trial)| Line {
            label: format!("{}: {}", label(setting), BitRate(trial.rate())),
            samples: &trial.samples,
            chosen: chosen.as_ref() == Some(setting),
        })
        .collect();
    picture::svg(&lines, title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried() -> Vec<Tried> {
        let setting = |streams, name: &str| Setting { streams, congestion: Some(name.to_owned()) };
        let ramp = |factor: u64| (1..=30).map(|n: u64| (n * 100_000, 1_000_000 * factor * n.min(10))).collect();
        let fast = Trial { streams: 4, samples: ramp(2), ..Trial::default() };
        let slow = Trial { streams: 1, samples: ramp(1), ..Trial::default() };
        vec![(setting(1, "cubic"), Some(slow)), (setting(4, "cubic"), Some(fast)), (setting(1, "bbr"), None)]
    }

    #[test]
    fn the_chart_marks_the_best_and_says_what_was_not_to_be_had() {
        let chart = chart(&tried());
        let lines: Vec<&str> = chart.lines().collect();
        assert!(lines[0].starts_with("  cubic x 1") && lines[0].contains("800.0 Mbit/s"), "{chart}");
        assert!(lines[1].starts_with("* cubic x 4") && lines[1].contains("1.6 Gbit/s"), "{chart}");
        assert!(lines[2].contains("bbr x 1") && lines[2].contains("not to be had"), "{chart}");
        let bar = |line: &str| line.split("Mbit").next().unwrap().matches('█').count();
        assert_eq!((bar(lines[0]), bar(lines[1].split("Gbit").next().unwrap())), (12, 24));
        assert!(lines[1].contains('▁') && lines[1].trim_end().ends_with('█'), "the ramp: {chart}");
    }

    #[test]
    fn the_picture_has_the_trials_that_worked_and_marks_the_best() {
        let picture = svg(&tried(), "a < b & c");
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert!(picture.contains(">cubic x 4: 1.6 Gbit/s *<") && picture.contains("a &lt; b &amp; c"), "{picture}");
    }
}
