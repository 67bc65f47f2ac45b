//! The denoising loop: a canvas of masks is filled in steps, each of which computes logits, draws a
//! token for every mask, and writes some of them.
//!
//! The plain run computes the whole canvas without a cache and writes the most probable draw, one a
//! step. Policies take over seams of the step ([`tessera_core::Unmask`]) and the choice of rows
//! ([`tessera_core::Window`]). Whatever they return is checked before it is applied.
//!
//! A draw at a position is keyed by (seed, choice, position) alone, so equal distributions give equal
//! tokens at any step: a decoder that skips passes makes the text of the one that does not.

mod ahead;
mod guide;
mod rule;
mod seams;
mod sight;
mod text;

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tessera_core::dist::{Key, Sampler};
use tessera_core::entry::Site;
use tessera_core::unmask::ranked;
use tessera_core::{
    Backbone, Canvas, Commit, Control, End, Error, Event, Evidence, Fill, Filling, FinishReason,
    InitContext, Position, Prediction, Result, Start, TokenId,
};

use crate::any_subset;
use crate::autoregressive::{Listener, Model};
use crate::request::{Completion, Denoised, Outcome, Request, Stats};
use ahead::Ahead;
use guide::Guide;
use seams::Seams;
use sight::Sight;
pub(crate) use text::finished;
use text::first_end;

/// Masks of a canvas if the request does not say.
pub const LENGTH: usize = 128;

/// Steps after which a canvas that is masked again and again is given up, per mask.
const PATIENCE: usize = 8;

/// Answers `request` with a model that fills masks.
///
/// # Errors
/// [`Error::Setting`], [`Error::Method`] and [`Error::ContextFull`] before anything is computed;
/// [`Error::Plan`] for a policy that breaks a law; whatever a pass reports.
pub(crate) fn generate(
    model: Model<'_>,
    filling: Filling,
    request: &Request,
    call: &mut dyn FnMut(Event<'_>) -> Control,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let limit = request.limit(model.backbone.spec())?;
    let length = request.max_tokens.unwrap_or(LENGTH.min(limit - request.prompt.len()));
    let needed = request.prompt.len() + length;
    if needed > limit {
        let trained = model.backbone.spec().context;
        return Err(Error::ContextFull { needed, limit, trained });
    }
    refuse(request)?;
    if let Some(settings) = any_subset::asked(&request.recipe, filling)? {
        return any_subset::generate(model, filling, request, length, settings, call, cancel);
    }
    let mut listener = Listener::new(call, cancel);
    let mut stats = Stats { prompt_tokens: request.prompt.len(), ..Stats::default() };
    let mut choices = Vec::with_capacity(request.choices);
    for index in 0..request.choices {
        let mut text = Text {
            model,
            request,
            canvas: blank(request, length, filling)?,
            length,
            step: 0,
            index,
            seams: Seams::new(&request.recipe, model.vocabulary, filling.mask)?,
            sampler: Sampler::new(request.sampling)?,
            sight: Sight::new(model, filling),
            guide: model.draft.map(Guide::new),
            tally: stats.denoised.unwrap_or_default(),
            cut_at: None,
        };
        let start = Instant::now();
        let listened = listener.seconds;
        text.run(&mut listener)?;
        text.count(&mut stats);
        stats.decode_seconds += start.elapsed().as_secs_f64() - (listener.seconds - listened);
        for (method, name, value) in text.seams.counts() {
            listener.tell(Event::Counted { choice: index, method, name, value });
        }
        let vocabulary = model.vocabulary;
        let mut made =
            finished(&text.canvas, request, vocabulary, index, text.cut_at, &mut listener)?;
        made.complete = text.complete(&made);
        stats.drawn_tokens += made.tokens.len();
        stats.decode_tokens += made.tokens.len();
        choices.push(made);
    }
    Ok(Outcome { choices, stats, population: None })
}

/// What a canvas cannot do.
fn refuse(request: &Request) -> Result<()> {
    if request.sampling.penalises() {
        let rule = "off for a model that fills masks: there is no order in which words were said";
        return Err(Error::setting("repeat-penalty", "given", rule));
    }
    if !request.forced.is_empty() {
        return Err(Error::setting("forced", "given", "left out for a model that fills masks"));
    }
    if request.recipe.constraint().is_some() {
        let what = "a predicate judges beginnings, and a canvas has none".to_owned();
        return Err(Error::Constraint { what });
    }
    Ok(())
}

/// The canvas with the template written.
pub(crate) fn blank(request: &Request, length: usize, filling: Filling) -> Result<Canvas> {
    let mut canvas = Canvas::new(&request.prompt, length, filling.mask);
    for &(place, token) in &request.canvas.template {
        canvas.give(request.prompt.len() as Position + place, token).map_err(|_| {
            let value = format!("token {token} at {place}");
            Error::setting("template", value, "at places of the canvas, each once, no masks")
        })?;
    }
    Ok(canvas)
}

/// One text while it is made.
struct Text<'a> {
    model: Model<'a>,
    request: &'a Request,
    canvas: Canvas,
    /// Masks before the first step.
    length: usize,
    step: u32,
    index: usize,
    seams: Seams,
    sampler: Sampler,
    sight: Sight<'a>,
    guide: Option<Guide<'a>>,
    tally: Denoised,
    /// The end token at which a policy cut the canvas.
    cut_at: Option<TokenId>,
}

