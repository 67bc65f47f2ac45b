//! One file per command. Results go to stdout, progress and errors to stderr.

pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod chat;
pub(crate) mod check;
mod check_long;
pub(crate) mod complete;
pub(crate) mod config;
pub(crate) mod corpus;
pub(crate) mod explain;
pub(crate) mod list;
pub(crate) mod methods;
pub(crate) mod perplexity;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod report;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod score;
pub(crate) mod serve;
mod serve_settings;
pub(crate) mod shell;
pub(crate) mod show;
pub(crate) mod train;
pub(crate) mod tune;
pub(crate) mod verify;
pub(crate) mod zonkey;

use std::io::Write;

use serde::Serialize;
use tessera_model::store::{Store, StoreError};

use crate::Globals;

/// The store of this process's environment, offline if a flag says so.
pub(crate) fn store(globals: &Globals) -> Result<Store, StoreError> {
    let store = Store::from_env()?;
    Ok(if globals.offline { store.offline("--offline was given") } else { store })
}

/// Prints a result: the value as JSON when asked for, else the text.
pub(crate) fn result(globals: &Globals, value: &impl Serialize, text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if globals.json {
        serde_json::to_writer_pretty(&mut out, value)?;
        writeln!(out)?;
    } else {
        write!(out, "{text}")?;
    }
    out.flush()?;
    Ok(())
}

/// Bytes in decimal units, as disks and downloads are sold.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    UNITS.iter().find(|(_, unit)| bytes >= *unit).map_or_else(
        || format!("{bytes} B"),
        |(name, unit)| format!("{:.1} {name}", bytes as f64 / *unit as f64),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_decimal() {
        let sizes = [0, 999, 1000, 98_362_432, 1_117_320_768].map(super::size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "98.4 MB", "1.1 GB"]);
    }
}
