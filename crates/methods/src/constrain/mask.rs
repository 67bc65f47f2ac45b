//! Title: full masking (locally constrained decoding)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: every token that sampling leaves is asked for, by the constraint's own mask where it
//!   has one; the token is drawn from the allowed ones with their probabilities made to sum to 1,
//!   with the key of its position. Its weight is the probability of the allowed tokens. It is what
//!   `awrs` is measured against, and what runs where a constraint is given and no sampler.
//! Left out: nothing.
//! Tag: mask

use tessera_core::constrain::Masking;
use tessera_core::entry::{
    Exactness, Kind, Method, MethodEntry, Needs, NoSettings, defaults_of, read_as, resolve_as,
    schema_of,
};

use super::DRAW;

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "mask",
    aliases: &["masking", "full-masking", "locally-constrained"],
    name: "Full masking",
    paper: None,
    summary: "Draws under a constraint by asking for every token (default).",
    kind: Kind::Policy,
    places: DRAW,
    exactness: Exactness::BitExact,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<NoSettings>,
    defaults: defaults_of::<NoSettings>,
    neutral: None,
    read: resolve_as::<NoSettings>,
    build: |settings| {
        read_as::<NoSettings>("mask", settings).map(|_| Method::Sample(Box::<Masking>::default()))
    },
};

#[cfg(test)]
mod tests {
    use tessera_core::entry::find;

    #[test]
    fn it_answers_to_the_field_s_name_for_it() {
        assert_eq!(find(crate::ENTRIES, "locally-constrained").unwrap().slug, "mask");
    }
}
