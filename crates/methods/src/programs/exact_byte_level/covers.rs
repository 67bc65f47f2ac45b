//! The covers of a text and the next byte they imply.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tessera_core::dist::scalar::{exp, ln};
use tessera_core::{Backbone, Error, Result, TokenId};

use super::lexicon::Lexicon;
use super::{ExactByteLevel, Mode};
use crate::continuations::Continuations;

/// The symbol after the 256 bytes: the text ends.
pub const END: usize = 256;
/// Bytes and the end.
pub const SYMBOLS: usize = 257;
/// Most of a byte's own probability that may have been left out of it.
const TRUST: f64 = 1e-3;
/// Sequences whose legal continuations are remembered.
const REMEMBERED: usize = 128;

/// A cover whose last token sticks out of the text.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    /// The tokens before the last.
    node: u32,
    token: TokenId,
    /// Bytes of the token that the text has already.
    offset: u32,
    /// Log-probability of the cover.
    weight: f64,
}

/// Which tokens may follow a sequence: asked lazily, one bit each for "known" and "may".
#[derive(Debug, Clone)]
struct Verdicts {
    known: Vec<u64>,
    may: Vec<u64>,
    /// Whether the text may end after the sequence.
    whole: bool,
}

/// What may follow a sequence and how probable it is.
struct Law {
    /// Log-probabilities, ascending by the bytes of the tokens.
    next: Vec<(TokenId, f64)>,
    /// What is subtracted from a logit.
    total: f64,
    end: f64,
}

/// A token model read byte by byte: a text, its covers, and the law of the byte that follows.
pub struct ByteModel<'m> {
    lexicon: Arc<Lexicon<'m>>,
    ask: Continuations<'m>,
    settings: ExactByteLevel,
    /// Tokens in front that are no text.
    stem: Vec<TokenId>,
    text: Vec<u8>,
    /// A place in the text that no token crosses.
    safe: usize,
    nodes: Vec<Vec<TokenId>>,
    leaves: Vec<Leaf>,
    /// Log-probability that the text ends here.
    end: f64,
    /// Log-probability of the text, given what lies before the first safe place.
    mass: f64,
    verdicts: HashMap<Vec<TokenId>, Verdicts>,
    /// What [`ByteModel::may_follow`] says of tokens that begin with a space, after anything but
    /// white space: there no token crosses, so it is the same everywhere.
    fresh: Verdicts,
}

impl<'m> ByteModel<'m> {
    /// A model whose text begins after the tokens of `stem`; at least one token must precede the text
    /// or belong to it, for a model gives no first token.
    ///
    /// # Errors
    /// A vocabulary that puts something in front of every text; whatever the backbone says.
    pub fn new(
        backbone: &'m dyn Backbone,
        lexicon: Arc<Lexicon<'m>>,
        settings: ExactByteLevel,
        stem: &[TokenId],
    ) -> Result<Self> {
        if lexicon.length(&lexicon.encode(b"a")) > 1 {
            let what = "the vocabulary puts a space in front of every text, so its tokens do not \
                        spell the text. Next: use a model whose vocabulary does not";
            return Err(refuse(what));
        }
        let words = lexicon.ids().div_ceil(64);
        Ok(Self {
            ask: Continuations::new(backbone)?,
            fresh: Verdicts { known: vec![0; words], may: vec![0; words], whole: true },
            lexicon,
            settings,
            stem: stem.to_vec(),
            text: Vec::new(),
            safe: 0,
            nodes: Vec::new(),
            leaves: Vec::new(),
            end: f64::NEG_INFINITY,
            mass: f64::NEG_INFINITY,
            verdicts: HashMap::new(),
        })
    }

    /// The text so far.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Passes and rows of the model so far.
    pub fn work(&self) -> (usize, usize) {
        (self.ask.passes(), self.ask.rows())
    }

    /// Covers held.
    pub fn covers(&self) -> usize {
        self.leaves.len()
    }

    /// Log-probability of the text since the place where its covers were last made from nothing.
    pub fn log_mass(&self) -> f64 {
        self.mass
    }

    /// Takes `text` for the text, whatever it was before.
    ///
    /// # Errors
    /// No token in front; bytes that the vocabulary cannot spell; a text longer than the context.
    pub fn start(&mut self, text: &[u8]) -> Result<()> {
        self.start_from(text, self.lexicon.safe(text))
    }

