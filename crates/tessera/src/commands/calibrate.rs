//! `tessera calibrate`: measure a model once for the methods that need it.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use tessera_core::entry::find;
use tessera_measure::tuned::data_dir;
use tessera_runtime::METHODS;

use super::result;
use crate::Globals;
use crate::failure::BadUsage;
use crate::flags::ModelFlags;

/// What `calibrate` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The method to measure for; all that need it share one file.
    method: Option<String>,
    /// A name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path.
    #[arg(short, long, env = "TESSERA_MODEL", default_value = "smollm2")]
    model: String,
    #[command(flatten)]
    flags: ModelFlags,
}

/// What was found.
#[derive(Serialize)]
struct Calibrated {
    model: String,
    file: PathBuf,
    rows: usize,
    steps: usize,
    /// Heads and pairs by agreement: how many of all lie in each tenth from 0 to 1.
    agreement: [usize; 10],
    /// Mean agreement of the best quarter of the pairs of a key head, and of the others.
    dominant: f64,
    others: f64,
    drift: Vec<f32>,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(name) = &arguments.method {
        let entry = find(METHODS, name)?;
        if !entry.needs.calibration {
            let what = format!("{}: needs no calibration", entry.slug);
            return Err(BadUsage(what).into());
        }
    }
    let data = data_dir(|name| std::env::var_os(name))?;
    let session = arguments.flags.open(globals, &arguments.model, None)?;
    session.expect_causal("calibrate")?;
    let (calibration, file) = session.calibrate(&data)?;
    let mut agreement = [0; 10];
    for &a in calibration.agreement.iter().flatten() {
        agreement[((a * 10.0) as usize).min(9)] += 1;
    }
    let (mut best, mut rest) = (Vec::new(), Vec::new());
    let group = calibration.heads / calibration.kv_heads;
    for layer in 0..calibration.layers() {
        for head in 0..calibration.heads {
            let pairs = calibration.head_dim / 2;
            let dominant = calibration.dominant(layer, head / group, (pairs / 4).max(1));
            for (pair, &a) in
                calibration.agreement[layer * calibration.heads + head].iter().enumerate()
            {
                let to = if dominant.contains(&pair) { &mut best } else { &mut rest };
                to.push(f64::from(a));
            }
        }
    }
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len().max(1) as f64;
    let found = Calibrated {
        model: session.info().name.clone(),
        file,
        rows: calibration.rows,
        steps: calibration.steps,
        agreement,
        dominant: mean(&best),
        others: mean(&rest),
        drift: calibration.drift.clone(),
    };
    result(globals, &found, &render(&found))
}

fn render(found: &Calibrated) -> String {
    let mut text = format!(
        "{}: {} tokens of text, {} decoded\n\nagreement of a rotary pair with the full score\n",
        found.model, found.rows, found.steps
    );
    let total = found.agreement.iter().sum::<usize>().max(1);
    for (i, n) in found.agreement.iter().enumerate().filter(|(_, n)| **n > 0) {
        let share = 100.0 * *n as f64 / total as f64;
        let bar = "#".repeat((share / 2.0).ceil() as usize);
        let _ = writeln!(
            text,
            "  {:.1}-{:.1} {share:5.1} %  {bar}",
            i as f64 / 10.0,
            (i + 1) as f64 / 10.0
        );
    }
    let _ = writeln!(
        text,
        "  mean of the best quarter of each key head: {:.2}; of the others: {:.2}",
        found.dominant, found.others
    );
    let _ = writeln!(text, "\ndrift of the layers");
    for (i, drift) in found.drift.chunks(8).enumerate() {
        let list: Vec<String> = drift.iter().map(|d| format!("{d:.3}")).collect();
        let _ = writeln!(text, "  {:2} {}", i * 8, list.join(" "));
    }
    let _ = writeln!(text, "\nkept in {}", found.file.display());
    text
}
