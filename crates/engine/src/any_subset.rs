//! The any-subset loop: holes of a text are filled several at a time, with the law (or the very tokens)
//! of filling them one by one.
//!
//! The model is causal in *rank*, the order of writing, not in position: a content row reads the rows
//! of lower rank and itself, the prompt's rows read one another, and the token at a hole is predicted
//! by a mask at its position, which nothing reads. So one network is drafter (masks that see the known
//! text) and judge (masks that see the guesses of lower rank too), and content rows are cached exactly.
//!
//! Holes are written from left to right. Under `keyed` acceptance a token is drawn from the judge with
//! its position's key, and the guess was drawn with the same key; under `residual` a guess stands with
//! probability min(1, judge / draft), else the token is drawn from what the judge has more.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tessera_core::dist::{Key, Sampler};
use tessera_core::entry::{AnySubset, Method};
use tessera_core::{
    CacheOptions, Canvas, Control, Error, Event, Fill, Filling, Input, KvStore, Mask, Pass,
    Position, Result, Reveal, Row, RowsOut, Segment, TokenId, Write,
};

use crate::autoregressive::{Listener, Model};
use crate::denoise::{blank, finished, nats};
use crate::recipe::Recipe;
use crate::request::{Outcome, Request, Stats};

/// The purposes of numbers that are not a token's own ([`Key::purpose`]).
const GUESS: u64 = 0xa55d_0001;
const TEST: u64 = 0xa55d_0002;
const REST: u64 = 0xa55d_0003;

/// The loop's settings, if the recipe asks for it or the model can do nothing else: its plain run
/// writes one hole a pass.
pub(crate) fn asked(recipe: &Recipe, filling: Filling) -> Result<Option<AnySubset>> {
    let (mut found, mut other) = (None, None);
    for (method, member) in recipe.build()?.into_iter().zip(recipe.members()) {
        match method {
            Method::AnySubset(settings) => found = Some((settings, member.entry.slug)),
            _ => other = Some(member.entry.slug),
        }
    }
    if filling.any_subset && found.is_none() {
        return match other {
            None => Ok(Some(AnySubset { guesses: 1, residual: false })),
            Some(slug) => {
                let what = "reads in both directions, and this model reads only what was written \
                            before. Next: `any-subset`, or none"
                    .to_owned();
                Err(Error::Method { method: slug.to_owned(), what })
            }
        };
    }
    match found {
        Some((_, slug)) if recipe.members().len() > 1 => {
            let what = "writes holes by itself: leave the other methods out".to_owned();
            Err(Error::Method { method: slug.to_owned(), what })
        }
        found => Ok(found.map(|(settings, _)| settings)),
    }
}

/// Answers `request` with a model that is causal in rank.
///
/// # Errors
/// As the denoising loop.
pub(crate) fn generate(
    model: Model<'_>,
    filling: Filling,
    request: &Request,
    length: usize,
    settings: AnySubset,
    call: &mut dyn FnMut(Event<'_>) -> Control,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    if filling.shift {
        let what = "needs a model whose masks predict their own place".to_owned();
        return Err(Error::Method { method: "any-subset".to_owned(), what });
    }
    let mut listener = Listener::new(call, cancel);
    let mut stats = Stats { prompt_tokens: request.prompt.len(), ..Stats::default() };
    let mut choices = Vec::with_capacity(request.choices);
    for index in 0..request.choices {
        let start = Instant::now();
        let listened = listener.seconds;
        let canvas = blank(request, length, filling)?;
        let options = CacheOptions { capacity: canvas.len(), ..CacheOptions::default() };
        let mut text = Text {
            model,
            request,
            settings,
            canvas,
            mask: filling.mask,
            index,
            step: 0,
            cache: model.backbone.new_cache(options)?,
            reveal: Reveal::new(),
            sampler: Sampler::new(request.sampling)?,
            pending: Vec::new(),
            stats: &mut stats,
        };
        text.run(&mut listener)?;
        let canvas = text.canvas;
        stats.decode_seconds += start.elapsed().as_secs_f64() - (listener.seconds - listened);
        let made = finished(&canvas, request, model.vocabulary, index, None, &mut listener)?;
        stats.drawn_tokens += made.tokens.len();
        stats.decode_tokens += made.tokens.len();
        choices.push(made);
    }
    Ok(Outcome { choices, stats, population: None })
}

