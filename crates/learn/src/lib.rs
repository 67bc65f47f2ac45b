//! Corpora, objectives, trainers and recipes that make this project's own small checkpoints.

pub mod corpus;
mod error;
mod files;

pub use error::Error;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
