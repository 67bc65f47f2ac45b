//! CPU arithmetic: quantised and float products, attention, norms and rotary positions, with runtime dispatch.

mod aligned;
pub mod attention;
mod disjoint;
pub mod elementwise;
mod error;
mod functions;
mod isa;
mod kv;
mod lanes;
mod pack;
mod pool;
mod product;
pub mod training;

pub use error::{KernelError, Result};
pub use isa::{ISA_VARIABLE, Isa};
pub use kv::{KEY_BLOCK, KvLayer};
pub use pack::{Matrix, WeightType, dequantize};
pub use pool::{DEFAULT_SPIN, Pool};
pub use product::{Activations, Target, product};
