//! The passes of the denoising loop: what the model thinks of the masks of a canvas.

use std::ops::Range;

use tessera_core::dist::softmax;
use tessera_core::{
    CacheOptions, Canvas, CanvasRule, Error, Filling, HiddenSite, Hint, Input, KeySet, KvStore,
    Layers, Mask, Pass, Position, Prediction, Result, Reveal, Row, RowsOut, Segment, Window,
    WindowPlan, WindowView, Write,
};

use crate::autoregressive::Model;
use crate::request::Stats;

/// Runs passes over a canvas and keeps its rows, if a window policy wants them kept.
pub(super) struct Sight<'a> {
    model: Model<'a>,
    filling: Filling,
    reveal: Reveal,
    store: Option<Box<dyn KvStore>>,
    /// Positions whose token has changed since their row was computed.
    stale: Vec<Position>,
    /// Which tokens may stand where.
    pub(super) rule: Option<Box<dyn CanvasRule>>,
    /// What the first pass shows of a prior.
    pub(super) hints: Vec<Hint>,
    passes: usize,
    pub(super) rows: usize,
    /// Rows of each pass that no event has told yet.
    pub(super) fresh: Vec<usize>,
}

impl<'a> Sight<'a> {
    pub(super) fn new(model: Model<'a>, filling: Filling) -> Self {
        Self {
            model,
            filling,
            reveal: Reveal::new(),
            store: None,
            stale: Vec::new(),
            rule: None,
            hints: Vec::new(),
            passes: 0,
            rows: 0,
            fresh: Vec::new(),
        }
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        stats.passes += self.passes;
        stats.rows += self.rows;
        let bytes = self.store.as_ref().map_or(0, |s| s.bytes());
        stats.cache_bytes = stats.cache_bytes.max(bytes);
        stats.peak_cache_bytes = stats.peak_cache_bytes.max(bytes);
    }

    /// Hears that the tokens at `positions` are others now.
    pub(super) fn changed(&mut self, positions: impl Iterator<Item = Position>) {
        self.stale.extend(positions);
        self.stale.sort_unstable();
        self.stale.dedup();
    }

    /// Hears that the canvas was cut.
    pub(super) fn truncate(&mut self, len: usize) -> Result<()> {
        self.stale.retain(|&p| (p as usize) < len);
        match &mut self.store {
            Some(store) => {
                let surplus = store.table().len().saturating_sub(len);
                store.rollback(surplus)
            }
            None => Ok(()),
        }
    }

