//! `tessera quantize`: a model's weights in fewer bits, as a GGUF file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tessera_core::entry::{find, nearest};
use tessera_model::open_weights;
use tessera_model::quantise::base::Bits;
use tessera_model::quantise::{
    FineQuant, Quantised, Report, Rule, Scheme, Settings, Tables, quantise,
};
use tessera_runtime::METHODS;

use super::{result, size, store};
use crate::Globals;
use crate::failure::BadUsage;
use crate::pull_progress::PullProgress;
use crate::slow_bar::SlowBar;

/// What `quantize` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A name from `tessera list`, a GGUF file, or a directory with safetensors.
    source: String,
    /// The file to write; its name ends in `.gguf`.
    destination: PathBuf,
    /// finequant, q4_0, q4_1, q4_k, q8_0, f16, bf16 or f32.
    #[arg(long, default_value = "finequant", value_name = "SCHEME")]
    scheme: String,
    /// What the embedding table and the head are stored as.
    #[arg(long, value_enum, default_value_t = TablesName::Q8)]
    tables: TablesName,
    /// Replace the destination if it is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    fine: FineFlags,
}

/// Settings of FineQuant; `tessera methods show finequant` describes them, with their defaults.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "FineQuant")]
struct FineFlags {
    /// Halve groups while their range shrinks to at most this share (0 to 1).
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alpha: Option<f32>,
    /// Smallest group in weights, a multiple of 32.
    #[arg(long, value_name = "N")]
    min_group: Option<u32>,
    /// Halve while a range is above this many standard deviations (0 is off).
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    guard: Option<f32>,
    /// Halve while the error is above this many times that of the smallest groups (0 is off).
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    error_budget: Option<f32>,
    /// 4, 8 or mixed.
    #[arg(long, value_name = "BITS")]
    bits: Option<String>,
    /// With mixed bits: relative error above which a matrix takes 8 bits.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    max_error: Option<f32>,
    /// One scale a group in the file as well: smaller, but only Tessera reads it.
    #[arg(long)]
    compact: bool,
}

/// What the tables are stored as, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TablesName {
    /// 8 bits.
    #[value(name = "q8_0")]
    Q8,
    /// 16-bit floats.
    F16,
    /// As every other matrix.
    Same,
}

