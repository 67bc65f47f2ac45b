//! A record as text for a terminal.

use std::fmt::Write;

use crate::record::{Arm, Part, Record, Row};
use crate::retention::Retention;
use crate::statistics::Interval;
use crate::verdict::figure;

/// Rows counts of the cost curve that are printed.
const CURVE: [usize; 7] = [1, 2, 4, 8, 16, 32, 48];

/// The record, about a screen of it.
pub fn render(record: &Record) -> String {
    let mut text = String::new();
    head(record, &mut text);
    claims(record, &mut text);
    match &record.retention {
        Some(retention) => answers(record, retention, &mut text),
        None => {
            speeds(record, &mut text);
            counts(record, &mut text);
        }
    }
    texts(record, &mut text);
    machine(record, &mut text);
    let _ = writeln!(text, "\nverdict: {}. {}.", record.verdict.word.text(), record.verdict.reason);
    let _ = writeln!(text, "repeat:  {}", record.command);
    text
}

fn head(record: &Record, text: &mut String) {
    let with =
        record.draft_model.as_ref().map_or_else(String::new, |d| format!(" with {}", d.name));
    let _ = writeln!(
        text,
        "{} ({}), {}, on {}{with}",
        record.name, record.slug, record.exactness, record.model.name
    );
    let work = &record.workload;
    let short = match work.prompts < work.planned {
        true => format!(" of {} (time was up)", work.planned),
        false => String::new(),
    };
    let temperature = work.sampling["temperature"].as_f64().unwrap_or_default();
    let chosen = match temperature {
        0.0 => "greedy".to_owned(),
        t => format!("temperature {t}"),
    };
    let _ = writeln!(
        text,
        "{} workload: {} prompts{short}, {} turn{}, up to {} tokens, {chosen}, seed {}",
        work.name,
        work.prompts,
        work.turns,
        if work.turns == 1 { "" } else { "s" },
        work.tokens,
        work.seed
    );
}

fn claims(record: &Record, text: &mut String) {
    let mut grid = Grid::new(&["claim", "claimed", "measured", "control"]);
    for claim in &record.claims {
        let unit = if claim.unit == "x" { "x".to_owned() } else { format!(" {}", claim.unit) };
        grid.row(vec![
            format!("{} ({}; {})", claim.metric, claim.setting, claim.place),
            format!("{}{unit}", figure(claim.claimed)),
            claim.measured.map_or_else(|| "not measured by check".to_owned(), interval),
            claim.control.map_or_else(|| "-".to_owned(), figure),
        ]);
    }
    if record.claims.is_empty() {
        let _ = writeln!(text, "\nno claim is recorded for it: it is compared with its baselines");
    } else {
        let _ = write!(text, "\n{}", grid.text());
    }
}

/// Speeds by category, arms side by side.
fn speeds(record: &Record, text: &mut String) {
    let Some(method) = record.arm(Part::Method) else { return };
    let others: Vec<&Arm> =
        record.arms.iter().filter(|a| !matches!(a.part, Part::Plain | Part::Method)).collect();
    let plain = record.arm(Part::Plain);
    let mut titles = vec!["speed over plain", "plain tok/s", "method"];
    let names: Vec<String> = others.iter().map(|a| named(a)).collect();
    titles.extend(names.iter().map(String::as_str));
    titles.push("predicted");
    let mut grid = Grid::new(&titles);
    for at in 0..=method.categories.len() {
        let row = |arm: &'_ Arm| -> Option<Row> {
            match at < method.categories.len() {
                true => arm.categories.get(at).cloned(),
                false => Some(arm.overall.clone()),
            }
        };
        let Some(own) = row(method) else { continue };
        let speed = |row: Option<Row>| {
            row.and_then(|r| r.speed).map_or_else(|| "-".to_owned(), |i| figure(i.median))
        };
        let mut cells = vec![
            own.category.clone(),
            plain.and_then(row).map_or_else(String::new, |r| format!("{:.1}", r.rate)),
            own.speed.map_or_else(|| "-".to_owned(), interval),
        ];
        cells.extend(others.iter().map(|a| speed(row(a))));
        cells.push(figure(own.predicted));
        grid.row(cells);
    }
    let _ = write!(text, "\n{}", grid.text());
    if let Some(rival) = record.arm(Part::Rival) {
        let _ = writeln!(text, "baseline {}: {}", rival.label, rival.why);
    }
    match record.arm(Part::Control) {
        Some(control) => {
            let _ = writeln!(text, "control {}: {}", control.label, control.why);
        }
        None => {
            let _ = writeln!(text, "control: none, chance cannot do what it does");
        }
    }
}

