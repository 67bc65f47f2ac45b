//! The autoregressive loop: the prompt in pieces, then one pass per step, in which every choice has
//! the row of its last token and, if something drafts for it, the rows of its guesses.
//!
//! All choices of a request share the prompt's rows (the cache is forked) and every decoding pass
//! (one segment each), so `n` texts read the weights as often as the longest of them alone would.
//! A text does not depend on the others: its draws are keyed by its own index, and products and
//! attention do not depend on what else is in a pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tessera_core::dist::Sampler;
use tessera_core::{
    Backbone, ConstraintStats, Control, Event, FinishReason, Input, KvStore, LayerSchedule, Layers,
    Pass, Position, Result, Reveal, RowsOut, Segment, Vocabulary, Write,
};

use crate::cast::Cast;
use crate::choice::{Bounds, Choice};
use crate::particles;
use crate::request::{Outcome, Request, Stats};
use crate::sequence::Sequence;

/// A model as a loop sees it.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Runs passes.
    pub backbone: &'a dyn Backbone,
    /// Turns tokens into bytes and knows which of them end a text.
    pub vocabulary: &'a dyn Vocabulary,
    /// A smaller model with the same vocabulary, for drafters that run one.
    pub draft: Option<&'a dyn Backbone>,
}

/// Answers `request` with a memory of its own. See [`generate_in`].
///
/// # Errors
/// As [`generate_in`].
pub fn generate(
    model: Model<'_>,
    request: &Request,
    listener: &mut dyn FnMut(Event<'_>) -> Control,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let limit = request.limit(model.backbone.spec())?;
    let room = request.max_tokens.map_or(limit, |n| limit.min(request.prompt.len() + n));
    let mut sequence = Sequence::new(model.backbone, room.min(request.prompt.len() + 1024))?;
    generate_in(model, &mut sequence, request, listener, cancel)
}

/// Answers `request`. Rows of `sequence` that are a beginning of the prompt are reused; afterwards
/// it holds the prompt and the tokens of choice 0 that were computed.
///
/// Everything that happens is reported to `listener`. Setting `cancel`, or an answer of
/// [`Control::Stop`], ends the run before the next pass: what was made until then is the outcome,
/// with [`FinishReason::Cancelled`].
///
/// # Errors
/// [`tessera_core::Error::Setting`] and [`tessera_core::Error::ContextFull`] before anything is
/// computed; whatever a pass or a draw reports afterwards. On an error `sequence` still matches its
/// cache and can be used again.
pub fn generate_in(
    model: Model<'_>,
    sequence: &mut Sequence,
    request: &Request,
    listener: &mut dyn FnMut(Event<'_>) -> Control,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let limit = request.limit(model.backbone.spec())?;
    let max_tokens = request.max_tokens.unwrap_or(usize::MAX);
    let bounds = Bounds { limit, max_tokens, seed: request.seed, ignore_end: request.ignore_end };
    let room = request.prompt.len().saturating_add(max_tokens.min(1024)).min(limit);
    let (mut schedule, mut guard, mut particles) = (None, None, None);
    let mut choices = Vec::with_capacity(request.choices);
    for index in 0..request.choices {
        let mut cast = Cast::new(&request.recipe)?;
        if index == 0 {
            sequence.seat(&request.recipe, &mut cast.drafter);
            schedule = cast.schedule.take();
            guard = cast.guard(model.vocabulary)?;
            particles = cast.particles;
        }
        let constrained = guard.as_ref().map(|guard| cast.constrained(guard.fork()));
        let speculation = cast.into_speculation(&request.recipe);
        choices.push(Choice::new(index, request, room, speculation, constrained)?);
    }
    let mut run = Run {
        model,
        sampler: Sampler::new(request.sampling)?,
        bounds,
        reveal: Reveal::new(),
        stats: Stats { prompt_tokens: request.prompt.len(), ..Stats::default() },
        listener: Listener { call: listener, cancel, stopped: false, seconds: 0.0 },
    };
    if let Some(settings) = particles {
        return particles::generate(run, sequence, request, settings, choices);
    }
    let done = match run.prefill(sequence, request) {
        Ok(true) if max_tokens > 0 => run.decode(sequence, &mut choices, schedule.as_deref_mut()),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    sequence.keep_drafter(&request.recipe, choices[0].speculation.drafter.take());
    if schedule.is_some() {
        // What the schedule skipped has no keys: a later request must not read these rows.
        sequence.truncate(request.prompt.len())?;
    }
    done?;
    let reason = if run.listener.stopped { FinishReason::Cancelled } else { FinishReason::Length };
    for choice in choices.iter_mut().filter(|c| c.reason.is_none()) {
        choice.stop(reason);
        run.listener.committed(choice, choice.made());
    }
    let finished = choices.iter_mut().map(Choice::finish).collect::<Result<_>>()?;
    run.stats.constraint = constraint_stats(&choices);
    Ok(Outcome { choices: finished, stats: run.stats, population: None })
}

/// What the constraint was asked over all choices, if there is one.
pub(crate) fn constraint_stats(choices: &[Choice]) -> Option<ConstraintStats> {
    let stats = choices.iter().filter_map(|c| c.constrained.as_ref()).map(|c| c.guard.stats());
    stats.reduce(|mut sum, one| {
        sum.add(&one);
        sum
    })
}

/// The listener, the time it took, and whether it or the cancel flag has stopped the run.
pub(crate) struct Listener<'a> {
    call: &'a mut dyn FnMut(Event<'_>) -> Control,
    cancel: &'a AtomicBool,
    pub(crate) stopped: bool,
    pub(crate) seconds: f64,
}

impl Listener<'_> {
    pub(crate) fn tell(&mut self, event: Event<'_>) {
        let start = Instant::now();
        self.stopped |= (self.call)(event) == Control::Stop;
        self.seconds += start.elapsed().as_secs_f64();
    }

    pub(crate) fn stopped(&mut self) -> bool {
        self.stopped |= self.cancel.load(Ordering::Relaxed);
        self.stopped
    }

    /// Reports the tokens of `choice` from the `from`-th on, its fresh text, and its end.
    pub(crate) fn committed(&mut self, choice: &Choice, from: usize) {
        let (tokens, text) = (choice.tokens(from), choice.fresh());
        if !tokens.is_empty() || !text.is_empty() {
            self.tell(Event::Committed { choice: choice.index, tokens, text });
        }
        if let Some(reason) = choice.reason {
            self.tell(Event::Finished { choice: choice.index, reason });
        }
    }
}

