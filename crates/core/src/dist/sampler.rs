//! From logits to a token: penalties, truncations, draw.
//!
//! The order is llama.cpp's default one: **penalties, top-k, top-p, min-p, temperature**. So top-p
//! and min-p look at the distribution before temperature, and top-p's probabilities are those of
//! the tokens that top-k left. Ties are broken by the smaller token id everywhere, so the result
//! never depends on an order of candidates.

use super::key::Key;
use super::race::{Candidate, draw_all, draw_of, first_of};
use super::sampling::Sampling;
use super::scalar::{exp, ln};
use super::softmax::argmax;
use crate::{Result, TokenId};

/// Chooses tokens with fixed settings. Holds memory for the work, no state: a draw depends on its
/// arguments alone.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    penalised: Vec<f32>,
    counts: Vec<TokenId>,
    kept: Vec<Candidate>,
}

/// Who takes part in the draw.
enum Support {
    /// Every token with at least this logit.
    AtLeast(f64),
    /// Those in `kept`.
    Listed,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for a setting outside its range.
    pub fn new(settings: Sampling) -> Result<Self> {
        settings.validate()?;
        Ok(Self { settings, penalised: Vec::new(), counts: Vec::new(), kept: Vec::new() })
    }

    /// The settings.
    pub fn settings(&self) -> &Sampling {
        &self.settings
    }

    /// The token drawn from `logits` (one per token id) with `key`. `history` is the sequence so
    /// far, prompt included; only the penalties look at its end.
    ///
    /// # Errors
    /// [`crate::Error::Logits`] if the logits are no distribution (NaN, `+inf`, all `-inf`, none).
    pub fn draw(&mut self, logits: &[f32], history: &[TokenId], key: Key) -> Result<TokenId> {
        let (first, support) = self.truncate(logits, history)?;
        let temperature = self.settings.temperature;
        Ok(match support {
            _ if temperature == 0.0 => first.id,
            Support::AtLeast(floor) => {
                draw_all(self.effective(logits, history), first, floor, temperature, key)
            }
            Support::Listed => {
                draw_of(&self.kept, first.logit, temperature, key).unwrap_or(first.id)
            }
        })
    }

    /// Tokens that [`Sampler::draw`] can draw, into `out`; at temperature 0 all of positive
    /// probability.
    ///
    /// # Errors
    /// As [`Sampler::draw`].
    pub fn support(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        out.clear();
        match self.truncate(logits, history)?.1 {
            Support::Listed => out.extend(self.kept.iter().map(|c| c.id)),
            Support::AtLeast(floor) => {
                let floor = self.reach_down(floor);
                let tokens = (0..).zip(self.effective(logits, history));
                out.extend(tokens.filter(|&(_, &l)| there(l, floor)).map(|(id, _)| id));
            }
        }
        Ok(())
    }

    /// The draw among those tokens that are `allowed`, with the probabilities they have in
    /// [`Sampler::draw`] made to sum to 1; at temperature 0 the most probable one. `None` if there
    /// are none. Where all are allowed it is the token of [`Sampler::draw`].
    ///
    /// # Errors
    /// As [`Sampler::draw`].
    pub fn draw_allowed(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        key: Key,
        allowed: impl Fn(TokenId) -> bool,
    ) -> Result<Option<TokenId>> {
        let max = self.candidates(logits, history, &allowed)?;
        let temperature = self.settings.temperature;
        if temperature == 0.0 {
            return Ok(self.kept.iter().min_by(|a, b| order(a, b)).map(|c| c.id));
        }
        Ok(draw_of(&self.kept, max, temperature, key))
    }