/// What is still known, by arm and value of the setting.
fn answers(record: &Record, retention: &Retention, text: &mut String) {
    let tasks: Vec<&str> = retention
        .points
        .first()
        .map(|p| p.tasks.iter().map(|t| t.task.as_str()).collect())
        .unwrap_or_default();
    let setting = if retention.setting.is_empty() { "setting" } else { &retention.setting };
    let mut titles = vec!["right answers", setting];
    titles.extend(&tasks);
    titles.extend(["over plain", "over control", "perplexity", "cache kept", "rows read"]);
    titles.extend(["MB", "decoding"]);
    let mut grid = Grid::new(&titles);
    for point in &retention.points {
        let value = match &point.value {
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut cells = vec![point.label.clone(), value];
        cells.extend(point.tasks.iter().map(|t| format!("{}/{}", t.right, t.asked)));
        let points = |i: Option<Interval>| {
            i.map_or_else(
                || "-".to_owned(),
                |i| format!("{:+.0} [{:+.0}, {:+.0}]", i.median, i.low, i.high),
            )
        };
        let all = point.all();
        let plain = point.part == Part::Plain;
        cells.push(points(all.map(|a| a.over_plain).filter(|_| !plain)));
        cells.push(points(all.and_then(|a| a.over_control)));
        cells.push(figure(point.perplexity));
        cells.push(percent(point.kept));
        cells.push(percent(point.read));
        cells.push(format!("{:.1}", point.cache_bytes as f64 / 1e6));
        cells.push(point.speed.map_or_else(|| "-".to_owned(), |i| figure(i.median) + "x"));
        grid.row(cells);
    }
    let _ = writeln!(
        text,
        "\n{} texts of about {} tokens; differences in points of 100, paired by question",
        retention.texts, retention.length
    );
    text.push_str(&grid.text());
    for part in [Part::Rival, Part::Control] {
        if let Some(arm) = record.arm(part) {
            let what = if part == Part::Rival { "baseline" } else { "control" };
            let _ = writeln!(text, "{what} {}: {}", arm.label, arm.why);
        }
    }
    if record.arm(Part::Control).is_none() {
        let _ = writeln!(text, "control: none, it has no budget that chance could spend");
    }
}

fn named(arm: &Arm) -> String {
    match arm.part {
        Part::Hot => "hot".to_owned(),
        Part::Control => format!("control {}", arm.label),
        _ => arm.label.clone(),
    }
}

/// What no machine changes, where masks are filled.
fn canvas_counts(record: &Record, text: &mut String) {
    let mut titles = vec![
        "counts",
        "passes",
        "tokens a pass",
        "rows",
        "rows a token",
        "perplexity",
        "distinct-2",
    ];
    let asked: Vec<&str> = record.arms.first().map_or_else(Vec::new, |arm| {
        arm.categories.iter().filter(|r| r.text.right.is_some()).map(|r| &*r.category).collect()
    });
    titles.extend(&asked);
    let mut grid = Grid::new(&titles);
    let plain = record.arm(Part::Method).map(|a| &a.overall.text);
    for arm in &record.arms {
        let (counts, own) = (&arm.overall.counts, &arm.overall.text);
        let (perplexity, distinct) = match arm.part {
            Part::Plain => {
                (plain.and_then(|t| t.plain_perplexity), plain.and_then(|t| t.plain_distinct))
            }
            _ => (own.perplexity, own.distinct),
        };
        let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
        let mut cells = vec![
            arm.label.clone(),
            counts.all_passes().to_string(),
            figure(counts.per_pass()),
            counts.rows().to_string(),
            figure(counts.rows() as f64 / counts.committed.max(1) as f64),
            show(perplexity),
            show(distinct),
        ];
        cells.extend(asked.iter().map(|&name| {
            let row = arm.categories.iter().find(|r| r.category == name);
            row.and_then(|r| Some(format!("{}/{}", r.text.right?, r.text.texts)))
                .unwrap_or_else(|| "-".to_owned())
        }));
        grid.row(cells);
    }
    let _ = write!(text, "\n{}", grid.text());
    if !asked.is_empty() {
        let _ = writeln!(text, "{}: right answers of those asked", asked.join(", "));
    }
    let judge = record.draft_model.as_ref().map(|d| d.name.as_str());
    let _ = match judge {
        Some(judge) => {
            writeln!(text, "perplexity under {judge}; distinct-2: different pairs of tokens, of 1")
        }
        None => writeln!(
            text,
            "no judge: give a causal model of the same vocabulary with --draft-model"
        ),
    };
}

/// What no machine changes.
fn counts(record: &Record, text: &mut String) {
    if record.is_canvas() {
        return canvas_counts(record, text);
    }
    let mut grid =
        Grid::new(&["counts", "passes", "tokens a pass", "guesses a pass", "accepted", "by depth"]);
    for arm in &record.arms {
        let counts = &arm.overall.counts;
        let depths = counts.offered.iter().zip(&counts.taken).take(6).map(|(&o, &t)| share(t, o));
        let depths: Vec<String> = depths.collect();
        grid.row(vec![
            arm.label.clone(),
            counts.all_passes().to_string(),
            figure(counts.per_pass()),
            figure(counts.guesses_per_pass()),
            counts.acceptance().map_or_else(|| "-".to_owned(), percent),
            if depths.is_empty() { "-".to_owned() } else { depths.join(" ") },
        ]);
    }
    let _ = write!(text, "\n{}", grid.text());
    for arm in &record.arms {
        let counts = &arm.overall.counts;
        if counts.questions + counts.masks > 0 {
            let tokens = counts.drawn.max(1) as f64;
            let _ = writeln!(
                text,
                "{}: {} questions and {} masks a token",
                arm.label,
                figure(counts.questions as f64 / tokens),
                figure(counts.masks as f64 / tokens)
            );
        }
    }
}

fn texts(record: &Record, text: &mut String) {
    let Some(method) = record.arm(Part::Method) else { return };
    let agreement = &method.overall.text;
    if agreement.same == agreement.texts {
        let _ = writeln!(text, "\ntext: the plain run's in all {} answers", agreement.texts);
        return;
    }
    let _ = write!(
        text,
        "\ntext: the plain run's in {} of {} answers; {} of the tokens come before the first \
         difference",
        agreement.same,
        agreement.texts,
        percent(agreement.share)
    );
    if let Some(first) = &agreement.first {
        let token = |t: Option<u32>| t.map_or_else(|| "the end".to_owned(), |t| t.to_string());
        let _ = write!(
            text,
            " (first in {}, token {}: {} instead of {})",
            first.prompt,
            first.at,
            token(first.other),
            token(first.plain)
        );
    }
    let _ = writeln!(text);
    if let (Some(own), Some(plain), false) =
        (agreement.perplexity, agreement.plain_perplexity, record.is_canvas())
    {
        let _ = writeln!(
            text,
            "perplexity under the plain model: {} of its texts, {} of the plain run's",
            figure(own),
            figure(plain)
        );
    }
}

fn machine(record: &Record, text: &mut String) {
    let curve: Vec<String> = CURVE
        .iter()
        .filter(|&&rows| record.curve.points.iter().any(|&(r, _)| r >= rows))
        .map(|&rows| format!("{rows}: {}", figure(record.curve.cost(rows))))
        .collect();
    let _ = writeln!(
        text,
        "\ncost of a pass by rows: {} (1 = {} ms)",
        curve.join("  "),
        figure(record.row_ms)
    );
    let threads = record.model.threads;
    let _ = writeln!(
        text,
        "{}, {threads} thread{}, {}; {}, {}",
        record.machine.line(),
        if threads == 1 { "" } else { "s" },
        record.model.detail,
        record.version,
        record.date
    );
}

fn interval(i: Interval) -> String {
    format!("{} [{}, {}]", figure(i.median), figure(i.low), figure(i.high))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn share(part: usize, of: usize) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.0}%", 100.0 * part as f64 / of as f64) }
}

