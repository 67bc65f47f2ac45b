//! Title: none (the plain run: one causal pass of one row per token)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: the baseline that every other method is compared with. It takes no decision: all
//!   tokens are computed, all rows are remembered, each drawn token is committed.
//! Left out: nothing.
//! Tag: plain

use tessera_core::entry::{
    Exactness, Kind, Method, MethodEntry, Needs, NoSettings, Settings, defaults_of, read_as,
    resolve_as, schema_of,
};

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "none",
    aliases: &["plain"],
    name: "Plain run",
    paper: None,
    summary: "Computes every token with one causal pass of one row: the baseline of all others.",
    kind: Kind::Loop,
    places: &[],
    exactness: Exactness::BitExact,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<NoSettings>,
    defaults: defaults_of::<NoSettings>,
    neutral: Some(Settings::new),
    read: resolve_as::<NoSettings>,
    build: |settings| read_as::<NoSettings>("none", settings).map(|NoSettings {}| Method::Plain),
};

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_core::entry::{MethodCall, find};

    #[test]
    fn it_answers_to_both_names_and_takes_no_settings() {
        for name in ["none", "plain", "Plain"] {
            assert_eq!(find(crate::ENTRIES, name).unwrap().slug, "none");
        }
        let error = MethodCall::parse(crate::ENTRIES, "none:budget=1").unwrap_err().to_string();
        assert!(error.contains("budget") && error.contains("none"), "{error}");
    }

    #[test]
    fn it_builds_the_plain_run() {
        assert!(matches!((ENTRY.build)(&Settings::new()), Ok(Method::Plain)));
    }
}
