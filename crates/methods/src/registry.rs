//! The one list of methods, in alphabetical order of their slugs.

use tessera_core::entry::MethodEntry;

use crate::{accept, draft, loops, programs, reduce};

/// Every method there is.
pub static ENTRIES: &[&MethodEntry] = &[
    &draft::cascade::ENTRY,
    &reduce::dapq::ENTRY,
    &draft::draft_model::ENTRY,
    &draft::dyspec::ENTRY,
    &reduce::fasa::ENTRY,
    &programs::finequant::ENTRY,
    &accept::keyed::ENTRY,
    &loops::none::ENTRY,
    &draft::prompt_lookup::ENTRY,
    &reduce::random_eviction::ENTRY,
    &draft::random_tree::ENTRY,
    &accept::residual::ENTRY,
    &reduce::skipdecode::ENTRY,
    &draft::skipdecode_draft::ENTRY,
    &reduce::snapkv::ENTRY,
    &reduce::streaming::ENTRY,
    &draft::token_recycling::ENTRY,
    &reduce::token_sparse_attention::ENTRY,
    &reduce::treekv::ENTRY,
];
