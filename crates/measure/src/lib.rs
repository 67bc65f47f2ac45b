//! Measuring on this machine: what a pass costs, what a method gains, whether its promise holds.
//!
//! | module | what it holds |
//! |---|---|
//! | [`driver`] | timed passes over one stream of tokens |
//! | [`curve`] | the cost of a pass by its rows |
//! | [`floor`] | how fast memory is read |
//! | [`machine`] | the hardware line of every record |

pub mod curve;
pub mod driver;
pub mod floor;
pub mod machine;
pub mod statistics;
