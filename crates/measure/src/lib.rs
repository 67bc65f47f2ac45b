//! Measuring on this machine: what a pass costs, what a method gains, whether its promise holds.
//!
//! | module | what it holds |
//! |---|---|
//! | [`driver`] | timed passes over one stream of tokens |
//! | [`curve`] | the cost of a pass by its rows |
//! | [`floor`] | how fast memory is read |
//! | [`machine`] | the hardware line of every record |
//! | [`tune`], [`tuned`] | the fastest recipe that keeps a promise, and the file it is kept in |

pub mod curve;
pub mod date;
pub mod driver;
pub mod floor;
pub mod machine;
pub mod statistics;
pub mod tune;
pub mod tuned;

/// Result with the runtime's error.
pub type Result<T, E = tessera_runtime::Error> = std::result::Result<T, E>;
