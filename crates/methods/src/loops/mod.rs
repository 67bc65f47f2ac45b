//! Methods that own the order of passes.

pub mod any_subset;
pub mod none;
pub mod smc;
