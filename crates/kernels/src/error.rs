//! What can be wrong with the sizes, types or instruction set a caller asks for.

use crate::isa::Isa;

/// An error of this crate. Sizes come from files, so each is a value and never a panic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// `TESSERA_ISA` (or a caller) named something that is not an instruction set of this crate.
    #[error("unknown instruction set `{0}`: use one of amx, avx512, avx2, scalar")]
    UnknownIsa(String),
    /// The instruction set exists but this machine lacks it.
    #[error(
        "instruction set `{wanted}` is not available on this machine; it has: {}",
        Isa::list(.available)
    )]
    IsaUnavailable {
        /// What was asked for.
        wanted: Isa,
        /// What there is, best first.
        available: Vec<Isa>,
    },
    /// A ggml type number without a known layout here.
    #[error(
        "weight type number {0} is not supported; supported: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 \
         Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K"
    )]
    UnknownType(u32),
    /// A buffer has another length than its shape says.
    #[error("{what}: expected {expected} elements, got {got}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Elements (bytes for raw weights) that the shape asks for.
        expected: usize,
        /// Elements it has.
        got: usize,
    },
    /// A row length is not a whole number of blocks of its type.
    #[error("{ty}: {cols} values a row is not a multiple of the block length {block}")]
    Block {
        /// Name of the weight type.
        ty: &'static str,
        /// Values in a row.
        cols: usize,
        /// Block length of the type.
        block: usize,
    },
    /// A product of sizes does not fit the address space.
    #[error("{0}: the size overflows")]
    Overflow(&'static str),
    /// Two operands disagree, or a form of the activations that a weight type needs is missing.
    #[error("{0}")]
    Mismatch(&'static str),
    /// The system refused memory.
    #[error("could not allocate {0} bytes for weights")]
    OutOfMemory(usize),
}

/// Result of this crate's fallible calls.
pub type Result<T> = std::result::Result<T, KernelError>;
