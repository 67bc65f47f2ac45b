//! Corpora, objectives, trainers and recipes that make this project's own small checkpoints.

mod card;
pub mod checkpoint;
pub mod corpus;
pub mod data;
mod error;
pub mod export;
mod files;
pub mod network;
pub mod objectives;
pub mod plot;
pub mod recipe;
pub mod trainer;
pub mod vocabulary;
#[cfg(feature = "candle")]
pub mod zonkey;

pub use error::Error;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
