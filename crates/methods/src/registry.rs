//! The one list of methods, in alphabetical order of their slugs.

use tessera_core::entry::MethodEntry;

use crate::{accept, constrain, draft, loops, programs, reduce, unmask};

/// Every method there is.
pub static ENTRIES: &[&MethodEntry] = &[
    &unmask::ancestral::ENTRY,
    &constrain::awrs::ENTRY,
    &unmask::blocks::ENTRY,
    &draft::cascade::ENTRY,
    &unmask::ccd::ENTRY,
    &unmask::confidence::ENTRY,
    &unmask::context_aware_init::ENTRY,
    &reduce::dapq::ENTRY,
    &unmask::dimple::ENTRY,
    &unmask::dllm_asr::ENTRY,
    &draft::draft_model::ENTRY,
    &draft::dyspec::ENTRY,
    &unmask::edlm::ENTRY,
    &unmask::ete::ENTRY,
    &programs::exact_byte_level::ENTRY,
    &reduce::fasa::ENTRY,
    &programs::finequant::ENTRY,
    &unmask::first_hitting::ENTRY,
    &constrain::grammar::ENTRY,
    &unmask::guided_diffusion::ENTRY,
    &constrain::json_schema::ENTRY,
    &accept::keyed::ENTRY,
    &constrain::mask::ENTRY,
    &loops::none::ENTRY,
    &draft::prompt_lookup::ENTRY,
    &reduce::random_eviction::ENTRY,
    &draft::random_tree::ENTRY,
    &programs::reagent::ENTRY,
    &constrain::regex::ENTRY,
    &accept::residual::ENTRY,
    &reduce::skipdecode::ENTRY,
    &draft::skipdecode_draft::ENTRY,
    &loops::smc::ENTRY,
    &reduce::snapkv::ENTRY,
    &reduce::streaming::ENTRY,
    &unmask::threshold::ENTRY,
    &draft::token_recycling::ENTRY,
    &reduce::token_sparse_attention::ENTRY,
    &reduce::treekv::ENTRY,
];
