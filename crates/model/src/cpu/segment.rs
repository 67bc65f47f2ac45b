//! What a segment needs while the layers run: its rows, and the spans of keys they read.

use tessera_core::visible::Reading;
use tessera_core::{Input, KeySet, KvStore, Mask, Position, Row, RowsOut, Segment, Visible, Write};
use tessera_kernels::attention::{Span, SpanTable};

use super::store::CpuStore;

/// What a segment needs while the layers run.
#[derive(Default)]
pub(super) struct State {
    /// First of its rows among all rows of the pass.
    pub offset: usize,
    /// Its rows still running, as indices into the segment.
    pub active: Vec<u32>,
    /// Cached rows of the longest head before the pass.
    pub cached: usize,
    /// Whether one table of spans serves all layers with the same window.
    pub shared: bool,
    /// Whether the segment's rows read all cached rows that its policy chooses, and then rows of
    /// their own; `None` until it was asked for.
    pub behind: Option<bool>,
    /// Span tables by window.
    pub spans: Vec<(Option<u32>, SpanTable)>,
    /// From which layer on which rows ran, once rows have been dropped.
    pub dropped: Vec<(usize, Vec<u32>)>,
    /// Score biases by cache row, empty without.
    pub bias: Vec<f32>,
    pub bias_columns: usize,
}

impl State {
    /// Positions appended to each layer, if rows were dropped on the way.
    pub fn by_layer(&self, positions: &[Position], layers: usize) -> Option<Vec<Vec<Position>>> {
        if self.dropped.is_empty() {
            return None;
        }
        let ran = |l: usize| self.dropped.iter().rev().find(|(from, _)| *from <= l);
        Some(
            (0..layers)
                .map(|l| match ran(l) {
                    None => positions.to_vec(),
                    Some((_, rows)) => rows.iter().map(|&r| positions[r as usize]).collect(),
                })
                .collect(),
        )
    }
}

/// Moves the bias of refreshed rows to the cache rows they are written to.
pub(super) fn remap_bias(segment: &Segment<'_>, state: &mut State) {
    state.bias.clear();
    if segment.bias.is_empty() {
        return;
    }
    let rows = segment.positions.len();
    let columns = state.cached + rows;
    state.bias.extend_from_slice(segment.bias);
    state.bias_columns = columns;
    if let Write::Rows(to) = segment.write {
        for row in state.bias.chunks_exact_mut(columns) {
            for (j, &r) in to.iter().enumerate() {
                row[r as usize] = row[state.cached + j];
            }
        }
    }
}

/// The index in `state.spans` of the table for this layer, built if it is not there yet.
pub(super) fn span_table(
    state: &mut State,
    visible: &mut Visible,
    segment: &Segment<'_>,
    store: &CpuStore,
    l: usize,
    window: Option<u32>,
    chosen: &Option<Vec<Vec<Row>>>,
) -> usize {
    let known = state.spans.iter().position(|(w, t)| *w == window && t.lists() > 0);
    if state.shared
        && let Some(i) = known
    {
        return i;
    }
    let at = known.or_else(|| state.spans.iter().position(|(_, t)| t.lists() == 0));
    let at = at.unwrap_or_else(|| {
        state.spans.push((window, SpanTable::new()));
        state.spans.len() - 1
    });
    let table = store.table();
    let part = Part::new(segment, state);
    let part = part.view(segment);
    let whole = match segment.keys {
        Some(KeySet::Rows(rows)) => Some(rows),
        Some(KeySet::PerHead(_)) | None => None,
    };
    let per_head = matches!(segment.keys, Some(KeySet::PerHead(_)));
    let (slot, out) = &mut state.spans[at];
    *slot = window;
    if table.is_uniform() && chosen.is_none() && !per_head {
        let cached = table.positions(l, 0);
        visible.fill(&part, Reading { cached, plain: table.is_plain(), keys: whole, window });
        if out.is_per_head() {
            *out = SpanTable::new();
        }
        out.clear();
        for row in 0..visible.rows() {
            push(out, visible, row);
        }
        return at;
    }
    let kv_heads = table.kv_heads();
    let mut heads = Vec::with_capacity(kv_heads);
    for h in 0..kv_heads {
        let allowed = match segment.keys {
            Some(KeySet::PerHead(lists)) => Some(lists[l * kv_heads + h].as_slice()),
            Some(KeySet::Rows(_)) | None => whole,
        };
        // A policy chooses among the rows that the caller allows.
        let both: Vec<Row>;
        let keys = match (chosen, allowed) {
            (Some(lists), Some(allowed)) => {
                let is_allowed = |r: &Row| allowed.binary_search(r).is_ok();
                both = lists[h].iter().copied().filter(is_allowed).collect();
                Some(both.as_slice())
            }
            (Some(lists), None) => Some(lists[h].as_slice()),
            (None, allowed) => allowed,
        };
        let cached = table.positions(l, h);
        let mut v = Visible::new();
        v.fill(&part, Reading { cached, plain: table.is_plain(), keys, window });
        heads.push(v);
    }
    *out = SpanTable::per_head();
    for row in 0..part.positions.len() {
        for v in &heads {
            push(out, v, row);
        }
    }
    at
}