    /// [`ByteModel::start`] with covers from the byte `from` on, which no token may cross.
    ///
    /// # Errors
    /// As [`ByteModel::start`].
    pub fn start_from(&mut self, text: &[u8], from: usize) -> Result<()> {
        self.text = text.to_vec();
        self.safe = from;
        self.nodes.clear();
        self.leaves.clear();
        let (before, rest) = text.split_at(from);
        let head = self.lexicon.encode(before);
        if !self.lexicon.spells(&head, before) {
            return Err(self.unspelt(before));
        }
        if self.stem.is_empty() && head.is_empty() {
            return Err(refuse(
                "no token precedes the text, and the model says nothing about a first one. \
                 Next: put one in front (a start mark, or a word and a space)",
            ));
        }
        // Every way to split the rest into tokens and the beginning of one more.
        let lexicon = self.lexicon.clone();
        let mut lefts: Vec<(usize, Vec<TokenId>)> = Vec::new();
        for at in 0..=rest.len() {
            let open = &rest[at..];
            if at == rest.len() || !lexicon.longer_than(open).is_empty() {
                lefts.extend(lexicon.spellings(&rest[..at]).into_iter().map(|t| (at, t)));
            }
        }
        let mut asked: BTreeSet<&[TokenId]> = BTreeSet::new();
        for (_, tokens) in &lefts {
            (0..=tokens.len()).for_each(|n| _ = asked.insert(&tokens[..n]));
        }
        // The longest first: it is the one whose rows stay.
        let mut asked: Vec<&[TokenId]> = asked.into_iter().collect();
        asked.sort_by_key(|tokens| std::cmp::Reverse(tokens.len()));
        let nodes: Vec<Vec<TokenId>> =
            asked.iter().map(|tokens| [&head[..], tokens].concat()).collect();
        let laws = self.laws(&nodes, &vec![1.0; nodes.len()])?;
        let of = |tokens: &[TokenId]| asked.iter().position(|a| *a == tokens);
        let weight = |tokens: &[TokenId]| -> f64 {
            (0..tokens.len())
                .map(|n| {
                    let law = of(&tokens[..n]).map(|at| &laws[at]);
                    law.map_or(f64::NEG_INFINITY, |(law, logits)| {
                        f64::from(logits[tokens[n] as usize]) - law.total
                    })
                })
                .sum()
        };
        let mut end = Vec::new();
        for (at, tokens) in &lefts {
            let (Some(index), own) = (of(tokens), weight(tokens)) else { continue };
            let (law, logits) = &laws[index];
            let node = self.nodes.len() as u32;
            let full = [&head[..], tokens].concat();
            if *at == rest.len() {
                end.push(own + law.end);
                self.leaves.extend(law.next.iter().map(|&(token, log)| Leaf {
                    node,
                    token,
                    offset: 0,
                    weight: own + log,
                }));
            } else {
                let open = &rest[*at..];
                for &token in lexicon.longer_than(open) {
                    if self.may_follow(&full, from + at, token) {
                        let log = f64::from(logits[token as usize]) - law.total;
                        let offset = open.len() as u32;
                        self.leaves.push(Leaf { node, token, offset, weight: own + log });
                    }
                }
            }
            self.nodes.push(full);
        }
        self.end = log_sum(end.iter().copied());
        self.weigh();
        if self.mass == f64::NEG_INFINITY {
            return Err(self.unspelt(rest));
        }
        Ok(())
    }

    /// The probabilities of the next byte, and of the end at [`END`]; they sum to 1.
    pub fn distribution(&self) -> Vec<f64> {
        let mut law = vec![0.0; SYMBOLS];
        let top = self.leaves.iter().map(|l| l.weight).fold(self.end, f64::max);
        for leaf in &self.leaves {
            let next = self.lexicon.bytes(leaf.token)[leaf.offset as usize];
            law[usize::from(next)] += exp(leaf.weight - top);
        }
        if self.end > f64::NEG_INFINITY {
            law[END] = exp(self.end - top);
        }
        let total: f64 = law.iter().sum();
        law.iter_mut().for_each(|p| *p /= total);
        law
    }

