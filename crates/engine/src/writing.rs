//! A request in progress: what it adds to a pass, and what it takes from one. `step` makes the passes.
//!
//! What comes of a request does not depend on who shares its passes: rows of a pass do not see one
//! another, and draws are keyed.

use std::borrow::Cow;
use std::time::Instant;

use tessera_core::dist::Sampler;
use tessera_core::entry::Particles;
use tessera_core::pass::HeadSum;
use tessera_core::{
    ConstraintStats, Error, Event, FinishReason, Input, KvStore, LayerSchedule, Mask, Position,
    Result, Reveal, RowsOut, Segment, Sites, Write,
};

use crate::autoregressive::{Listener, Model};
use crate::cast::Cast;
use crate::choice::{Bounds, Choice};
use crate::particles;
use crate::reduction::{Evicted, Reduction, Step};
use crate::request::{Outcome, Request, Stats};
use crate::sequence::Sequence;

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its prompt is being computed.
    Reading,
    /// Its texts grow.
    Writing,
    /// Nothing is left to compute here.
    Over,
}

/// A pass that was made, and who hears of it.
pub(crate) struct Shown<'s, 'm, 'l> {
    pub(crate) model: Model<'m>,
    pub(crate) reveal: &'s Reveal,
    pub(crate) listener: &'s mut Listener<'l>,
}

/// A request in progress. Its sequence is lent to every call, always the same one.
pub(crate) struct Writing<'r> {
    pub(crate) request: Cow<'r, Request>,
    pub(crate) bounds: Bounds,
    pub(crate) sampler: Sampler,
    pub(crate) stats: Stats,
    /// Settings of the particle loop, which takes over once the prompt is computed.
    pub(crate) particles: Option<Particles>,
    pub(crate) choices: Vec<Choice>,
    schedule: Option<Box<dyn LayerSchedule>>,
    /// Decoding steps made.
    steps: usize,
    /// One, and one more per further choice once they write.
    reductions: Vec<Reduction>,
    /// Caches of the choices after the first.
    forks: Vec<Box<dyn KvStore>>,
    phase: Phase,
    /// Prompt tokens whose rows are in the cache.
    done: usize,
    /// Positions of the prompt's next piece.
    positions: Vec<Position>,
    /// When the phase began, and the listener's time until then.
    began: (Instant, f64),
}