pub(crate) struct Run<'a> {
    pub(crate) model: Model<'a>,
    pub(crate) sampler: Sampler,
    pub(crate) bounds: Bounds,
    pub(crate) reveal: Reveal,
    pub(crate) stats: Stats,
    pub(crate) listener: Listener<'a>,
}

impl Run<'_> {
    /// Computes what the cache lacks of the prompt; afterwards the logits of its last row are in
    /// `reveal`. Returns whether it got to the end.
    pub(crate) fn prefill(&mut self, sequence: &mut Sequence, request: &Request) -> Result<bool> {
        let start = Instant::now();
        let total = request.prompt.len();
        let reused = sequence.adopt(&request.prompt)?;
        self.stats.reused_tokens = reused;
        let mut positions: Vec<Position> = Vec::with_capacity(request.chunk.min(total));
        let mut done = reused;
        while done < total {
            if self.listener.stopped() {
                return Ok(false);
            }
            let tokens = &request.prompt[done..(done + request.chunk).min(total)];
            positions.clear();
            positions.extend((done as Position..).take(tokens.len()));
            let mut segment = Segment::causal(tokens, &positions, &mut *sequence.cache);
            let last = done + tokens.len() == total;
            segment.rows_out = if last { RowsOut::Last } else { RowsOut::None };
            let mut segments = [segment];
            self.model.backbone.forward(&mut Pass::new(&mut segments), &mut self.reveal)?;
            sequence.tokens.extend_from_slice(tokens);
            done += tokens.len();
            self.stats.passes += 1;
            self.stats.rows += tokens.len();
            self.stats.prefill_seconds = start.elapsed().as_secs_f64() - self.listener.seconds;
            self.listener.tell(Event::Prefill { done, total });
        }
        let seconds = self.stats.prefill_seconds;
        self.listener.tell(Event::PrefillDone { tokens: total, reused, seconds });
        Ok(true)
    }

    fn decode(
        &mut self,
        sequence: &mut Sequence,
        choices: &mut [Choice],
        mut schedule: Option<&mut (dyn LayerSchedule + 'static)>,
    ) -> Result<()> {
        let start = Instant::now();
        let listened = self.listener.seconds;
        let mut forks = (1..choices.len())
            .map(|_| sequence.cache.fork())
            .collect::<Result<Vec<Box<dyn KvStore>>>>()?;
        // The first token of every choice comes from the prompt's last row.
        for choice in choices.iter_mut() {
            self.walk(choice, 0)?;
        }
        let mut memory: Vec<Segment<'static>> = Vec::with_capacity(choices.len());
        let mut active = Vec::new();
        let mut step = 0;
        while choices.iter().any(|c| c.reason.is_none()) && !self.listener.stopped() {
            let caches = std::iter::once(&mut sequence.cache).chain(&mut forks);
            for (choice, cache) in choices.iter_mut().zip(caches).filter(|(c, _)| c.is_open()) {
                choice.prepare(&self.bounds, self.sampler.settings(), self.model, &mut **cache)?;
            }
            active.clear();
            if let Some(schedule) = &mut schedule {
                let layers = self.model.backbone.spec().layers;
                schedule.layers(step, layers, &mut active)?;
            }
            let mut segments = recycle(memory);
            let caches = std::iter::once(&mut sequence.cache).chain(&mut forks);
            for (choice, cache) in choices.iter().zip(caches).filter(|(c, _)| c.is_open()) {
                let (tokens, positions, mask) = choice.speculation.rows();
                segments.push(Segment {
                    input: Input::Tokens(tokens),
                    positions,
                    mask,
                    keys: None,
                    bias: &[],
                    write: Write::Append,
                    rows_out: RowsOut::All,
                    condition: None,
                    cache: Some(&mut **cache),
                });
            }
            let rows = segments.iter().map(|s| s.positions.len()).sum();
            let mut pass = Pass::new(&mut segments);
            if !active.is_empty() {
                pass.layers = Layers::Only(&active);
            }
            self.model.backbone.forward(&mut pass, &mut self.reveal)?;
            memory = recycle(segments);
            step += 1;
            self.stats.passes += 1;
            self.stats.rows += rows;
            let before = self.stats.drawn_tokens;
            let caches = std::iter::once(&mut sequence.cache).chain(&mut forks);
            let open = choices.iter_mut().zip(caches).filter(|(c, _)| c.is_open());
            for (segment, (choice, cache)) in open.enumerate() {
                let known = choice.history().len();
                let walked = self.walk(choice, segment);
                // An end token that was guessed right is accepted, but it is no text.
                let made = choice.history().len() - known;
                let committed = choice.speculation.accepted().min(made);
                choice.speculation.settle(committed, &mut **cache)?;
                if choice.index == 0 {
                    let computed = &choice.history()[known - 1..known + committed];
                    sequence.tokens.extend_from_slice(computed);
                }
                walked?;
            }
            let committed = self.stats.drawn_tokens - before;
            self.stats.decode_tokens += committed;
            self.stats.draft_seconds = choices.iter().map(|c| c.speculation.seconds).sum();
            self.stats.decode_seconds =
                start.elapsed().as_secs_f64() - (self.listener.seconds - listened);
            self.listener.tell(Event::Step { rows, committed });
        }
        Ok(())
    }

    /// Draws a choice's next tokens from the logits of `segment`, as far as they were guessed and
    /// one more, and reports them.
    fn walk(&mut self, choice: &mut Choice, segment: usize) -> Result<()> {
        let known = choice.history().len();
        choice.speculation.begin(known);
        loop {
            let made = choice.made();
            let (token, guessed) = choice.choose(
                &self.reveal,
                segment,
                &mut self.sampler,
                self.model.vocabulary,
                &self.bounds,
            )?;
            choice.commit(token, self.model.vocabulary, &self.bounds);
            self.stats.drawn_tokens += 1;
            self.listener.committed(choice, made);
            if !guessed || choice.reason.is_some() {
                choice.learn(token, &self.reveal, segment)?;
                break;
            }
        }
        let judged = &choice.speculation;
        if judged.drafted() > 0 {
            let (drafted, accepted) = (judged.drafted(), judged.accepted());
            self.stats.drafted_tokens += drafted;
            self.stats.accepted_tokens += accepted;
            let depth = judged.depth();
            self.listener.tell(Event::Judged { choice: choice.index, drafted, accepted, depth });
        }
        Ok(())
    }
}

/// An empty vector with the memory of another: segments borrow for one pass only, so their vector
/// cannot live longer, but its memory can (collecting in place does not allocate).
fn recycle<'b>(mut memory: Vec<Segment<'_>>) -> Vec<Segment<'b>> {
    memory.clear();
    memory.into_iter().map_while(|_| None).collect()
}
