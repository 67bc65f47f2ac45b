//! From masks to spans: which cache rows a query reads, in position order.
//!
//! Backbones turn a [`crate::Segment`] into spans here, so that every mask means the same on all
//! of them. A span's *slot* orders its keys in the softmax: the position for ordinary runs, the
//! rank where two visible keys share a position.

/// `len` keys at consecutive slots `slot..` that live in consecutive cache rows `row..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First slot.
    pub slot: u32,
    /// First cache row.
    pub row: u32,
    /// Number of keys.
    pub len: u32,
}

use crate::pass::{Input, KeySet, Mask, RowsOut, Segment, Write};
use crate::{Error, Position, Result, Row};

/// The spans of every row of a segment, for one (layer, key head) or for all that agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visible {
    spans: Vec<Span>,
    offsets: Vec<usize>,
    scratch: Vec<(Position, Row)>,
}

/// What decides visibility besides the mask.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Positions of the cached rows, by row, as they stand before the pass.
    pub cached: &'a [Position],
    /// Whether `cached[i] == i` throughout.
    pub plain: bool,
    /// The cached rows that may be read, sorted and unique; `None` for all.
    pub keys: Option<&'a [Row]>,
    /// Only keys at a distance below this many positions are read (sliding window).
    pub window: Option<u32>,
}

impl Visible {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of rows described.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The spans of row `row`, in slot order.
    pub fn row(&self, row: usize) -> &[Span] {
        &self.spans[self.offsets[row]..self.offsets[row + 1]]
    }

    /// All spans, and the `rows + 1` offsets that cut them into rows.
    pub fn parts(&self) -> (&[Span], &[usize]) {
        (&self.spans, &self.offsets)
    }

    /// Largest number of keys that a row reads.
    pub fn widest(&self) -> usize {
        (0..self.rows())
            .map(|r| self.row(r).iter().map(|s| s.len as usize).sum())
            .max()
            .unwrap_or(0)
    }

    /// Forgets all rows, keeps the memory.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.offsets.clear();
        self.offsets.push(0);
    }

    /// Replaces the content by the spans of `segment`'s rows. Rows of the segment live behind the
    /// cached ones (append, discard) or where [`Write::Rows`] puts them.
    pub fn fill(&mut self, segment: &Segment<'_>, reading: Reading<'_>) {
        self.clear();
        let positions = segment.positions;
        let in_pass = !matches!(segment.input, Input::Queries(_));
        let base = reading.cached.len() as u32;
        let refresh = match segment.write {
            Write::Rows(rows) => Some(rows),
            Write::Append | Write::Discard => None,
        };
        let range_of_cache = reading.plain
            && reading.keys.is_none()
            && refresh.is_none()
            && !matches!(segment.mask, Mask::Explicit { .. });
        let run = positions.windows(2).all(|w| w[1] == w[0].wrapping_add(1));

        // Rows that see everything see the same.
        let alike = matches!(segment.mask, Mask::Bidirectional) && reading.window.is_none();
        for (i, &p) in positions.iter().enumerate() {
            let start = self.spans.len();
            if alike && i > 0 {
                self.spans.extend_from_within(..self.offsets[1]);
                self.offsets.push(self.spans.len());
                continue;
            }
            if range_of_cache {
                let causal = matches!(segment.mask, Mask::Causal);
                let (lo, hi) = cached_range(base, p, causal, reading.window);
                if lo < hi {
                    self.spans.push(Span { slot: lo, row: lo, len: hi - lo });
                }
                if !in_pass {
                    self.offsets.push(self.spans.len());
                    continue;
                }
                if causal && run {
                    // Consecutive positions: the visible rows of the pass are one range.
                    let first = positions[0];
                    let oldest = reading.window.map_or(0, |w| (p + 1).saturating_sub(w));
                    let from = oldest.saturating_sub(first);
                    let len = i as u32 + 1 - from;
                    if first >= hi {
                        self.push(start, Span { slot: first + from, row: base + from, len });
                        self.offsets.push(self.spans.len());
                        continue;
                    }
                }
            }
            // The general way: list, order by position, join neighbours.
            self.spans.truncate(start);
            let mut list = std::mem::take(&mut self.scratch);
            list.clear();
            collect_cached(segment, reading, refresh, i, &mut list);
            if in_pass {
                collect_pass(segment, reading, refresh, i, base, &mut list);
            }
            self.join(start, &mut list);
            self.scratch = list;
            self.offsets.push(self.spans.len());
        }
    }

    fn join(&mut self, start: usize, list: &mut [(Position, Row)]) {
        list.sort_unstable();
        // Two visible keys at one position (parallel streams): order by rank instead.
        let ranked = list.windows(2).any(|w| w[0].0 == w[1].0);
        for (rank, &(position, row)) in list.iter().enumerate() {
            let slot = if ranked { rank as u32 } else { position };
            self.push(start, Span { slot, row, len: 1 });
        }
    }

    fn push(&mut self, start: usize, span: Span) {
        if self.spans.len() > start
            && let Some(last) = self.spans.last_mut()
            && last.slot + last.len == span.slot
            && last.row + last.len == span.row
        {
            last.len += span.len;
            return;
        }
        self.spans.push(span);
    }
}