    /// One pass. Predicts the masks of `region`, of the whole canvas if `wide`, as far as it
    /// computes their rows.
    pub(super) fn predict(
        &mut self,
        canvas: &Canvas,
        step: u32,
        region: &Range<usize>,
        wide: bool,
        window: Option<&mut (dyn Window + 'static)>,
    ) -> Result<Prediction> {
        let wanted = |p: &Position| wide || region.contains(&(*p as usize));
        let masked: Vec<Position> = canvas.masked().filter(wanted).collect();
        let plan = match window {
            None => None,
            Some(window) => {
                let rows = self.rows_held();
                let (stale, filling) = (&self.stale[..], self.filling);
                let plan =
                    window.plan(&WindowView { canvas, step, region, rows, stale, filling })?;
                if let (true, WindowPlan::Part { compute, .. }) = (window.rewrites(), &plan) {
                    rewritten(stale, compute, rows)?;
                }
                Some(plan)
            }
        };
        let mut store = self.store.take();
        let found = self.pass(canvas, &masked, plan, &mut store);
        self.store = store;
        found
    }

    fn pass(
        &mut self,
        canvas: &Canvas,
        masked: &[Position],
        plan: Option<WindowPlan>,
        store: &mut Option<Box<dyn KvStore>>,
    ) -> Result<Prediction> {
        let whole: Vec<Position> = (0..canvas.len() as Position).collect();
        let (positions, keys, keeps) = match plan {
            None => (whole, None, false),
            Some(WindowPlan::Whole { len }) => {
                if len <= canvas.prompt() || len > canvas.len() {
                    let what = format!("{len} of {} positions are computed", canvas.len());
                    return Err(Error::plan(what));
                }
                *store = None;
                (whole[..len].to_vec(), None, true)
            }
            Some(WindowPlan::Part { compute, keys }) => {
                let rows = store.as_ref().map_or(0, |s| s.table().len());
                if compute.is_empty() {
                    return Err(Error::plan("a window that computes nothing".to_owned()));
                }
                ascending("computed", &compute, rows)?;
                keys.iter().try_for_each(|k| ascending("read", k, rows))?;
                (compute, keys, true)
            }
        };
        if keeps && store.is_none() {
            let options = CacheOptions { capacity: canvas.len(), ..CacheOptions::default() };
            *store = Some(self.model.backbone.new_cache(options)?);
        }
        // The row that predicts each mask, where it is computed and the mask with it.
        let at = |p: Position| {
            positions.binary_search(&p).ok()?;
            positions.binary_search(&self.filling.row_of(p)).ok()
        };
        let seen: Vec<(Position, u32)> =
            masked.iter().filter_map(|&p| Some((p, at(p)? as u32))).collect();
        let rows_out: Vec<u32> = seen.iter().map(|&(_, row)| row).collect();
        let tokens: Vec<_> = positions.iter().map(|&p| canvas.tokens()[p as usize]).collect();
        let hints = std::mem::take(&mut self.hints);
        let mixed = match hints.is_empty() {
            true => None,
            false => Some(self.mixed(&tokens, &positions, &hints)?),
        };
        let rows: Vec<Row> = positions.clone();
        let appends = store.as_ref().is_none_or(|s| s.table().is_empty());
        let segment = Segment {
            input: mixed.as_deref().map_or(Input::Tokens(&tokens), Input::Embeddings),
            positions: &positions,
            mask: Mask::Bidirectional,
            keys: keys.as_deref().map(KeySet::Rows),
            bias: &[],
            write: match (keeps, appends) {
                (false, _) => Write::Discard,
                (true, true) => Write::Append,
                (true, false) => Write::Rows(&rows),
            },
            rows_out: RowsOut::Rows(&rows_out),
            condition: None,
            cache: store.as_mut().map(|s| &mut **s as &mut dyn KvStore),
        };
        self.forward(&mut [segment], positions.len())?;
        self.stale.retain(|p| positions.binary_search(p).is_err());
        // A hinted row saw what its token is not.
        self.stale.extend(hints.iter().map(|h| h.position).filter(|_| keeps));
        self.stale.sort_unstable();
        self.stale.dedup();
        let masked = seen.iter().map(|&(p, _)| p).collect();
        self.prediction((0, 0), canvas, masked)
    }

    /// Rows that the cache holds.
    fn rows_held(&self) -> usize {
        self.store.as_ref().map_or(0, |s| s.table().len())
    }

    /// [`Sight::look`] beside a window: the rows that it computes of every canvas, in one segment in
    /// which canvases do not see one another, and the cache for all other rows. Nothing is kept.
    pub(super) fn look_through(
        &mut self,
        canvases: &[Canvas],
        region: &Range<usize>,
        wide: bool,
        step: u32,
        window: &dyn Window,
    ) -> Result<Vec<Prediction>> {
        let Some(canvas) = canvases.first() else { return Ok(Vec::new()) };
        let (held, filling) = (self.rows_held(), self.filling);
        if canvases.iter().any(|c| c.len() != held) {
            return Err(Error::plan(format!("a look at a canvas that has not {held} tokens")));
        }
        let view = WindowView { canvas, step, region, rows: held, stale: &self.stale, filling };
        let Some(compute) = window.ahead(&view) else {
            let what = "cannot look ahead beside this window, whose rows go by one canvas";
            return Err(Error::plan(what.to_owned()));
        };
        ascending("looked at", &compute, held)?;
        let (width, rows) = (compute.len(), compute.len() * canvases.len());
        let tokens: Vec<_> =
            canvases.iter().flat_map(|c| compute.iter().map(|&p| c.tokens()[p as usize])).collect();
        let positions = compute.repeat(canvases.len());
        let columns = held + rows;
        let mut bits = vec![false; rows * columns];
        for (row, line) in bits.chunks_exact_mut(columns).enumerate() {
            line[..held].fill(true);
            compute.iter().for_each(|&p| line[p as usize] = false);
            let own = held + row / width * width;
            line[own..own + width].fill(true);
        }
        let at = |p: Position| {
            compute.binary_search(&p).ok()?;
            compute.binary_search(&filling.row_of(p)).ok()
        };
        let (mut masked, mut outs) = (Vec::with_capacity(canvases.len()), Vec::new());
        for (index, canvas) in canvases.iter().enumerate() {
            let open = canvas.masked().filter(|&p| wide || region.contains(&(p as usize)));
            let seen: Vec<(Position, usize)> = open.filter_map(|p| Some((p, at(p)?))).collect();
            outs.extend(seen.iter().map(|&(_, row)| (index * width + row) as u32));
            masked.push(seen.into_iter().map(|(p, _)| p).collect::<Vec<_>>());
        }
        let mut store = self.store.take();
        let mut segments = [Segment {
            input: Input::Tokens(&tokens),
            positions: &positions,
            mask: Mask::Explicit { bits: &bits, columns },
            keys: None,
            bias: &[],
            write: Write::Discard,
            rows_out: RowsOut::Rows(&outs),
            condition: None,
            cache: store.as_mut().map(|s| &mut **s as &mut dyn KvStore),
        }];
        let done = self.forward(&mut segments, rows);
        self.store = store;
        done?;
        let mut first = 0;
        let one = |(canvas, masked): (&Canvas, Vec<Position>)| {
            let found = self.prediction((0, first), canvas, masked);
            first += found.as_ref().map_or(0, |p| p.positions.len());
            found
        };
        canvases.iter().zip(masked).map(one).collect()
    }

    /// What the model thinks of the masks of `region`, or of all if `wide`, of several canvases, in one
    /// pass.
    pub(super) fn look(
        &mut self,
        canvases: &[Canvas],
        region: &Range<usize>,
        wide: bool,
    ) -> Result<Vec<Prediction>> {
        let longest = canvases.iter().map(Canvas::len).max().unwrap_or(0);
        let positions: Vec<Position> = (0..longest as Position).collect();
        let open = |c: &Canvas| -> Vec<Position> {
            c.masked().filter(|&p| wide || region.contains(&(p as usize))).collect()
        };
        let masked: Vec<Vec<Position>> = canvases.iter().map(open).collect();
        let outs: Vec<Vec<u32>> =
            masked.iter().map(|m| m.iter().map(|&p| self.filling.row_of(p)).collect()).collect();
        let mut segments: Vec<Segment<'_>> = canvases
            .iter()
            .zip(&outs)
            .map(|(canvas, out)| {
                Segment::canvas(canvas.tokens(), &positions[..canvas.len()], RowsOut::Rows(out))
            })
            .collect();
        let rows = canvases.iter().map(Canvas::len).sum();
        self.forward(&mut segments, rows)?;
        let seen = canvases.iter().zip(masked).enumerate();
        seen.map(|(s, (canvas, masked))| self.prediction((s, 0), canvas, masked)).collect()
    }

    fn forward(&mut self, segments: &mut [Segment<'_>], rows: usize) -> Result<()> {
        self.model.backbone.forward(&mut Pass::new(segments), &mut self.reveal)?;
        self.passes += 1;
        self.rows += rows;
        self.fresh.push(rows);
        Ok(())
    }

    /// The logits of `segment` from the `first` on, which are of `positions` of `canvas`; under a rule,
    /// those of the tokens that may stand there.
    fn prediction(
        &mut self,
        (segment, first): (usize, usize),
        canvas: &Canvas,
        positions: Vec<Position>,
    ) -> Result<Prediction> {
        let allowed = self.rule.as_mut().and_then(|rule| rule.allowed(canvas, &positions));
        let vocab = self.reveal.vocab();
        let mut logits = Vec::with_capacity(positions.len() * vocab);
        let mut probabilities = vec![0.0; positions.len() * vocab];
        for i in 0..positions.len() {
            logits.extend_from_slice(self.reveal.logits(segment, first + i));
            let row = &mut logits[i * vocab..];
            if let Some(mask) = row.get_mut(self.filling.mask as usize) {
                *mask = f32::NEG_INFINITY;
            }
            if let Some(set) = allowed.as_ref().map(|sets| &sets[i]) {
                // A canvas that does not fit, which only a look ahead can see, allows nothing.
                if (0..).zip(&*row).any(|(t, &l)| set.contains(t) && l > f32::NEG_INFINITY) {
                    let refused = (0..).zip(&mut *row).filter(|&(t, _)| !set.contains(t));
                    refused.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
            softmax(row, &mut probabilities[i * vocab..(i + 1) * vocab])?;
        }
        Ok(Prediction { positions, vocab, logits, probabilities })
    }

    /// Embeddings of `tokens` with the hints mixed in, as they enter the first layer.
    fn mixed(
        &mut self,
        tokens: &[u32],
        positions: &[Position],
        hints: &[Hint],
    ) -> Result<Vec<f32>> {
        let all: Vec<u32> = tokens.iter().copied().chain(hints.iter().map(|h| h.token)).collect();
        let places: Vec<Position> = (0..all.len() as Position).collect();
        let mut segments = [Segment::canvas(&all, &places, RowsOut::None)];
        let mut pass = Pass::new(&mut segments);
        pass.layers = Layers::First(0);
        pass.taps.hidden = &[HiddenSite::Embedding];
        self.model.backbone.forward(&mut pass, &mut self.reveal)?;
        let hidden = self.reveal.segments.first_mut().and_then(|s| s.hidden.pop());
        let mut hidden =
            hidden.ok_or_else(|| Error::plan("the backbone shows no embeddings".to_owned()))?;
        let width = self.model.backbone.spec().hidden;
        let tail = hidden.split_off(tokens.len() * width);
        for (hint, embedding) in hints.iter().zip(tail.chunks_exact(width)) {
            let Ok(at) = positions.binary_search(&hint.position) else { continue };
            let row = &mut hidden[at * width..(at + 1) * width];
            row.iter_mut().zip(embedding).for_each(|(m, e)| *m += hint.share * (e - *m));
        }
        Ok(hidden)
    }
}

/// Checks a list of positions below `rows`.
fn ascending(word: &str, list: &[Position], rows: usize) -> Result<()> {
    let sorted = list.windows(2).all(|w| w[0] < w[1]);
    let bounded = list.last().is_some_and(|&last| (last as usize) < rows);
    match sorted && bounded {
        true => Ok(()),
        false => Err(Error::plan(format!("positions {word} that are not among {rows} rows"))),
    }
}

/// Checks that a plan computes every row that the cache holds of a token that is another now.
fn rewritten(stale: &[Position], compute: &[Position], rows: usize) -> Result<()> {
    let left = |p: &&Position| (**p as usize) < rows && compute.binary_search(p).is_err();
    match stale.iter().find(left) {
        None => Ok(()),
        Some(p) => Err(Error::plan(format!("the row of the token written at {p} is left stale"))),
    }
}