impl<'r> Writing<'r> {
    /// Begins a request; keeps of `sequence` what is a beginning of the prompt.
    ///
    /// # Errors
    /// As [`crate::generate_in`] before anything is computed.
    pub(crate) fn new(
        model: Model<'_>,
        sequence: &mut Sequence,
        request: Cow<'r, Request>,
    ) -> Result<Self> {
        if !request.canvas.is_empty() {
            let rule = "left out for a model that writes from left to right";
            return Err(Error::setting("template", "given", rule));
        }
        let limit = request.limit(model.backbone.spec())?;
        let max_tokens = match request.forced.len() {
            0 => request.max_tokens.unwrap_or(usize::MAX),
            forced => request.max_tokens.unwrap_or(forced).min(forced),
        };
        let (seed, ignore_end) = (request.seed, request.ignore_end);
        let bounds = Bounds { limit, max_tokens, seed, ignore_end };
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
            choices.push(Choice::new(index, &request, room, speculation, constrained)?);
        }
        if particles.is_some() {
            particles::refuse(&request, &choices, &reductions[0])?;
        }
        let sampler = Sampler::new(request.sampling)?;
        // Rows made under a policy are not the plain run's, nor may plain ones stand in for them.
        let shaped = reductions[0].prefill_sites().is_some();
        let reusable = if shaped { &[] } else { &request.prompt[..] };
        let done = sequence.adopt(model.backbone, reusable)?;
        let stats =
            Stats { prompt_tokens: request.prompt.len(), reused_tokens: done, ..Stats::default() };
        Ok(Self {
            request,
            bounds,
            sampler,
            stats,
            particles,
            choices,
            schedule,
            steps: 0,
            reductions,
            forks: Vec::new(),
            phase: Phase::Reading,
            done,
            positions: Vec::new(),
            began: (Instant::now(), 0.0),
        })
    }

    /// Whether there is something to compute.
    pub(crate) fn is_open(&self) -> bool {
        match self.phase {
            Phase::Reading => true,
            Phase::Writing => self.choices.iter().any(Choice::is_open),
            Phase::Over => false,
        }
    }

    /// Whether the whole prompt has been computed.
    pub(crate) fn has_read(&self) -> bool {
        self.phase != Phase::Reading
    }

    /// Whether its texts grow.
    pub(crate) fn is_writing(&self) -> bool {
        self.phase == Phase::Writing
    }

    /// The layers that its next decoding pass runs, if it does not run all of `count`.
    pub(crate) fn layers(&mut self, count: usize, active: &mut Vec<usize>) -> Result<()> {
        match &mut self.schedule {
            Some(schedule) => schedule.layers(self.steps, count, active),
            None => Ok(()),
        }
    }

    /// Prompt tokens that are not computed yet.
    pub(crate) fn unread(&self) -> usize {
        match self.phase {
            Phase::Reading => self.request.prompt.len() - self.done,
            _ => 0,
        }
    }

    /// Rows that the next pass has at least, if at most `most` are of the prompt.
    pub(crate) fn rows(&mut self, most: usize) -> usize {
        match self.phase {
            Phase::Reading => self.piece(most),
            Phase::Writing => self.choices.iter().filter(|c| c.is_open()).count(),
            Phase::Over => 0,
        }
    }

    /// Whether others can share its passes: what a pass does only as a whole, none of its methods
    /// asks for.
    pub(crate) fn shares(&self) -> bool {
        self.schedule.is_none() && self.received().is_none()
    }

    /// The heads over which attention is summed for it, if a policy needs that.
    pub(crate) fn received(&self) -> Option<HeadSum> {
        self.reductions[0].received()
    }

    /// Rows of the prompt's next piece. A policy that works on the prompt decides it alone.
    fn piece(&mut self, most: usize) -> usize {
        let reduction = &mut self.reductions[0];
        let asked = reduction.chunk(self.request.chunk);
        let piece = if reduction.prefill_sites().is_some() { asked } else { asked.min(most) };
        piece.max(1).min(self.request.prompt.len() - self.done)
    }

    /// Time since the phase began, without the listener's.
    fn seconds(&self, listener: &Listener<'_>) -> f64 {
        self.began.0.elapsed().as_secs_f64() - (listener.seconds - self.began.1)
    }

    /// Guesses ahead for every open text.
    pub(crate) fn prepare(
        &mut self,
        model: Model<'_>,
        sequence: &mut Sequence,
        beside: usize,
    ) -> Result<()> {
        if self.phase != Phase::Writing {
            return Ok(());
        }
        let caches = std::iter::once(&mut sequence.cache).chain(&mut self.forks);
        let parts = self.choices.iter_mut().zip(caches).zip(&self.reductions);
        for ((choice, cache), reduction) in parts.filter(|((c, _), _)| c.is_open()) {
            choice.speculation.beside(beside);
            let sampling = self.sampler.settings();
            choice.prepare(&self.bounds, sampling, model, &mut **cache, reduction.position)?;
        }
        Ok(())
    }

    /// Adds its segments to a pass, and the parts that its policies take in them.
    pub(crate) fn lay_out<'p>(
        &'p mut self,
        sequence: &'p mut Sequence,
        most: usize,
        segments: &mut Vec<Segment<'p>>,
        seats: &mut Vec<Option<&'p mut dyn Sites>>,
    ) {
        if self.phase == Phase::Reading {
            let rows = self.piece(most);
            let tokens = &self.request.prompt[self.done..self.done + rows];
            self.positions.clear();
            self.positions.extend((self.done as Position..).take(rows));
            let mut segment = Segment::causal(tokens, &self.positions, &mut *sequence.cache);
            let last = self.done + rows == self.request.prompt.len();
            segment.rows_out = if last { RowsOut::Last } else { RowsOut::None };
            segments.push(segment);
            seats.push(self.reductions[0].prefill_sites());
            return;
        }
        let caches = std::iter::once(&mut sequence.cache).chain(&mut self.forks);
        let parts = self.choices.iter().zip(caches).zip(&mut self.reductions);
        for ((choice, cache), reduction) in parts.filter(|((c, _), _)| c.is_open()) {
            let (tokens, positions, mask): (_, _, Mask<'_>) = choice.speculation.rows();
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
            seats.push(reduction.decode_sites());
        }
    }

    /// Takes the pass in which the prompt's next `rows` rows were computed; if they were the last
    /// ones, their logits are those of `segment`.
    pub(crate) fn read(
        &mut self,
        sequence: &mut Sequence,
        shown: &mut Shown<'_, '_, '_>,
        segment: usize,
        rows: usize,
    ) -> Result<()> {
        let model = shown.model;
        let total = self.request.prompt.len();
        let reduction = &mut self.reductions[0];
        if reduction.prefill_sites().is_some() {
            sequence.spoil();
        } else {
            sequence.tokens.extend_from_slice(&self.request.prompt[self.done..self.done + rows]);
        }
        self.done += rows;
        self.stats.prefill_seconds = self.seconds(shown.listener);
        shown.listener.tell(Event::Prefill { done: self.done, total });
        if self.done < total {
            return Ok(());
        }
        let reduction = &mut self.reductions[0];
        if !reduction.is_empty() && self.request.max_tokens != Some(0) {
            let (prompt, seed) = (&self.request.prompt, self.request.seed);
            let cache = &mut *sequence.cache;
            let evicted =
                reduction.after_prefill(model.backbone, model.vocabulary, cache, prompt, seed);
            if !matches!(evicted, Ok(None)) {
                sequence.spoil();
            }
            let evicted = evicted?;
            if let Some(Evicted { bytes, .. }) = evicted {
                self.stats.peak_cache_bytes = bytes.0;
            }
            tell_evicted(shown.listener, None, evicted);
            self.stats.reduce_seconds = self.reductions[0].seconds;
            self.stats.prefill_seconds = self.seconds(shown.listener);
        }
        let (reused, seconds) = (self.stats.reused_tokens, self.stats.prefill_seconds);
        shown.listener.tell(Event::PrefillDone { tokens: total, reused, seconds });
        self.phase = Phase::Over;
        if self.particles.is_some() {
            return Ok(());
        }
        if self.bounds.max_tokens > 0 {
            self.began = (Instant::now(), shown.listener.seconds);
            for _ in 1..self.choices.len() {
                self.forks.push(sequence.cache.fork()?);
                self.reductions.push(self.reductions[0].fork());
            }
            self.phase = Phase::Writing;
            // The first token of every choice comes from the prompt's last row.
            for choice in &mut self.choices {
                walk(choice, &mut self.sampler, &mut self.stats, &self.bounds, shown, segment)?;
            }
        }
        self.weigh(sequence);
        Ok(())
    }

    /// Takes the pass in which the open texts' rows were computed, from segment `first` on.
    pub(crate) fn written(
        &mut self,
        sequence: &mut Sequence,
        shown: &mut Shown<'_, '_, '_>,
        first: usize,
        rows: usize,
    ) -> Result<()> {
        self.steps += 1;
        self.weigh(sequence);
        let before = self.stats.drawn_tokens;
        let Sequence { cache, tokens: kept, spoilt, .. } = sequence;
        let caches = std::iter::once(cache).chain(&mut self.forks);
        let parts = self.choices.iter_mut().zip(caches).zip(&mut self.reductions);
        let open = parts.filter(|((c, _), _)| c.is_open());
        for (segment, ((choice, cache), reduction)) in (first..).zip(open) {
            let cached = cache.table().len() - choice.speculation.drafted() - 1;
            let known = choice.history().len();
            let walked =
                walk(choice, &mut self.sampler, &mut self.stats, &self.bounds, shown, segment);
            // An end token that was guessed right is accepted, but it is no text.
            let made = choice.history().len() - known;
            let committed = choice.speculation.accepted().min(made);
            choice.speculation.settle(committed, &mut **cache)?;
            let tokens = &choice.history()[..known + committed];
            if choice.index == 0 && !*spoilt {
                kept.extend_from_slice(&tokens[known - 1..]);
            }
            walked?;
            let settled = Step {
                backbone: shown.model.backbone,
                speculation: &choice.speculation,
                committed,
                tokens,
                prompt: choice.prompt(),
                seed: self.bounds.seed,
                choice: choice.index as u32,
                reveal: shown.reveal,
                segment,
                cached,
            };
            let evicted = reduction.committed(&settled, &mut **cache);
            if choice.index == 0 && !matches!(evicted, Ok(None)) {
                kept.clear();
                *spoilt = true;
            }
            tell_evicted(shown.listener, Some(choice.index), evicted?);
        }
        let committed = self.stats.drawn_tokens - before;
        self.stats.decode_tokens += committed;
        self.stats.draft_seconds = self.choices.iter().map(|c| c.speculation.seconds).sum();
        self.stats.reduce_seconds = self.reductions.iter().map(|r| r.seconds).sum();
        self.stats.decode_seconds = self.seconds(shown.listener);
        shown.listener.tell(Event::Step { rows, committed });
        self.weigh(sequence);
        Ok(())
    }

    /// Counts what the caches hold.
    fn weigh(&mut self, sequence: &Sequence) {
        let caches = || std::iter::once(&sequence.cache).chain(&self.forks);
        let table = sequence.cache.table();
        let heads = table.layers() * table.kv_heads();
        let stats = &mut self.stats;
        stats.whole_rows = heads * self.reductions.iter().map(|r| r.rows).sum::<usize>();
        stats.kept_rows = caches().map(|c| c.table().total_rows()).sum();
        stats.cache_bytes = caches().map(|c| c.bytes()).sum();
        stats.peak_cache_bytes = stats.peak_cache_bytes.max(stats.cache_bytes);
    }

    /// Leaves the sequence as a later request may read it.
    ///
    /// # Errors
    /// As [`Sequence::truncate`].
    pub(crate) fn close(&mut self, sequence: &mut Sequence) -> Result<()> {
        sequence.keep_drafter(&self.request.recipe, self.choices[0].speculation.drafter.take());
        if self.schedule.is_some() || self.reductions[0].decode_sites().is_some() {
            // What the schedule skipped has no keys, and what a policy did not read is missing in
            // those that there are: a later request must not read these rows.
            sequence.truncate(self.request.prompt.len())?;
        }
        Ok(())
    }

    /// Ends it: open texts end as cancelled if the listener has stopped them, else by length.
    pub(crate) fn finish(
        mut self,
        sequence: &mut Sequence,
        listener: &mut Listener<'_>,
    ) -> Result<Outcome> {
        self.close(sequence)?;
        let reason = if listener.stopped { FinishReason::Cancelled } else { FinishReason::Length };
        for choice in self.choices.iter_mut().filter(|c| c.is_open()) {
            choice.stop(reason);
            listener.committed(choice, choice.made());
        }
        let finished = self.choices.iter_mut().map(Choice::finish).collect::<Result<_>>()?;
        self.stats.constraint = constraint_stats(&self.choices);
        Ok(Outcome { choices: finished, stats: self.stats, population: None })
    }
}

