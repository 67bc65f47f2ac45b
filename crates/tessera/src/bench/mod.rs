//! `tessera bench`: how fast a model runs here, and how far that is from what memory allows.
//!
//! Three kinds of cell, as in `bench/side_by_side/README.md`: **prefill n** (one pass over n tokens
//! from an empty cache, logits of the last row), **decode at c** (passes of one row after c
//! tokens) and **rows n at c** (one pass of n rows, logits at every row). Tokens are given, not
//! drawn: sampling is no part of it.

pub(crate) mod cells;
pub(crate) mod report;
pub(crate) mod stdio;