    /// The probability in [`Sampler::draw`] of the tokens that are `allowed`. At temperature 0 it is
    /// that of the most probable token: 1 or 0.
    ///
    /// # Errors
    /// As [`Sampler::draw`].
    pub fn mass(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        allowed: impl Fn(TokenId) -> bool,
    ) -> Result<f64> {
        if self.settings.temperature == 0.0 {
            let first = self.truncate(logits, history)?.0;
            return Ok(f64::from(u8::from(allowed(first.id))));
        }
        let max = self.candidates(logits, history, &|_| true)?;
        let weight = |logit: f32| exp(self.scaled(logit, max));
        let (mut some, mut all) = (0.0, 0.0);
        for c in &self.kept {
            let w = weight(c.logit);
            all += w;
            some += if allowed(c.id) { w } else { 0.0 };
        }
        Ok(some / all)
    }

    /// The first `count` tokens in the order in which the race of [`Sampler::draw`] brings them
    /// home (so the first one is its token, and each of the others is drawn from those that are
    /// left), with their probabilities, into `out`; at temperature 0 the most probable ones first, with
    /// probability 1 for the first of all. Tokens for which `possible` is false take no part; the
    /// probabilities are relative to those that do.
    ///
    /// Returns the probability of the tokens that take part, and the largest probability among
    /// them; without `weighted`, which spares the sums, these and the probabilities are NaN.
    ///
    /// # Errors
    /// As [`Sampler::draw`].
    pub fn arrivals(
        &mut self,
        (logits, history, key): (&[f32], &[TokenId], Key),
        possible: impl Fn(TokenId) -> bool,
        count: usize,
        weighted: bool,
        out: &mut Vec<(TokenId, f64)>,
    ) -> Result<(f64, f64)> {
        out.clear();
        let max = self.candidates(logits, history, &|_| true)?;
        let temperature = self.settings.temperature;
        if temperature == 0.0 {
            let first = self.kept.iter().min_by(|a, b| order(a, b)).map(|c| c.id);
            self.kept.retain(|c| possible(c.id));
            if count > 0 && count < self.kept.len() {
                self.kept.select_nth_unstable_by(count - 1, order);
                self.kept.truncate(count);
            }
            self.kept.sort_unstable_by(order);
            let p = |c: &Candidate| f64::from(u8::from(first == Some(c.id)));
            out.extend(self.kept.iter().take(count).map(|c| (c.id, p(c))));
            let share = f64::from(u8::from(first.is_some_and(possible)));
            return Ok((share, share));
        }
        let (mut some, mut share, mut peak) = (f64::NAN, f64::NAN, f64::NAN);
        if weighted {
            let (mut part, mut all, mut top) = (0.0, 0.0, 0.0);
            for c in &self.kept {
                let w = exp(self.scaled(c.logit, max));
                all += w;
                if possible(c.id) {
                    part += w;
                    top = f64::max(top, w);
                }
            }
            (some, share, peak) = (part, part / all, top / part);
        }
        let mut kept = std::mem::take(&mut self.kept);
        let takes_part = kept.iter().filter(|c| possible(c.id));
        let first = first_of(takes_part, max, temperature, key, count);
        kept.clear();
        self.kept = kept;
        let p = |c: &Candidate| exp(self.scaled(c.logit, max)) / some;
        out.extend(first.iter().map(|c| (c.id, p(c))));
        Ok((share, peak))
    }

    /// Fills `kept` with the allowed tokens that take part; returns the largest logit of all.
    fn candidates(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        allowed: &dyn Fn(TokenId) -> bool,
    ) -> Result<f32> {
        let (first, support) = self.truncate(logits, history)?;
        match support {
            Support::Listed => self.kept.retain(|c| allowed(c.id)),
            Support::AtLeast(floor) => {
                let floor = self.reach_down(floor);
                let mut kept = std::mem::take(&mut self.kept);
                kept.clear();
                let tokens = (0..).zip(self.effective(logits, history));
                let taking_part = tokens.filter(|&(id, &l)| there(l, floor) && allowed(id));
                kept.extend(taking_part.map(|(id, &logit)| Candidate { id, logit }));
                self.kept = kept;
            }
        }
        Ok(first.logit)
    }

