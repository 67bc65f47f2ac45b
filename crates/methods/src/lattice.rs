//! A pattern over a canvas: what may stand at a mask if the whole text is to match in the end.
//!
//! The pattern is a finite automaton over bytes, and a canvas a lattice of its states: those that can
//! be reached before a place from the left, and those from which the rest of the canvas can still be
//! matched. Masks are wildcards of one token. A token may stand at a mask if it leads from one of the
//! former to one of the latter, so every mask has a token as long as the canvas can be matched at all.
//! The text ends at the first end token, which may stand where the text before it matches; only end
//! tokens follow it.

use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use tessera_core::{Canvas, CanvasRule, Error, Position, Result, TokenId, TokenSet, Vocabulary};

/// Most states of a pattern.
const STATES: usize = 4096;

/// Most entries of the table of states by tokens.
const ENTRIES: usize = 1 << 26;

/// Bytes that an automaton may take while it is built.
const BYTES: usize = 64 << 20;

/// No state.
const DEAD: u32 = u32::MAX;

/// A set of states.
type States = TokenSet;

/// A pattern bound to a vocabulary.
#[derive(Debug)]
pub(crate) struct Lattice {
    tokens: usize,
    /// The state after each state and token, `states x tokens`; the last state is "ended".
    next: Vec<u32>,
    /// The states after each state and some token, ascending.
    follow: Vec<Vec<u32>>,
    accepting: Vec<bool>,
}

impl Lattice {
    /// # Errors
    /// [`Error::Constraint`] for a pattern that is none, or too large.
    pub(crate) fn new(pattern: &str, vocabulary: &dyn Vocabulary, mask: TokenId) -> Result<Self> {
        let fail = |what: String| Error::constraint(format!("regex on a canvas: {what}"));
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .determinize_size_limit(Some(BYTES))
            .dfa_size_limit(Some(BYTES));
        let build = |pattern: &str| {
            let built = dense::Builder::new().configure(config.clone()).build(pattern);
            built.map_err(|e| fail(chain(&e)))
        };
        // By itself first: an unbalanced bracket must not reach out of its group.
        build(pattern)?;
        let dfa = build(&format!(r"\A(?:{pattern})\z"))?;
        let (bytes, accepting) = table(&dfa).map_err(&fail)?;
        let (states, tokens) = (accepting.len(), vocabulary.len());
        if states.saturating_mul(tokens) > ENTRIES {
            let what = format!(
                "{states} states and {tokens} tokens are too many. Next: a smaller pattern"
            );
            return Err(fail(what));
        }
        let mut lattice = Self {
            tokens,
            next: vec![DEAD; (states + 1) * tokens],
            follow: vec![Vec::new(); states + 1],
            accepting,
        };
        lattice.accepting.push(true);
        for token in (0..tokens as TokenId).filter(|&t| t != mask) {
            let (ends, text) = (vocabulary.is_end(token), vocabulary.bytes(token));
            for state in 0..=states {
                let after = match (ends, state == states) {
                    (true, _) if lattice.accepting[state] => states as u32,
                    (true, _) | (_, true) => DEAD,
                    _ if vocabulary.is_control(token) || text.is_empty() => DEAD,
                    _ => text.iter().fold(state as u32, |s, &b| match s {
                        DEAD => DEAD,
                        s => bytes[s as usize * 256 + usize::from(b)],
                    }),
                };
                lattice.next[state * tokens + token as usize] = after;
            }
        }
        for state in 0..=states {
            let row = &lattice.next[state * tokens..(state + 1) * tokens];
            let mut after: Vec<u32> = row.iter().copied().filter(|&s| s != DEAD).collect();
            after.sort_unstable();
            after.dedup();
            lattice.follow[state] = after;
        }
        Ok(lattice)
    }

    fn states(&self) -> usize {
        self.accepting.len()
    }

    fn after(&self, state: usize, token: TokenId) -> Option<u32> {
        let next = self.next.get(state * self.tokens..)?.get(token as usize).copied();
        next.filter(|&s| s != DEAD && (token as usize) < self.tokens)
    }

