//! The loops that own the order of passes, and the recipe of methods that takes part in one.
//!
//! A loop knows a [`tessera_core::Backbone`] and a [`tessera_core::Vocabulary`], never a model. It
//! is synchronous, reports through [`tessera_core::Event`]s, and stops between two passes when the
//! listener or a cancel flag says so.

mod any_subset;
pub mod autoregressive;
mod cast;
mod choice;
pub mod denoise;
pub mod pace;
mod particles;
pub mod recipe;
mod reduction;
pub mod request;
mod scheduler;
pub mod sequence;
mod speculation;
mod step;
mod writing;

pub use autoregressive::{Model, generate, generate_in};
pub use pace::CostCurve;
pub use recipe::Recipe;
pub use request::{Completion, Denoised, Known, Outcome, Particle, Population, Request, Stats};
pub use scheduler::{Batch, Ended, Listen, Shape};
pub use sequence::Sequence;
