//! Grammars, JSON schemas and patterns over a model's vocabulary, by the `llguidance` library.
//!
//! The library parses along bytes, an Earley parser over a lexer of derivatives. Its limits are kept
//! (items in a row and in a step, lexer states, fuel, size of the grammar) and a time budget is added:
//! reading happens on a thread of its own that is given up when the time is over, and a step that took
//! longer ends the text with an error. What it cannot read, or what allows no text, is an error: there
//! is no unconstrained way out.
//!
//! Bytes that a constraint would force are left to the model's draw like all others, so that the text
//! has the model's law. Bytes 0xFF, in no text, are never allowed.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use llguidance::api::{GrammarInit, StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{ParserFactory, TokenParser, panic_utils};
use tessera_core::constrain::too_far;
use tessera_core::{
    CanvasRule, Constrain, Constraint, Error, Result, TokenId, TokenSet, Vocabulary,
};

use crate::lattice::{Anything, Lattice};

/// The pattern that every text matches.
pub(crate) const EVERYTHING: &str = "(?s:.*)";

/// Vocabularies whose tables are kept for the next request.
const KEPT: usize = 4;

/// Stack of the thread that reads a grammar; nesting is limited, but generously.
const STACK: usize = 64 << 20;

/// Most characters of an error that are passed on.
const MESSAGE: usize = 400;

/// A constraint that the library reads.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// What it is called in errors: `grammar`, `json-schema`, `regex`.
    pub name: &'static str,
    /// What to do if it cannot be read.
    pub next: &'static str,
    /// What it says.
    pub source: Source,
    /// Most seconds to read it, and most seconds of one step.
    pub seconds: f64,
}

/// The languages that are read.
#[derive(Debug, Clone)]
pub enum Source {
    /// A grammar in the library's variant of Lark.
    Lark(String),
    /// A JSON schema.
    JsonSchema(serde_json::Value),
    /// A regular expression that the whole text matches.
    Regex(String),
}

impl Source {
    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Self::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
        }
    }
}

impl Guidance {
    fn refuse(&self, what: &str) -> Error {
        let special = what.contains("special token");
        let control = "it refers to a control token, which is never part of a text here";
        let what = if special { control } else { what };
        Error::constraint(format!("{}: {}. Next: {}", self.name, brief(what), self.next))
    }
}

impl Constraint for Guidance {
    fn on_canvas(
        &self,
        vocabulary: &dyn Vocabulary,
        mask: TokenId,
    ) -> Result<Option<Box<dyn CanvasRule>>> {
        match &self.source {
            Source::Regex(pattern) if pattern == EVERYTHING => Ok(Some(Box::new(Anything))),
            Source::Regex(pattern) => Ok(Some(Box::new(Lattice::new(pattern, vocabulary, mask)?))),
            _ => Ok(None),
        }
    }

    fn begin(&self, vocabulary: &dyn Vocabulary) -> Result<Box<dyn Constrain>> {
        let kit = Kit::of(vocabulary).map_err(|what| self.refuse(&what))?;
        let (tell, hear) = channel();
        let grammar = GrammarInit::Serialized(self.source.grammar());
        let read = move || {
            let read = guarded(|| kit.factory.create_parser_from_init_default(grammar));
            // Nobody listens any more if the time was over.
            let _ = tell.send(read);
        };
        std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK)
            .spawn(read)
            .map_err(|e| self.refuse(&format!("no thread to read it on: {e}")))?;
        let mut parser = match hear.recv_timeout(Duration::from_secs_f64(self.seconds)) {
            Ok(read) => read.map_err(|what| self.refuse(&what))?,
            Err(RecvTimeoutError::Timeout) => {
                let what = format!("takes longer than {} s to read (seconds)", self.seconds);
                return Err(self.refuse(&what));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(self.refuse("reading it came to no end"));
            }
        };
        if !parser.parser.grammar().lexer_spec().can_rollback() {
            let what = "stop=... and max_tokens=... take text back or count tokens, which a constraint \
                        on the text alone does not do here";
            return Err(self.refuse(what));
        }
        parser.start_without_prompt();
        let mut parsing = Parsing { about: self.clone(), parser, tokens: 0 };
        parsing.settle()?;
        let mut allowed = TokenSet::default();
        allowed.reset(vocabulary.len());
        let probe = parsing.clone().mask(&mut allowed)?;
        if probe && allowed == empty(vocabulary.len()) && !parsing.complete()? {
            return Err(self.refuse("allows no text that this model's tokens can spell"));
        }
        Ok(Box::new(parsing))
    }
}

