//! Every published method, one file each, and the registry that lists them.
//!
//! A method sees only `tessera-core`: it turns evidence into plans and cannot reach into a model.
//! [`registry::ENTRIES`] is what the command line, configuration files, requests and documentation
//! are generated from.

pub mod accept;
pub mod calibration;
pub mod constrain;
pub mod continuations;
pub mod draft;
pub mod guidance;
pub(crate) mod lattice;
pub mod loops;
pub mod observation;
pub mod predicate;
pub mod programs;
pub mod reduce;
pub mod registry;
pub mod retention;
pub(crate) mod rough;
#[cfg(test)]
pub(crate) mod scene;
pub mod second_model;
pub mod template;
pub mod unmask;
pub mod window;

pub use registry::ENTRIES;
