//! Methods that read a model and produce something.

pub mod finequant;
