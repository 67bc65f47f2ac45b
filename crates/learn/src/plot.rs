//! The loss over the steps as a small SVG.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 36.0;
const EDGE: f64 = 12.0;

/// A line for the training loss (smoothed over `smooth` points) and dots for held-out figures, both
/// in nats a token over steps.
pub fn losses(
    title: &str,
    training: &[(u64, f64)],
    held_out: &[(u64, f64)],
    smooth: usize,
) -> String {
    let mut soft = Vec::new();
    let mut mean = None;
    for &(step, loss) in training {
        let share = 1.0 / smooth.max(1) as f64;
        let next = mean.map_or(loss, |m: f64| m + (loss - m) * share);
        mean = Some(next);
        soft.push((step, next));
    }
    let all = || soft.iter().chain(held_out);
    let steps = all().map(|p| p.0).max().unwrap_or(1).max(1) as f64;
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min).min(1e9).floor();
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max).max(low + 1.0).ceil();
    let x = |step: f64| LEFT + step / steps * (WIDTH - LEFT - EDGE);
    let y = |loss: f64| EDGE + (high - loss) / (high - low) * (HEIGHT - EDGE - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><title>{title}</title>"
    );
    let mut level = low;
    while level <= high {
        let at = y(level);
        let _ = write!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{level}</text>",
            WIDTH - EDGE,
            LEFT - 6.0,
            at + 4.0
        );
        level += 1.0;
    }
    for part in 0..=4 {
        let step = steps * f64::from(part) / 4.0;
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step:.0}</text>",
            x(step),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let line: Vec<String> =
        soft.iter().map(|&(s, l)| format!("{:.1} {:.1}", x(s as f64), y(l))).collect();
    if !line.is_empty() {
        let _ = write!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"#36c\"/>", line.join("L"));
    }
    for &(step, loss) in held_out {
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#c33\"/>",
            x(step as f64),
            y(loss)
        );
    }
    let _ = write!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\">nats a token over steps: line, training; dots, held out</text></svg>",
        HEIGHT - 4.0
    );
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn points_lie_where_they_should() {
        let svg = super::losses("t", &[(0, 8.0), (100, 4.0)], &[(100, 4.0)], 1);
        // The top left and the bottom right corner of the plot.
        assert!(
            svg.contains("M56.0 12.0L628.0 284.0") && svg.contains("cx=\"628.0\" cy=\"284.0\""),
            "{svg}"
        );
        assert!(super::losses("t", &[], &[], 1).ends_with("</svg>"));
    }
}
