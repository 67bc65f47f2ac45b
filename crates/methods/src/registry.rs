//! The one list of methods, in alphabetical order of their slugs.

use tessera_core::entry::MethodEntry;

use crate::loops;

/// Every method there is.
pub static ENTRIES: &[&MethodEntry] = &[&loops::none::ENTRY];
