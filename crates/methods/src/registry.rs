//! The one list of methods, in alphabetical order of their slugs.

use tessera_core::entry::MethodEntry;

use crate::{accept, draft, loops, programs, reduce};

/// Every method there is.
pub static ENTRIES: &[&MethodEntry] = &[
    &draft::cascade::ENTRY,
    &draft::draft_model::ENTRY,
    &draft::dyspec::ENTRY,
    &programs::exact_byte_level::ENTRY,
    &programs::finequant::ENTRY,
    &accept::keyed::ENTRY,
    &loops::none::ENTRY,
    &draft::prompt_lookup::ENTRY,
    &draft::random_tree::ENTRY,
    &programs::reagent::ENTRY,
    &accept::residual::ENTRY,
    &reduce::skipdecode::ENTRY,
    &draft::skipdecode_draft::ENTRY,
    &draft::token_recycling::ENTRY,
];
