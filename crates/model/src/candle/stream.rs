//! A segment on its way through the layers.

use candle_core::{DType, Device, Tensor};
use tessera_core::pass::RowEvidence;
use tessera_core::visible::check_segment;
use tessera_core::{
    CacheTable, Error, HiddenSite, Input, KeyForm, KeySet, KvStore, Position, Row, Segment,
    SegmentReveal, Sites, Taps, Write,
};

use super::sight::Sight;
use super::store::LayerRows;
use super::{CandleBackbone, CandleStore, Failure, NAME};

pub(super) struct Stream<'p, 'a> {
    pub segment: &'p Segment<'a>,
    /// Stands for the cache of a segment that has none.
    own: CandleStore,
    pub device: Device,
    /// Rows still in the pass, ascending.
    pub active: Vec<u32>,
    /// Their states, `active x hidden`; `None` when there are none.
    pub x: Option<Tensor>,
    /// What each layer computed, so far.
    pub made: Vec<LayerRows>,
    /// Sights that all layers of one window share, while `active` stays as it is.
    pub sights: Vec<(Option<u32>, Option<Sight>)>,
    /// One slot per hidden site of the taps, filled as the pass comes by.
    hidden: Vec<Option<Tensor>>,
    pub reveal: SegmentReveal,
}

impl<'p, 'a> Stream<'p, 'a> {
    /// Checks a segment and embeds its rows.
    pub(super) fn open(
        model: &CandleBackbone,
        segment: &'p Segment<'a>,
        taps: Taps<'_>,
    ) -> Result<Self, Failure> {
        let spec = &model.blueprint.spec;
        let device = model.options.device.clone();
        if segment.condition.is_some() {
            let (backbone, missing) = (NAME.into(), "conditions".into());
            return Err(Error::Unsupported { backbone, missing }.into());
        }
        let own = CandleStore::new(
            spec.layers,
            spec.kv_heads,
            spec.head_dim,
            KeyForm::Rotated,
            model.options.kv_f16,
            device.clone(),
        );
        if let Some(cache) = segment.cache.as_deref()
            && !cache.as_any().downcast_ref::<CandleStore>().is_some_and(|c| c.like(&own))
        {
            return Err(Error::cache("made by another backbone or for another model").into());
        }
        let mut stream = Self {
            segment,
            own,
            device,
            active: (0..segment.positions.len() as u32).collect(),
            x: None,
            made: Vec::with_capacity(spec.layers),
            sights: Vec::new(),
            hidden: vec![None; taps.hidden.len()],
            reveal: SegmentReveal {
                hidden: Vec::new(),
                attention: vec![Vec::new(); taps.attention.len()],
                keys: vec![Vec::new(); taps.keys.len()],
                queries: vec![Vec::new(); taps.queries.len()],
                received: vec![Vec::new(); taps.received.layers.len()],
            },
        };
        let table = stream.store().table();
        check_segment(segment, table.len(), spec.hidden, spec.vocab)?;
        check_heads(segment, table)?;
        if segment.bias.iter().any(|b| b.is_nan() || *b == f32::INFINITY) {
            return Err(Error::pass("bias: NaN or infinite; use -inf to hide a key").into());
        }
        let device = &stream.device;
        stream.x = Some(match segment.input {
            Input::Tokens(tokens) => {
                let rows =
                    model.weights.embedding.index_select(&Tensor::new(tokens, device)?, 0)?;
                match model.blueprint.embedding_scale {
                    1.0 => rows,
                    scale => (rows * f64::from(scale))?,
                }
            }
            Input::Embeddings(values) | Input::Queries(values) => {
                Tensor::from_slice(values, (segment.positions.len(), spec.hidden), device)?
            }
        });
        Ok(stream)
    }

    /// The segment's cache, or the empty one that stands for it.
    pub(super) fn store(&self) -> &CandleStore {
        let given = self.segment.cache.as_deref();
        given.and_then(|c| c.as_any().downcast_ref()).unwrap_or(&self.own)
    }

    /// Positions of the rows still in the pass.
    pub(super) fn positions(&self) -> Vec<Position> {
        self.active.iter().map(|&row| self.segment.positions[row as usize]).collect()
    }

    /// States of all rows, `rows x hidden`: zeros for those that were dropped.
    pub(super) fn full(&self, hidden: usize) -> Result<Tensor, Failure> {
        let blank = Tensor::zeros((1, hidden), DType::F32, &self.device)?;
        let x = match &self.x {
            Some(x) if self.active.len() == self.segment.positions.len() => return Ok(x.clone()),
            Some(x) => Tensor::cat(&[x, &blank], 0)?,
            None => blank,
        };
        let mut from = vec![self.active.len() as u32; self.segment.positions.len()];
        for (i, &row) in self.active.iter().enumerate() {
            from[row as usize] = i as u32;
        }
        Ok(x.index_select(&Tensor::new(from, &self.device)?, 0)?)
    }

