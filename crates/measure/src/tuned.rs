//! The recipe that `tune` picked for a model on this machine, kept in a file until the next time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tessera_core::entry::MethodCall;
use tessera_runtime::{CostCurve, METHODS, Recipe, plain_name};

use crate::machine::Machine;

/// Version of the file; another one is ignored, with a word about it.
pub const VERSION: u32 = 1;

/// What a person wants to be promised about the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// The plain run's tokens.
    #[default]
    Bit,
    /// The plain run's distribution.
    Distribution,
    /// Nothing.
    Any,
}

/// What `tune` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// [`VERSION`].
    pub version: u32,
    /// The model, as it was named.
    pub model: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// Threads of a pass.
    pub threads: usize,
    /// What it was measured on.
    pub machine: Machine,
    /// What is promised.
    pub promise: Promise,
    /// The recipe, as a request writes it; empty for the plain run.
    pub methods: Value,
    /// The draft model that the recipe needs, as it was named.
    pub draft_model: Option<String>,
    /// The cost curve that decides how much is guessed.
    pub curve: CostCurve,
    /// Milliseconds of a pass of one row when the curve was measured.
    pub one_row_ms: f64,
    /// Measured gain over the plain run, the geometric mean over the workload's categories.
    pub speedup: f64,
    /// When, as `YYYY-MM-DD`.
    pub date: String,
    /// The command that does it again.
    pub command: String,
}

/// What went wrong with the file of a tuned recipe.
#[derive(Debug, thiserror::Error)]
pub enum TunedError {
    /// The file could not be read or written.
    #[error("{}: {source}. Next: check the directory, or set TESSERA_DATA to another one", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: std::io::Error,
    },
    /// The file is not what `tune` writes, or speaks of methods that are no longer there.
    #[error("{}: {what}. Next: run `tessera tune` again, or delete the file", .path.display())]
    Stale {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// No place for it.
    #[error(
        "none of TESSERA_DATA, TESSERA_HOME, XDG_DATA_HOME and HOME is set: there is no place for results"
    )]
    NoHome,
}

/// Where results are kept: [`tessera_runtime::data_dir`].
///
/// # Errors
/// [`TunedError::NoHome`].
pub fn data_dir(get: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, TunedError> {
    tessera_runtime::data_dir(get).ok_or(TunedError::NoHome)
}

/// The file for a model of `bytes` bytes called `name`, on `machine` with `threads` threads.
fn file(dir: &Path, name: &str, bytes: u64, machine: &Machine, threads: usize) -> PathBuf {
    let cpu = plain_name(&machine.cpu);
    dir.join("tuned").join(format!("{}-{bytes}-{cpu}-t{threads}.json", plain_name(name)))
}

impl Tuned {
    /// Writes it to its file below `dir` (to another name first, then renamed); returns the path.
    ///
    /// # Errors
    /// [`TunedError::Io`].
    pub fn save(&self, dir: &Path) -> Result<PathBuf, TunedError> {
        let path = file(dir, &self.model, self.bytes, &self.machine, self.threads);
        let io = |source| TunedError::Io { path: path.clone(), source };
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(io)?;
        Ok(path)
    }

    /// What was found for the model called `name` whose file is `model`, with `threads` threads
    /// (0: all cores) on this machine; `None` if it was never tuned here.
    ///
    /// # Errors
    /// [`TunedError`] for a file that cannot be read or no longer fits.
    pub fn load(
        dir: &Path,
        name: &str,
        model: &Path,
        threads: usize,
    ) -> Result<Option<Self>, TunedError> {
        let machine = Machine::here();
        let threads = if threads == 0 { machine.cores } else { threads };
        let bytes = std::fs::metadata(model).map_or(0, |m| m.len());
        let path = file(dir, name, bytes, &machine, threads);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TunedError::Io { path, source }),
        };
        let stale = |what: String| TunedError::Stale { path: path.clone(), what };
        let value: Value = serde_json::from_str(&text).map_err(|e| stale(e.to_string()))?;
        if value.get("version").and_then(Value::as_u64) != Some(u64::from(VERSION)) {
            return Err(stale("was written by another version of tessera".to_owned()));
        }
        let tuned: Self = serde_json::from_value(value).map_err(|e| stale(e.to_string()))?;
        tuned.recipe().map_err(|e| stale(e.to_string()))?;
        Ok(Some(tuned))
    }

    /// The recipe, with the cost curve.
    ///
    /// # Errors
    /// As [`Recipe::resolve`] and [`Recipe::with_curve`].
    pub fn recipe(&self) -> tessera_core::Result<Recipe> {
        let list = self.methods.as_array().map(Vec::as_slice).unwrap_or_default();
        let calls = list.iter().map(|call| MethodCall::from_json(METHODS, call));
        let calls = calls.collect::<tessera_core::Result<Vec<_>>>()?;
        Recipe::resolve(METHODS, &calls)?.with_curve(self.curve.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tuned(methods: Value) -> Tuned {
        Tuned {
            version: VERSION,
            model: NAME.to_owned(),
            bytes: 3,
            threads: 2,
            machine: Machine::here(),
            promise: Promise::Bit,
            methods,
            draft_model: None,
            curve: CostCurve { points: vec![(1, 1.0), (8, 1.5)], draft: 0.0, draft_row: 0.0 },
            one_row_ms: 4.8,
            speedup: 1.4,
            date: "2026-01-01".to_owned(),
            command: "tessera tune".to_owned(),
        }
    }

    const NAME: &str = "org/Some Model:Q4";

    fn model(dir: &Path) -> PathBuf {
        let path = dir.join("model.gguf");
        std::fs::write(&path, "abc").unwrap();
        path
    }

    #[test]
    fn what_is_saved_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, model) = (dir.path(), model(dir.path()));
        assert!(Tuned::load(dir, NAME, &model, 2).unwrap().is_none());
        let saved = tuned(json!([{"id": "prompt-lookup", "budget": 7}]));
        let path = saved.save(dir).unwrap();
        assert_eq!(Tuned::load(dir, NAME, &model, 2).unwrap(), Some(saved.clone()));
        assert_eq!(saved.recipe().unwrap().members()[0].settings["budget"], 7);
        // Other threads are another matter.
        assert!(Tuned::load(dir, NAME, &model, 1).unwrap().is_none());
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("org-some-model-q4-3-"));
    }

    #[test]
    fn a_file_that_no_longer_fits_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, model) = (dir.path(), model(dir.path()));
        for broken in [
            tuned(json!([{"id": "gone-method"}])),
            Tuned { version: 99, ..tuned(json!([])) },
            Tuned {
                curve: CostCurve { points: vec![], draft: 0.0, draft_row: 0.0 },
                ..tuned(json!([]))
            },
        ] {
            broken.save(dir).unwrap();
            let text = Tuned::load(dir, NAME, &model, 2).unwrap_err().to_string();
            assert!(text.contains("tessera tune"), "{text}");
        }
    }
}