/// Columns that line up: the first to the left, the others to the right.
pub struct Grid {
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// With these titles.
    pub fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|t| (*t).to_owned()).collect()] }
    }

    /// Adds a line.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// All of it.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = match c {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Divergence;
    use crate::samples;

    #[test]
    fn a_record_fits_a_screen() {
        insta::assert_snapshot!(render(&samples::record()), @r#"
        Wishful <thinking> (wishful), bit-exact, on smollm2
        built-in workload: 12 prompts, 2 turns, up to 128 tokens, greedy, seed 0

        claim                                          claimed           measured  control
        speed-up (toys; Table 1)                         2.00x  1.50 [1.43, 1.57]     0.75
        mean accepted tokens (toys; Table 1)  2.50 tokens/step  2.44 [2.32, 2.56]     1.01

        speed over plain  plain tok/s             method  prompt-lookup   hot  control random-tree  predicted
        chat                     80.0  1.20 [1.14, 1.26]           1.00  1.28                 0.60       1.60
        code-edit               120.0  1.80 [1.71, 1.89]           1.50  1.92                 0.90       2.15
        overall                 100.0  1.50 [1.43, 1.57]           1.25  1.60                 0.75       1.88
        baseline prompt-lookup: for a reason
        control random-tree: for a reason

        counts         passes  tokens a pass  guesses a pass  accepted  by depth
        plain             100           1.00            0.00         -         -
        prompt-lookup     100           1.80            7.00      11 %   40% 26%
        wishful           100           2.44            3.00      48 %   72% 48%
        wishful, hot      100           2.56            3.00      52 %   78% 52%
        random-tree       100           1.01            3.00       0 %     0% 0%

        text: the plain run's in all 6 answers

        cost of a pass by rows: 1: 1.00  2: 1.10  4: 1.30  8: 1.70  16: 2.50 (1 = 10.0 ms)
        Some CPU (avx2), 2 cores, 2 threads, cpu avx2; tessera 0.1.0, 2026-11-27

        verdict: partly. a sentence & a half.
        repeat:  tessera check wishful -m smollm2
        "#);
    }

    #[test]
    fn a_quick_lossy_record_without_claim_and_control_says_so() {
        let mut record = samples::record();
        record.claims.clear();
        record.arms.pop();
        record.workload.prompts = 5;
        record.draft_model = Some(record.model.clone());
        let text = &mut record.arms[2].overall.text;
        text.same = 4;
        text.share = 0.91;
        text.perplexity = Some(3.2);
        text.plain_perplexity = Some(3.1);
        text.first =
            Some(Divergence { prompt: "chat-2".into(), at: 17, plain: Some(5), other: None });
        let text = render(&record);
        for words in [
            "with smollm2",
            "5 prompts of 12 (time was up)",
            "no claim is recorded",
            "control: none",
            "in 4 of 6 answers; 91 % of the tokens",
            "(first in chat-2, token 17: the end instead of 5)",
            "perplexity under the plain model: 3.20 of its texts, 3.10 of the plain run's",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }
}
