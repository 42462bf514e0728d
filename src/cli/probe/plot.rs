//! The ramp as a picture: bars and sparks for a terminal, lines for a file.

use super::plan::{Setting, Tried, best};
use crate::engine::probe::Trial;
use crate::units::BitRate;
use std::fmt::Write as _;

/// Width of the longest bar, characters.
const BAR: usize = 24;
/// Sparks of one trial, at most.
const SPARKS: usize = 40;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The picture, and what lies around its plot.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 80.0;
const TOP: f64 = 50.0;
const RIGHT: f64 = 200.0;
const BOTTOM: f64 = 50.0;
/// Colours that also people who see few of them can tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"];

/// `cubic x 8`.
pub fn label(setting: &Setting) -> String {
    format!("{} x {}", setting.congestion.as_deref().unwrap_or("default"), setting.streams)
}

/// Seconds since the trial's start and the rate up to there, for each sample.
fn rates(trial: &Trial) -> impl Iterator<Item = (f64, f64)> {
    let mut before = 0;
    trial.samples.iter().map(move |(at, bytes)| {
        let took = at.saturating_sub(std::mem::replace(&mut before, *at)).max(1);
        (*at as f64 / 1e6, *bytes as f64 * 8e6 / took as f64)
    })
}

/// A trial over time, in characters; `top` is the rate of the highest.
fn sparks(trial: &Trial, top: f64) -> String {
    let rates: Vec<f64> = rates(trial).map(|(_, rate)| rate).collect();
    let group = rates.len().div_ceil(SPARKS).max(1);
    let level = |rate: f64| LEVELS[((rate / top.max(1.0) * 8.0) as usize).min(7)];
    rates.chunks(group).map(|some| level(some.iter().sum::<f64>() / some.len() as f64)).collect()
}

/// One trial as a line: setting, bar, rate, what went twice, and how it went over time. `top`: the rate of a full bar.
pub fn line(setting: &Setting, trial: Option<&Trial>, top: u64) -> String {
    let Some(trial) = trial else { return format!("  {:<14} not to be had\n", label(setting)) };
    let rate = trial.rate();
    let filled = ((rate as f64 / top.max(1) as f64 * BAR as f64).round() as usize).min(BAR);
    let bar = "█".repeat(filled) + &" ".repeat(BAR - filled);
    let again = trial.sender.loss() * 100.0;
    format!(
        "  {:<14} {bar} {:>14}  {again:>6.3} % twice  {}\n",
        label(setting),
        BitRate(rate).to_string(),
        sparks(trial, top as f64)
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

/// A rate that is round and not below the highest.
fn round_up(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.max(1.0).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * unit).find(|round| *round >= rate).unwrap_or(rate)
}

/// Rates over time, a line for each trial.
pub fn svg(tried: &[Tried], title: &str) -> String {
    let worked: Vec<(&Setting, &Trial)> = tried.iter().filter_map(|(s, trial)| Some((s, trial.as_ref()?))).collect();
    let highest = worked.iter().flat_map(|(_, trial)| rates(trial)).map(|(_, rate)| rate).fold(0.0, f64::max);
    let longest = worked.iter().filter_map(|(_, trial)| trial.samples.last()).map(|(at, _)| *at).max().unwrap_or(0);
    let (top, seconds) = (round_up(highest), (longest as f64 / 1e6).max(0.1));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = |time: f64| LEFT + time / seconds * (right - LEFT);
    let y = |rate: f64| bottom - rate / top * (bottom - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"16\">{}</text>\n",
        escape(title)
    );
    for step in 0..=4 {
        let rate = top * f64::from(step) / 4.0;
        let (at, text) = (y(rate), BitRate(rate as u64).to_string());
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 6.0,
            at + 4.0
        );
        let time = seconds * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{time:.1} s</text>",
            x(time),
            bottom + 20.0
        );
    }
    let chosen = best(tried).map(|(setting, _)| setting);
    for (number, (setting, trial)) in worked.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut points = format!("{:.1},{:.1}", x(0.0), y(0.0));
        for (time, rate) in rates(trial) {
            let _ = write!(points, " {:.1},{:.1}", x(time), y(rate));
        }
        let is_best = chosen.as_ref() == Some(*setting);
        let width = if is_best { 3 } else { 1 };
        let _ =
            writeln!(out, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>");
        let at = TOP + 18.0 * number as f64;
        let text = format!("{}: {}{}", label(setting), BitRate(trial.rate()), if is_best { " *" } else { "" });
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{}</text>", right + 10.0, escape(&text));
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
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
    fn the_picture_has_a_line_for_each_trial_inside_its_frame() {
        let picture = svg(&tried(), "a < b & c");
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert!(picture.contains("a &lt; b &amp; c") && picture.ends_with("</svg>\n"), "{picture}");
        for points in picture.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert_eq!(points.split(' ').count(), 31);
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y), "{point}");
            }
        }
        assert!(svg(&[], "nothing").contains("</svg>"));
        assert_eq!((round_up(930e6), round_up(1e9), round_up(2.1e9)), (1e9, 1e9, 2.5e9));
    }
}
