//! Texts to train on.
//!
//! A corpus is a plain text file: one document a block, blocks set apart by an empty line, so that
//! a person can read it and any tool can cut it.

pub mod batch;
mod filter;
pub mod prompts;
pub mod sampled;
pub mod speech;
pub mod tasks;

pub use filter::{Filter, Verdict};

/// The documents of a corpus file, in order.
pub fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").map(str::trim).filter(|block| !block.is_empty())
}

/// A corpus file of the first `count` documents that a rule makes, at most those that are to train on.
fn made(count: u32, document: impl Fn(u32) -> String) -> String {
    (0..count.min(tasks::FRESH)).map(|index| document(index) + "\n\n").collect()
}
