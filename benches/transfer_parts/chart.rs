//! What a run leaves behind: a table, the lines, a bar chart.

use super::{Candidate, Outcome, Work, host_line};
use std::fmt::Write as _;
use std::path::Path;

/// Median, least and greatest.
pub fn spread(results: &[Outcome], of: impl Fn(&Outcome) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = results.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

/// Median over the rounds of this one's speed by the other's, in the same round.
pub fn ratio(one: &[Outcome], other: &[Outcome]) -> f64 {
    let mut ratios: Vec<f64> = one.iter().zip(other).map(|(one, other)| other.wall / one.wall).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A Markdown table of medians.
pub fn table(work: Work, all: &[Box<dyn Candidate>], results: &[Vec<Outcome>]) -> String {
    let mut text = format!("\n{}, medians of {} rounds (least to greatest):\n\n", work.name(), results[0].len());
    text += "| | wall s | Gbit/s | files/s | CPU-s/GiB | us CPU/file | verified | durable | encrypted |\n";
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for (candidate, results) in all.iter().zip(results) {
        let Some(one) = results.first() else { continue };
        let (wall, least, most) = spread(results, |o| o.wall);
        let (cost, ..) = spread(results, Outcome::cost);
        let traits = candidate.traits();
        let _ = writeln!(
            text,
            "| {} | {wall:.3} ({least:.3} to {most:.3}) | {:.1} | {:.0} | {cost:.2} | {:.1} | {} | {} | {} |",
            candidate.name(),
            one.bytes as f64 * 8e-9 / wall,
            one.files as f64 / wall,
            cost * 1e6 * one.bytes as f64 / (1u64 << 30) as f64 / one.files as f64,
            traits.verify,
            traits.durable,
            if traits.encrypted { "yes" } else { "no" },
        );
    }
    let ours = |name: &str| name.starts_with("longhaul");
    let named = |name: &str| all.iter().position(|c| c.name() == name).map(|at| &results[at]);
    for (mine, yardstick) in
        [("longhaul-plain", "pair"), ("longhaul", "pair-sealed"), ("longhaul-plain", "pair-direct")]
            .into_iter()
            .chain([("longhaul-plain", "pair-warm"), ("longhaul", "pair-sealed-warm")])
            .chain([("longhaul-plain", "pair-direct-1"), ("longhaul", "pair-direct-1")])
            .chain([
                ("longhaul", "pair-direct"),
                ("longhaul-plain", "iperf3-P2-cubic"),
                ("longhaul", "iperf3-P2-cubic"),
            ])
            .chain([("longhaul-plain", "bare-loop"), ("longhaul", "bare-loop")])
            .chain([("longhaul-plain-epoll", "longhaul-plain"), ("longhaul-epoll", "longhaul")])
            .chain([("longhaul-plain-disk", "longhaul-plain"), ("longhaul-disk", "longhaul")])
    {
        if let (Some(one), Some(other)) = (named(mine), named(yardstick)) {
            let _ = writeln!(text, "\n{mine} by {yardstick}: {:.2}", ratio(one, other));
        }
    }
    for (candidate, mine) in all.iter().zip(results) {
        if let Some((beside, theirs)) = candidate.beside().and_then(|name| Some((name, named(name)?))) {
            let _ = writeln!(text, "\n{} by {beside}: {:.2}", candidate.name(), ratio(mine, theirs));
        }
        let more: Vec<String> = mine.iter().filter(|o| !o.more.is_null()).map(|o| o.more.to_string()).collect();
        if !more.is_empty() {
            let _ = writeln!(text, "\n{}, round by round: `{}`", candidate.name(), more.join(" "));
        }
    }
    text += &memory(all, results);
    // The fastest copier over the network that is not ours, nor a yardstick.
    let others = all.iter().zip(results).filter(|(c, r)| {
        let name = c.name();
        let yardstick = name.starts_with("pair") || name == "bare-loop" || name == "cp";
        c.moves_files() && !ours(name) && !yardstick && !r.is_empty()
    });
    let fastest = others.min_by(|(_, a), (_, b)| spread(a, |o| o.wall).0.total_cmp(&spread(b, |o| o.wall).0));
    if let Some((other, theirs)) = fastest {
        for (candidate, mine) in all.iter().zip(results).filter(|(c, _)| ours(c.name())) {
            let _ = writeln!(
                text,
                "\n{} by {}, the fastest other: {:.2}",
                candidate.name(),
                other.name(),
                ratio(mine, theirs)
            );
        }
    }
    text
}

/// What memory those of ours took, beyond the limit that they keep by themselves: medians of peaks, MiB.
fn memory(all: &[Box<dyn Candidate>], results: &[Vec<Outcome>]) -> String {
    let mut text = String::new();
    for (candidate, results) in
        all.iter().zip(results).filter(|(c, r)| c.name().starts_with("longhaul") && !r.is_empty())
    {
        let median = |of: &dyn Fn(&Outcome) -> u64| spread(results, |o| of(o) as f64 / f64::from(1 << 20)).0;
        let _ = writeln!(
            text,
            "\n{}, peaks in MiB: resident {:.0} at the source and {:.0} at the destination, of these in huge pages {:.0} and \
             {:.0}; TCP sockets in the kernel, whole machine {:.1}",
            candidate.name(),
            median(&|o| o.rss_source),
            median(&|o| o.rss_destination),
            median(&|o| o.huge.0.unwrap_or(0)),
            median(&|o| o.huge.1.unwrap_or(0)),
            median(&|o| o.tcp),
        );
    }
    text
}

/// Bars of Gbit/s, or of files a second for small ones: medians, with a line from least to greatest.
fn bars(work: Work, all: &[Box<dyn Candidate>], results: &[Vec<Outcome>]) -> String {
    let by_files = work == Work::Small;
    let speed = |o: &Outcome| if by_files { o.files as f64 / o.wall } else { o.bytes as f64 * 8e-9 / o.wall };
    let unit = if by_files { "files/s" } else { "Gbit/s" };
    let rows: Vec<(&str, (f64, f64, f64))> =
        all.iter().zip(results).filter(|(_, r)| !r.is_empty()).map(|(c, r)| (c.name(), spread(r, speed))).collect();
    let top = rows.iter().map(|(_, (.., most))| *most).fold(f64::MIN_POSITIVE, f64::max);
    let (left, wide, high) = (190.0, 520.0, 22.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <text x=\"8\" y=\"18\">{}: {unit}, median and spread</text>\n",
        left + wide + 120.0,
        rows.len() as f64 * high + 36.0,
        work.name()
    );
    for (at, (name, (median, least, most))) in rows.iter().enumerate() {
        let y = 30.0 + at as f64 * high;
        let x = |value: f64| left + value / top * wide;
        let color = if name.starts_with("longhaul") { "#1f6feb" } else { "#9aa0a6" };
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{:.0}\">{name}</text><rect x=\"{left}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"16\" fill=\"{color}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{m:.0}\" y2=\"{m:.0}\" stroke=\"black\"/><text x=\"{:.1}\" y=\"{:.0}\">{median:.1}</text>",
            y + 13.0,
            x(*median) - left,
            x(*least),
            x(*most),
            x(*most) + 6.0,
            y + 13.0,
            m = y + 8.0,
        );
    }
    svg + "</svg>\n"
}

/// Adds a work's table to `DIR/README.md` and writes its chart beside it.
pub fn write_results(
    dir: &Path,
    name: &str,
    work: Work,
    all: &[Box<dyn Candidate>],
    results: &[Vec<Outcome>],
) -> std::io::Result<()> {
    use std::io::Write as _;
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join(format!("{name}.svg")), bars(work, all, results))?;
    let mut readme = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("README.md"))?;
    // Where the results go is no part of what was measured.
    let mut hidden = 0;
    let command: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| {
            hidden = if arg == "--out" { 2 } else { i32::max(hidden - 1, 0) };
            hidden == 0 && arg != "--bench"
        })
        .collect();
    writeln!(
        readme,
        "\n## {name}\n\n`cargo bench --bench transfer -- {}`\n\nHost: `{}`",
        command.join(" "),
        host_line()
    )?;
    writeln!(readme, "{}\n![{name}]({name}.svg)", table(work, all, results))
}