fn cached_range(cached: u32, p: Position, causal: bool, window: Option<u32>) -> (u32, u32) {
    let hi = if causal { cached.min(p.saturating_add(1)) } else { cached };
    match window {
        None => (0, hi),
        Some(w) => ((p + 1).saturating_sub(w), hi.min(p.saturating_add(w))),
    }
}

fn near(p: Position, q: Position, window: Option<u32>) -> bool {
    window.is_none_or(|w| p.abs_diff(q) < w)
}

fn collect_cached(
    segment: &Segment<'_>,
    reading: Reading<'_>,
    refresh: Option<&[Row]>,
    i: usize,
    list: &mut Vec<(Position, Row)>,
) {
    let p = segment.positions[i];
    let mut consider = |row: Row| {
        let q = reading.cached[row as usize];
        let allowed = match segment.mask {
            Mask::Causal => q <= p,
            Mask::Explicit { bits, columns } => bits[i * columns + row as usize],
            Mask::Bidirectional | Mask::Tree { .. } | Mask::Block { .. } => true,
        };
        let replaced = refresh.is_some_and(|rows| rows.contains(&row));
        if allowed && !replaced && near(p, q, reading.window) {
            list.push((q, row));
        }
    };
    match reading.keys {
        Some(rows) => rows.iter().copied().for_each(&mut consider),
        None => (0..reading.cached.len() as u32).for_each(&mut consider),
    }
}

fn collect_pass(
    segment: &Segment<'_>,
    reading: Reading<'_>,
    refresh: Option<&[Row]>,
    i: usize,
    base: u32,
    list: &mut Vec<(Position, Row)>,
) {
    let p = segment.positions[i];
    let mut add = |j: usize| {
        let q = segment.positions[j];
        if near(p, q, reading.window) {
            list.push((q, refresh.map_or(base + j as u32, |rows| rows[j])));
        }
    };
    match segment.mask {
        Mask::Tree { parent } => {
            let mut at = Some(i as u32);
            while let Some(j) = at {
                add(j as usize);
                at = parent[j as usize];
            }
        }
        Mask::Causal => (0..segment.positions.len())
            .filter(|&j| j == i || segment.positions[j] < p)
            .for_each(&mut add),
        Mask::Bidirectional => (0..segment.positions.len()).for_each(&mut add),
        Mask::Block { block } => {
            (0..segment.positions.len()).filter(|&j| block[j] <= block[i]).for_each(&mut add);
        }
        // The segment's columns come last; `base` is where they start only if this head is as
        // long as the longest.
        Mask::Explicit { bits, columns } => (0..segment.positions.len())
            .filter(|&j| bits[(i + 1) * columns - segment.positions.len() + j])
            .for_each(&mut add),
    }
}

