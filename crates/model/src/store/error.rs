//! What can go wrong between a model's name and a file on disk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One source that was tried for a model, and why it gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The source, as a person would name it (`hub org/repo/file`, `pip name==1.0`).
    pub source: String,
    /// Why it failed, one line.
    pub reason: String,
}

/// Why a model could not be named, found, fetched or removed.
///
/// Every message is a cause followed by a next step; only
/// [`StoreError::AllSourcesFailed`] takes more than one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The text is no catalogue name, no `org/repo[:QUANT][@revision]` and no path.
    #[error(
        "`{given}` does not name a model: {reason}. \
         Next: use a name from `tessera list`, `org/repo[:QUANT][@revision]`, or a path"
    )]
    BadReference {
        /// What was given, control characters escaped.
        given: String,
        /// The rule it breaks.
        reason: String,
    },
    /// A single word that the catalogue does not hold.
    #[error(
        "no model is called `{given}`{}. Next: `tessera list` shows the names; \
         a file is given as `./model.gguf`, a hub repository as `org/repo`",
        Suggestion(nearest.as_deref())
    )]
    UnknownName {
        /// What was given.
        given: String,
        /// The catalogue name closest to it, when one is close enough to be meant.
        nearest: Option<String>,
    },
    /// A path that does not exist.
    #[error("nothing is at {}. Next: check the path, or use a name from `tessera list`", path.display())]
    NoSuchPath {
        /// The path as given.
        path: PathBuf,
    },
    /// A path that exists and holds no model.
    #[error("{} holds no model: {reason}. Next: give a .gguf file or a directory with config.json and *.safetensors", path.display())]
    NotAModel {
        /// The path as given.
        path: PathBuf,
        /// What is missing there.
        reason: String,
    },
    /// No source gave the model.
    #[error("cannot get `{name}`: {}\nNext: {next}", Numbered(attempts))]
    AllSourcesFailed {
        /// The model as named by the caller.
        name: String,
        /// Every source in the order tried.
        attempts: Vec<Attempt>,
        /// What to do now.
        next: String,
    },
    /// Reading or writing the store itself failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Disk {
        /// What was being done, an infinitive (`write`, `create`).
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A catalogue that breaks its own rules.
    #[error(
        "the model catalogue is not usable: {reason}. Next: report this, or fix the catalogue file"
    )]
    Catalogue {
        /// The rule and the entry that breaks it.
        reason: String,
    },
    /// The environment names no place to keep models.
    #[error(
        "no place to keep models: {reason}. Next: set TESSERA_HOME to a directory that can be written"
    )]
    NoHome {
        /// Which variables were looked at.
        reason: String,
    },
    /// A variable whose value cannot be used.
    #[error("{variable} is not usable: {reason}. Next: correct it or unset it")]
    BadVariable {
        /// Its name.
        variable: &'static str,
        /// What is wrong with the value; never the value of a secret.
        reason: String,
    },
    /// The model is known and not here.
    #[error(
        "`{name}` is not on this machine. Next: `tessera pull {name}` fetches it, `tessera list` shows what is here"
    )]
    NotInstalled {
        /// The model as named by the caller.
        name: String,
    },
    /// A removal that would delete what Tessera does not own.
    #[error("`{name}` is not Tessera's to delete: {reason}. Next: {next}")]
    NotOurs {
        /// The model as named by the caller.
        name: String,
        /// Whose it is.
        reason: String,
        /// What to do instead.
        next: String,
    },
}

impl StoreError {
    /// True when the caller wrote something that can never name a model, so that
    /// a command line can answer with its usage exit code.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::BadReference { .. } | Self::UnknownName { .. } | Self::NotOurs { .. })
    }

    pub(super) fn disk(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Disk { action, path: path.to_owned(), source }
    }

    pub(super) fn bad_reference(given: &str, reason: impl Into<String>) -> Self {
        let given = given.chars().take(120).flat_map(char::escape_default).collect();
        Self::BadReference { given, reason: reason.into() }
    }
}

/// How one source ended without a file.
#[derive(Debug)]
pub(super) enum SourceError {
    /// This source does not have it; the next may.
    Refused(String),
    /// No source can succeed (the disk is full, the store cannot be written).
    Fatal(StoreError),
}

impl SourceError {
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}

impl From<StoreError> for SourceError {
    fn from(error: StoreError) -> Self {
        Self::Fatal(error)
    }
}

/// The next step for each kind of disk error.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ". Next: free some space (a pull resumes where it stopped), or set TESSERA_HOME to a larger disk"
        }
        io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory => {
            ". Next: set TESSERA_HOME to a directory that can be written"
        }
        _ => ". Next: check the disk and the path, then try again",
    }
}

struct Suggestion<'a>(Option<&'a str>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |nearest| write!(f, "; did you mean `{nearest}`?"))
    }
}

struct Numbered<'a>(&'a [Attempt]);

impl fmt::Display for Numbered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => write!(f, "it has no source"),
            [only] => write!(f, "its only source failed\n  1. {}: {}", only.source, only.reason),
            all => {
                write!(f, "all {} sources failed", all.len())?;
                for (i, attempt) in all.iter().enumerate() {
                    write!(f, "\n  {}. {}: {}", i + 1, attempt.source, attempt.reason)?;
                }
                Ok(())
            }
        }
    }
}
