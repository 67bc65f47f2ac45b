//! The autoregressive loop: the prompt in pieces, then one pass per step, in which every choice has
//! the row of its last token and, if something drafts for it, the rows of its guesses.
//!
//! All choices of a request share the prompt's rows (the cache is forked) and every decoding pass
//! (one segment each), so `n` texts read the weights as often as the longest of them alone would.
//! A text does not depend on the others: its draws are keyed by its own index, and products and
//! attention do not depend on what else is in a pass. For the same reason requests can share passes
//! with one another: [`crate::Batch`] makes the same steps (`writing`) for many of them.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tessera_core::{Backbone, Control, Event, Filling, Result, Vocabulary};

use crate::choice::Choice;
use crate::denoise;
use crate::particles;
use crate::request::{Outcome, Request};
use crate::sequence::Sequence;
use crate::step::{Part, Space, step};
use crate::writing::Writing;

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
/// with [`tessera_core::FinishReason::Cancelled`].
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
    let mut listener = Listener::new(listener, cancel);
    let mut writing = Writing::new(model, sequence, Cow::Borrowed(request))?;
    let mut space = Space::default();
    while writing.is_open() && !listener.stopped() {
        let mut part = Part::new(&mut writing, sequence, &mut listener, usize::MAX);
        let made = step(model, std::slice::from_mut(&mut part), &mut space);
        if let Some(error) = made.err().or(part.failed) {
            // What the sequence holds has to be left as a later request may read it.
            writing.close(sequence)?;
            return Err(error);
        }
    }
    match writing.particles {
        Some(settings) => particles::generate(model, writing, sequence, listener, space, settings),
        None => writing.finish(sequence, &mut listener),
    }
}

/// The listener, the time it took, and whether it or the cancel flag has stopped the run.
pub(crate) struct Listener<'a> {
    call: Box<dyn FnMut(Event<'_>) -> Control + 'a>,
    cancel: &'a AtomicBool,
    pub(crate) stopped: bool,
    pub(crate) seconds: f64,
}

impl<'a> Listener<'a> {
    pub(crate) fn new(call: impl FnMut(Event<'_>) -> Control + 'a, cancel: &'a AtomicBool) -> Self {
        Self { call: Box::new(call), cancel, stopped: false, seconds: 0.0 }
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