    /// States of the rows whose logits are wanted; `None` if there are none.
    pub(super) fn wanted(&self) -> Result<Option<Tensor>, Failure> {
        let (rows, out) = (self.segment.positions.len(), self.segment.rows_out);
        let mut picked = Vec::with_capacity(out.count(rows));
        for row in (0..out.count(rows)).map(|i| out.get(i, rows)) {
            let Ok(at) = self.active.binary_search(&(row as u32)) else {
                let what = format!("rows_out: row {row} was dropped at a reduction site");
                return Err(Error::Pass { what }.into());
            };
            picked.push(at as u32);
        }
        match &self.x {
            Some(x) if !picked.is_empty() => {
                Ok(Some(x.index_select(&Tensor::new(picked, &self.device)?, 0)?))
            }
            _ => Ok(None),
        }
    }

    /// Notes a hidden state for every tap that asks for `site`.
    pub(super) fn show(&mut self, taps: Taps<'_>, site: HiddenSite, state: &Tensor) {
        for (slot, _) in taps.hidden.iter().enumerate().filter(|(_, asked)| **asked == site) {
            self.hidden[slot] = Some(state.clone());
        }
    }

    /// The tapped hidden states, in the order of the taps, and the other taps.
    pub(super) fn shown(self) -> (Vec<Tensor>, SegmentReveal) {
        (self.hidden.into_iter().flatten().collect(), self.reveal)
    }

    /// Asks which rows go on after `layer`, and lets the others go.
    pub(super) fn ask_keep(
        &mut self,
        number: usize,
        layer: usize,
        site: &mut dyn Sites,
    ) -> Result<(), Failure> {
        let Some(x) = &self.x else { return Ok(()) };
        let (hidden, positions) = (super::run::numbers(x)?, self.positions());
        let evidence =
            RowEvidence { segment: number, layer, hidden: &hidden, positions: &positions };
        let Some(kept) = site.keep(&evidence)? else { return Ok(()) };
        check_list("keep", &kept, self.active.len())?;
        if kept.len() == self.active.len() {
            return Ok(());
        }
        let going = if kept.is_empty() {
            None
        } else {
            Some(x.index_select(&Tensor::new(kept.as_slice(), &self.device)?, 0)?)
        };
        self.x = going;
        self.active = kept.iter().map(|&i| self.active[i as usize]).collect();
        self.sights.clear();
        Ok(())
    }
}

/// A list of rows from a policy: sorted, unique, in range.
pub(super) fn check_list(site: &str, rows: &[u32], count: usize) -> Result<(), Error> {
    if rows.windows(2).any(|w| w[0] >= w[1]) {
        return Err(Error::plan(format!("{site}: rows must be sorted and unique")));
    }
    match rows.last() {
        Some(&last) if last as usize >= count => {
            Err(Error::plan(format!("{site}: row {last} of {count}")))
        }
        _ => Ok(()),
    }
}

/// What [`check_segment`] cannot see: heads of different lengths.
fn check_heads(segment: &Segment<'_>, table: &CacheTable) -> Result<(), Error> {
    let (layers, kv_heads) = (table.layers(), table.kv_heads());
    if let Some(KeySet::PerHead(lists)) = segment.keys
        && lists.len() != layers * kv_heads
    {
        return Err(Error::pass(format!(
            "keys: {} lists for {layers} layers of {kv_heads} heads",
            lists.len()
        )));
    }
    let refreshed = match segment.write {
        Write::Rows(rows) => rows.iter().max(),
        Write::Append | Write::Discard => None,
    };
    for layer in 0..layers {
        for head in 0..kv_heads {
            let held = table.positions(layer, head).len();
            let keys = head_keys(segment.keys, layer, head, kv_heads);
            for (field, row) in [("keys", keys.and_then(<[Row]>::last)), ("write", refreshed)] {
                if let Some(&row) = row
                    && row as usize >= held
                {
                    return Err(Error::pass(format!(
                        "{field}: row {row}, but layer {layer}, head {head} holds {held}"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The rows that `keys` lets a head read; `None` for all.
pub(super) fn head_keys(
    keys: Option<KeySet<'_>>,
    layer: usize,
    head: usize,
    kv_heads: usize,
) -> Option<&[Row]> {
    match keys? {
        KeySet::Rows(rows) => Some(rows),
        KeySet::PerHead(lists) => Some(&lists[layer * kv_heads + head]),
    }
}