    /// The floor of who takes part: temperature 0 looks down to the last token.
    fn reach_down(&self, floor: f64) -> f64 {
        if self.settings.temperature == 0.0 { f64::NEG_INFINITY } else { floor }
    }

    fn scaled(&self, logit: f32, max: f32) -> f64 {
        (f64::from(logit) - f64::from(max)) / f64::from(self.settings.temperature)
    }

    /// The distribution that [`Sampler::draw`] draws from: tokens of positive probability in
    /// ascending order, with probabilities that sum to 1 up to rounding.
    ///
    /// # Errors
    /// As [`Sampler::draw`].
    pub fn distribution(
        &mut self,
        logits: &[f32],
        history: &[TokenId],
        out: &mut Vec<(TokenId, f64)>,
    ) -> Result<()> {
        out.clear();
        let (first, support) = self.truncate(logits, history)?;
        if self.settings.temperature == 0.0 {
            out.push((first.id, 1.0));
            return Ok(());
        }
        let inverse = 1.0 / f64::from(self.settings.temperature);
        let weight = |logit: f32| exp((f64::from(logit) - f64::from(first.logit)) * inverse);
        match support {
            Support::AtLeast(floor) => out.extend(
                (0..)
                    .zip(self.effective(logits, history))
                    .filter(|&(_, &logit)| f64::from(logit) >= floor)
                    .map(|(id, &logit)| (id, weight(logit))),
            ),
            Support::Listed => out.extend(self.kept.iter().map(|c| (c.id, weight(c.logit)))),
        }
        out.retain(|&(_, w)| w > 0.0);
        out.sort_unstable_by_key(|&(id, _)| id);
        let sum: f64 = out.iter().map(|&(_, w)| w).sum();
        out.iter_mut().for_each(|(_, w)| *w /= sum);
        Ok(())
    }

    /// The logits after penalties, as left by the last [`Sampler::truncate`].
    fn effective<'a>(&'a self, logits: &'a [f32], history: &[TokenId]) -> &'a [f32] {
        if self.settings.penalises() && !history.is_empty() { &self.penalised } else { logits }
    }

    /// Applies everything but temperature; returns the most probable token and who takes part.
    fn truncate(&mut self, logits: &[f32], history: &[TokenId]) -> Result<(Candidate, Support)> {
        let s = self.settings;
        if s.penalises() && !history.is_empty() {
            self.penalise(logits, history);
        }
        let mut kept = std::mem::take(&mut self.kept);
        kept.clear();
        let values = self.effective(logits, history);
        let (id, logit) = argmax(values)?;
        let first = Candidate { id, logit };
        let floor = f64::from(logit)
            + if s.min_p > 0.0 { ln(f64::from(s.min_p)) } else { f64::NEG_INFINITY };
        let mut listed = false;
        if s.temperature > 0.0 {
            if s.top_k > 0 && s.top_k < values.len() {
                top_k(values, s.top_k, &mut kept);
                listed = true;
            }
            if s.top_p < 1.0 {
                let p = f64::from(s.top_p);
                if listed {
                    let max = f64::from(logit);
                    let mass = kept.iter().map(|c| exp(f64::from(c.logit) - max)).sum::<f64>();
                    let reach = reach(&kept, p * mass, max).unwrap_or(kept.len());
                    kept.truncate(reach);
                } else {
                    top_p(values, p, logit, &mut kept);
                    listed = true;
                }
            }
            kept.retain(|c| f64::from(c.logit) >= floor);
        }
        self.kept = kept;
        Ok((first, if listed { Support::Listed } else { Support::AtLeast(floor) }))
    }

