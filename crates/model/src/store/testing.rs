//! Real model files for tests, of this crate and of those above it.

use std::io::Write;
use std::path::PathBuf;

use super::{Catalogue, ModelRef, Store};

/// The file of a catalogue model: `$TESSERA_TEST_MODELS/<name>.gguf` (`:` written as `-`)
/// when that variable is set, else wherever the store has it. Nothing is downloaded.
///
/// Without the file, prints a `skipped:` line past the test harness's capture and
/// returns `None`; the test then returns. `TESSERA_REQUIRE_MODELS=1` turns that into a
/// failure.
#[allow(clippy::panic, reason = "called from tests, where a panic is a failure")]
pub fn find_test_model(name: &str) -> Option<PathBuf> {
    let found = look(name);
    match &found {
        Ok(path) => return Some(path.clone()),
        Err(reason) => {
            let required = std::env::var_os("TESSERA_REQUIRE_MODELS").is_some_and(|v| v == "1");
            assert!(!required, "the model `{name}` is required: {reason}");
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            // Not `eprintln!`, which the harness would swallow.
            let _ = writeln!(std::io::stderr(), "skipped: {test}: no model `{name}` ({reason})");
        }
    }
    None
}

fn look(name: &str) -> Result<PathBuf, String> {
    let catalogue = Catalogue::builtin().map_err(|e| e.to_string())?;
    let entry = catalogue.get(name).ok_or("the catalogue has no such name")?;
    if let Some(dir) = std::env::var_os("TESSERA_TEST_MODELS").filter(|v| !v.is_empty()) {
        let path = PathBuf::from(dir).join(entry.file_name());
        return if path.is_file() {
            Ok(path)
        } else {
            Err("TESSERA_TEST_MODELS does not hold it".to_owned())
        };
    }
    let store = Store::from_env().map_err(|e| e.to_string())?;
    match store.find(&ModelRef::Catalogue(entry.name.clone())) {
        Ok(Some(located)) => Ok(located.path),
        Ok(None) => Err(format!("`tessera pull {name}` fetches it")),
        Err(e) => Err(e.to_string()),
    }
}