/// The parts of a text that an [`Evidence`] needs, borrowed apart from its policies.
macro_rules! evidence {
    ($text:expr, $region:expr, $prediction:expr) => {
        Evidence {
            canvas: &$text.canvas,
            step: $text.step,
            length: $text.length,
            region: $region,
            prediction: $prediction,
            seed: $text.request.seed,
            choice: $text.index as u32,
            sampling: $text.request.sampling,
            vocabulary: $text.model.vocabulary,
            guide: $text.guide.as_ref().map(|g| g as &dyn Backbone),
        }
    };
}

impl Text<'_> {
    fn run(&mut self, listener: &mut Listener<'_>) -> Result<()> {
        self.init(listener)?;
        let patience = PATIENCE * self.length + 64;
        let mut known: Option<Prediction> = None;
        while self.canvas.masks() > 0 && !listener.stopped() {
            if self.step as usize >= patience {
                let (step, masks) = (self.step, self.canvas.masks());
                return Err(Error::plan(format!("{masks} masks are left after {step} steps")));
            }
            let region = self.region()?;
            let wide = self.seams.iter().any(|p| p.is_wide());
            // What was looked at ahead serves if it shows any of what is open now.
            let open = |known: &Prediction| {
                known.positions.iter().any(|&p| region.contains(&(p as usize)))
            };
            let prediction = match known.take().filter(open) {
                Some(prediction) => prediction,
                None => {
                    let rows = self.sight.rows;
                    let window = self.seams.window.as_deref_mut();
                    let found =
                        self.sight.predict(&self.canvas, self.step, &region, wide, window)?;
                    let (done, total) = (self.sight.rows - rows, self.canvas.len());
                    if self.step == 0 {
                        listener.tell(Event::Prefill { done, total });
                    }
                    found
                }
            };
            let mut commit = self.decide(&region, &prediction)?;
            self.check(&commit, &region)?;
            if let Some(rule) = self.sight.rule.as_deref_mut() {
                rule::hold(rule, &self.canvas, &mut commit, self.step)?;
            }
            self.apply(&commit)?;
            known = commit.next.take();
            let ends = self.end()?;
            self.tell(&commit, listener);
            self.step += 1;
            if ends {
                break;
            }
        }
        Ok(())
    }

    fn init(&mut self, listener: &mut Listener<'_>) -> Result<()> {
        let context = InitContext {
            canvas: &self.canvas,
            prior: &self.request.canvas.prior,
            seed: self.request.seed,
            choice: self.index as u32,
            vocabulary: self.model.vocabulary,
            guide: self.guide.as_ref().map(|g| g as &dyn Backbone),
        };
        let start = match self.seams.at(Site::Init) {
            Some(policy) => policy.init(&context)?,
            None => Start::default(),
        };
        if let Some(length) = start.length {
            let len = self.canvas.prompt() + length.min(self.length);
            self.canvas.truncate(len)?;
            self.length = self.canvas.masks();
        }
        self.sight.rule = self.seams.rule.take();
        if !self.fits() {
            let masks = self.canvas.len() - self.canvas.prompt();
            let what = format!("no text of at most {masks} tokens is allowed. Next: another -n");
            return Err(Error::Constraint { what });
        }
        let (mut positions, mut tokens) = (Vec::new(), Vec::new());
        for (position, token) in start.prior {
            self.canvas.guess(position, token)?;
            if self.fits() {
                positions.push(position);
                tokens.push(token);
            } else {
                self.canvas.remask(position)?;
            }
        }
        if !positions.is_empty() {
            let (choice, length) = (self.index, self.canvas.len());
            let (positions, tokens) = (&positions, &tokens);
            listener.tell(Event::Primed { choice, positions, tokens, length });
        }
        self.sight.hints = start.hints;
        Ok(())
    }

    /// Whether the masks can be filled so that the text is allowed.
    fn fits(&mut self) -> bool {
        self.sight.rule.as_mut().is_none_or(|rule| rule.fits(&self.canvas))
    }

    fn region(&mut self) -> Result<Range<usize>> {
        let whole = self.canvas.prompt()..self.canvas.len();
        let canvas = &self.canvas;
        let region =
            self.seams.at(Site::Region).and_then(|p| p.region(canvas)).unwrap_or(whole.clone());
        let open = canvas.masked().any(|p| region.contains(&(p as usize)));
        if !open || region.start < whole.start || region.end > whole.end {
            return Err(Error::plan(format!("a region {region:?} without masks of {whole:?}")));
        }
        Ok(region)
    }

    /// From a prediction to what is written.
    fn decide(&mut self, region: &Range<usize>, prediction: &Prediction) -> Result<Commit> {
        let key = (self.request.seed, self.index as u32);
        let mut fills = draw(&mut self.sampler, prediction, key)?;
        let evidence = evidence!(self, region, prediction);
        if let Some(policy) = self.seams.at(Site::Score) {
            policy.score(&evidence, &mut fills)?;
        }
        if let Some(count) = self.seams.window.as_deref().and_then(|w| w.leftmost()) {
            fills.retain(|f| region.contains(&(f.position as usize)));
            fills.truncate(count);
        }
        if !fills.iter().any(|f| region.contains(&(f.position as usize))) {
            return Err(Error::plan(format!("no mask of {region:?} was computed")));
        }
        let chosen = match self.seams.at(Site::Quota) {
            Some(policy) => policy.quota(&evidence, &fills)?,
            None => None,
        };
        let free = self.seams.quota_takes_region();
        let chosen = match chosen {
            Some(chosen) => chosen,
            None => {
                let mut order = ranked(&fills);
                order.retain(|&i| region.contains(&(fills[i].position as usize)));
                order.truncate(1);
                order
            }
        };
        lawful(&chosen, &fills, (!free).then_some(region))?;
        let wide = self.seams.iter().any(|p| p.is_wide());
        let (committer, window) = self.seams.committer();
        let mut look = Ahead {
            sight: &mut self.sight,
            sampler: &mut self.sampler,
            region,
            wide,
            key,
            step: self.step,
            window,
        };
        let commit = match committer {
            Some(policy) => policy.commit(&evidence, &fills, &chosen, &mut look)?,
            None => None,
        };
        Ok(commit.unwrap_or_else(|| Commit {
            fills: chosen.iter().map(|&i| fills[i]).collect(),
            ..Commit::default()
        }))
    }

    fn check(&self, commit: &Commit, region: &Range<usize>) -> Result<()> {
        if commit.fills.is_empty() {
            return Err(Error::plan("a step that writes nothing".to_owned()));
        }
        let outside = |f: &&Fill| !region.contains(&(f.position as usize));
        if !self.seams.quota_takes_region()
            && let Some(fill) = commit.fills.iter().find(outside)
        {
            let place = fill.position;
            return Err(Error::plan(format!("position {place} is filled outside {region:?}")));
        }
        if !commit.remask.is_empty() && !self.seams.iter().any(|p| p.remasks()) {
            return Err(Error::plan("a policy masks again that said it would not".to_owned()));
        }
        Ok(())
    }

    fn apply(&mut self, commit: &Commit) -> Result<()> {
        for fill in &commit.fills {
            self.canvas.fill(fill.position, fill.token, self.step)?;
        }
        for &position in &commit.remask {
            self.canvas.remask(position)?;
        }
        let changed = commit.fills.iter().map(|f| f.position).chain(commit.remask.iter().copied());
        self.sight.changed(changed);
        if let Some(window) = &mut self.seams.window {
            window.committed(&self.canvas, &commit.fills);
        }
        Ok(())
    }

    /// Whether the text is done; cuts the canvas where a policy says so.
    fn end(&mut self) -> Result<bool> {
        let (canvas, step, vocabulary) = (&self.canvas, self.step, self.model.vocabulary);
        let end = self.seams.at(Site::End).map_or(End::GoOn, |p| p.end(canvas, step, vocabulary));
        match end {
            End::Done => return Ok(true),
            End::Truncate { len } => {
                let at = self.canvas.tokens().get(len).copied();
                let ending =
                    at.filter(|&t| !self.canvas.is_masked(len as Position) && vocabulary.is_end(t));
                // Who goes on after an end token has it cut off by nobody.
                if ending.is_none() || !self.request.ignore_end {
                    self.canvas.truncate(len)?;
                    self.sight.truncate(len)?;
                    self.cut_at = ending.or(self.cut_at);
                }
            }
            End::GoOn => {}
        }
        if self.request.ignore_end || self.seams.iter().any(|p| p.remasks()) {
            return Ok(false);
        }
        // What is written stays, so all that follows a settled end is no part of the text.
        let first = self.canvas.masked().next().unwrap_or(self.canvas.len() as Position);
        Ok(first_end(&self.canvas, vocabulary).is_some_and(|end| end < first as usize))
    }

    fn tell(&mut self, commit: &Commit, listener: &mut Listener<'_>) {
        let nats = nats(&commit.fills);
        self.tally.rounds += 1;
        self.tally.nats += nats;
        self.tally.most_nats = self.tally.most_nats.max(nats);
        let positions: Vec<Position> = commit.fills.iter().map(|f| f.position).collect();
        let tokens: Vec<TokenId> = commit.fills.iter().map(|f| f.token).collect();
        listener.tell(Event::Denoised {
            choice: self.index,
            step: self.step,
            positions: &positions,
            tokens: &tokens,
            remasked: &commit.remask,
            length: self.canvas.len(),
            masks: self.canvas.masks(),
            nats,
        });
        // A step may compute nothing, or look ahead beyond its own pass.
        let passes = std::mem::take(&mut self.sight.fresh);
        let last = passes.last().copied().unwrap_or(0);
        for &rows in passes.iter().rev().skip(1) {
            listener.tell(Event::Step { rows, committed: 0 });
        }
        listener.tell(Event::Step { rows: last, committed: tokens.len() });
    }

    /// Whether the text meets its constraint; `None` without one.
    fn complete(&mut self, made: &Completion) -> Option<bool> {
        self.sight.rule.as_ref()?;
        let end = first_end(&self.canvas, self.model.vocabulary);
        let ended = end.is_some() && !self.request.ignore_end;
        // A stop text cuts off what was to be there.
        let whole = (self.canvas.masks() == 0 || ended)
            && !matches!(made.reason, FinishReason::Stop { .. });
        Some(whole && self.fits())
    }

    /// Adds what the text took.
    fn count(&mut self, stats: &mut Stats) {
        self.sight.count(stats);
        let (passes, rows) = self.guide.as_ref().map_or((0, 0), Guide::counts);
        self.tally.guide_passes += passes;
        self.tally.guide_rows += rows;
        stats.denoised = Some(self.tally);
    }
}

