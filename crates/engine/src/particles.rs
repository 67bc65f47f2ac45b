//! The particle loop: several weighted texts under a constraint, resampled as they grow.
//!
//! Every text gets a segment of each pass. A token's weight estimates the probability of the allowed
//! tokens at its place, so the product of a text's weights makes up for what drawing under the
//! constraint, place by place, does to whole texts. Draws are keyed by the slot of a text in the
//! population, so copies of one ancestor go different ways.
//!
//! The mean weight is an unbiased estimate of the probability that a text of the model meets the
//! constraint within the bound on tokens.

use std::time::Instant;

use tessera_core::dist::scalar::{exp, ln};
use tessera_core::dist::{Key, Sampler};
use tessera_core::entry::Particles;
use tessera_core::{
    ConstrainedDraw, Error, Event, FinishReason, KvStore, Pass, Position, Result, Reveal, Segment,
};

use crate::autoregressive::{Listener, Model};
use crate::choice::{Bounds, Choice};
use crate::reduction::Reduction;
use crate::request::{Outcome, Particle, Population, Request, Stats};
use crate::sequence::Sequence;
use crate::step::Space;
use crate::writing::{Writing, constraint_stats};

/// The purposes of numbers beyond the tokens' own (`Key::purpose`).
const ANCESTORS: u64 = 0x5c01;
const PRINTED: u64 = 0x5c02;

/// One text.
struct Slot {
    choice: Choice,
    cache: Box<dyn KvStore>,
    /// Logarithm of its weight; `-inf` for a dead one.
    log_weight: f64,
}

impl Slot {
    fn is_alive(&self) -> bool {
        self.log_weight > f64::NEG_INFINITY
    }

    fn grows(&self) -> bool {
        self.is_alive() && self.choice.is_open()
    }
}

/// What the population shares.
struct Run<'a> {
    model: Model<'a>,
    sampler: Sampler,
    bounds: Bounds,
    reveal: Reveal,
    stats: Stats,
    listener: Listener<'a>,
}

/// Answers a request with particles; `writing` has read the prompt, unless it was stopped on the way,
/// and `space` holds the logits of its last row.
pub(crate) fn generate<'a>(
    model: Model<'a>,
    writing: Writing<'_>,
    sequence: &mut Sequence,
    listener: Listener<'a>,
    space: Space,
    settings: Particles,
) -> Result<Outcome> {
    if !writing.has_read() {
        let mut listener = listener;
        return writing.finish(sequence, &mut listener);
    }
    let Writing { request, bounds, sampler, stats, mut choices, .. } = writing;
    let (request, reveal) = (&*request, space.reveal);
    let mut run = Run { model, sampler, bounds, reveal, stats, listener };
    let (Some(seed), Some(count)) = (choices.pop(), Some(settings.count).filter(|&n| n > 0)) else {
        return Err(Error::setting("particles", settings.count, "at least 1"));
    };
    let start = Instant::now();
    let listened = run.listener.seconds;
    let mut slots = Vec::with_capacity(count);
    for index in 0..count {
        let choice = seed.fork(index, request)?;
        slots.push(Slot { choice, cache: sequence.cache.fork()?, log_weight: 0.0 });
    }
    // The first token of every text comes from the prompt's last row.
    for slot in &mut slots {
        match run.bounds.max_tokens {
            0 => force_end(&mut run, slot, 0)?,
            _ => extend(&mut run, slot, 0)?,
        }
    }
    let mut resamplings = 0;
    loop {
        resamplings += usize::from(resample(&mut slots, request, settings, &run)?);
        if !slots.iter().any(Slot::grows) || run.listener.stopped() {
            break;
        }
        let before = run.stats.drawn_tokens;
        let rows = step(&mut run, &mut slots)?;
        let committed = run.stats.drawn_tokens - before;
        run.stats.decode_tokens += committed;
        run.stats.decode_seconds =
            start.elapsed().as_secs_f64() - (run.listener.seconds - listened);
        run.listener.tell(Event::Step { rows, committed });
    }
    let outcome = conclude(run, slots, request, resamplings)?;
    Ok(outcome)
}

/// What particles cannot do.
pub(crate) fn refuse(request: &Request, seeds: &[Choice], reduction: &Reduction) -> Result<()> {
    let no = |what: &str| Error::Method { method: "smc".to_owned(), what: what.to_owned() };
    if !reduction.is_empty() {
        return Err(no("keeps every row of every particle: leave out what forgets"));
    }
    if request.choices > 1 {
        return Err(no("makes one text, drawn by weight: --json lists the whole population"));
    }
    if request.sampling.temperature == 0.0 {
        return Err(no("needs a temperature above 0: at 0 every particle would be the same"));
    }
    if !request.stops.is_empty() {
        return Err(no("knows no stop texts: a text ends where the constraint lets it end"));
    }
    let weighs = |c: &Choice| c.constrained.as_ref().is_some_and(|c| c.sampler.weighs());
    if !seeds.iter().all(weighs) {
        return Err(no("needs weights. Next: awrs with another form than `unweighted`, or mask"));
    }
    Ok(())
}

