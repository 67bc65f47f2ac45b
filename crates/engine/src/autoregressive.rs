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
    Backbone, ConstraintStats, Control, Error, Event, Filling, FinishReason, Input, KvStore,
    LayerSchedule, Layers, Pass, Position, Received, Result, Reveal, RowsOut, Segment, Sites,
    Vocabulary, Write,
};

use crate::cast::Cast;
use crate::choice::{Bounds, Choice};
use crate::denoise;
use crate::particles;
use crate::reduction::{Evicted, Reduction, Seats, Step};
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
    /// How the model fills masks; `None` for one that writes from left to right.
    pub filling: Option<Filling>,
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
    if let Some(filling) = model.filling {
        return denoise::generate(model, filling, request, listener, cancel);
    }
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
    if let Some(filling) = model.filling {
        return denoise::generate(model, filling, request, listener, cancel);
    }
    if !request.canvas.is_empty() {
        let rule = "left out for a model that writes from left to right";
        return Err(Error::setting("template", "given", rule));
    }
    let limit = request.limit(model.backbone.spec())?;
    let max_tokens = match request.forced.len() {
        0 => request.max_tokens.unwrap_or(usize::MAX),
        forced => request.max_tokens.unwrap_or(forced).min(forced),
    };
    let bounds = Bounds { limit, max_tokens, seed: request.seed, ignore_end: request.ignore_end };
    let room = request.prompt.len().saturating_add(max_tokens.min(1024)).min(limit);
    let (mut schedule, mut guard, mut particles) = (None, None, None);
    let mut reductions = Vec::new();
    let mut choices = Vec::with_capacity(request.choices);
    for index in 0..request.choices {
        let mut cast = Cast::new(&request.recipe)?;
        if index == 0 {
            sequence.seat(&request.recipe, &mut cast.drafter);
            schedule = cast.schedule.take();
            let policies = std::mem::take(&mut cast.policies);
            reductions.push(Reduction::new(policies, request.prompt.len()));
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
        listener: Listener::new(listener, cancel),
    };
    if let Some(settings) = particles {
        return particles::generate(run, sequence, request, settings, choices, &mut reductions[0]);
    }
    let done = match run.prefill(sequence, request, &mut reductions[0]) {
        Ok(true) if max_tokens > 0 => {
            run.decode(sequence, &mut choices, schedule.as_deref_mut(), &mut reductions)
        }
        Ok(whole) => {
            if whole {
                run.weigh(&reductions, &[&mut *sequence.cache]);
            }
            Ok(())
        }
        Err(error) => Err(error),
    };
    sequence.keep_drafter(&request.recipe, choices[0].speculation.drafter.take());
    if schedule.is_some() || reductions[0].decode_sites().is_some() {
        // What the schedule skipped has no keys, and what a policy did not read is missing in those
        // that there are: a later request must not read these rows.
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

impl<'a> Listener<'a> {
    pub(crate) fn new(
        call: &'a mut dyn FnMut(Event<'_>) -> Control,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self { call, cancel, stopped: false, seconds: 0.0 }
    }

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
    pub(crate) fn prefill(
        &mut self,
        sequence: &mut Sequence,
        request: &Request,
        reduction: &mut Reduction,
    ) -> Result<bool> {
        let start = Instant::now();
        let total = request.prompt.len();
        // Rows made under a policy are not the plain run's, nor may plain ones stand in for them.
        let shaped = reduction.prefill_sites().is_some();
        let reusable = if shaped { &[] } else { &request.prompt[..] };
        let reused = sequence.adopt(self.model.backbone, reusable)?;
        self.stats.reused_tokens = reused;
        let chunk = reduction.chunk(request.chunk);
        let mut positions: Vec<Position> = Vec::with_capacity(chunk.min(total));
        let mut done = reused;
        while done < total {
            if self.listener.stopped() {
                return Ok(false);
            }
            let tokens = &request.prompt[done..done.saturating_add(chunk).min(total)];
            positions.clear();
            positions.extend((done as Position..).take(tokens.len()));
            let mut segment = Segment::causal(tokens, &positions, &mut *sequence.cache);
            let last = done + tokens.len() == total;
            segment.rows_out = if last { RowsOut::Last } else { RowsOut::None };
            let mut segments = [segment];
            let mut pass = Pass::new(&mut segments);
            pass.sites = reduction.prefill_sites();
            self.model.backbone.forward(&mut pass, &mut self.reveal)?;
            if shaped {
                sequence.spoil();
            } else {
                sequence.tokens.extend_from_slice(tokens);
            }
            done += tokens.len();
            self.stats.passes += 1;
            self.stats.rows += tokens.len();
            self.stats.prefill_seconds = start.elapsed().as_secs_f64() - self.listener.seconds;
            self.listener.tell(Event::Prefill { done, total });
        }
        if !reduction.is_empty() && request.max_tokens != Some(0) {
            let evicted = reduction.after_prefill(
                self.model.backbone,
                self.model.vocabulary,
                &mut *sequence.cache,
                &request.prompt,
                request.seed,
            );
            if !matches!(evicted, Ok(None)) {
                sequence.spoil();
            }
            let evicted = evicted?;
            if let Some(Evicted { bytes, .. }) = evicted {
                self.stats.peak_cache_bytes = bytes.0;
            }
            self.evicted(None, evicted);
            self.stats.reduce_seconds = reduction.seconds;
            self.stats.prefill_seconds = start.elapsed().as_secs_f64() - self.listener.seconds;
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
        reductions: &mut Vec<Reduction>,
    ) -> Result<()> {
        let start = Instant::now();
        let listened = self.listener.seconds;
        let mut forks = (1..choices.len())
            .map(|_| sequence.cache.fork())
            .collect::<Result<Vec<Box<dyn KvStore>>>>()?;
        reductions.extend((1..choices.len()).map(|_| reductions[0].fork()).collect::<Vec<_>>());
        let mut caches: Vec<&mut dyn KvStore> = Vec::with_capacity(choices.len());
        caches.push(&mut *sequence.cache);
        for fork in &mut forks {
            caches.push(&mut **fork);
        }
        let layers: Vec<usize> = (0..self.model.backbone.spec().layers).collect();
        let received = reductions[0].received();
        // The first token of every choice comes from the prompt's last row.
        for choice in choices.iter_mut() {
            self.walk(choice, 0)?;
        }
        let mut memory: Vec<Segment<'static>> = Vec::with_capacity(choices.len());
        let mut active = Vec::new();
        let mut step = 0;
        while choices.iter().any(|c| c.reason.is_none()) && !self.listener.stopped() {
            let parts = caches.iter_mut().zip(&*reductions);
            let open = choices.iter_mut().zip(parts).filter(|(c, _)| c.is_open());
            for (choice, (cache, reduction)) in open {
                let sampling = self.sampler.settings();
                choice.prepare(
                    &self.bounds,
                    sampling,
                    self.model,
                    &mut **cache,
                    reduction.position,
                )?;
            }
            active.clear();
            if let Some(schedule) = &mut schedule {
                schedule.layers(step, layers.len(), &mut active)?;
            }
            let mut segments = recycle(memory);
            let mut before_pass = 0;
            for (choice, cache) in choices.iter().zip(&mut caches).filter(|(c, _)| c.is_open()) {
                let (tokens, positions, mask) = choice.speculation.rows();
                before_pass += cache.table().total_rows() as u64;
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
            let parts = choices.iter().zip(&mut *reductions).filter(|(c, _)| c.is_open());
            let mut seats = Seats::new(parts.map(|(_, reduction)| reduction.decode_sites()));
            self.stats.held_rows += before_pass;
            let mut pass = Pass::new(&mut segments);
            pass.sites = seats.as_mut().map(|s| s as &mut dyn Sites);
            if let Some(heads) = received {
                pass.taps.received = Received { layers: &layers, heads, by_row: true };
            }
            if !active.is_empty() {
                pass.layers = Layers::Only(&active);
            }
            self.model.backbone.forward(&mut pass, &mut self.reveal)?;
            memory = recycle(segments);
            self.stats.read_rows += before_pass - seats.map_or(0, |s| s.unread).min(before_pass);
            step += 1;
            self.stats.passes += 1;
            self.stats.rows += rows;
            self.weigh(reductions, &caches);
            let before = self.stats.drawn_tokens;
            let parts = caches.iter_mut().zip(&mut *reductions);
            let open = choices.iter_mut().zip(parts).filter(|(c, _)| c.is_open());
            for (segment, (choice, (cache, reduction))) in open.enumerate() {
                let cached = cache.table().len() - choice.speculation.drafted() - 1;
                let known = choice.history().len();
                let walked = self.walk(choice, segment);
                // An end token that was guessed right is accepted, but it is no text.
                let made = choice.history().len() - known;
                let committed = choice.speculation.accepted().min(made);
                choice.speculation.settle(committed, &mut **cache)?;
                let tokens = &choice.history()[..known + committed];
                if choice.index == 0 && !sequence.spoilt {
                    sequence.tokens.extend_from_slice(&tokens[known - 1..]);
                }
                walked?;
                let settled = Step {
                    backbone: self.model.backbone,
                    speculation: &choice.speculation,
                    committed,
                    tokens,
                    prompt: choice.prompt(),
                    seed: self.bounds.seed,
                    choice: choice.index as u32,
                    reveal: &self.reveal,
                    segment,
                    cached,
                };
                let evicted = reduction.committed(&settled, &mut **cache);
                if choice.index == 0 && !matches!(evicted, Ok(None)) {
                    sequence.tokens.clear();
                    sequence.spoilt = true;
                }
                self.evicted(Some(choice.index), evicted?);
            }
            let committed = self.stats.drawn_tokens - before;
            self.stats.decode_tokens += committed;
            self.stats.draft_seconds = choices.iter().map(|c| c.speculation.seconds).sum();
            self.stats.reduce_seconds = reductions.iter().map(|r| r.seconds).sum();
            self.stats.decode_seconds =
                start.elapsed().as_secs_f64() - (self.listener.seconds - listened);
            self.listener.tell(Event::Step { rows, committed });
        }
        self.weigh(reductions, &caches);
        Ok(())
    }

    /// Counts what the caches hold.
    fn weigh(&mut self, reductions: &[Reduction], caches: &[&mut dyn KvStore]) {
        let parts = || caches.iter().zip(reductions);
        let heads = caches[0].table().layers() * caches[0].table().kv_heads();
        let stats = &mut self.stats;
        stats.whole_rows = heads * parts().map(|(_, r)| r.rows).sum::<usize>();
        stats.kept_rows = caches.iter().map(|c| c.table().total_rows()).sum();
        stats.cache_bytes = caches.iter().map(|c| c.bytes()).sum();
        stats.peak_cache_bytes = stats.peak_cache_bytes.max(stats.cache_bytes);
    }

    /// Reports an eviction, if there was one.
    fn evicted(&mut self, choice: Option<usize>, evicted: Option<Evicted>) {
        let Some(Evicted { rows: (held, kept), bytes: (bytes_before, bytes_after) }) = evicted
        else {
            return;
        };
        self.listener.tell(Event::Evicted { choice, held, kept, bytes_before, bytes_after });
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
