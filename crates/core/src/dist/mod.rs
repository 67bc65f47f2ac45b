//! Probability maths over a vocabulary, and keyed randomness.
//!
//! Everything here is a pure function of its arguments, with the same result on every machine:
//! sums run in index order in `f64`, and [`scalar`] brings its own exponential and logarithm, so
//! neither a maths library nor an instruction set can change a drawn token.
//!
//! A draw ([`race`]) is a function of the target distribution and of a [`Key`] (request seed,
//! choice index, position) alone. It does not depend on the batch, on drafts, or on what was drawn
//! before. See [`sampler`] for the order in which penalties and truncations apply.

pub mod chi;
pub mod key;
pub mod race;
pub mod sampler;
pub mod sampling;
pub mod scalar;
pub mod softmax;

pub use key::Key;
pub use race::Candidate;
pub use sampler::{Sampler, top_k};
pub use sampling::Sampling;
pub use softmax::{argmax, log_softmax, log_sum_exp, softmax};
