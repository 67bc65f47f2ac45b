//! One pass for one or many requests in progress: the next piece of the prompt of those that still read,
//! and for those that write the row of every open text's last token with its guesses.

use tessera_core::{Error, Layers, Pass, Received, Result, Reveal, Segment, Sites};

use crate::autoregressive::{Listener, Model};
use crate::reduction::Seats;
use crate::sequence::Sequence;
use crate::writing::{Shown, Writing};

/// One request's part in a step.
pub(crate) struct Part<'p, 'r, 'l> {
    writing: &'p mut Writing<'r>,
    sequence: &'p mut Sequence,
    listener: &'p mut Listener<'l>,
    /// Most rows of its prompt.
    most: usize,
    /// What went wrong with this request alone. It must not take part in a step again.
    pub(crate) failed: Option<Error>,
}

impl<'p, 'r, 'l> Part<'p, 'r, 'l> {
    pub(crate) fn new(
        writing: &'p mut Writing<'r>,
        sequence: &'p mut Sequence,
        listener: &'p mut Listener<'l>,
        most: usize,
    ) -> Self {
        Self { writing, sequence, listener, most, failed: None }
    }
}

/// Memory that steps use again.
#[derive(Default)]
pub(crate) struct Space {
    pub(crate) reveal: Reveal,
    segments: Vec<Segment<'static>>,
    active: Vec<usize>,
    /// All layers.
    layers: Vec<usize>,
}

/// One pass for all `parts`, which must be open and, if there are several, must all share.
///
/// # Errors
/// If the pass failed: then nothing has changed. What goes wrong with one part alone is in
/// [`Part::failed`].
pub(crate) fn step(
    model: Model<'_>,
    parts: &mut [Part<'_, '_, '_>],
    space: &mut Space,
) -> Result<()> {
    let count = model.backbone.spec().layers;
    if space.layers.len() != count {
        space.layers = (0..count).collect();
    }
    space.active.clear();
    let mut received = None;
    let all: usize = parts.iter_mut().map(|p| p.writing.rows(p.most)).sum();
    for part in parts.iter_mut() {
        let beside = all.saturating_sub(1);
        part.failed = part.writing.prepare(model, part.sequence, beside).err();
        if part.writing.is_writing() {
            received = part.writing.received();
            part.writing.layers(count, &mut space.active)?;
        }
    }
    let mut segments = recycle(std::mem::take(&mut space.segments));
    let mut seats = Vec::with_capacity(parts.len());
    // By part: its first segment and the one after its last.
    let mut spans = Vec::with_capacity(parts.len());
    for part in parts.iter_mut() {
        let first = segments.len();
        if part.failed.is_none() {
            part.writing.lay_out(part.sequence, part.most, &mut segments, &mut seats);
        }
        spans.push(first..segments.len());
    }
    if segments.is_empty() {
        return Ok(());
    }
    let counts: Vec<usize> = segments.iter().map(|s| s.positions.len()).collect();
    let held: Vec<u64> = segments
        .iter()
        .map(|s| s.cache.as_ref().map_or(0, |c| c.table().total_rows() as u64))
        .collect();
    let mut seats = Seats::new(seats);
    let mut pass = Pass::new(&mut segments);
    pass.sites = seats.as_mut().map(|s| s as &mut dyn Sites);
    if let Some(heads) = received {
        pass.taps.received = Received { layers: &space.layers, heads, by_row: true };
    }
    if !space.active.is_empty() {
        pass.layers = Layers::Only(&space.active);
    }
    let made = model.backbone.forward(&mut pass, &mut space.reveal);
    let unread = seats.map(|s| s.unread).unwrap_or_default();
    space.segments = recycle(segments);
    made?;
    for (part, span) in parts.iter_mut().zip(spans).filter(|(p, _)| p.failed.is_none()) {
        let Part { writing, sequence, listener, .. } = part;
        let rows = counts[span.clone()].iter().sum();
        writing.stats.passes += 1;
        writing.stats.rows += rows;
        let mut shown = Shown { model, reveal: &space.reveal, listener };
        let taken = if writing.is_writing() {
            for segment in span.clone() {
                let unread = unread.get(segment).copied().unwrap_or(0);
                writing.stats.held_rows += held[segment];
                writing.stats.read_rows += held[segment] - unread.min(held[segment]);
            }
            writing.written(sequence, &mut shown, span.start, rows)
        } else {
            writing.read(sequence, &mut shown, span.start, rows)
        };
        part.failed = taken.err();
    }
    Ok(())
}

/// An empty vector with the memory of another: segments borrow for one pass only, so their vector
/// cannot live longer, but its memory can (collecting in place does not allocate).
fn recycle<'b>(mut memory: Vec<Segment<'_>>) -> Vec<Segment<'b>> {
    memory.clear();
    memory.into_iter().map_while(|_| None).collect()
}
