//! Title: Prompt lookup decoding; the idea of n-gram drafts is also LLMA (arXiv:2304.04487)
//! Authors: Saxena; Yang et al.
//! Year: 2023
//! Id: arXiv:2304.04487
//! Implemented: the longest match of the end of the text (at most `ngram` tokens, at least `least`)
//!   with an earlier place of prompt or text, the latest one among equals; the tokens that followed
//!   it there are the guess, a chain. Earlier requests of the same sequence are searched too, up to
//!   `memory` tokens of them.
//! Left out: several candidates at once.
//! Tag: lookup

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::entry::{
    Exactness, Kind, Method, MethodConfig, MethodEntry, Paper, Place, Role, Site, defaults_of,
    read_as, resolve_as, schema_of,
};
use tessera_core::{Draft, DraftContext, DraftTree, Result, TokenId};

use super::TREES;

/// Settings of prompt lookup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptLookup {
    /// Most guesses of a step. 1 to 64; the original takes 10.
    pub budget: usize,
    /// Longest match that is looked for, in tokens. 1 to 64; the original takes 3.
    pub ngram: usize,
    /// Shortest match that counts, in tokens. 1 to `ngram`.
    pub least: usize,
    /// Tokens of earlier requests of the same sequence that are searched too. 0 to 1048576.
    pub memory: usize,
}

impl Default for PromptLookup {
    fn default() -> Self {
        Self { budget: 10, ngram: 8, least: 2, memory: 32_768 }
    }
}

impl MethodConfig for PromptLookup {
    fn validate(&self) -> std::result::Result<(), String> {
        let checks = [
            ("budget", self.budget, 1..=64),
            ("ngram", self.ngram, 1..=64),
            ("least", self.least, 1..=self.ngram),
            ("memory", self.memory, 0..=1 << 20),
        ];
        match checks.iter().find(|(_, value, range)| !range.contains(value)) {
            Some((name, value, range)) => {
                Err(format!("{name} = {value}: must be {} to {}", range.start(), range.end()))
            }
            None => Ok(()),
        }
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "prompt-lookup",
    aliases: &["lookup", "ngram"],
    name: "Prompt lookup",
    paper: Some(Paper {
        title: "Inference with Reference: Lossless Acceleration of Large Language Models",
        authors: "Yang et al.",
        year: 2023,
        id: "arXiv:2304.04487",
    }),
    summary: "Guesses that the text goes on as it did after the same words before.",
    kind: Kind::Policy,
    places: &[Place { role: Role::Draft, site: Site::Whole }],
    exactness: Exactness::BitExact,
    needs: TREES,
    claims: &[],
    schema: schema_of::<PromptLookup>,
    defaults: defaults_of::<PromptLookup>,
    neutral: None,
    read: resolve_as::<PromptLookup>,
    build: |settings| {
        let config = read_as::<PromptLookup>("prompt-lookup", settings)?;
        Ok(Method::Draft(Box::new(Lookup::new(config))))
    },
};

/// The drafter.
#[derive(Debug)]
pub struct Lookup {
    config: PromptLookup,
    /// Texts of earlier requests, oldest first.
    past: Vec<TokenId>,
    /// The text as it was last seen.
    current: Vec<TokenId>,
}

impl Lookup {
    /// With nothing seen yet.
    pub fn new(config: PromptLookup) -> Self {
        Self { config, past: Vec::new(), current: Vec::new() }
    }

    /// Takes note of the text; one that does not continue the last one begins a new request.
    fn follow(&mut self, tokens: &[TokenId]) {
        if !tokens.starts_with(&self.current) {
            self.past.append(&mut self.current);
            let surplus = self.past.len().saturating_sub(self.config.memory);
            self.past.drain(..surplus);
        }
        let known = self.current.len();
        self.current.extend_from_slice(&tokens[known..]);
    }
}

/// The longest match of the end of `tokens` in `text` that something follows: (place after it,
/// length up to `most`), the latest among equals.
fn longest(text: &[TokenId], tokens: &[TokenId], most: usize) -> Option<(usize, usize)> {
    let last = *tokens.last()?;
    let mut best: Option<(usize, usize)> = None;
    for end in (0..text.len().saturating_sub(1)).rev() {
        if text[end] != last {
            continue;
        }
        let back = text[..=end].iter().rev().zip(tokens.iter().rev());
        let length = back.take(most).take_while(|(a, b)| a == b).count();
        if best.is_none_or(|(_, longest)| length > longest) {
            best = Some((end + 1, length));
            if length == most {
                break;
            }
        }
    }
    best
}

impl Draft for Lookup {
    fn budget(&self) -> usize {
        self.config.budget
    }

    fn draft(&mut self, context: &mut DraftContext<'_>, tree: &mut DraftTree) -> Result<()> {
        self.follow(context.tokens);
        let tokens = context.tokens;
        let here = longest(tokens, tokens, self.config.ngram);
        let before = longest(&self.past, tokens, self.config.ngram);
        let (text, (start, length), own) = match (here, before) {
            (Some(a), Some(b)) if b.1 > a.1 => (&self.past[..], b, false),
            (Some(a), _) => (tokens, a, true),
            (None, Some(b)) => (&self.past[..], b, false),
            (None, None) => return Ok(()),
        };
        if length < self.config.least {
            return Ok(());
        }
        tree.grade = (length - 1).min(DraftTree::GRADES - 1);
        let mut at = None;
        for i in 0..context.budget.min(context.depth) {
            // Text that repeats itself goes on doing so: past its end come the guesses themselves.
            let token = match text.get(start + i) {
                Some(&token) => token,
                None if own => tree.token((start + i - text.len()) as u32),
                None => break,
            };
            at = Some(tree.add(at, token));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_the_latest_among_equals() {
        //          0  1  2  3  4  5  6  7  8  9
        let text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3];
        assert_eq!(longest(&text, &text, 8), Some((3, 3)));
        assert_eq!(longest(&text, &text, 2), Some((6, 2)));
        assert_eq!(longest(&text[..5], &text[..5], 8), Some((2, 1)));
        assert_eq!(longest(&[4, 5], &[4, 5], 8), None);
    }

    #[test]
    fn earlier_requests_are_remembered_up_to_the_limit() {
        let mut lookup = Lookup::new(PromptLookup { memory: 3, ..PromptLookup::default() });
        lookup.follow(&[1, 2]);
        lookup.follow(&[1, 2, 3]);
        lookup.follow(&[7]);
        assert_eq!((lookup.past.as_slice(), lookup.current.as_slice()), (&[1, 2, 3][..], &[7][..]));
        lookup.follow(&[8]);
        assert_eq!(lookup.past, [2, 3, 7]);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for bad in ["budget=0", "ngram=65", "least=9", "memory=2000000"] {
            let text = format!("prompt-lookup:{bad}");
            let call = tessera_core::entry::MethodCall::parse(crate::ENTRIES, &text).unwrap();
            let error = ENTRY.resolve(&call.settings).unwrap_err().to_string();
            assert!(error.contains(&bad[..4]), "{error}");
        }
    }
}