impl FineFlags {
    /// The flags that were given, by the names of the settings.
    fn given(&self) -> serde_json::Map<String, Value> {
        let number = |x: Option<f32>| x.map(|x| tessera_core::entry::plain_json(&x));
        [
            ("alpha", number(self.alpha)),
            ("min_group", self.min_group.map(Value::from)),
            ("guard", number(self.guard)),
            ("error_budget", number(self.error_budget)),
            ("bits", self.bits.clone().map(Value::from)),
            ("max_error", number(self.max_error)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
    }

    /// The method's settings, completed and checked by its entry.
    fn resolve(&self) -> anyhow::Result<FineQuant> {
        let settings = find(METHODS, "finequant")?.resolve(&self.given())?;
        let number = |name: &str| settings[name].as_f64().unwrap_or_default() as f32;
        Ok(FineQuant {
            rule: Rule {
                alpha: number("alpha"),
                min_group: number("min_group") as usize,
                guard: number("guard"),
                error_budget: number("error_budget"),
            },
            bits: match settings["bits"].as_str() {
                Some("4") => Some(Bits::Four),
                Some("8") => Some(Bits::Eight),
                _ => None,
            },
            max_error: number("max_error"),
        })
    }
}

impl Arguments {
    fn settings(&self) -> anyhow::Result<Settings> {
        let scheme = match self.scheme.to_lowercase().as_str() {
            "finequant" => Scheme::FineQuant(self.fine.resolve()?),
            "q4_0" => Scheme::Q4_0,
            "q4_1" => Scheme::Q4_1,
            "q4_k" => Scheme::Q4K,
            "q8_0" => Scheme::Q8_0,
            "f16" => Scheme::F16,
            "bf16" => Scheme::Bf16,
            "f32" => Scheme::F32,
            other => return Err(BadUsage(unknown_scheme(other)).into()),
        };
        let fine = matches!(scheme, Scheme::FineQuant(_));
        let stray = self.fine.given().keys().next().cloned();
        let stray = stray.or_else(|| self.fine.compact.then(|| "compact".to_owned()));
        if let Some(stray) = stray.filter(|_| !fine) {
            let flag = stray.replace('_', "-");
            let what = format!("--{flag} is a setting of scheme finequant, not of {}", self.scheme);
            return Err(BadUsage(format!("{what}. Next: leave it out")).into());
        }
        let tables = match self.tables {
            TablesName::Q8 => Tables::Q8_0,
            TablesName::F16 => Tables::F16,
            TablesName::Same => Tables::Same,
        };
        Ok(Settings { scheme, tables, compact: self.fine.compact })
    }
}

fn unknown_scheme(name: &str) -> String {
    let known = Scheme::NAMES.join(", ");
    // Types that people know and that Tessera reads, but does not write.
    if ["q4_k_m", "q4_k_s", "q5_0", "q5_1", "q5_k", "q6_k", "q2_k", "q3_k"].contains(&name) {
        return format!("scheme {name} can be read, but not written yet; schemes: {known}");
    }
    match nearest(name, Scheme::NAMES.into_iter()).first() {
        Some(near) => format!("`{name}` is no scheme; did you mean `{near}`? Schemes: {known}"),
        None => format!("`{name}` is no scheme; schemes: {known}"),
    }
}

#[derive(Serialize)]
struct Done<'a> {
    source: &'a str,
    file: &'a Path,
    requantised: bool,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = arguments.settings()?;
    let to = &arguments.destination;
    check_other(Path::new(&arguments.source), to)?;
    check_destination(to, arguments.force)?;
    let store = store(globals)?;
    let mut pull = PullProgress::new(&arguments.source, globals.quiet);
    let located = store.ensure_with(&arguments.source, &mut |event| pull.hear(event))?;
    drop(pull);
    check_other(&located.path, to)?;
    let weights = open_weights(&located.path)?;
    let bar = SlowBar::new("quantising", 1000, globals.quiet);
    let report = quantise(&*weights, to, &settings, &|done, total| {
        bar.at((done as f64 / total.max(1) as f64 * 1000.0) as u64);
    });
    bar.clear();
    let report = report?;
    let requantised = !report.requantised_from.is_empty();
    let done = Done { source: &arguments.source, file: to, requantised, report: &report };
    result(globals, &done, &describe(&arguments.source, to, &report))
}

/// Refuses to write over what is read.
fn check_other(from: &Path, to: &Path) -> anyhow::Result<()> {
    match (from.canonicalize(), to.canonicalize()) {
        (Ok(from), Ok(to)) if from == to => {
            let what = "the destination is the source itself. Next: give it another name";
            Err(BadUsage(what.to_owned()).into())
        }
        _ => Ok(()),
    }
}

fn check_destination(to: &Path, force: bool) -> anyhow::Result<()> {
    let shown = to.display();
    if to.extension().is_none_or(|e| !e.eq_ignore_ascii_case("gguf")) {
        let what = format!("destination `{shown}`: must end in .gguf. Next: name it {shown}.gguf");
        return Err(BadUsage(what).into());
    }
    if to.is_dir() {
        return Err(
            BadUsage(format!("destination `{shown}` is a directory. Next: name a file")).into()
        );
    }
    if to.exists() && !force {
        let what = format!("destination `{shown}` is there already. Next: --force replaces it");
        return Err(BadUsage(what).into());
    }
    Ok(())
}

/// One line for each kind of choice, then the sums.
fn describe(source: &str, to: &Path, report: &Report) -> String {
    let mut text = String::new();
    if !report.requantised_from.is_empty() {
        let from = report.requantised_from.join(", ");
        let _ = writeln!(
            text,
            "requantisation: {source} holds {from}, whose own losses stay. Judge a scheme on \
             full-precision weights."
        );
    }
    let _ = writeln!(
        text,
        "{:<24}{:>9}  {:<6}{:>7}{:>9}{:>14}",
        "matrices", "number", "type", "group", "bits", "rel. error"
    );
    // Matrices of one kind that were stored alike, in the order in which they come.
    let kind = |m: &Quantised| m.name.rsplit('.').nth(1).unwrap_or(&m.name).to_owned();
    let mut alike: Vec<Vec<&Quantised>> = Vec::new();
    for m in &report.matrices {
        let same = |o: &&Quantised| kind(o) == kind(m) && o.to == m.to && o.group == m.group;
        match alike.iter_mut().find(|members| members.iter().any(same)) {
            Some(members) => members.push(m),
            None => alike.push(vec![m]),
        }
    }
    for members in &alike {
        let [first, ..] = members[..] else { continue };
        let n = members.len() as f64;
        let bits = members.iter().map(|m| m.bits_per_weight).sum::<f64>() / n;
        let error = members.iter().map(|m| m.relative_error).sum::<f64>() / n;
        let group = first.group.map_or_else(|| "-".to_owned(), |g| g.to_string());
        let _ = writeln!(
            text,
            "{:<24}{:>9}  {:<6}{group:>7}{bits:>9.3}{:>12.2} %",
            kind(first),
            members.len(),
            first.to,
            100.0 * error
        );
    }
    let _ = writeln!(
        text,
        "{:.3} bits per weight ({:.3} without embedding and head), {} -> {}, written to {}",
        report.bits_per_weight,
        report.bits_per_layer_weight,
        size(report.bytes_before),
        size(report.bytes_after),
        to.display()
    );
    text
}
