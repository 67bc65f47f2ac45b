//! Title: context-free grammars as a constraint (Earley, over a lexer of derivatives)
//! Authors: none
//! Year: none
//! Id: none
//! Implemented: the whole text is a sentence of a grammar in the variant of Lark that the library
//!   `llguidance` reads: rules in lower case, terminals in upper case, regular expressions between
//!   slashes, `start` the first rule; JSON schemas inside by `%json {...}`.
//! Left out: GBNF, which the library does not read: it is refused by name. Terminals are matched
//!   greedily, as lexers do; references to a model's own control tokens are refused, since these are
//!   never part of a text here.
//! Tag: grammar

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Kind, Method, MethodConfig, MethodEntry, Needs, defaults_of, read_as, resolve_as, schema_of,
};

use super::{CONDITIONED, RULE, check_seconds};
use crate::guidance::{Guidance, Source};

/// Settings of a grammar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Grammar {
    /// The grammar, in Lark. The default allows every text.
    pub lark: String,
    /// Most seconds to read the grammar, and most seconds of one step. Above 0, at most 3600.
    pub seconds: f64,
}

impl Default for Grammar {
    fn default() -> Self {
        Self { lark: "start: /(?s:.*)/".to_owned(), seconds: 10.0 }
    }
}

impl MethodConfig for Grammar {
    fn validate(&self) -> Result<(), String> {
        if self.lark.trim().is_empty() {
            return Err(
                "lark is empty: write a grammar, such as `start: \"yes\" | \"no\"`".to_owned()
            );
        }
        let gbnf = self.lark.lines().find(|l| {
            let name = l.split("::=").next().unwrap_or_default().trim();
            l.contains("::=") && name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c))
        });
        if let Some(line) = gbnf {
            let line: String = line.trim().chars().take(60).collect();
            return Err(format!(
                "`{line}` is GBNF, which is not read here. Next: write it in Lark: `start: ...` for \
                 `root ::= ...`, characters as /[a-z]/"
            ));
        }
        check_seconds(self.seconds)
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "grammar",
    aliases: &["lark", "cfg"],
    name: "Grammar",
    paper: None,
    summary: "Makes only sentences of a context-free grammar in Lark.",
    kind: Kind::Policy,
    places: RULE,
    exactness: CONDITIONED,
    needs: Needs::NONE,
    claims: &[],
    schema: schema_of::<Grammar>,
    defaults: defaults_of::<Grammar>,
    neutral: Some(defaults_of::<Grammar>),
    read: resolve_as::<Grammar>,
    build: |settings| {
        let Grammar { lark, seconds } = read_as::<Grammar>("grammar", settings)?;
        Ok(Method::Constrain(Box::new(Guidance {
            name: "grammar",
            next: "correct the grammar at that place (Lark: rules in lower case, terminals in upper \
                   case, the first rule is `start`), or make it smaller",
            source: Source::Lark(lark),
            seconds,
        })))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gbnf_and_nothing_are_refused_by_name() {
        let refused = |lark: &str| {
            let grammar = Grammar { lark: lark.to_owned(), ..Grammar::default() };
            grammar.validate().unwrap_err()
        };
        let error = refused("root ::= \"yes\" | \"no\"\n");
        assert!(error.contains("GBNF") && error.contains("root ::="), "{error}");
        assert!(refused(" \n").contains("empty"));
        // The same characters inside a string are no GBNF.
        let good = Grammar { lark: "start: \"a\" \"::=\" \"b\"".to_owned(), ..Grammar::default() };
        good.validate().unwrap();
    }
}