    fn some(&self, states: impl Iterator<Item = u32>) -> States {
        let mut set = States::default();
        set.reset(self.states());
        states.for_each(|s| set.insert(s));
        set
    }

    /// The states that can be reached before each place of the answer, and after the last one.
    fn forward(&self, canvas: &Canvas) -> Vec<Vec<u32>> {
        let mut all = vec![vec![0]];
        for place in canvas.prompt()..canvas.len() {
            let before = &all[all.len() - 1];
            let mut after: Vec<u32> = match canvas.is_masked(place as Position) {
                true => {
                    before.iter().flat_map(|&s| self.follow[s as usize].iter().copied()).collect()
                }
                false => {
                    let token = canvas.tokens()[place];
                    before.iter().filter_map(|&s| self.after(s as usize, token)).collect()
                }
            };
            after.sort_unstable();
            after.dedup();
            all.push(after);
        }
        all
    }

    /// The states before each place from which the rest can be matched, and those that match nothing
    /// more.
    fn backward(&self, canvas: &Canvas) -> Vec<States> {
        let states = || 0..self.states() as u32;
        let mut all = vec![self.some(states().filter(|&s| self.accepting[s as usize]))];
        for place in (canvas.prompt()..canvas.len()).rev() {
            let good = &all[all.len() - 1];
            let leads = |s: &u32| match canvas.is_masked(place as Position) {
                true => self.follow[*s as usize].iter().any(|&n| good.contains(n)),
                false => {
                    let token = canvas.tokens()[place];
                    self.after(*s as usize, token).is_some_and(|n| good.contains(n))
                }
            };
            all.push(self.some(states().filter(leads)));
        }
        all.reverse();
        all
    }
}

impl CanvasRule for Lattice {
    fn allowed(&mut self, canvas: &Canvas, positions: &[Position]) -> Option<Vec<TokenSet>> {
        let (forward, backward) = (self.forward(canvas), self.backward(canvas));
        let one = |&position: &Position| {
            let mut set = TokenSet::default();
            set.reset(self.tokens);
            let Some(place) = (position as usize).checked_sub(canvas.prompt()) else { return set };
            for &state in forward.get(place).into_iter().flatten() {
                for token in 0..self.tokens as TokenId {
                    let after = self.after(state as usize, token);
                    if after.is_some_and(|s| backward[place + 1].contains(s)) {
                        set.insert(token);
                    }
                }
            }
            set
        };
        Some(positions.iter().map(one).collect())
    }

    fn fits(&mut self, canvas: &Canvas) -> bool {
        let last = self.forward(canvas).pop().unwrap_or_default();
        last.iter().any(|&s| self.accepting[s as usize])
    }
}

/// Everything is allowed.
#[derive(Debug)]
pub(crate) struct Anything;

impl CanvasRule for Anything {
    fn allowed(&mut self, _: &Canvas, _: &[Position]) -> Option<Vec<TokenSet>> {
        None
    }

    fn fits(&mut self, _: &Canvas) -> bool {
        true
    }
}

