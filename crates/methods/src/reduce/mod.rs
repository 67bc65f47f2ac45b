//! Policies that decide what is kept, merged, read or skipped.

pub mod fasa;
pub mod skipdecode;
pub mod streaming;
