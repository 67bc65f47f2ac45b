//! Policies that decide what is kept, merged, read or skipped.

pub mod dapq;
pub mod fasa;
pub mod random_eviction;
pub mod skipdecode;
pub mod snapkv;
pub mod streaming;
pub mod token_sparse_attention;
pub mod treekv;
