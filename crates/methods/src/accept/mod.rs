//! Policies that decide what of a draft is committed.

pub mod keyed;
pub mod residual;