/// The live states of an automaton: the state after each state and byte, and which accept. State 0
/// is the first.
fn table(dfa: &dense::DFA<Vec<u32>>) -> std::result::Result<(Vec<u32>, Vec<bool>), String> {
    let first = dfa
        .start_state(&start::Config::new().anchored(Anchored::Yes))
        .map_err(|e| e.to_string())?;
    let mut known: Vec<StateID> = vec![first];
    let mut number = std::collections::HashMap::from([(first, 0u32)]);
    let (mut bytes, mut at) = (Vec::new(), 0);
    while at < known.len() {
        for byte in 0..=255u8 {
            let state = dfa.next_state(known[at], byte);
            if dfa.is_dead_state(state) {
                bytes.push(DEAD);
                continue;
            }
            if dfa.is_quit_state(state) {
                return Err("it asks for Unicode word boundaries, which no automaton knows".into());
            }
            let fresh = known.len() as u32;
            let id = *number.entry(state).or_insert_with(|| {
                known.push(state);
                fresh
            });
            bytes.push(id);
        }
        if known.len() > STATES {
            return Err(format!("more than {STATES} states. Next: a smaller pattern"));
        }
        at += 1;
    }
    let accepts = |&s: &StateID| dfa.is_match_state(dfa.next_eoi_state(s));
    Ok((bytes, known.iter().map(accepts).collect()))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {}", deeper.to_string().lines().last().unwrap_or_default());
        cause = deeper.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Letters;

    /// The tokens (letters, `h` is the end) allowed at the masks of a canvas drawn as text.
    fn allowed(pattern: &str, canvas: &str) -> Vec<String> {
        let mut rule = Lattice::new(pattern, &Letters, 99).unwrap();
        let mut made = Canvas::new(&[0], canvas.len(), 99);
        for (place, letter) in canvas.bytes().enumerate().filter(|&(_, b)| b != b'.') {
            made.give(place as u32 + 1, u32::from(letter - b'a')).unwrap();
        }
        let positions: Vec<Position> = made.masked().collect();
        let sets = rule.allowed(&made, &positions).unwrap();
        let letters = |set: &TokenSet| {
            let inside = (0..8u32).filter(|&t| set.contains(t));
            inside.map(|t| char::from(b'a' + t as u8)).collect::<String>()
        };
        let found: Vec<String> = sets.iter().map(letters).collect();
        assert_eq!(rule.fits(&made), found.iter().all(|f| !f.is_empty()), "{pattern} {canvas}");
        found
    }

    #[test]
    fn a_mask_takes_what_leaves_the_rest_a_match() {
        assert_eq!(allowed("ab|cd", ".."), ["ac", "bd"]);
        assert_eq!(allowed("ab|cd", ".d"), ["c"]);
        // A shorter text ends the canvas with end tokens.
        assert_eq!(allowed("ab|cde", "..."), ["ac", "bd", "eh"]);
        assert_eq!(allowed("ab|cde", "..h"), ["a", "b"]);
        assert_eq!(allowed("a*", "..."), ["ah", "ah", "ah"]);
        assert_eq!(allowed("a*", ".h."), ["ah", "h"]);
        assert_eq!(allowed("(ab)+", "...."), ["a", "b", "ah", "bh"]);
        // Longer alternatives are not lost behind shorter ones.
        assert_eq!(allowed("a|ab", ".."), ["a", "bh"]);
        assert_eq!(allowed("abc", ".."), ["", ""]);
        assert_eq!(allowed("ab", "b."), [""]);
    }

    #[test]
    fn what_is_allowed_is_what_enumeration_finds() {
        for pattern in ["(a|bc)*d?", "[ab]{2,3}c", "a.*b", "((ab?)|c)+"] {
            let regex = Lattice::new(pattern, &Letters, 99).unwrap();
            let texts = 8usize.pow(3);
            let digits = |n: usize| [n / 64, n / 8 % 8, n % 8].map(|d| d as u32);
            let mut expected = vec![String::new(); 3];
            for text in (0..texts).map(digits) {
                let mut state = Some(0u32);
                for &t in &text {
                    state = state.and_then(|s| regex.after(s as usize, t));
                }
                if state.is_some_and(|s| regex.accepting[s as usize]) {
                    for (all, &t) in expected.iter_mut().zip(&text) {
                        let letter = char::from(b'a' + t as u8);
                        if !all.contains(letter) {
                            all.push(letter);
                        }
                    }
                }
            }
            let sorted = |s: &String| {
                let mut all: Vec<char> = s.chars().collect();
                all.sort_unstable();
                all.into_iter().collect::<String>()
            };
            let expected: Vec<String> = expected.iter().map(sorted).collect();
            assert_eq!(allowed(pattern, "..."), expected, "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let error = |pattern| Lattice::new(pattern, &Letters, 99).unwrap_err().to_string();
        assert!(error("a)(b").contains("regex on a canvas"), "{}", error("a)(b"));
        assert!(error("(").contains("unclosed group"), "{}", error("("));
    }
}
