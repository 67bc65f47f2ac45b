//! Arithmetic for training small models on a CPU: f32 products of any transposition, and the fused
//! forward and backward of everything between them.
//!
//! Every sum runs in an order that depends on the shapes alone, so a training run is repeated bit
//! for bit at any number of threads. A processor with bf16 matrix tiles would take another path in
//! `gemm.rs`, the one place where products are made; none is written yet.
#![allow(unsafe_code)]

mod adamw;
mod attention;
mod gemm;
mod rows;

#[cfg(test)]
mod tests;

pub use adamw::{AdamW, adamw, sum_of_squares};
pub use attention::{Heads, Sight, attention, attention_backward};
pub use gemm::{Gemm, View, peak};
pub use rows::{Turns, add_into, cross_entropy, norm, norm_backward, swiglu, swiglu_backward};

use crate::error::{KernelError, Result};

/// Checks the length of a buffer.
fn length(what: &'static str, expected: usize, got: usize) -> Result<()> {
    match expected == got {
        true => Ok(()),
        false => Err(KernelError::Length { what, expected, got }),
    }
}
