//! Many requests in shared passes (continuous batching).
//!
//! A pass has the rows of every text that grows and pieces of prompts beside them, so that a long
//! prompt delays the others by a piece at a time. What is made for a request does not depend on the
//! others: a seed gives the same text alone and under load (with acceptance by key; `residual` keeps
//! the distribution, not the text, because how much is guessed depends on the load).
//!
//! Two kinds of requests cannot share a pass and take turns with the others' passes: those that skip
//! layers, and those whose policy sums attention. A particle loop and a model that fills masks have
//! loops of their own ([`Batch::takes`]).

use std::borrow::Cow;
use std::sync::atomic::AtomicBool;

use tessera_core::{Control, Error, Event, Result};

use crate::autoregressive::{Listener, Model};
use crate::cast::Cast;
use crate::request::{Outcome, Request};
use crate::sequence::Sequence;
use crate::step::{Part, Space, step};
use crate::writing::Writing;

/// How the rows of a pass are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Most rows of prompts in a pass beside texts that grow: what a growing text waits for.
    pub beside: usize,
    /// Most rows of prompts in a pass without such.
    pub alone: usize,
}

impl Default for Shape {
    /// 128 rows beside texts, 512 alone.
    fn default() -> Self {
        Self { beside: 128, alone: crate::request::CHUNK }
    }
}

/// Who hears of a request's events. An answer of [`Control::Stop`] ends it before the next pass.
pub type Listen<'m> = Box<dyn FnMut(Event<'_>) -> Control + 'm>;

/// A request that has ended.
pub struct Ended {
    /// The number it was added with.
    pub id: u64,
    /// Its sequence; can be used again.
    pub sequence: Sequence,
    /// What came of it.
    pub outcome: Result<Outcome>,
}

struct Slot<'m> {
    id: u64,
    writing: Writing<'static>,
    sequence: Sequence,
    listener: Listener<'m>,
    failed: Option<Error>,
}

impl Slot<'_> {
    /// Whether the next step has something to do for it.
    fn goes_on(&mut self) -> bool {
        self.failed.is_none() && self.writing.is_open() && !self.listener.stopped()
    }

    fn end(mut self) -> Ended {
        let outcome = match self.failed.take() {
            None => self.writing.finish(&mut self.sequence, &mut self.listener),
            Some(error) => {
                let closed = self.writing.close(&mut self.sequence);
                closed.and(Err(error))
            }
        };
        Ended { id: self.id, sequence: self.sequence, outcome }
    }
}

/// Nobody sets it: a request in a batch is stopped by its listener.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Requests that share passes.
pub struct Batch<'m> {
    model: Model<'m>,
    shape: Shape,
    slots: Vec<Slot<'m>>,
    space: Space,
    passes: usize,
}

impl<'m> Batch<'m> {
    /// A batch of none.
    pub fn new(model: Model<'m>, shape: Shape) -> Self {
        Self { model, shape, slots: Vec::new(), space: Space::default(), passes: 0 }
    }

    /// Whether a request of this kind can be added.
    ///
    /// # Errors
    /// If its recipe's methods cannot be made.
    pub fn takes(&self, request: &Request) -> Result<bool> {
        Ok(self.model.filling.is_none()
            && request.canvas.is_empty()
            && Cast::new(&request.recipe)?.particles.is_none())
    }

    /// Requests in it.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none in it.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Passes made so far, each counted once however many requests shared it.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// The sequences at work, with the numbers of their requests.
    pub fn sequences(&self) -> impl Iterator<Item = (u64, &Sequence)> {
        self.slots.iter().map(|slot| (slot.id, &slot.sequence))
    }

