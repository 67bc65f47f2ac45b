//! Policies that guess tokens ahead.

pub mod cascade;
pub mod draft_model;
pub mod dyspec;
pub mod prompt_lookup;
pub mod random_tree;
pub mod skipdecode_draft;
pub mod token_recycling;

use tessera_core::Capabilities;
use tessera_core::entry::Needs;

/// What every drafter needs: its guesses are computed under a tree mask.
pub const TREES: Needs =
    Needs { capabilities: Capabilities { masks: true, ..Needs::NONE.capabilities }, ..Needs::NONE };
