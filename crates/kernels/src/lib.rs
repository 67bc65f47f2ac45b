//! CPU arithmetic: quantised and float products, attention, norms and rotary positions, with runtime dispatch.

mod error;
mod isa;
mod pool;

pub use error::{KernelError, Result};
pub use isa::{ISA_VARIABLE, Isa};
pub use pool::{DEFAULT_SPIN, Pool};