/// Checks that the parts of a segment fit one another and a model. Backbones call it first.
///
/// `cached` is the number of rows the cache holds (the longest head), `hidden` the width of an
/// embedding, `vocab` the number of tokens.
///
/// # Errors
/// [`Error::Pass`] naming the field.
pub fn check_segment(
    segment: &Segment<'_>,
    cached: usize,
    hidden: usize,
    vocab: usize,
) -> Result<()> {
    let rows = segment.positions.len();
    let fail = |what: String| Err(Error::Pass { what });
    if rows == 0 {
        return fail("positions: a segment needs at least one row".into());
    }
    if segment.positions.iter().any(|&p| p > u32::MAX / 4) {
        return fail(format!("positions: must be at most {}", u32::MAX / 4));
    }
    match segment.input {
        Input::Tokens(t) if t.len() != rows => {
            return fail(format!("input: {} tokens for {rows} positions", t.len()));
        }
        Input::Tokens(t) => {
            if let Some(bad) = t.iter().find(|&&t| t as usize >= vocab) {
                return fail(format!("input: token {bad} is outside the vocabulary of {vocab}"));
            }
        }
        Input::Embeddings(e) | Input::Queries(e) if e.len() != rows * hidden => {
            return fail(format!("input: {} values for {rows} rows of {hidden}", e.len()));
        }
        Input::Embeddings(_) | Input::Queries(_) => {}
    }
    let columns_needed = cached + rows;
    match segment.mask {
        Mask::Tree { parent } => {
            if parent.len() != rows {
                return fail(format!("mask: {} parents for {rows} rows", parent.len()));
            }
            if let Some(i) = (0..rows).find(|&i| parent[i].is_some_and(|p| p as usize >= i)) {
                return fail(format!("mask: the parent of row {i} must come before it"));
            }
        }
        Mask::Block { block } if block.len() != rows => {
            return fail(format!("mask: {} blocks for {rows} rows", block.len()));
        }
        Mask::Explicit { bits, columns }
            if columns != columns_needed || bits.len() != rows * columns =>
        {
            return fail(format!(
                "mask: {} bits in {columns} columns, expected {rows} x {columns_needed}",
                bits.len()
            ));
        }
        _ => {}
    }
    if !segment.bias.is_empty() && segment.bias.len() != rows * columns_needed {
        return fail(format!(
            "bias: {} values, expected {rows} x {columns_needed}",
            segment.bias.len()
        ));
    }
    match segment.write {
        Write::Rows(w) => {
            if w.len() != rows || w.iter().any(|&r| r as usize >= cached) {
                return fail(format!(
                    "write: {} rows to refresh for {rows} rows, cache holds {cached}",
                    w.len()
                ));
            }
            let mut sorted = w.to_vec();
            sorted.sort_unstable();
            if sorted.windows(2).any(|w| w[0] == w[1]) {
                return fail("write: a cache row is refreshed twice".into());
            }
            if matches!(segment.input, Input::Queries(_)) {
                return fail("write: query-only rows write nothing".into());
            }
        }
        Write::Append | Write::Discard => {}
    }
    if let RowsOut::Rows(r) = segment.rows_out
        && let Some(bad) = r.iter().find(|&&r| r as usize >= rows)
    {
        return fail(format!("rows_out: row {bad} of {rows}"));
    }
    if let Some(KeySet::Rows(k)) = segment.keys {
        check_keys(k, cached)?;
    }
    if let Some(KeySet::PerHead(heads)) = segment.keys {
        for k in heads {
            check_keys(k, cached)?;
        }
    }
    Ok(())
}

