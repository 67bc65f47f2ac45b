//! Measuring on this machine: what a pass costs, what a method gains, whether its promise holds.
//!
//! | module | what it holds |
//! |---|---|
//! | [`workload`] | the prompts, ours or the user's own |
//! | [`trial`] | one request run once: tokens, counts, times |
//! | [`lineup`] | who takes part in a check: plain run, baseline, method, control |
//! | [`longtext`] | long texts with questions that have exact answers |
//! | [`check`] | runs a lineup over a workload, interleaved |
//! | [`verdict`] | one word and one sentence for it |
//! | [`record`] | the file that keeps it |
//! | [`table`] | a record as text |
//! | [`verify`], [`enumerate`] | whether a method keeps its promise about the text |
//! | [`report`], [`plot`] | records as a page |
//! | [`catalogue`] | the methods as documents, with their last records |
//! | [`retention`] | what is still known when less is remembered |
//! | [`quality`] | perplexity under the plain model |
//! | [`driver`] | timed passes over one stream of tokens |
//! | [`curve`] | the cost of a pass by its rows |
//! | [`floor`] | how fast memory is read |
//! | [`machine`] | the hardware line of every record |
//! | [`tune`], [`tuned`] | the fastest recipe that keeps a promise, and the file it is kept in |
//! | [`usual`] | a check with its usual setting, as one call |
//! | [`statistics`] | medians and intervals |

pub mod bound;
pub mod catalogue;
pub mod check;
pub mod curve;
pub mod driver;
pub mod enumerate;
pub mod error;
pub mod floor;
pub mod lineup;
pub mod longtext;
pub mod machine;
pub mod plot;
pub mod quality;
pub mod record;
pub mod report;
pub mod retention;
#[cfg(test)]
mod samples;
pub mod statistics;
pub mod table;
pub mod trial;
pub mod tune;
pub mod tuned;
pub mod usual;
pub mod verdict;
pub mod verify;
pub mod workload;

pub use error::{Error, Result};
