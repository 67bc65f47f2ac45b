//! The report's plots as SVG: small enough by hand, coloured by the page's style.

use std::fmt::Write;

use crate::report::escape;
use crate::statistics::Interval;
use crate::verdict::figure;

/// Width of a plot in its own units: a phone's.
const WIDTH: f64 = 340.0;

/// Space for labels.
const LEFT: f64 = 104.0;
const RIGHT: f64 = 12.0;

/// How an arm is drawn; shape and colour tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The method: a disc.
    Main,
    /// The method with its state kept: a ring.
    Hot,
    /// The baseline: a square.
    Rival,
    /// The control: a cross.
    Control,
}

impl Mark {
    fn class(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Hot => "hot",
            Self::Rival => "rival",
            Self::Control => "control",
        }
    }
}

/// A mark at a point.
pub fn mark(kind: Mark, x: f64, y: f64) -> String {
    let class = kind.class();
    match kind {
        Mark::Main => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"),
        Mark::Hot => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"),
        Mark::Rival => {
            let (x, y) = (x - 3.0, y - 3.0);
            format!("<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"6\" height=\"6\"/>")
        }
        Mark::Control => {
            let (a, b, c, d) = (x - 3.5, y - 3.5, x + 3.5, y + 3.5);
            format!(
                "<path class=\"{class}\" d=\"M{a:.1} {b:.1}L{c:.1} {d:.1}M{a:.1} {d:.1}L{c:.1} {b:.1}\"/>"
            )
        }
    }
}

/// About five round numbers from 0 to `most`.
fn ticks(most: f64) -> Vec<f64> {
    let raw = most.max(1e-9) / 4.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= raw);
    let step = step.unwrap_or(raw);
    (0..=(most / step + 1e-9).floor() as usize).map(|i| i as f64 * step).collect()
}

/// A tick's number without needless zeros.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn begin(height: f64, label: &str) -> String {
    let label = escape(label);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{label}\">\
         <title>{label}</title>\n"
    )
}

/// Marks on one line a row, with the intervals of the method and a line at the claim.
pub fn speeds(rows: &[(String, Vec<(Mark, Interval)>)], claim: Option<f64>) -> String {
    let all = rows.iter().flat_map(|(_, m)| m);
    let top = all.map(|(k, i)| if *k == Mark::Main { i.high } else { i.median });
    let most = top.chain(claim).filter(|v| v.is_finite()).fold(1.2, f64::max) * 1.05;
    let x = |v: f64| LEFT + (WIDTH - LEFT - RIGHT) * v.clamp(0.0, most) / most;
    let (head, step) = (18.0, 24.0);
    let foot = head + step * rows.len() as f64;
    let mut svg = begin(foot + 22.0, "speed over the plain run by category");
    for tick in ticks(most) {
        let x = x(tick);
        let _ = writeln!(
            svg,
            "<path class=\"axis\" d=\"M{x:.1} {head}V{foot:.1}\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}x</text>",
            foot + 14.0,
            number(tick)
        );
    }
    let one = x(1.0);
    let _ = writeln!(svg, "<path class=\"one\" d=\"M{one:.1} {head}V{foot:.1}\"/>");
    if let Some(claim) = claim {
        let x = x(claim);
        let anchor = if x > WIDTH - 60.0 { "end" } else { "middle" };
        let _ = writeln!(
            svg,
            "<path class=\"claimed\" d=\"M{x:.1} {head}V{foot:.1}\"/><text class=\"claimed\" \
             x=\"{x:.1}\" y=\"12\" text-anchor=\"{anchor}\">claimed {}x</text>",
            figure(claim)
        );
    }
    for (n, (name, marks)) in rows.iter().enumerate() {
        let y = head + step * (n as f64 + 0.5);
        let short: String = match name.chars().count() {
            0..=17 => name.clone(),
            _ => name.chars().take(16).chain(['…']).collect(),
        };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            escape(&short)
        );
        // The method last, on top.
        let (own, others): (Vec<&(Mark, Interval)>, Vec<_>) =
            marks.iter().partition(|(k, _)| *k == Mark::Main);
        for &(kind, i) in others.into_iter().chain(own) {
            if kind == Mark::Main {
                let (a, b) = (x(i.low), x(i.high));
                let _ = write!(svg, "<path class=\"main bar\" d=\"M{a:.1} {y:.1}H{b:.1}\"/>");
            }
            let _ = writeln!(svg, "{}", mark(kind, x(i.median), y));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lines through points, with axes from 0; `most` fixes the upper end.
pub fn lines(
    lines: &[(Mark, Vec<(f64, f64)>)],
    below: &str,
    beside: &str,
    most: Option<f64>,
) -> String {
    let points = || lines.iter().flat_map(|(_, p)| p);
    let right = points().map(|p| p.0).fold(1.0, f64::max);
    let top = most.unwrap_or_else(|| points().map(|p| p.1).fold(1.0, f64::max) * 1.05);
    let (left, head, foot) = (40.0, 22.0, 150.0);
    let x = |v: f64| left + (WIDTH - left - RIGHT) * v / right;
    let y = |v: f64| foot - (foot - head) * v.clamp(0.0, top) / top;
    let mut svg = begin(foot + 34.0, &format!("{beside} by {below}"));
    let _ = writeln!(svg, "<text x=\"4\" y=\"12\">{}</text>", escape(beside));
    for tick in ticks(top) {
        let y = y(tick);
        let end = WIDTH - RIGHT;
        let _ = writeln!(
            svg,
            "<path class=\"axis\" d=\"M{left} {y:.1}H{end}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 4.0,
            number(tick)
        );
    }
    for tick in ticks(right).into_iter().filter(|t| t.fract() == 0.0 && *t > 0.0) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            foot + 14.0,
            number(tick)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        WIDTH - RIGHT,
        foot + 28.0,
        escape(below)
    );
    for (kind, points) in lines.iter().rev() {
        let path: Vec<String> =
            points.iter().map(|&(a, b)| format!("{:.1} {:.1}", x(a), y(b))).collect();
        let class = kind.class();
        let _ = write!(svg, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
        for &(a, b) in points {
            svg.push_str(&mark(*kind, x(a), y(b)));
        }
        svg.push('\n');
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(2.1), [0.0, 1.0, 2.0]);
        assert_eq!(ticks(100.0), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(0.9), [0.0, 0.5]);
        for most in [0.3, 1.26, 7.0, 48.0, 333.0] {
            let n = ticks(most).len();
            assert!((2..=5).contains(&n), "{most}: {n}");
        }
        assert_eq!([number(0.5), number(10.0), number(1.25)], ["0.5", "10", "1.25"]);
    }

    #[test]
    fn a_point_lies_where_its_value_says() {
        let i = |median: f64| Interval { median, low: median, high: median, count: 2 };
        let rows = [("a<b".to_owned(), vec![(Mark::Rival, i(1.0)), (Mark::Main, i(2.0))])];
        let svg = speeds(&rows, None);
        // 2.0 of 2.1 along the axis from 104 to 328.
        assert!(svg.contains("cx=\"317.3\"") && svg.contains("a&lt;b"), "{svg}");
        let svg = lines(&[(Mark::Main, vec![(1.0, 50.0), (2.0, 100.0)])], "x", "y", Some(100.0));
        assert!(svg.contains("M184.0 86.0L328.0 22.0"), "{svg}");
    }
}
