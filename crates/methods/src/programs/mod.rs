//! Methods that read a model and produce something.

pub mod exact_byte_level;
pub mod finequant;
pub mod reagent;
pub mod zonkey;