/// What the constraint was asked over all choices, if there is one.
pub(crate) fn constraint_stats(choices: &[Choice]) -> Option<ConstraintStats> {
    let stats = choices.iter().filter_map(|c| c.constrained.as_ref()).map(|c| c.guard.stats());
    stats.reduce(|mut sum, one| {
        sum.add(&one);
        sum
    })
}

/// Reports an eviction, if there was one.
fn tell_evicted(listener: &mut Listener<'_>, choice: Option<usize>, evicted: Option<Evicted>) {
    let Some(Evicted { rows: (held, kept), bytes: (bytes_before, bytes_after) }) = evicted else {
        return;
    };
    listener.tell(Event::Evicted { choice, held, kept, bytes_before, bytes_after });
}

/// Draws a choice's next tokens from the logits of `segment`, as far as they were guessed and one
/// more, and reports them.
fn walk(
    choice: &mut Choice,
    sampler: &mut Sampler,
    stats: &mut Stats,
    bounds: &Bounds,
    shown: &mut Shown<'_, '_, '_>,
    segment: usize,
) -> Result<()> {
    let Shown { model, reveal, listener } = shown;
    choice.speculation.begin(choice.history().len());
    loop {
        let made = choice.made();
        let (token, guessed) = choice.choose(reveal, segment, sampler, model.vocabulary, bounds)?;
        choice.commit(token, model.vocabulary, bounds);
        stats.drawn_tokens += 1;
        listener.committed(choice, made);
        if !guessed || choice.reason.is_some() {
            choice.learn(token, reveal, segment)?;
            break;
        }
    }
    let judged = &choice.speculation;
    if judged.drafted() > 0 {
        let (drafted, accepted) = (judged.drafted(), judged.accepted());
        stats.drafted_tokens += drafted;
        stats.accepted_tokens += accepted;
        let depth = judged.depth();
        listener.tell(Event::Judged { choice: choice.index, drafted, accepted, depth });
    }
    Ok(())
}