/// Computes the last token of every growing text, and goes on with the next one.
fn step(run: &mut Run<'_>, slots: &mut [Slot]) -> Result<usize> {
    let rows: Vec<(u32, [Position; 1])> = slots
        .iter()
        .filter(|s| s.grows())
        .map(|s| {
            let history = s.choice.history();
            (history.last().copied().unwrap_or(0), [history.len() as Position - 1])
        })
        .collect();
    let mut segments = Vec::with_capacity(rows.len());
    for (slot, (token, position)) in slots.iter_mut().filter(|s| s.grows()).zip(&rows) {
        let token = std::slice::from_ref(token);
        segments.push(Segment::causal(token, position, &mut *slot.cache));
    }
    run.model.backbone.forward(&mut Pass::new(&mut segments), &mut run.reveal)?;
    drop(segments);
    run.stats.passes += 1;
    run.stats.rows += rows.len();
    for (segment, slot) in slots.iter_mut().filter(|s| s.grows()).enumerate() {
        if slot.choice.made() >= run.bounds.max_tokens
            || slot.choice.history().len() >= run.bounds.limit
        {
            force_end(run, slot, segment)?;
        } else {
            extend(run, slot, segment)?;
        }
    }
    Ok(rows.len())
}

/// Draws the next token of a text from the logits of `segment`.
fn extend(run: &mut Run<'_>, slot: &mut Slot, segment: usize) -> Result<()> {
    let choice = &mut slot.choice;
    let (vocabulary, seed) = (run.model.vocabulary, run.bounds.seed);
    let key = Key::new(seed, choice.index as u32, choice.history().len() as Position);
    let drawn = choice.with_constrained(|history, constrained| {
        let mut place = ConstrainedDraw {
            logits: run.reveal.logits(segment, 0),
            history,
            key,
            sampler: &mut run.sampler,
            guard: &mut constrained.guard,
            vocabulary,
            weighted: true,
        };
        let drawn = constrained.sampler.draw(&mut place)?;
        if let Some(token) = drawn.token {
            constrained.guard.accept(token, vocabulary)?;
        }
        Ok(drawn)
    })?;
    slot.log_weight += drawn.log_weight;
    match drawn.token {
        Some(token) => {
            choice.append(token, vocabulary);
            run.stats.drawn_tokens += 1;
        }
        None => slot.log_weight = f64::NEG_INFINITY,
    }
    Ok(())
}

/// Ends a text that has no room left: with the probability of its end, if it may end.
fn force_end(run: &mut Run<'_>, slot: &mut Slot, segment: usize) -> Result<()> {
    let logits = run.reveal.logits(segment, 0);
    let sampler = &mut run.sampler;
    let mass = slot.choice.with_constrained(|history, constrained| {
        let guard = &mut constrained.guard;
        if !guard.complete()? {
            return Ok(0.0);
        }
        sampler.mass(logits, history, |token| guard.is_end(token))
    })?;
    slot.log_weight += ln(mass);
    slot.choice.stop(FinishReason::Length);
    Ok(())
}

/// `(sum W)^2 / sum W^2` and the logarithm of the mean weight.
fn effective(log_weights: &[f64]) -> (f64, f64) {
    let top = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return (0.0, top);
    }
    let (mut sum, mut squares) = (0.0, 0.0);
    for &w in log_weights {
        let w = exp(w - top);
        sum += w;
        squares += w * w;
    }
    (sum * sum / squares, top + ln(sum / log_weights.len() as f64))
}

/// How many copies each weight gets in a systematic draw of as many: `u` is uniform in (0, 1), and
/// the expected number of copies is in proportion to the weight.
fn copies(log_weights: &[f64], u: f64) -> Vec<usize> {
    let top = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_weights.iter().map(|&w| exp(w - top)).collect();
    let step = weights.iter().sum::<f64>() / weights.len() as f64;
    let mut copies = vec![0; weights.len()];
    let (mut sum, mut marks) = (0.0, 0);
    for (weight, copies) in weights.iter().zip(&mut copies) {
        sum += weight;
        while marks < weights.len() && (u + marks as f64) * step < sum {
            *copies += 1;
            marks += 1;
        }
    }
    // Rounding may leave the last mark out.
    if let Some(heaviest) = (0..weights.len()).max_by(|&a, &b| weights[a].total_cmp(&weights[b])) {
        copies[heaviest] += weights.len() - marks;
    }
    copies
}