    /// Adds a byte to the text. False if the model holds it for impossible: then nothing is known
    /// about what follows, and the text must be started anew.
    ///
    /// # Errors
    /// A text longer than the context; whatever a pass reports.
    pub fn advance(&mut self, byte: u8) -> Result<bool> {
        self.text.push(byte);
        let before = self.mass;
        let lexicon = self.lexicon.clone();
        let mut done: Vec<(Vec<TokenId>, f64)> = Vec::new();
        self.leaves.retain_mut(|leaf| {
            let bytes = lexicon.bytes(leaf.token);
            if bytes[leaf.offset as usize] != byte {
                return false;
            }
            leaf.offset += 1;
            if bytes.len() > leaf.offset as usize {
                return true;
            }
            let mut tokens = self.nodes[leaf.node as usize].clone();
            tokens.push(leaf.token);
            done.push((tokens, leaf.weight));
            false
        });
        self.drop_unused();
        self.safe = lexicon.safe(&self.text).max(self.safe);
        if self.settings.mode == Mode::Fast {
            // Not asked when they were guessed, but what is wrong here goes no further.
            done.retain(|(tokens, _)| {
                let (at, from) = self.local(tokens, self.text.len());
                lexicon.begins(&self.text[from..], &tokens[at..])
            });
        }
        let all = self.leaves.iter().map(|l| l.weight).chain(done.iter().map(|d| d.1));
        let total = log_sum(all);
        // What was left out counts for more after an improbable byte: look again without a floor.
        if self.settings.floor > TRUST * exp(total - before) || total == f64::NEG_INFINITY {
            return self.again();
        }
        let share = |weight: f64| exp(weight - total);
        done.retain(|(_, weight)| share(*weight) >= self.settings.floor);
        done.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shares: Vec<f64> = done.iter().map(|d| share(d.1)).collect();
        let (tokens, weights): (Vec<_>, Vec<f64>) = done.into_iter().unzip();
        let mut end = Vec::new();
        for ((law, _), (tokens, weight)) in
            self.laws(&tokens, &shares)?.into_iter().zip(tokens.into_iter().zip(weights))
        {
            let node = self.nodes.len() as u32;
            self.nodes.push(tokens);
            end.push(weight + law.end);
            self.leaves.extend(law.next.iter().map(|&(token, log)| Leaf {
                node,
                token,
                offset: 0,
                weight: weight + log,
            }));
        }
        self.end = log_sum(end.into_iter());
        self.weigh();
        Ok(true)
    }

    /// The tokens that spell the text exactly, and the share of the text's probability that they
    /// have: near 1 where the text ends at a boundary between tokens.
    pub fn settled(&self) -> Option<(Vec<TokenId>, f64)> {
        let mut shares = vec![0.0; self.nodes.len()];
        for leaf in self.leaves.iter().filter(|l| l.offset == 0) {
            shares[leaf.node as usize] += exp(leaf.weight - self.mass);
        }
        let (node, share) = (0..).zip(&shares).max_by(|a, b| a.1.total_cmp(b.1))?;
        let end = if self.end > f64::NEG_INFINITY { exp(self.end - self.mass) } else { 0.0 };
        let whole = [&self.stem[..], &self.nodes[node as usize]].concat();
        (*share > 0.0).then_some((whole, share + end))
    }

