//! The last layer computes what is wanted of it: once its keys and values are in the cache, only
//! rows whose logits were asked for go on. Rows do not depend on one another beyond their keys and
//! values, so what remains is the same bit for bit.

use tessera_core::{HiddenSite, KeyForm, KvStore, Pass};
use tessera_kernels::attention::SpanTable;

use super::CpuBackbone;
use super::forward::Scratch;
use super::rows::store_of;
use super::store::CpuStore;

impl CpuBackbone {
    /// Whether layer `l` may drop rows: it is the last one, some rows are not wanted, and nobody
    /// looks at them. Plain caches and biases, which no prefill has, go the long way.
    pub(super) fn narrows(&self, l: usize, pass: &Pass<'_, '_>, own: &[Option<CpuStore>]) -> bool {
        let taps = &pass.taps;
        let seen = |site: &HiddenSite| match site {
            HiddenSite::Final => true,
            HiddenSite::After(at) => *at >= l,
            HiddenSite::Embedding => false,
        };
        l + 1 == self.blueprint.spec.layers
            && pass.sites.is_none()
            && pass.segments.iter().any(|g| {
                let rows = g.positions.len();
                g.rows_out.count(rows) < rows
            })
            && !taps.hidden.iter().any(seen)
            && !taps.queries.contains(&l)
            && !taps.attention.contains(&l)
            && !taps.received.layers.contains(&l)
            && pass.segments.iter().zip(own).all(|(segment, own)| {
                segment.bias.is_empty() && store_of(segment, own).table().form() == KeyForm::Rotated
            })
    }
}

/// Keeps the rows of `x`, `h` and the positions whose logits are wanted.
pub(super) fn narrow(pass: &Pass<'_, '_>, hidden: usize, s: &mut Scratch) {
    let mut total = 0;
    for (segment, state) in pass.segments.iter().zip(&mut s.states) {
        let rows = segment.positions.len();
        let at = state.offset;
        state.active.clear();
        state.active.extend(
            (0..segment.rows_out.count(rows)).map(|i| segment.rows_out.get(i, rows) as u32),
        );
        state.active.sort_unstable();
        state.active.dedup();
        state.offset = total;
        for &row in &state.active {
            let from = at + row as usize;
            let block = from * hidden..(from + 1) * hidden;
            s.x.copy_within(block.clone(), total * hidden);
            s.h.copy_within(block, total * hidden);
            s.positions[total] = s.positions[from];
            total += 1;
        }
    }
    s.x.truncate(total * hidden);
    s.h.truncate(total * hidden);
    s.positions.truncate(total);
}

/// The lists of some rows of a table.
pub(super) fn pick(from: &SpanTable, rows: &[u32], kv_heads: usize, to: &mut SpanTable) {
    let per_row = if from.is_per_head() { kv_heads } else { 1 };
    if to.is_per_head() != from.is_per_head() {
        *to = if from.is_per_head() { SpanTable::per_head() } else { SpanTable::new() };
    }
    to.clear();
    for &row in rows {
        for list in 0..per_row {
            to.push_list(from.list(row as usize * per_row + list));
        }
    }
}