/// A table of the rows that a policy chose and, behind them, the rows of the pass; gives the lists
/// back where other things decide as well what is read.
pub(super) fn few_rows(
    state: &mut State,
    visible: &mut Visible,
    segment: &Segment<'_>,
    store: &CpuStore,
    l: usize,
    lists: Vec<Vec<Row>>,
) -> Result<SpanTable, Option<Vec<Vec<Row>>>> {
    let cached = store.table().positions(l, 0);
    // The same for all layers, and not worth walking over the whole cache in each of them.
    let behind = *state.behind.get_or_insert_with(|| {
        let after = |p: &Position| segment.positions.iter().all(|q| q > p);
        segment.keys.is_none()
            && store.table().is_uniform()
            && matches!(segment.write, Write::Append | Write::Discard)
            && match segment.mask {
                Mask::Causal => cached.iter().max().is_none_or(after),
                Mask::Tree { .. } => true,
                Mask::Bidirectional | Mask::Block { .. } | Mask::Explicit { .. } => false,
            }
    });
    if !behind {
        return Err(Some(lists));
    }
    let part = Part::new(segment, state);
    let (plain, keys, window) = (false, Some(&[][..]), None);
    visible.fill(&part.view(segment), Reading { cached, plain, keys, window });
    let mut table = SpanTable::after(lists);
    for row in 0..visible.rows() {
        push(&mut table, visible, row);
    }
    Ok(table)
}

fn push(out: &mut SpanTable, visible: &Visible, row: usize) {
    for s in visible.row(row) {
        out.push_span(Span { slot: s.slot, row: s.row, len: s.len });
    }
    out.end_list();
}

/// A segment reduced to the rows that still run.
struct Part {
    /// `None` while all rows run.
    rows: Option<Rows>,
}

struct Rows {
    positions: Vec<Position>,
    block: Vec<u32>,
    bits: Vec<bool>,
    columns: usize,
    write: Vec<Row>,
}

impl Part {
    fn new(segment: &Segment<'_>, state: &State) -> Self {
        if state.dropped.is_empty() {
            return Self { rows: None };
        }
        let active = &state.active;
        let pick = |from: &[u32]| active.iter().map(|&a| from[a as usize]).collect();
        let mut rows = Rows {
            positions: pick(segment.positions),
            block: Vec::new(),
            bits: Vec::new(),
            columns: state.cached + active.len(),
            write: Vec::new(),
        };
        match segment.mask {
            Mask::Block { block } => rows.block = pick(block),
            Mask::Explicit { bits, columns } => {
                for &a in active {
                    let row = &bits[a as usize * columns..(a as usize + 1) * columns];
                    rows.bits.extend_from_slice(&row[..state.cached]);
                    rows.bits.extend(active.iter().map(|&j| row[state.cached + j as usize]));
                }
            }
            // Rows of a tree are never dropped: see `keep`.
            Mask::Causal | Mask::Bidirectional | Mask::Tree { .. } => {}
        }
        if let Write::Rows(to) = segment.write {
            rows.write = pick(to);
        }
        Self { rows: Some(rows) }
    }

    fn view<'a>(&'a self, whole: &'a Segment<'_>) -> Segment<'a> {
        let input = match whole.input {
            Input::Queries(_) => Input::Queries(&[]),
            Input::Tokens(_) | Input::Embeddings(_) => Input::Embeddings(&[]),
        };
        let mut part = Segment {
            input,
            positions: whole.positions,
            mask: whole.mask,
            keys: None,
            bias: &[],
            write: whole.write,
            rows_out: RowsOut::None,
            condition: None,
            cache: None,
        };
        if let Some(rows) = &self.rows {
            part.positions = &rows.positions;
            part.mask = match whole.mask {
                Mask::Block { .. } => Mask::Block { block: &rows.block },
                Mask::Explicit { .. } => Mask::Explicit { bits: &rows.bits, columns: rows.columns },
                other => other,
            };
            if matches!(whole.write, Write::Rows(_)) {
                part.write = Write::Rows(&rows.write);
            }
        }
        part
    }
}