    /// Makes the covers of the text again, without a floor.
    fn again(&mut self) -> Result<bool> {
        let floor = std::mem::replace(&mut self.settings.floor, 0.0);
        let text = std::mem::take(&mut self.text);
        let outcome = self.start(&text);
        self.settings.floor = floor;
        match outcome {
            Ok(()) => Ok(true),
            Err(Error::Setting { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn weigh(&mut self) {
        self.mass = log_sum(self.leaves.iter().map(|l| l.weight).chain([self.end]));
    }

    /// Forgets the nodes that no leaf hangs on.
    fn drop_unused(&mut self) {
        let mut place = vec![u32::MAX; self.nodes.len()];
        let mut kept = Vec::new();
        for leaf in &mut self.leaves {
            let slot = &mut place[leaf.node as usize];
            if *slot == u32::MAX {
                *slot = kept.len() as u32;
                kept.push(std::mem::take(&mut self.nodes[leaf.node as usize]));
            }
            leaf.node = *slot;
        }
        self.nodes = kept;
    }

    /// What may follow each sequence, with its logits. `shares` are the sequences' shares of the
    /// whole: the smaller, the more of what follows may be left out.
    fn laws(&mut self, nodes: &[Vec<TokenId>], shares: &[f64]) -> Result<Vec<(Law, Vec<f32>)>> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let texts: Vec<Vec<TokenId>> =
            nodes.iter().map(|tokens| [&self.stem[..], tokens].concat()).collect();
        let mut rows = Vec::with_capacity(nodes.len());
        self.ask.ask(&texts, &mut |_, logits| {
            rows.push(logits.to_vec());
            Ok(())
        })?;
        let mut laws = Vec::with_capacity(nodes.len());
        for ((tokens, share), logits) in nodes.iter().zip(shares).zip(rows) {
            laws.push((self.law(tokens, *share, &logits)?, logits));
        }
        Ok(laws)
    }

    fn law(&mut self, tokens: &[TokenId], share: f64, logits: &[f32]) -> Result<Law> {
        if logits.len() < self.lexicon.ids() {
            let (rows, ids) = (logits.len(), self.lexicon.ids());
            return Err(Error::logits(format!("{rows} of them for {ids} tokens")));
        }
        let lexicon = self.lexicon.clone();
        let log = |t: TokenId| f64::from(logits[t as usize]);
        let top = tessera_core::dist::argmax(logits)?.1;
        let mut next: Vec<(TokenId, f64)> = lexicon.tokens().iter().map(|&t| (t, log(t))).collect();
        let mut ends = log_sum(lexicon.ends().iter().map(|&t| log(t)));
        if self.settings.mode == Mode::Exact {
            let length = lexicon.length(tokens);
            let cut = tail(&next, f64::from(top), self.settings.floor / share.max(1e-300));
            next.retain(|&(_, log)| log >= cut);
            next.retain(|&(token, _)| self.may_follow(tokens, length, token));
            if !self.verdicts_of(tokens, length).whole {
                ends = f64::NEG_INFINITY;
            }
        }
        let total = log_sum(next.iter().map(|n| n.1).chain([ends]));
        if total == f64::NEG_INFINITY {
            // No text goes on so: what led here was worth nothing.
            return Ok(Law { next: Vec::new(), total: f64::INFINITY, end: total });
        }
        next.iter_mut().for_each(|n| n.1 -= total);
        Ok(Law { next, total, end: ends - total })
    }

    /// The part of `tokens`, which spell the first `length` bytes of the text, that the next token
    /// depends on: its first index and its first byte.
    fn local(&self, tokens: &[TokenId], length: usize) -> (usize, usize) {
        let (mut at, mut byte) = (tokens.len(), length);
        while byte > self.safe && at > 0 {
            at -= 1;
            byte -= self.lexicon.bytes(tokens[at]).len();
        }
        // Were a token to cross the place after all, everything would count.
        if byte == self.safe || length < self.safe { (at, byte) } else { (0, 0) }
    }

    fn verdicts_of(&mut self, tokens: &[TokenId], length: usize) -> &mut Verdicts {
        let (at, from) = self.local(tokens, length);
        let key = &tokens[at..];
        if !self.verdicts.contains_key(key) {
            if self.verdicts.len() >= REMEMBERED {
                self.verdicts.clear();
            }
            let words = self.lexicon.ids().div_ceil(64);
            let whole = self.lexicon.is_whole(&self.text[from..length], key);
            let fresh = Verdicts { known: vec![0; words], may: vec![0; words], whole };
            self.verdicts.insert(key.to_vec(), fresh);
        }
        // Just put in, if it was not there.
        self.verdicts.entry(key.to_vec()).or_insert_with(|| Verdicts {
            known: Vec::new(),
            may: Vec::new(),
            whole: false,
        })
    }

    /// Whether `token` may follow `tokens`, which spell the first `length` bytes of the text.
    fn may_follow(&mut self, tokens: &[TokenId], length: usize, token: TokenId) -> bool {
        let (word, bit) = (token as usize / 64, 1u64 << (token % 64));
        let own = self.lexicon.bytes(token);
        if own.first() == Some(&b' ') && self.lexicon.is_safe_before_space(&self.text[..length]) {
            if self.fresh.known[word] & bit == 0 {
                self.fresh.known[word] |= bit;
                if self.lexicon.begins(own, &[token]) {
                    self.fresh.may[word] |= bit;
                }
            }
            return self.fresh.may[word] & bit != 0;
        }
        let verdicts = self.verdicts_of(tokens, length);
        if verdicts.known[word] & bit != 0 {
            return verdicts.may[word] & bit != 0;
        }
        let (at, from) = self.local(tokens, length);
        let bytes = [&self.text[from..length], own].concat();
        let may = self.lexicon.begins(&bytes, &[&tokens[at..], &[token]].concat());
        let verdicts = self.verdicts_of(tokens, length);
        verdicts.known[word] |= bit;
        if may {
            verdicts.may[word] |= bit;
        }
        may
    }

    fn unspelt(&self, bytes: &[u8]) -> Error {
        let shown = String::from_utf8_lossy(bytes);
        let short: String =
            shown.chars().rev().take(24).collect::<Vec<_>>().into_iter().rev().collect();
        Error::setting("text", format!("...{short:?}"), "something that the vocabulary can spell")
    }
}

fn refuse(what: &str) -> Error {
    Error::Method { method: "exact-byte-level".to_owned(), what: what.to_owned() }
}

/// `ln(sum(exp(logs)))`; minus infinity for none.
fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return top;
    }
    top + ln(logs.map(|l| exp(l - top)).sum())
}

/// A logit below which all tokens together have at most `share` of the probability.
fn tail(next: &[(TokenId, f64)], top: f64, share: f64) -> f64 {
    if share <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if share >= 1.0 {
        return top;
    }
    // Mass by how far below the top, in steps of a quarter.
    let mut steps = [0.0f64; 400];
    for (_, log) in next {
        let step = ((top - log) * 4.0).max(0.0) as usize;
        steps[step.min(steps.len() - 1)] += exp(log - top);
    }
    let allowed = share * steps.iter().sum::<f64>();
    let mut below = 0.0;
    for step in (1..steps.len()).rev() {
        below += steps[step];
        if below > allowed {
            return if step + 1 == steps.len() {
                f64::NEG_INFINITY
            } else {
                top - (step + 1) as f64 / 4.0
            };
        }
    }
    top
}
