//! Records as one self-contained page: no scripts, no other files, readable on a phone, light and
//! dark.

use std::fmt::Write;

use crate::plot::{self, Mark};
use crate::record::{Arm, Part, Record};
use crate::retention::{Point, Retention};
use crate::statistics::Interval;
use crate::verdict::figure;

/// How the page looks: also the style of [`one`].
pub const STYLE: &str = include_str!("report.css");

/// The page for `records`.
pub fn html(records: &[Record]) -> String {
    let mut page = String::new();
    let _ = writeln!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Claimed and measured</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>Claimed and measured</h1>\n\
         <p>What each method's paper claims, what it gains on the machine named below, and what the \
         same budget spent at random gains. Speeds are over the plain run of the same prompt and \
         turn; brackets hold 95 % intervals of the median. Speed does not carry from one machine \
         to another; tokens per pass do.</p>"
    );
    summary(records, &mut page);
    for (n, record) in records.iter().enumerate() {
        section(n, record, &mut page);
    }
    let _ = writeln!(page, "</main>\n</body>\n</html>");
    page
}

/// One record as a section of a page that has [`STYLE`].
pub fn one(record: &Record) -> String {
    let mut text = String::new();
    section(0, record, &mut text);
    text
}

/// Text made safe for element content and attribute values.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

fn interval(i: Option<Interval>) -> String {
    i.map_or_else(
        || "–".to_owned(),
        |i| format!("{} [{}, {}]", figure(i.median), figure(i.low), figure(i.high)),
    )
}