/// Draws ancestors if the weights have become too unequal. Returns whether it did.
fn resample(
    slots: &mut [Slot],
    request: &Request,
    settings: Particles,
    run: &Run<'_>,
) -> Result<bool> {
    let log_weights: Vec<f64> = slots.iter().map(|s| s.log_weight).collect();
    let (number, log_mean) = effective(&log_weights);
    let enough = settings.threshold * slots.len() as f64;
    if number == 0.0 || number >= enough || !slots.iter().any(Slot::grows) {
        return Ok(false);
    }
    let longest = slots.iter().map(|s| s.choice.history().len()).max().unwrap_or(0);
    let key = Key::new(run.bounds.seed, 0, longest as Position).purpose(ANCESTORS);
    let mut copies = copies(&log_weights, key.uniform(0));
    // A survivor keeps its slot; its other copies take the slots of those that got none.
    let mut free: Vec<usize> = (0..slots.len()).filter(|&s| copies[s] == 0).collect();
    for ancestor in 0..slots.len() {
        while copies[ancestor] > 1
            && let Some(slot) = free.pop()
        {
            copies[ancestor] -= 1;
            let mut choice = slots[ancestor].choice.fork(slot, request)?;
            // What the text that lived here asked was asked all the same.
            if let (Some(new), Some(old)) =
                (&mut choice.constrained, &slots[slot].choice.constrained)
            {
                new.guard.count(&old.guard.stats());
            }
            slots[slot] = Slot { choice, cache: slots[ancestor].cache.fork()?, log_weight: 0.0 };
        }
    }
    slots.iter_mut().for_each(|s| s.log_weight = log_mean);
    Ok(true)
}

/// Draws the text that is shown, and lists the others.
fn conclude(
    mut run: Run<'_>,
    mut slots: Vec<Slot>,
    request: &Request,
    resamplings: usize,
) -> Result<Outcome> {
    let count = slots.len();
    let cancelled = run.listener.stopped;
    let log_weights: Vec<f64> = slots.iter().map(|s| s.log_weight).collect();
    let (number, log_mean) = effective(&log_weights);
    if number == 0.0 {
        let most = request.max_tokens.unwrap_or(usize::MAX).min(run.bounds.limit);
        let what = format!(
            "smc: none of {count} particles met the constraint within {most} tokens. Next: more \
             tokens (-n), more particles, or --top-k 0 --top-p 1 --min-p 0"
        );
        return Err(Error::constraint(what));
    }
    let u = Key::new(run.bounds.seed, 0, 0).purpose(PRINTED).uniform(0);
    let weights: Vec<f64> = log_weights.iter().map(|&w| exp(w - log_mean) / count as f64).collect();
    let mut sum = 0.0;
    let reached = weights.iter().position(|w| {
        sum += w;
        u < sum
    });
    // Rounding may keep the sum below the number.
    let heaviest = (0..count).max_by(|&a, &b| weights[a].total_cmp(&weights[b]));
    let shown = reached.or(heaviest).unwrap_or(0);
    let mut particles = Vec::new();
    let mut completion = None;
    for (index, (slot, &weight)) in slots.iter_mut().zip(&weights).enumerate() {
        if !slot.is_alive() {
            continue;
        }
        if slot.choice.is_open() && cancelled {
            slot.choice.stop(FinishReason::Cancelled);
        }
        if index == shown {
            slot.choice.release();
            let (index, reason) = (0, slot.choice.reason.unwrap_or(FinishReason::Cancelled));
            let (tokens, text) = (slot.choice.tokens(0), slot.choice.fresh());
            run.listener.tell(Event::Committed { choice: index, tokens, text });
            run.listener.tell(Event::Finished { choice: index, reason });
        }
        let made = slot.choice.finish()?;
        completion = completion.or((index == shown).then(|| made.clone()));
        particles.push(Particle { completion: made, weight });
    }
    let choices: Vec<Choice> = slots.into_iter().map(|s| s.choice).collect();
    run.stats.constraint = constraint_stats(&choices);
    let population =
        Population { particles, count, log_probability: log_mean, effective: number, resamplings };
    let choices = completion.into_iter().collect();
    Ok(Outcome { choices, stats: run.stats, population: Some(population) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_number_by_hand() {
        let (number, log_mean) = effective(&[0.0, 0.0, f64::NEG_INFINITY, 0.0]);
        assert!((number - 3.0).abs() < 1e-12 && (log_mean - 0.75f64.ln()).abs() < 1e-12);
        let (number, _) = effective(&[-700.0, -2000.0]);
        assert!((number - 1.0).abs() < 1e-12);
        assert_eq!(effective(&[f64::NEG_INFINITY]).0, 0.0);
    }

    #[test]
    fn copies_are_systematic_and_unbiased() {
        let weights = [0.1f64, 0.4, 0.0, 0.3, 0.2];
        let logs = weights.map(f64::ln);
        let mut mean = [0.0; 5];
        for i in 0..1000 {
            let copies = copies(&logs, (f64::from(i) + 0.5) / 1000.0);
            assert_eq!(copies.iter().sum::<usize>(), 5);
            for (n, (count, weight)) in copies.iter().zip(weights).enumerate() {
                let expected = 5.0 * weight;
                assert!((*count as f64 - expected).abs() < 1.0 + 1e-9, "{copies:?}");
                mean[n] += *count as f64 / 1000.0;
            }
        }
        for (mean, weight) in mean.iter().zip(weights) {
            assert!((mean - 5.0 * weight).abs() < 2e-3, "{mean} for {weight}");
        }
    }
}
