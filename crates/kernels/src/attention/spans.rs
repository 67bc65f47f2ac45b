//! Which keys each query row sees, as runs of order slots stored in runs of cache rows.

use crate::error::{KernelError, Result};

/// `len` visible keys: order slots `slot..slot + len`, stored in cache rows `row..row + len`.
///
/// The slot is the key's place in the order of the sum: its position in ordinary runs, its rank
/// in a sparse plan. The row is where the cache keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First order slot.
    pub slot: u32,
    /// First cache row.
    pub row: u32,
    /// Number of keys.
    pub len: u32,
}

/// The visible keys of every query row, or of every (query row, key/value head), in one flat
/// list that is reused from pass to pass.
#[derive(Debug, Clone, Default)]
pub struct SpanTable {
    spans: Vec<Span>,
    ends: Vec<u32>,
    per_head: bool,
    /// Cache rows that every query row sees before its list, by key/value head; empty without.
    common: Vec<Vec<u32>>,
}

impl SpanTable {
    /// An empty table whose lists hold for all heads of a row.
    pub fn new() -> SpanTable {
        SpanTable::default()
    }

    /// An empty table with a list for each (row, key/value head), pushed in that order.
    pub fn per_head() -> SpanTable {
        SpanTable { per_head: true, ..SpanTable::default() }
    }

    /// An empty table whose rows all see `common[head]` first, cache rows in their order, and then
    /// what their lists say. Every key has its rank as its slot, whatever the spans say.
    pub fn after(common: Vec<Vec<u32>>) -> SpanTable {
        SpanTable { common, ..SpanTable::default() }
    }

    /// The cache rows that all query rows see first, by head; empty in ordinary tables.
    pub fn common(&self) -> &[Vec<u32>] {
        &self.common
    }

    /// Forgets all lists; keeps the memory and the kind.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.ends.clear();
    }

    /// Whether there is a list for each key/value head.
    pub fn is_per_head(&self) -> bool {
        self.per_head
    }

    /// Number of lists: rows, or rows times key/value heads.
    pub fn lists(&self) -> usize {
        self.ends.len()
    }

    /// Adds a span to the list under construction. Empty spans are dropped; a span that goes on
    /// where the last one ended, in slots and in rows, is joined to it.
    pub fn push_span(&mut self, span: Span) {
        if span.len == 0 {
            return;
        }
        let begun = self.spans.len() > self.ends.last().copied().unwrap_or(0) as usize;
        if begun
            && let Some(last) = self.spans.last_mut()
            && last.slot.checked_add(last.len) == Some(span.slot)
            && last.row.checked_add(last.len) == Some(span.row)
            && let Some(len) = last.len.checked_add(span.len)
        {
            last.len = len;
            return;
        }
        self.spans.push(span);
    }

    /// Ends the list under construction: the next span belongs to the next row (or head).
    pub fn end_list(&mut self) {
        self.ends.push(self.spans.len() as u32);
    }

    /// Adds one whole list.
    pub fn push_list(&mut self, spans: &[Span]) {
        for span in spans {
            self.push_span(*span);
        }
        self.end_list();
    }

    /// One row that sees the cache rows `first..end` in their order.
    pub fn push_range(&mut self, first: u32, end: u32) {
        let len = end.saturating_sub(first);
        self.push_list(&[Span { slot: first, row: first, len }]);
    }

    /// `rows` rows at positions `first..`, each seeing every position up to its own.
    pub fn causal(&mut self, first: u32, rows: u32) {
        self.window(first, rows, u32::MAX);
    }

    /// Like [`SpanTable::causal`], but at most the `width` last positions, its own included.
    pub fn window(&mut self, first: u32, rows: u32, width: u32) {
        for p in first..first.saturating_add(rows) {
            let end = p.saturating_add(1);
            self.push_range(end.saturating_sub(width), end);
        }
    }

    /// `rows` rows that all see positions `0..keys`.
    pub fn bidirectional(&mut self, rows: u32, keys: u32) {
        for _ in 0..rows {
            self.push_range(0, keys);
        }
    }

    /// A tree of drafted rows after a context of `context` rows: node `i` is stored in cache row
    /// `context + i`, `parents[i] < i` is its parent (`None`: the context's last row), and it
    /// sees the context, its ancestors and itself, each at the slot of its depth.
    ///
    /// Errors: a parent that does not come before its child.
    pub fn tree(&mut self, context: u32, parents: &[Option<u32>]) -> Result<()> {
        let mut path = Vec::new();
        for (node, _) in parents.iter().enumerate() {
            path.clear();
            let mut at = Some(node as u32);
            while let Some(i) = at {
                path.push(i);
                at = parents[i as usize];
                if at.is_some_and(|parent| parent >= i) {
                    return Err(KernelError::Mismatch("a tree parent must precede its child"));
                }
            }
            self.push_span(Span { slot: 0, row: 0, len: context });
            for (depth, i) in path.iter().rev().enumerate() {
                let slot = context.saturating_add(depth as u32);
                self.push_span(Span { slot, row: context.saturating_add(*i), len: 1 });
            }
            self.end_list();
        }
        Ok(())
    }

    /// The spans of list `i`; empty if there is none.
    pub fn list(&self, i: usize) -> &[Span] {
        let end = self.ends.get(i).copied().unwrap_or(0) as usize;
        let start = match i.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0) as usize,
            None => 0,
        };
        self.spans.get(start..end).unwrap_or(&[])
    }

    /// Checks that each list is sorted by slot without overlap and stays inside the rows that
    /// `rows_of_list` gives.
    pub(crate) fn check(&self, rows_of_list: impl Fn(usize) -> usize) -> Result<()> {
        if !self.common.is_empty() {
            let inside = |i: usize| {
                let limit = rows_of_list(i) as u64;
                self.list(i).iter().all(|s| u64::from(s.row) + u64::from(s.len) <= limit)
            };
            return match (0..self.lists()).all(inside) {
                true => Ok(()),
                false => Err(KernelError::Mismatch("a span reaches past the cache rows")),
            };
        }
        for i in 0..self.lists() {
            let limit = rows_of_list(i) as u64;
            let mut next = 0u64;
            for s in self.list(i) {
                if u64::from(s.slot) < next {
                    return Err(KernelError::Mismatch("spans overlap or are not sorted by slot"));
                }
                next = u64::from(s.slot) + u64::from(s.len);
                if next > u64::from(u32::MAX) || u64::from(s.row) + u64::from(s.len) > limit {
                    return Err(KernelError::Mismatch("a span reaches past the cache rows"));
                }
            }
        }
        Ok(())
    }
}