    fn penalise(&mut self, logits: &[f32], history: &[TokenId]) {
        let s = self.settings;
        self.penalised.clear();
        self.penalised.extend_from_slice(logits);
        self.counts.clear();
        self.counts.extend_from_slice(&history[history.len().saturating_sub(s.penalty_window)..]);
        self.counts.sort_unstable();
        for same in self.counts.chunk_by(|a, b| a == b) {
            let Some(logit) = self.penalised.get_mut(same[0] as usize) else { continue };
            *logit =
                if *logit > 0.0 { *logit / s.repeat_penalty } else { *logit * s.repeat_penalty };
            *logit -= s.presence_penalty + same.len() as f32 * s.frequency_penalty;
        }
    }
}

/// Whether a token takes part; one of probability 0 never does.
fn there(logit: f32, floor: f64) -> bool {
    logit > f32::NEG_INFINITY && f64::from(logit) >= floor
}

/// Most probable first, the smaller id first among equals.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Fills `kept` (empty) with the `k` tokens of the largest logits, the largest first and the smaller
/// id first among equals. Tokens at `-inf` or NaN never count.
///
/// One comparison per token: what is not above the smallest logit kept so far is passed over in
/// blocks, so a large vocabulary costs little more than reading it. `k` is at least 1.
pub fn top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    let room = (2 * k).max(k.saturating_add(256));
    let mut threshold = f32::NEG_INFINITY;
    for (block, values) in logits.chunks(64).enumerate() {
        // A later token with the threshold's own logit has a larger id than k that are kept.
        if !values.iter().fold(false, |any, &v| any | (v > threshold)) {
            continue;
        }
        for (i, &logit) in values.iter().enumerate() {
            if logit > threshold {
                kept.push(Candidate { id: (block * 64 + i) as TokenId, logit });
            }
        }
        if kept.len() >= room {
            kept.select_nth_unstable_by(k - 1, order);
            kept.truncate(k);
            threshold = kept[k - 1].logit;
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(k);
}

/// Steps of logit distance that [`top_p`] sorts tokens into, and how many of them cover one nat.
const BUCKETS: usize = 1024;
const BUCKETS_PER_NAT: f32 = 32.0;

/// The first tokens in [`order`] whose probabilities reach `p`, in no particular order.
///
/// Only the tokens that share a bucket with the last one are sorted: the cost does not grow with
/// how flat the distribution is. The bucket is a monotone function of the logit, so no token is on
/// the wrong side of another.
fn top_p(logits: &[f32], p: f64, max: f32, kept: &mut Vec<Candidate>) {
    let bucket = |logit: f32| (((max - logit) * BUCKETS_PER_NAT) as usize).min(BUCKETS - 1);
    let mut mass = [0.0f64; BUCKETS];
    let mut weights = [0.0f64; 64];
    for values in logits.chunks(64) {
        for (weight, &logit) in weights.iter_mut().zip(values) {
            *weight = exp(f64::from(logit) - f64::from(max));
        }
        for (weight, &logit) in weights.iter().zip(values) {
            mass[bucket(logit)] += weight;
        }
    }
    let target = p * mass.iter().sum::<f64>();
    let (mut before, mut last) = (0.0, 0);
    while last + 1 < BUCKETS && before + mass[last] < target {
        before += mass[last];
        last += 1;
    }
    let tokens = || (0..).zip(logits).map(|(id, &logit)| Candidate { id, logit });
    let there = |c: &Candidate| c.logit > f32::NEG_INFINITY;
    kept.extend(tokens().filter(|c| there(c) && bucket(c.logit) == last));
    kept.sort_unstable_by(order);
    let count = reach(kept, target - before, f64::from(max)).unwrap_or(kept.len());
    kept.truncate(count);
    kept.extend(tokens().filter(|c| there(c) && bucket(c.logit) < last));
}

/// How many of the candidates, from the first, it takes to reach `target`.
fn reach(kept: &[Candidate], target: f64, max: f64) -> Option<usize> {
    let mut sum = 0.0;
    kept.iter()
        .position(|c| {
            sum += exp(f64::from(c.logit) - max);
            sum >= target
        })
        .map(|at| at + 1)
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