/// What the model did not know of what a step writes, in nats: `-sum ln p`.
pub(crate) fn nats(fills: &[Fill]) -> f64 {
    let sum: f64 =
        fills.iter().map(|f| -f64::from(f.probability.max(f32::MIN_POSITIVE)).ln()).sum();
    // A sum over certain tokens is not minus nothing.
    sum.max(0.0)
}

/// A token for every predicted mask.
fn draw(
    sampler: &mut Sampler,
    prediction: &Prediction,
    (seed, choice): (u64, u32),
) -> Result<Vec<Fill>> {
    let one = |(i, &position): (usize, &Position)| {
        let token = sampler.draw(prediction.logits(i), &[], Key::new(seed, choice, position))?;
        let probability = prediction.law(i)[token as usize];
        Ok(Fill { position, token, probability, score: f64::from(probability) })
    };
    prediction.positions.iter().enumerate().map(one).collect()
}

/// Checks a quota's choice.
fn lawful(chosen: &[usize], fills: &[Fill], region: Option<&Range<usize>>) -> Result<()> {
    if chosen.is_empty() {
        return Err(Error::plan("a quota of nothing".to_owned()));
    }
    let mut taken = vec![false; fills.len()];
    for &i in chosen {
        let Some(fill) = fills.get(i) else {
            return Err(Error::plan(format!("fill {i} of {} is chosen", fills.len())));
        };
        if std::mem::replace(&mut taken[i], true) {
            return Err(Error::plan(format!("fill {i} is chosen twice")));
        }
        if region.is_some_and(|r| !r.contains(&(fill.position as usize))) {
            return Err(Error::plan(format!("position {} is not open", fill.position)));
        }
    }
    Ok(())
}
