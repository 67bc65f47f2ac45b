//! Measurements of a model that methods need, made once and kept in a file.
//!
//! The file lies in `calibration` below the data directory and is named after the model and the
//! size of its file. It holds for every machine: nothing in it depends on speed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tessera_core::Calibration;
use tessera_engine::Recipe;
use tessera_methods::calibration::measure_on_text;

use crate::{Error, Result, Session};

/// Where what was found out about models is kept: `$TESSERA_DATA`, else `$TESSERA_HOME`, else
/// `$XDG_DATA_HOME/tessera`, else `~/.local/share/tessera`; `None` if no variable names a place.
pub fn data_dir(get: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("TESSERA_DATA")
        .or_else(|| path("TESSERA_HOME"))
        .or_else(|| path("XDG_DATA_HOME").map(|d| d.join("tessera")))
        .or_else(|| path("HOME").map(|h| h.join(".local/share/tessera")))
}

/// A name as part of a file's name.
pub fn plain_name(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    text.to_lowercase().chars().map(keep).collect()
}

fn file(data: &Path, session: &Session) -> PathBuf {
    let info = session.info();
    let bytes = std::fs::metadata(&info.path).map_or(0, |m| m.len());
    data.join("calibration").join(format!("{}-{bytes}.json", plain_name(&info.name)))
}

fn read(path: &Path, session: &Session) -> Option<Calibration> {
    let text = std::fs::read_to_string(path).ok()?;
    let calibration: Calibration = serde_json::from_str(&text).ok()?;
    calibration.fits(session.backbone().spec()).ok()?;
    Some(calibration)
}

/// Writes it under another name first, so that nobody reads half a file.
fn write(path: &Path, calibration: &Calibration) -> std::io::Result<()> {
    let mut text = serde_json::to_string(calibration)?;
    text.push('\n');
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

impl Session {
    /// Measures the model for the methods that need it, and keeps the result in its file below
    /// `data`.
    ///
    /// # Errors
    /// Whatever a pass reports; [`Error::Option`] if the file cannot be written.
    pub fn calibrate(&self, data: &Path) -> Result<(Arc<Calibration>, PathBuf)> {
        let measured = measure_on_text(self.backbone(), self.vocabulary())?;
        let path = file(data, self);
        write(&path, &measured).map_err(|source| Error::Option {
            what: format!(
                "{}: {source}. Next: check the directory, or set TESSERA_DATA to another one",
                path.display()
            ),
        })?;
        let measured = Arc::new(measured);
        Ok((Arc::clone(self.calibration.get_or_init(|| measured)), path))
    }

    /// The measurements of the model: those of this session, of its file, or made now (and kept, if
    /// there is a place for them). Reads the variables that [`data_dir`] names.
    ///
    /// # Errors
    /// Whatever a pass reports.
    pub fn calibration(&self) -> Result<Arc<Calibration>> {
        if let Some(known) = self.calibration.get() {
            return Ok(Arc::clone(known));
        }
        let path = data_dir(|name| std::env::var_os(name)).map(|data| file(&data, self));
        let kept = path.as_deref().and_then(|path| read(path, self));
        let found = match kept {
            Some(calibration) => calibration,
            None => {
                let measured = measure_on_text(self.backbone(), self.vocabulary())?;
                if let Some(path) = &path {
                    // Not being able to keep it is no reason not to use it.
                    let _ = write(path, &measured);
                }
                measured
            }
        };
        Ok(Arc::clone(self.calibration.get_or_init(|| Arc::new(found))))
    }

    /// Whether a recipe waits for measurements that nobody has made yet: the first run with it then
    /// takes some seconds longer.
    pub fn must_measure(&self, recipe: &Recipe) -> bool {
        recipe.lacks_calibration() && self.calibration.get().is_none() && {
            let data = data_dir(|name| std::env::var_os(name));
            data.is_none_or(|data| read(&file(&data, self), self).is_none())
        }
    }

    /// The recipe with everything that its members need to know of this model.
    ///
    /// # Errors
    /// As [`Session::calibration`].
    pub fn prepared(&self, recipe: &Recipe) -> Result<Recipe> {
        let recipe = recipe.clone();
        Ok(match recipe.lacks_calibration() {
            true => recipe.with_calibration(self.calibration()?),
            false => recipe,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_go_where_the_environment_says() {
        let dir = |pairs: &'static [(&str, &str)]| {
            data_dir(move |name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
            })
        };
        let path = |p: &str| Some(PathBuf::from(p));
        assert_eq!(dir(&[("TESSERA_DATA", "/a"), ("HOME", "/h")]), path("/a"));
        assert_eq!(dir(&[("TESSERA_HOME", "/t"), ("HOME", "/h")]), path("/t"));
        assert_eq!(dir(&[("XDG_DATA_HOME", "/x")]), path("/x/tessera"));
        assert_eq!(dir(&[("HOME", "/h")]), path("/h/.local/share/tessera"));
        assert_eq!(dir(&[("HOME", "")]), None);
        assert_eq!(plain_name("org/Some Model:Q4"), "org-some-model-q4");
    }
}
