//! Toy models, laws and tolerances for tests.
//!
//! [`scripted`] is a backbone without a model: its logits are any function of the tokens that a row
//! sees. [`laws`] checks every entry of the registry, [`texts`] whether texts have their
//! model's law. Chi-square tests and their error level live
//! in [`tessera_core::dist::chi`].

pub mod denoising;
pub mod laws;
pub mod listed;
pub mod markov;
pub mod modes;
pub mod reduction;
pub mod scripted;
pub mod source;
pub mod texts;
pub mod windows;
pub mod words;

pub use listed::Listed;
pub use markov::Chain;
pub use modes::Modes;
pub use scripted::Scripted;
pub use tessera_core::dist::chi;
pub use words::Words;
