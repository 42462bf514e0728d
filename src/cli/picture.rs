//! Rates over time as a picture: bars and sparks for a terminal, lines for a file.

use crate::units::BitRate;
use std::fmt::Write as _;

/// Width of the longest bar, characters.
const BAR: usize = 24;
/// Sparks of one line, at most.
const SPARKS: usize = 40;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The picture, and what lies around its plot.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 80.0;
const TOP: f64 = 50.0;
const RIGHT: f64 = 240.0;
const BOTTOM: f64 = 50.0;
/// Names that fit beside the plot; of more lines only the first are named.
const NAMES: usize = 22;
/// Colours that also people who see few of them can tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"];

/// What came by when: µs since the start, bytes since the sample before.
pub type Samples = [(u64, u64)];

/// One line of a picture.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// Its name, as it stands beside the plot.
    pub label: String,
    /// Its points.
    pub samples: &'a Samples,
    /// Drawn thick and marked with a star.
    pub chosen: bool,
}

/// Seconds since the start and the rate up to there in bits per second, for each sample.
fn rates(samples: &Samples) -> impl Iterator<Item = (f64, f64)> {
    let mut before = 0;
    samples.iter().map(move |(at, bytes)| {
        let took = at.saturating_sub(std::mem::replace(&mut before, *at)).max(1);
        (*at as f64 / 1e6, *bytes as f64 * 8e6 / took as f64)
    })
}

/// A rate over time, in characters; `top` is the rate of the highest, bits per second.
pub fn sparks(samples: &Samples, top: f64) -> String {
    let rates: Vec<f64> = rates(samples).map(|(_, rate)| rate).collect();
    let group = rates.len().div_ceil(SPARKS).max(1);
    let level = |rate: f64| LEVELS[((rate / top.max(1.0) * 8.0) as usize).min(7)];
    rates.chunks(group).map(|some| level(some.iter().sum::<f64>() / some.len() as f64)).collect()
}

/// A bar of always the same width, filled by the share of `rate` in `top`.
pub fn bar(rate: u64, top: u64) -> String {
    let filled = ((rate as f64 / top.max(1) as f64 * BAR as f64).round() as usize).min(BAR);
    "█".repeat(filled) + &" ".repeat(BAR - filled)
}

/// A rate that is round and not below the highest.
fn round_up(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.max(1.0).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * unit).find(|round| *round >= rate).unwrap_or(rate)
}

/// Rates over time, as SVG.
pub fn svg(lines: &[Line<'_>], title: &str) -> String {
    let highest = lines.iter().flat_map(|line| rates(line.samples)).map(|(_, rate)| rate).fold(0.0, f64::max);
    let longest = lines.iter().filter_map(|line| line.samples.last()).map(|(at, _)| *at).max().unwrap_or(0);
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
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut points = format!("{:.1},{:.1}", x(0.0), y(0.0));
        for (time, rate) in rates(line.samples) {
            let _ = write!(points, " {:.1},{:.1}", x(time), y(rate));
        }
        let width = if line.chosen { 3 } else { 1 };
        let _ =
            writeln!(out, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>");
        let text = match number {
            0..NAMES => format!("{}{}", line.label, if line.chosen { " *" } else { "" }),
            NAMES => format!("and {} more", lines.len() - NAMES),
            _ => continue,
        };
        let at = TOP + 18.0 * number as f64;
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

    fn ramp(factor: u64) -> Vec<(u64, u64)> {
        (1..=30).map(|n: u64| (n * 100_000, 1_000_000 * factor * n.min(10))).collect()
    }

    #[test]
    fn the_picture_has_a_line_for_each_inside_its_frame() {
        let (one, two) = (ramp(1), ramp(2));
        let line = |label: &str, samples, chosen| Line { label: label.to_owned(), samples, chosen };
        let picture = svg(&[line("<one>", &one, false), line("two", &two, true)], "a < b & c");
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert!(picture.contains("a &lt; b &amp; c") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(picture.contains(">&lt;one&gt;<") && picture.contains(">two *<"), "{picture}");
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

    #[test]
    fn of_many_lines_the_first_are_named() {
        let samples = ramp(1);
        let lines: Vec<Line<'_>> =
            (0..NAMES + 3).map(|n| Line { label: format!("l{n}"), samples: &samples, chosen: false }).collect();
        let picture = svg(&lines, "many");
        assert_eq!(picture.matches("<polyline").count(), NAMES + 3);
        assert!(picture.contains("and 3 more") && !picture.contains(&format!(">l{NAMES}<")), "{picture}");
    }

    #[test]
    fn bars_and_sparks_are_shares_of_the_top() {
        assert_eq!(bar(50, 100).matches('█').count(), 12);
        assert_eq!((bar(500, 100).chars().count(), bar(0, 0).trim()), (BAR, ""));
        let sparks = sparks(&ramp(1), 80e6 * 10.0);
        assert!(sparks.starts_with('▁') && sparks.ends_with('█') && sparks.chars().count() == 30, "{sparks}");
    }
}
