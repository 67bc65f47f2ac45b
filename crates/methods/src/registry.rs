//! The one list of methods, in alphabetical order of their slugs.

use tessera_core::entry::MethodEntry;

use crate::{accept, draft, loops};

/// Every method there is.
pub static ENTRIES: &[&MethodEntry] = &[
    &accept::keyed::ENTRY,
    &loops::none::ENTRY,
    &draft::prompt_lookup::ENTRY,
    &accept::residual::ENTRY,
];
