//! What can go wrong while a corpus is made or a model trained.

use std::path::{Path, PathBuf};

/// An error with its cause and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk, or a file that cannot be read.
    #[error("{}: {source}. Next: check that the path exists and may be read and written", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {what}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// A setting outside its range, or settings that do not go together.
    #[error("{what}")]
    Setting {
        /// The setting, what is wrong, and its range.
        what: String,
    },
    /// Something went wrong while training: numbers that are no longer finite, say.
    #[error("{what}")]
    Training {
        /// What happened, where, and what to do.
        what: String,
    },
    /// A pass of a model failed.
    #[error(transparent)]
    Core(#[from] tessera_core::Error),
    /// A model could not be opened, or took no such prompt.
    #[error(transparent)]
    Runtime(#[from] tessera_runtime::Error),
    /// A model file could not be written.
    #[error(transparent)]
    Model(#[from] tessera_model::FileError),
    /// A tensor operation failed.
    #[cfg(feature = "candle")]
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tokenizer that cannot be built.
    #[error(transparent)]
    Tokenizer(#[from] tessera_model::tokenizer::TokenizerError),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn setting(what: impl Into<String>) -> Self {
        Self::Setting { what: what.into() }
    }

    /// Whether the caller asked for something impossible: the command line's usage exit code.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Setting { .. } => true,
            Self::Runtime(error) => error.is_usage(),
            Self::Core(tessera_core::Error::Setting { .. }) => true,
            _ => false,
        }
    }
}