fn empty(tokens: usize) -> TokenSet {
    let mut set = TokenSet::default();
    set.reset(tokens);
    set
}

/// The library's tables for a vocabulary.
struct Kit {
    factory: ParserFactory,
}

/// What the library sees of a token.
fn word(vocabulary: &dyn Vocabulary, token: TokenId) -> &[u8] {
    let bytes = vocabulary.bytes(token);
    // 0xFF marks special tokens there.
    if vocabulary.is_control(token) || bytes.contains(&0xff) { &[] } else { bytes }
}

impl Kit {
    /// The tables of `vocabulary`, made anew unless they are among the last ones.
    fn of(vocabulary: &dyn Vocabulary) -> std::result::Result<Arc<Self>, String> {
        static RECENT: Mutex<Vec<Arc<Kit>>> = Mutex::new(Vec::new());
        let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        let kit = match recent.iter().position(|kit| kit.fits(vocabulary)) {
            Some(at) => recent.remove(at),
            None => Arc::new(Self::new(vocabulary)?),
        };
        recent.insert(0, Arc::clone(&kit));
        recent.truncate(KEPT);
        Ok(kit)
    }

    fn new(vocabulary: &dyn Vocabulary) -> std::result::Result<Self, String> {
        let count = vocabulary.len();
        let mut words: Vec<Vec<u8>> =
            (0..count as TokenId).map(|token| word(vocabulary, token).to_vec()).collect();
        // Ends are the guard's business; the library gets an end token of its own.
        words.push(Vec::new());
        guarded(|| {
            let info = TokRxInfo::new(words.len() as u32, count as TokenId);
            let trie = TokTrie::from(&info, &words);
            let env: TokEnv = Arc::new(Greedy(ApproximateTokEnv::new(trie)));
            let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
            factory.quiet().limits_mut().verbose_errors = false;
            Ok::<_, String>(Self { factory })
        })
    }

    fn fits(&self, vocabulary: &dyn Vocabulary) -> bool {
        let trie = self.factory.tok_env().tok_trie();
        let count = vocabulary.len();
        trie.vocab_size() == count + 1
            && (0..count as TokenId).all(|token| trie.token(token) == word(vocabulary, token))
    }
}

/// A tokenizer that is known to be none: nothing is forced in its name.
struct Greedy(ApproximateTokEnv);

impl TokenizerEnv for Greedy {
    fn tok_trie(&self) -> &TokTrie {
        self.0.tok_trie()
    }

    fn tokenize_bytes(&self, s: &[u8]) -> Vec<TokenId> {
        self.0.tokenize_bytes(s)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// Runs a part of the library; its panics are errors.
fn guarded<R, E: std::fmt::Display>(
    part: impl FnOnce() -> std::result::Result<R, E>,
) -> std::result::Result<R, String> {
    // The library's own error type carries a panic out; what `part` says goes beside it.
    let mut said = None;
    let run = panic_utils::catch_unwind(AssertUnwindSafe(|| {
        said = Some(part().map_err(|e| e.to_string()));
        Ok(())
    }));
    match (run, said) {
        (Ok(()), Some(said)) => said,
        (Err(panic), _) => Err(format!("the parser failed ({})", brief(&panic.to_string()))),
        (Ok(()), None) => Err("the parser failed".to_owned()),
    }
}

/// The part of a message that helps: one line, no dumps, not too long.
fn brief(message: &str) -> String {
    let end =
        ["<state>", "<backtrace>", "<non-verbose/>"].iter().filter_map(|m| message.find(m)).min();
    let text = message[..end.unwrap_or(message.len())].split_whitespace();
    let line = text.collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches(['.', ' ']);
    // What is wrong stands at the end, where it is at the beginning.
    let cut = |n: usize| line.char_indices().nth(n).map(|(at, _)| at);
    let length = line.chars().count();
    match (cut(MESSAGE / 2), cut(length.saturating_sub(MESSAGE / 2))) {
        (Some(head), Some(tail)) if length > MESSAGE => {
            format!("{} ... {}", &line[..head], &line[tail..])
        }
        _ => line.to_owned(),
    }
}

/// A parser along one text.
#[derive(Clone)]
struct Parsing {
    about: Guidance,
    parser: TokenParser,
    tokens: usize,
}

impl std::fmt::Debug for Parsing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parsing").field("about", &self.about).field("tokens", &self.tokens).finish()
    }
}

