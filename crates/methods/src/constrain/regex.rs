//! Title: regular expressions as a constraint (derivatives of regular expressions, Brzozowski)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: the whole text matches `pattern`, in Rust's regex syntax, from its first to its last
//!   character, as the library `llguidance` reads it: no look-around, no back-references; `\d`, `\w`
//!   and `\s` are Unicode's.
//!   On a canvas of masks a finite automaton (`regex-automata`) says what may stand where.
//! Left out: patterns over bytes that are no UTF-8.
//! Tag: regex

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Kind, Method, MethodConfig, MethodEntry, Needs, defaults_of, read_as, resolve_as, schema_of,
};

use super::{CONDITIONED, RULE, check_seconds};
use crate::guidance::{EVERYTHING, Guidance, Source};

/// Settings of a regular expression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Regex {
    /// What the whole text matches, in Rust's regex syntax. The default matches every text.
    pub pattern: String,
    /// Most seconds to read the pattern, and most seconds of one step. Above 0, at most 3600.
    pub seconds: f64,
}

impl Default for Regex {
    fn default() -> Self {
        Self { pattern: EVERYTHING.to_owned(), seconds: 10.0 }
    }
}

impl MethodConfig for Regex {
    fn validate(&self) -> Result<(), String> {
        check_seconds(self.seconds)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "regex",
    aliases: &["regular-expression", "pattern"],
    name: "Regular expression",
    paper: None,
    summary: "Makes only texts that match a regular expression.",
    kind: Kind::Policy,
    places: RULE,
    exactness: CONDITIONED,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<Regex>,
    defaults: defaults_of::<Regex>,
    neutral: Some(defaults_of::<Regex>),
    read: resolve_as::<Regex>,
    build: |settings| {
        let Regex { pattern, seconds } = read_as::<Regex>("regex", settings)?;
        Ok(Method::Constrain(Box::new(Guidance {
            name: "regex",
            next: "try the pattern at a smaller scale; it is Rust's syntax, without look-around and \
                   back-references",
            source: Source::Regex(pattern),
            seconds,
        })))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for seconds in [0.0, -1.0, f64::NAN, 3601.0] {
            let error = Regex { seconds, ..Regex::default() }.validate().unwrap_err();
            assert!(error.starts_with("seconds"), "{error}");
        }
    }
}