    /// Adds a request, which takes part from the next step on. `sequence` may hold a beginning of its
    /// prompt.
    ///
    /// # Errors
    /// As [`crate::generate_in`] before anything is computed, with the sequence.
    pub fn add(
        &mut self,
        id: u64,
        mut sequence: Sequence,
        request: Request,
        listener: Listen<'m>,
    ) -> std::result::Result<(), Box<(Sequence, Error)>> {
        match Writing::new(self.model, &mut sequence, Cow::Owned(request)) {
            Ok(writing) => {
                let listener = Listener::new(listener, &NEVER);
                self.slots.push(Slot { id, writing, sequence, listener, failed: None });
                Ok(())
            }
            Err(error) => Err(Box::new((sequence, error))),
        }
    }

    /// Ends a request before its next pass: what was made until then is its outcome.
    pub fn stop(&mut self, id: u64) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == id) {
            slot.listener.stopped = true;
        }
    }

    /// Makes one pass for all that can share it, and one for each of the others; returns the requests
    /// that have ended.
    pub fn step(&mut self) -> Vec<Ended> {
        let mut ended = self.sweep();
        let pieces = self.pieces();
        let (shared, apart): (Vec<_>, Vec<_>) = self
            .slots
            .iter_mut()
            .zip(pieces)
            .filter(|(_, piece)| *piece != Some(0))
            .partition(|(slot, _)| slot.writing.shares());
        self.passes += usize::from(!shared.is_empty()) + apart.len();
        pass(self.model, shared, &mut self.space);
        for alone in apart {
            pass(self.model, vec![alone], &mut self.space);
        }
        ended.extend(self.sweep());
        ended
    }

    /// Takes out those that have ended.
    fn sweep(&mut self) -> Vec<Ended> {
        let gone: Vec<Slot<'m>> = self.slots.extract_if(.., |slot| !slot.goes_on()).collect();
        gone.into_iter().map(Slot::end).collect()
    }

    /// How many rows of its prompt each request gets in the next pass; `None` for one that has read
    /// it. The one that came first gets half of the room, so that none waits for ever; then the shortest
    /// go first, so that a short prompt does not wait for a long one.
    fn pieces(&self) -> Vec<Option<usize>> {
        let mut pieces: Vec<Option<usize>> =
            self.slots.iter().map(|s| (!s.writing.has_read()).then_some(0)).collect();
        let beside = pieces.iter().any(Option::is_none);
        let mut room = if beside { self.shape.beside } else { self.shape.alone }.max(1);
        let half = room.div_ceil(2);
        let mut order: Vec<usize> = (0..pieces.len()).filter(|&i| pieces[i].is_some()).collect();
        let mut give = |slot: usize, most: usize| {
            let had = pieces[slot].unwrap_or(0);
            let more = (self.slots[slot].writing.unread() - had).min(most).min(room);
            pieces[slot] = Some(had + more);
            room -= more;
        };
        if let Some(&first) = order.first() {
            give(first, half);
        }
        order.sort_by_key(|&i| self.slots[i].writing.unread());
        for slot in order {
            give(slot, usize::MAX);
        }
        pieces
    }
}

/// One pass for these requests. If it fails, each is tried alone, and those that fail then have failed.
fn pass(model: Model<'_>, slots: Vec<(&mut Slot<'_>, Option<usize>)>, space: &mut Space) {
    if slots.is_empty() {
        return;
    }
    let mut lent: Vec<(Part<'_, '_, '_>, &mut Option<Error>)> = Vec::with_capacity(slots.len());
    for (slot, piece) in slots {
        let Slot { writing, sequence, listener, failed, .. } = slot;
        lent.push((Part::new(writing, sequence, listener, piece.unwrap_or(0)), failed));
    }
    let (mut parts, places): (Vec<_>, Vec<_>) = lent.into_iter().unzip();
    let whole = step(model, &mut parts, space);
    if whole.is_err() {
        for part in &mut parts {
            let alone = step(model, std::slice::from_mut(part), space);
            part.failed = alone.err().or(part.failed.take());
        }
    }
    for (part, place) in parts.into_iter().zip(places) {
        *place = part.failed;
    }
}