impl Parsing {
    /// Runs a step within its limits.
    fn step<R, E: std::fmt::Display>(
        &mut self,
        part: impl FnOnce(&mut TokenParser) -> std::result::Result<R, E>,
    ) -> Result<R> {
        let start = Instant::now();
        let parser = &mut self.parser;
        let done = guarded(|| part(parser));
        let fault = |what: &str| {
            let Guidance { name, next, .. } = &self.about;
            let at = self.tokens;
            let what = format!("{name}: {} after {at} tokens. Next: {next}", brief(what));
            Error::constraint(what)
        };
        let done = done.map_err(|what| fault(&what))?;
        // A limit that was hit shows as an error beside the answer.
        let limit = guarded(|| Ok::<_, String>(self.parser.parser.get_error()));
        if let Some(error) = limit.map_err(|what| fault(&what))? {
            return Err(fault(&error.message()));
        }
        if start.elapsed().as_secs_f64() > self.about.seconds {
            return Err(fault("one step took longer than it may (seconds)"));
        }
        Ok(done)
    }

    /// Finds out whether the text has come to its end.
    fn settle(&mut self) -> Result<()> {
        self.step(|parser| parser.check_stop().map(|_| ()))
    }
}

impl Constrain for Parsing {
    fn check(&mut self, token: TokenId, _: &[u8]) -> Result<bool> {
        self.step(|parser| parser.validate_token(token))
    }

    fn complete(&mut self) -> Result<bool> {
        if self.finished() {
            return Ok(true);
        }
        self.step(|parser| Ok::<_, String>(parser.is_accepting()))
    }

    fn finished(&self) -> bool {
        self.parser.stop_reason() == StopReason::NoExtension
    }

    fn accept(&mut self, token: TokenId, bytes: &[u8]) -> Result<()> {
        if !self.check(token, bytes)? {
            let text = String::from_utf8_lossy(bytes);
            let what = format!("{}: {text:?} is not allowed here", self.about.name);
            return Err(Error::constraint(what));
        }
        self.step(|parser| parser.consume_token(token).map(|_| ()))?;
        self.tokens += 1;
        self.settle()
    }

    fn rollback(&mut self, tokens: usize) -> Result<()> {
        let Some(left) = self.tokens.checked_sub(tokens) else {
            return Err(too_far(tokens, self.tokens));
        };
        self.step(|parser| parser.rollback(tokens))?;
        self.tokens = left;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constrain> {
        // The lexer's table of states stays shared: it only remembers what was computed.
        Box::new(self.clone())
    }

    fn mask(&mut self, allowed: &mut TokenSet) -> Result<bool> {
        if self.finished() {
            return Ok(true);
        }
        // Where nothing is allowed the library stops the parser for good: a copy takes that.
        let mut probe = self.clone();
        let mask = match guarded(|| probe.parser.compute_mask()) {
            Ok(mask) => mask,
            Err(_) if probe.parser.stop_reason() == StopReason::NoExtensionBias => return Ok(true),
            Err(_) => self.step(TokenParser::compute_mask)?,
        };
        for (word, bits) in allowed.words_mut().iter_mut().zip(mask.as_slice().chunks(2)) {
            let high = bits.get(1).copied().unwrap_or(0);
            *word = u64::from(bits[0]) | u64::from(high) << 32;
        }
        Ok(true)
    }
}

#[cfg(test)]
#[path = "guidance_tests.rs"]
mod tests;