struct Text<'a> {
    model: Model<'a>,
    request: &'a Request,
    settings: AnySubset,
    canvas: Canvas,
    mask: TokenId,
    index: usize,
    step: u32,
    cache: Box<dyn KvStore>,
    reveal: Reveal,
    sampler: Sampler,
    /// Tokens that are known and have no row yet, by rank.
    pending: Vec<(Position, TokenId)>,
    stats: &'a mut Stats,
}

/// A distribution: tokens of positive probability, ascending.
type Law = Vec<(TokenId, f64)>;

impl Text<'_> {
    fn run(&mut self, listener: &mut Listener<'_>) -> Result<()> {
        let known =
            self.canvas.tokens().iter().zip(0..).filter(|&(_, p)| !self.canvas.is_masked(p));
        self.pending = known.map(|(&token, p)| (p, token)).collect();
        // What is given reads all of it, so it is computed on its own.
        self.pass(&[], &[], true)?;
        listener.tell(Event::Step { rows: self.canvas.len() - self.canvas.masks(), committed: 0 });
        while self.canvas.masks() > 0 && !listener.stopped() {
            self.round(listener)?;
            self.step += 1;
        }
        Ok(())
    }

    /// Guesses at the next holes, judges the guesses, and writes what stands.
    fn round(&mut self, listener: &mut Listener<'_>) -> Result<()> {
        let holes: Vec<Position> = self.canvas.masked().take(self.settings.guesses).collect();
        let (alone, last) = (holes.len() == 1, self.canvas.masks() == 1);
        let rows = self.pass(&[], &holes, false)?;
        listener.tell(Event::Step { rows, committed: usize::from(alone || last) });
        let drafts = self.laws(holes.len())?;
        let mut guesses = Vec::with_capacity(holes.len());
        for (i, (&hole, law)) in holes.iter().zip(&drafts).enumerate() {
            // The first guess has all that it would be judged by: it is the token.
            let key = match self.settings.residual && i > 0 {
                false => self.key(hole),
                true => self.key(hole).purpose(GUESS).purpose(u64::from(self.step)),
            };
            guesses.push(Fill { position: hole, ..self.drawn(i, law, key)? });
        }
        let mut written = vec![guesses[0]];
        if !(alone || last) {
            let rows = self.pass(&guesses, &holes[1..], false)?;
            let judged = self.laws(holes.len() - 1)?;
            let (mut stands, mut accepted) = (true, 1);
            for (j, law) in judged.iter().enumerate() {
                let (guess, draft) = (guesses[j + 1], &drafts[j + 1]);
                let key = self.key(guess.position);
                let token = match self.settings.residual {
                    false => self.drawn(j, law, key)?.token,
                    true => self.tested(guess.token, draft, law, key),
                };
                stands = token == guess.token;
                let probability = chance(law, token) as f32;
                let score = f64::from(probability);
                written.push(Fill { position: guess.position, token, probability, score });
                if !stands {
                    break;
                }
                accepted += 1;
            }
            let drafted = guesses.len() - 1;
            self.stats.drafted_tokens += drafted;
            self.stats.accepted_tokens += accepted - 1;
            let (choice, depth) = (self.index, drafted);
            listener.tell(Event::Judged { choice, drafted, accepted: accepted - 1, depth });
            listener.tell(Event::Step { rows, committed: written.len() });
            // Of the rows of the judging pass the guesses that stand are kept; its masks go.
            let kept: Vec<Row> = (0..accepted as Row).collect();
            self.cache.keep_last(guesses.len() + holes.len() - 1, &kept)?;
            if !stands {
                self.pending.extend(written.last().map(|f| (f.position, f.token)));
            }
        } else {
            self.pending.push((written[0].position, written[0].token));
        }
        for fill in &written {
            self.canvas.fill(fill.position, fill.token, self.step)?;
        }
        let positions: Vec<Position> = written.iter().map(|f| f.position).collect();
        let tokens: Vec<TokenId> = written.iter().map(|f| f.token).collect();
        listener.tell(Event::Denoised {
            choice: self.index,
            step: self.step,
            positions: &positions,
            tokens: &tokens,
            remasked: &[],
            nats: nats(&written),
            length: self.canvas.len(),
            masks: self.canvas.masks(),
        });
        Ok(())
    }

    fn key(&self, position: Position) -> Key {
        Key::new(self.request.seed, self.index as u32, position)
    }

    /// One pass: pending tokens, then `guesses`, then masks at `holes`. Content is causal in rank, all of
    /// it visible to all where `given`; the mask at the i-th hole sees what was there before, the
    /// pending tokens and, if there are guesses, the first i + 1 of them. Pending rows stay in the
    /// cache; so do those of the guesses and their masks until the caller drops them. Returns the rows
    /// computed.
    fn pass(&mut self, guesses: &[Fill], holes: &[Position], given: bool) -> Result<usize> {
        let pending = std::mem::take(&mut self.pending);
        let content: Vec<(Position, TokenId)> =
            pending.iter().copied().chain(guesses.iter().map(|f| (f.position, f.token))).collect();
        let (known, all) = (content.len(), content.len() + holes.len());
        if all == 0 {
            return Ok(0);
        }
        let cached = self.cache.table().len();
        let columns = cached + all;
        let mut bits = vec![false; all * columns];
        for (row, line) in bits.chunks_exact_mut(columns).enumerate() {
            line[..cached].fill(true);
            let sees = match row.checked_sub(known) {
                None if given => known,
                None => row + 1,
                Some(_) if guesses.is_empty() => known,
                Some(hole) => pending.len() + hole + 1,
            };
            line[cached..cached + sees].fill(true);
            line[cached + row] = true;
        }
        let positions: Vec<Position> =
            content.iter().map(|c| c.0).chain(holes.iter().copied()).collect();
        let tokens: Vec<TokenId> =
            content.iter().map(|c| c.1).chain(holes.iter().map(|_| self.mask)).collect();
        let out: Vec<u32> = (known as u32..all as u32).collect();
        let mut segments = [Segment {
            input: Input::Tokens(&tokens),
            positions: &positions,
            mask: Mask::Explicit { bits: &bits, columns },
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out: RowsOut::Rows(&out),
            condition: None,
            cache: Some(&mut *self.cache),
        }];
        self.model.backbone.forward(&mut Pass::new(&mut segments), &mut self.reveal)?;
        self.stats.passes += 1;
        self.stats.rows += all;
        if guesses.is_empty() {
            self.cache.rollback(holes.len())?;
        }
        Ok(all)
    }

    /// What the last pass says of its `count` masks.
    fn laws(&mut self, count: usize) -> Result<Vec<Law>> {
        let mut laws = Vec::with_capacity(count);
        for i in 0..count {
            let logits = self.unmasked(i);
            let mut law = Vec::new();
            self.sampler.distribution(&logits, &[], &mut law)?;
            laws.push(law);
        }
        Ok(laws)
    }

    /// The logits of the `i`-th mask of the last pass; the mask itself is no token.
    fn unmasked(&self, i: usize) -> Vec<f32> {
        let mut logits = self.reveal.logits(0, i).to_vec();
        if let Some(mask) = logits.get_mut(self.mask as usize) {
            *mask = f32::NEG_INFINITY;
        }
        logits
    }

    /// A token drawn for the `i`-th mask of the last pass, whose law is `law`.
    fn drawn(&mut self, i: usize, law: &Law, key: Key) -> Result<Fill> {
        let logits = self.unmasked(i);
        let token = self.sampler.draw(&logits, &[], key)?;
        let probability = chance(law, token) as f32;
        Ok(Fill { position: 0, token, probability, score: f64::from(probability) })
    }

    /// The guess, with probability min(1, judge / draft); else a token of what the judge has more.
    fn tested(&self, guess: TokenId, draft: &Law, judge: &Law, key: Key) -> TokenId {
        let round = u64::from(self.step);
        let share = chance(judge, guess) / chance(draft, guess).max(f64::MIN_POSITIVE);
        if key.purpose(TEST).purpose(round).uniform(0) < share {
            return guess;
        }
        let more = |&(token, p): &(TokenId, f64)| (token, (p - chance(draft, token)).max(0.0));
        let rest: Law = judge.iter().map(more).filter(|&(_, p)| p > 0.0).collect();
        // Equal laws differ by rounding only: then the judge's own.
        let rest = if rest.is_empty() { judge } else { &rest };
        let sum: f64 = rest.iter().map(|&(_, p)| p).sum();
        let mut left = key.purpose(REST).purpose(round).uniform(0) * sum;
        for &(token, p) in rest {
            left -= p;
            if left < 0.0 {
                return token;
            }
        }
        rest.last().map_or(guess, |&(token, _)| token)
    }
}

/// The probability of a token.
fn chance(law: &Law, token: TokenId) -> f64 {
    law.binary_search_by_key(&token, |&(t, _)| t).map_or(0.0, |i| law[i].1)
}
