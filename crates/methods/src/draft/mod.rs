//! Policies that guess tokens ahead.

pub mod prompt_lookup;