/// A table with a caption; the first column holds row headings.
fn table(caption: &str, titles: &[&str], rows: &[Vec<String>], page: &mut String) {
    let _ =
        write!(page, "<div class=\"wide\"><table>\n<caption>{}</caption>\n<tr>", escape(caption));
    for title in titles {
        let _ = write!(page, "<th scope=\"col\">{}</th>", escape(title));
    }
    page.push_str("</tr>\n");
    for row in rows {
        page.push_str("<tr>");
        for (c, cell) in row.iter().enumerate() {
            let _ = match c {
                0 => write!(page, "<th scope=\"row\">{}</th>", escape(cell)),
                _ => write!(page, "<td>{}</td>", escape(cell)),
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

fn summary(records: &[Record], page: &mut String) {
    let line = |r: &Record| {
        let claimed = r.claims.iter().find(|c| c.unit == "x").map(|c| figure(c.claimed));
        vec![
            r.slug.clone(),
            r.verdict.word.text().to_owned(),
            interval(r.speed()),
            claimed.unwrap_or_else(|| "–".to_owned()),
            r.model.name.clone(),
            r.date.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = records.iter().map(line).collect();
    let titles = ["method", "verdict", "measured (x)", "claimed (x)", "model", "date"];
    table("All records", &titles, &rows, page);
}

fn section(n: usize, record: &Record, page: &mut String) {
    let draft =
        record.draft_model.as_ref().map_or_else(String::new, |d| format!(" with {}", d.name));
    let _ = writeln!(
        page,
        "<section id=\"r{n}\">\n<h2>{} on {}{}</h2>\n<p class=\"verdict\"><strong>{}</strong>: {}.\
         </p>",
        escape(&record.name),
        escape(&record.model.name),
        escape(&draft),
        record.verdict.word.text(),
        escape(&record.verdict.reason),
    );
    claims(record, page);
    match &record.retention {
        Some(retention) => answers(record, retention, page),
        None => {
            speeds(record, page);
            depths(record, page);
        }
    }
    curve(record, page);
    counts(record, page);
    let work = &record.workload;
    let _ = writeln!(
        page,
        "<dl>\n<dt>Promise</dt><dd>{}</dd>\n<dt>Workload</dt><dd>{}, {} of {} prompts, {} turns, \
         up to {} tokens, seed {}</dd>\n<dt>Machine</dt><dd>{}, {} threads, {}</dd>\n\
         <dt>Version, date</dt><dd>{}, {}</dd>\n<dt>Repeat</dt><dd><code>{}</code></dd>\n</dl>\n\
         </section>",
        escape(&record.exactness),
        escape(&work.name),
        work.prompts,
        work.planned,
        work.turns,
        work.tokens,
        work.seed,
        escape(&record.machine.line()),
        record.model.threads,
        escape(&record.model.detail),
        escape(&record.version),
        escape(&record.date),
        escape(&record.command),
    );
}

fn claims(record: &Record, page: &mut String) {
    if record.claims.is_empty() {
        page.push_str("<p>No claim is recorded for this method.</p>\n");
        return;
    }
    let line = |c: &crate::record::ClaimLine| {
        vec![
            format!("{} ({})", c.metric, c.setting),
            format!("{} {}", figure(c.claimed), c.unit),
            interval(c.measured),
            c.control.map_or_else(|| "–".to_owned(), figure),
        ]
    };
    let rows: Vec<Vec<String>> = record.claims.iter().map(line).collect();
    table("Claimed, measured, control", &["claim", "claimed", "measured", "control"], &rows, page);
}

/// Speed by category: the method with its interval, baseline and control as marks, the claim as a
/// line.
fn speeds(record: &Record, page: &mut String) {
    let Some(method) = record.arm(Part::Method) else { return };
    let mut rows = Vec::new();
    for at in 0..=method.categories.len() {
        let row = |arm: &Arm| match at < method.categories.len() {
            true => arm.categories.get(at).cloned(),
            false => Some(arm.overall.clone()),
        };
        let mut marks = Vec::new();
        for arm in &record.arms {
            let kind = match arm.part {
                Part::Plain => continue,
                Part::Method => Mark::Main,
                Part::Hot => Mark::Hot,
                Part::Rival => Mark::Rival,
                Part::Control => Mark::Control,
            };
            marks.extend(row(arm).and_then(|r| r.speed).map(|i| (kind, i)));
        }
        if let Some(row) = row(method) {
            rows.push((row.category, marks));
        }
    }
    let claim = record.claims.iter().find(|c| c.unit == "x").map(|c| c.claimed);
    let mut legend = vec![(Mark::Main, format!("{} (bar: 95 % interval)", record.slug))];
    for (part, kind) in
        [(Part::Hot, Mark::Hot), (Part::Rival, Mark::Rival), (Part::Control, Mark::Control)]
    {
        legend.extend(record.arm(part).map(|a| {
            let what = if part == Part::Control { "control " } else { "" };
            (kind, format!("{what}{}", a.label))
        }));
    }
    figure_of(&plot::speeds(&rows, claim), &legend, "Speed over the plain run, by category", page);
}

/// Right answers by the setting that was varied, and everything about them as a table.
fn answers(record: &Record, retention: &Retention, page: &mut String) {
    let share = |p: &Point| p.all().map(|a| 100.0 * a.right as f64 / a.asked.max(1) as f64);
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    for (part, kind) in
        [(Part::Method, Mark::Main), (Part::Rival, Mark::Rival), (Part::Control, Mark::Control)]
    {
        let mut line: Vec<(f64, f64)> = retention
            .points
            .iter()
            .filter(|p| p.part == part)
            .filter_map(|p| Some((p.value.as_f64()?, share(p)?)))
            .collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let Some(arm) = record.arm(part).filter(|_| line.len() > 1) {
            lines.push((kind, line));
            legend.push((kind, arm.label.clone()));
        }
    }
    if !lines.is_empty() {
        let svg = plot::lines(&lines, &retention.setting, "% right", Some(100.0));
        let plain = retention.points.first().and_then(share).unwrap_or_default();
        let caption = format!(
            "Right answers by {}, texts of about {} tokens; the plain run has {plain:.0} %",
            retention.setting, retention.length
        );
        figure_of(&svg, &legend, &caption, page);
    }
    let setting = if retention.setting.is_empty() { "setting" } else { &retention.setting };
    let mut titles = vec!["arm", setting];
    if let Some(first) = retention.points.first() {
        titles.extend(first.tasks.iter().map(|t| t.task.as_str()));
    }
    titles.extend(["over plain (points)", "perplexity", "cache kept", "rows read"]);
    titles.extend(["MB", "decoding (x)"]);
    let line = |p: &Point| {
        let mut cells = vec![p.label.clone()];
        cells.push(if p.value.is_null() { "–".to_owned() } else { p.value.to_string() });
        cells.extend(p.tasks.iter().map(|t| format!("{}/{}", t.right, t.asked)));
        cells.push(interval(p.all().map(|a| a.over_plain)));
        cells.push(figure(p.perplexity));
        cells.push(format!("{:.0} %", 100.0 * p.kept));
        cells.push(format!("{:.0} %", 100.0 * p.read));
        cells.push(format!("{:.1}", p.cache_bytes as f64 / 1e6));
        cells.push(interval(p.speed));
        cells
    };
    let rows: Vec<Vec<String>> = retention.points.iter().map(line).collect();
    table("What is still known", &titles, &rows, page);
}

fn depths(record: &Record, page: &mut String) {
    let line = |arm: &Arm| -> Vec<(f64, f64)> {
        let counts = &arm.overall.counts;
        let pairs = counts.offered.iter().zip(&counts.taken).take(16).enumerate();
        pairs
            .filter(|(_, (offered, _))| **offered > 0)
            .map(|(d, (&o, &t))| ((d + 1) as f64, 100.0 * t as f64 / o as f64))
            .collect()
    };
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    for (part, kind) in
        [(Part::Method, Mark::Main), (Part::Rival, Mark::Rival), (Part::Control, Mark::Control)]
    {
        if let Some(arm) = record.arm(part)
            && !line(arm).is_empty()
        {
            lines.push((kind, line(arm)));
            legend.push((kind, arm.label.clone()));
        }
    }
    if !lines.is_empty() {
        let svg = plot::lines(&lines, "depth of the guess", "% accepted", Some(100.0));
        figure_of(
            &svg,
            &legend,
            "Guesses accepted, by depth, of the passes that guessed so deep",
            page,
        );
    }
}

fn curve(record: &Record, page: &mut String) {
    let points: Vec<(f64, f64)> = record.curve.points.iter().map(|&(r, c)| (r as f64, c)).collect();
    let svg = plot::lines(&[(Mark::Main, points)], "rows of a pass", "cost (1 row = 1)", None);
    let caption =
        format!("Cost of a pass by its rows on this machine (1 row: {} ms)", figure(record.row_ms));
    figure_of(&svg, &[], &caption, page);
}

fn counts(record: &Record, page: &mut String) {
    let line = |a: &Arm| {
        let (row, counts) = (&a.overall, &a.overall.counts);
        vec![
            a.label.clone(),
            interval(row.speed),
            figure(row.predicted),
            figure(counts.per_pass()),
            figure(counts.guesses_per_pass()),
            counts.acceptance().map_or_else(|| "–".to_owned(), |a| format!("{:.0} %", a * 100.0)),
            format!("{} of {}", row.text.same, row.text.texts),
        ]
    };
    let rows: Vec<Vec<String>> = record.arms.iter().map(line).collect();
    let titles = [
        "arm",
        "speed (x)",
        "predicted (x)",
        "tokens a pass",
        "guesses a pass",
        "accepted",
        "text as plain",
    ];
    table("All arms, all categories together", &titles, &rows, page);
}

fn figure_of(svg: &str, legend: &[(Mark, String)], caption: &str, page: &mut String) {
    let _ = write!(page, "<figure>\n{svg}<figcaption>{}", escape(caption));
    for (kind, label) in legend {
        let _ = write!(
            page,
            " <span class=\"key\"><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\">{}</svg> {}</span>",
            plot::mark(*kind, 6.0, 6.0),
            escape(label)
        );
    }
    page.push_str("</figcaption>\n</figure>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn the_page_stands_alone_and_holds_what_was_measured() {
        let page = html(&[samples::record(), samples::record()]);
        for word in ["http", "src=", "<script", "<link", "url(", "@import", "NaN", "inf"] {
            assert!(!page.contains(word), "{word}");
        }
        for word in [
            "Wishful &lt;thinking&gt;",
            "a sentence &amp; a half",
            "1.50 [1.43, 1.57]",
            "code-edit",
            "tessera check wishful -m smollm2",
            "<caption>All records</caption>",
            "name=\"viewport\"",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(word), "{word}");
        }
        assert!(!page.contains("<thinking>"));
        assert_eq!(page.matches("<figure>").count(), 6);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn whatever_a_record_says_stays_text() {
        let mut record = samples::record();
        let evil = "\"><script>alert('1')</script>";
        for place in [
            &mut record.slug,
            &mut record.name,
            &mut record.model.name,
            &mut record.command,
            &mut record.verdict.reason,
            &mut record.claims[0].metric,
            &mut record.machine.cpu,
            &mut record.date,
        ] {
            *place = evil.to_owned();
        }
        record.arms[1].label = evil.to_owned();
        record.arms[2].categories[0].category = evil.to_owned();
        let page = html(&[record]);
        assert!(!page.contains("<script") && !page.contains("alert('"));
    }

    #[test]
    fn records_without_guesses_or_claims_have_a_page_too() {
        let mut record = samples::record();
        record.claims.clear();
        record.arms.truncate(1);
        let page = html(&[record]);
        assert!(page.contains("No claim is recorded") && !page.contains("NaN"));
        assert!(html(&[]).contains("</html>"));
    }
}