fn check_keys(rows: &[Row], cached: usize) -> Result<()> {
    if rows.windows(2).any(|w| w[0] >= w[1]) {
        return Err(Error::pass("keys: rows must be sorted and unique"));
    }
    match rows.last() {
        Some(&last) if last as usize >= cached => {
            Err(Error::pass(format!("keys: row {last}, but the cache holds {cached}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment<'a>(positions: &'a [Position], mask: Mask<'a>) -> Segment<'a> {
        Segment {
            input: Input::Embeddings(&[]),
            positions,
            mask,
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out: RowsOut::Last,
            condition: None,
            cache: None,
        }
    }

    fn plain(n: u32) -> Vec<Position> {
        (0..n).collect()
    }

    fn spans(v: &Visible, row: usize) -> Vec<(u32, u32, u32)> {
        v.row(row).iter().map(|s| (s.slot, s.row, s.len)).collect()
    }

    fn reading(cached: &[Position], window: Option<u32>) -> Reading<'_> {
        let plain = cached.iter().enumerate().all(|(i, &p)| i as u32 == p);
        Reading { cached, plain, keys: None, window }
    }

    #[test]
    fn causal_chain_is_one_span() {
        let cached = plain(5);
        let mut v = Visible::new();
        v.fill(&segment(&[5, 6], Mask::Causal), reading(&cached, None));
        assert_eq!(spans(&v, 0), [(0, 0, 6)]);
        assert_eq!(spans(&v, 1), [(0, 0, 7)]);
        v.fill(&segment(&[5, 6], Mask::Causal), reading(&cached, Some(3)));
        assert_eq!(spans(&v, 0), [(3, 3, 3)]);
        assert_eq!(spans(&v, 1), [(4, 4, 3)]);
    }

    #[test]
    fn a_tree_node_reads_its_ancestors_in_position_order() {
        let cached = plain(4);
        let parent = [None, Some(0), Some(0), Some(2)];
        let mut v = Visible::new();
        v.fill(&segment(&[4, 5, 5, 6], Mask::Tree { parent: &parent }), reading(&cached, None));
        assert_eq!(spans(&v, 1), [(0, 0, 6)]);
        assert_eq!(spans(&v, 3), [(0, 0, 5), (5, 6, 2)]);
    }

    #[test]
    fn holes_keep_their_slots_and_refreshed_rows_are_read_anew() {
        let cached = [0, 1, 7, 8];
        let mut v = Visible::new();
        v.fill(&segment(&[9], Mask::Causal), reading(&cached, None));
        assert_eq!(spans(&v, 0), [(0, 0, 2), (7, 2, 3)]);
        let mut s = segment(&[7], Mask::Bidirectional);
        s.write = Write::Rows(&[2]);
        v.fill(&s, reading(&cached, None));
        assert_eq!(spans(&v, 0), [(0, 0, 2), (7, 2, 2)]);
    }

    #[test]
    fn query_rows_read_the_cache_only_and_doubles_are_ranked() {
        let cached = plain(3);
        let mut v = Visible::new();
        let mut s = segment(&[3], Mask::Bidirectional);
        s.input = Input::Queries(&[]);
        v.fill(&s, reading(&cached, None));
        assert_eq!(spans(&v, 0), [(0, 0, 3)]);
        v.fill(&segment(&[1], Mask::Bidirectional), reading(&cached, None));
        assert_eq!(v.row(0).iter().map(|s| s.len).sum::<u32>(), 4);
        assert_eq!(v.row(0)[0].slot, 0);
    }

    #[test]
    fn range_and_general_ways_agree() {
        let cached = plain(9);
        for window in [None, Some(1), Some(4), Some(20)] {
            let positions = [9, 10, 11, 12];
            let (mut fast, mut slow) = (Visible::new(), Visible::new());
            fast.fill(&segment(&positions, Mask::Causal), reading(&cached, window));
            let slow_reading = Reading { plain: false, ..reading(&cached, window) };
            slow.fill(&segment(&positions, Mask::Causal), slow_reading);
            for r in 0..4 {
                assert_eq!(fast.row(r), slow.row(r), "window {window:?} row {r}");
            }
        }
    }
}
