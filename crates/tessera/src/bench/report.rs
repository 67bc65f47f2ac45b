//! Measures cells and prints them.

use std::fmt::Write;

use serde::Serialize;
use tessera_core::Result;
use tessera_runtime::Session;

use super::cells::Cell;
use tessera_measure::driver::Driver;
use tessera_measure::floor;

/// A cell's measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    /// The cell's name.
    pub(crate) cell: String,
    /// Threads.
    pub(crate) threads: usize,
    /// `tok/s` or `ms`.
    pub(crate) unit: &'static str,
    /// The middle one of the repetitions.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) low: f64,
    /// The largest.
    pub(crate) high: f64,
    /// Repetitions.
    pub(crate) repeats: usize,
    /// Time that reading the bytes once would take, over the time taken. Only where reading is
    /// what bounds the pass: one row.
    pub(crate) share_of_floor: Option<f64>,
}

/// What one number of threads gave.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Table {
    /// Threads.
    pub(crate) threads: usize,
    /// Instruction path and settings.
    pub(crate) detail: String,
    /// Seconds to load the model.
    pub(crate) load_seconds: f64,
    /// Weight bytes that a token reads.
    pub(crate) bytes_per_token: usize,
    /// Bytes per second that these threads read from a buffer of that size.
    pub(crate) bandwidth: f64,
    /// The cells.
    pub(crate) cells: Vec<Measured>,
}

/// What to measure.
pub(crate) struct Plan<'a> {
    pub(crate) cells: &'a [Cell],
    pub(crate) repeats: usize,
    /// Passes of a decode cell.
    pub(crate) steps: usize,
}

/// Measures all cells of `plan` on `session`. `progress` hears each cell's name.
pub(crate) fn measure(
    session: &Session,
    plan: &Plan<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<Table> {
    let info = session.info();
    let bandwidth = floor::bandwidth(info.threads, info.bytes_per_token);
    let tokens = plan.cells.iter().map(|c| c.tokens(plan.steps)).max().unwrap_or(0);
    let mut driver = Driver::new(session.backbone(), tokens)?;
    driver.set_tokens(driver.any_tokens(tokens))?;
    let mut cells = Vec::new();
    for &cell in plan.cells {
        progress(&cell.to_string());
        // The first run of a cell is a warm-up.
        let mut values = Vec::with_capacity(plan.repeats);
        for repeat in 0..=plan.repeats {
            let (time, count) = match cell {
                Cell::Prefill(n) => (driver.prefill(n)?, n),
                Cell::Decode(c) => (driver.decode(c, plan.steps)?, plan.steps),
                Cell::Rows { rows, context } => (driver.rows(context, rows)?, rows),
            };
            let seconds = time.as_secs_f64();
            if repeat > 0 {
                values.push(if cell.is_rate() { count as f64 / seconds } else { seconds * 1e3 });
            }
        }
        values.sort_by(f64::total_cmp);
        let median = values[values.len() / 2];
        let context = match cell {
            Cell::Decode(c) => Some(c + plan.steps / 2),
            Cell::Rows { rows: 1, context } => Some(context),
            Cell::Prefill(_) | Cell::Rows { .. } => None,
        };
        let share_of_floor = context.map(|c| {
            let bytes = (info.bytes_per_token + session.cache_bytes_read(c)) as f64;
            let seconds = if cell.is_rate() { 1.0 / median } else { median / 1e3 };
            bytes / bandwidth / seconds
        });
        cells.push(Measured {
            cell: cell.to_string(),
            threads: info.threads,
            unit: if cell.is_rate() { "tok/s" } else { "ms" },
            median,
            low: values[0],
            high: values[values.len() - 1],
            repeats: plan.repeats,
            share_of_floor,
        });
    }
    Ok(Table {
        threads: info.threads,
        detail: info.detail.clone(),
        load_seconds: info.load_seconds,
        bytes_per_token: info.bytes_per_token,
        bandwidth,
        cells,
    })
}

/// One line per cell, one group of columns per number of threads.
pub(crate) fn render(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        let _ = writeln!(
            text,
            "{} thread{} · {} · load {:.2} s · {:.1} MB a token, read at {:.1} GB/s",
            table.threads,
            if table.threads == 1 { "" } else { "s" },
            table.detail,
            table.load_seconds,
            table.bytes_per_token as f64 / 1e6,
            table.bandwidth / 1e9,
        );
        let _ = writeln!(
            text,
            "  {:<13}{:>10}  {:<6}{:>10}{:>10}{:>16}",
            "cell", "median", "", "low", "high", "share of floor"
        );
        for cell in &table.cells {
            let share =
                cell.share_of_floor.map_or_else(String::new, |s| format!("{:.0} %", s * 100.0));
            let line = format!(
                "  {:<13}{:>10}  {:<6}{:>10}{:>10}{share:>16}",
                cell.cell,
                figure(cell.median),
                cell.unit,
                figure(cell.low),
                figure(cell.high),
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

/// Three or four significant digits.
fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let cell = |name: &str, unit, median: f64, share_of_floor| Measured {
            cell: name.to_owned(),
            threads: 1,
            unit,
            median,
            low: median * 0.9,
            high: median * 1.1,
            repeats: 5,
            share_of_floor,
        };
        let table = Table {
            threads: 1,
            detail: "scalar".to_owned(),
            load_seconds: 0.1234,
            bytes_per_token: 96_600_000,
            bandwidth: 17e9,
            cells: vec![
                cell("prefill512", "tok/s", 1362.0, None),
                cell("decode0", "tok/s", 57.31, Some(0.4321)),
                cell("rows16@256", "ms", 7.149, None),
            ],
        };
        insta::assert_snapshot!(render(&[table]), @r"
        1 thread · scalar · load 0.12 s · 96.6 MB a token, read at 17.0 GB/s
          cell             median               low      high  share of floor
          prefill512         1362  tok/s       1226      1498
          decode0            57.3  tok/s       51.6      63.0            43 %
          rows16@256         7.15  ms          6.43      7.86
        ");
    }
}
