//! `tessera report`: records as one page.

use std::path::PathBuf;

use serde_json::json;
use tessera_measure::record::{self, Record};
use tessera_measure::report::html;

use super::result;
use crate::Globals;
use crate::failure::BadUsage;

/// What `report` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Records that `check` wrote, or directories of them (default: your own records).
    records: Vec<PathBuf>,
    /// The page to write.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let own = record::directory(|name| std::env::var_os(name));
    let places = match arguments.records.is_empty() {
        true => own.into_iter().collect(),
        false => arguments.records.clone(),
    };
    let mut records = Vec::new();
    for place in &places {
        match place.is_dir() {
            true => records.extend(Record::read_all(place)?),
            false if arguments.records.is_empty() => {}
            false => records.push(Record::read(place)?),
        }
    }
    if records.is_empty() {
        let what = "there is no record to report: `tessera check METHOD` writes one";
        return Err(BadUsage(what.to_owned()).into());
    }
    let file = arguments.output.display().to_string();
    std::fs::write(&arguments.output, html(&records))
        .map_err(|e| anyhow::anyhow!("{file}: {e}"))?;
    let text =
        format!("{file}: {} record{}\n", records.len(), if records.len() == 1 { "" } else { "s" });
    result(globals, &json!({ "page": file, "records": records.len() }), &text)
}
