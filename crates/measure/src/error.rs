//! What can go wrong while measuring.

use std::path::PathBuf;

/// Why a measurement could not be made. One line, cause and next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method, a setting or a request that cannot be; or a pass that failed.
    #[error(transparent)]
    Session(#[from] tessera_runtime::Error),
    /// Something was asked for that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where, what is wrong, what to do.
        what: String,
    },
    /// Ctrl-C came before anything was measured.
    #[error("stopped before anything was measured")]
    Stopped,
}

impl From<tessera_core::Error> for Error {
    fn from(error: tessera_core::Error) -> Self {
        Self::Session(error.into())
    }
}

impl Error {
    /// Whether the caller asked for something impossible: exit code 2.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Session(e) => e.is_usage(),
            Self::Usage(_) | Self::Content { .. } => true,
            Self::File { .. } | Self::Stopped => false,
        }
    }
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
