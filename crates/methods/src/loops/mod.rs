//! Methods that own the order of passes.

pub mod none;
pub mod smc;
