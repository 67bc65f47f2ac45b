//! What each row may read, as an additive term on its scores.

use candle_core::{Device, Result, Tensor};
use tessera_core::visible::Reading;
use tessera_core::{Input, Position, Row, RowsOut, Segment, Visible, Write};

/// Far below any score, and finite: a sum with it stays free of NaN.
const HIDDEN: f32 = -1e30;

/// Sight of the active rows of a segment over the keys of one head: the cached rows, then the
/// active rows of the segment (none of them for query-only rows).
#[derive(Clone)]
pub(super) struct Sight {
    /// `active x columns`: the bias where a row may read, [`HIDDEN`] elsewhere.
    pub mask: Tensor,
    /// `active x 1`: 0 for rows that may read nothing, else 1; `None` if there are no such rows.
    pub seeing: Option<Tensor>,
}

/// Whether the rows of a segment may be read at all.
pub(super) fn readable(segment: &Segment<'_>) -> bool {
    !matches!(segment.input, Input::Queries(_))
}

/// The head a [`Sight`] is for.
pub(super) struct Head<'a> {
    /// Positions of its cached rows.
    pub cached: &'a [Position],
    /// Rows of the longest head: where the segment's columns start in masks and biases.
    pub longest: usize,
    /// The cached rows that may be read; `None` for all.
    pub keys: Option<&'a [Row]>,
    /// The layer's sliding window.
    pub window: Option<u32>,
}

/// Builds the sight of `active` rows; `None` if there is no column at all.
pub(super) fn sight(
    segment: &Segment<'_>,
    head: &Head<'_>,
    active: &[u32],
    device: &Device,
) -> Result<Option<Sight>> {
    let held = head.cached.len();
    let columns = held + if readable(segment) { active.len() } else { 0 };
    if columns == 0 || active.is_empty() {
        return Ok(None);
    }
    let mut rank = vec![None; segment.positions.len()];
    for (a, &row) in active.iter().enumerate() {
        rank[row as usize] = Some(a);
    }
    // Where a span's row comes from: the cache (`Err`) or a row of the segment (`Ok`).
    let own = (0..rank.len()).map(Ok);
    let mut origin: Vec<std::result::Result<usize, usize>> =
        (0..held).map(Err).chain(own).collect();
    // Rows that left the pass refresh nothing here: what the cache holds stays readable. They are
    // given rows behind the cache instead, as if they were appended.
    let mut targets = Vec::new();
    if let Write::Rows(rows) = segment.write {
        for (j, &row) in rows.iter().enumerate() {
            if rank[j].is_some() {
                origin[row as usize] = Ok(j);
                targets.push(row);
            } else {
                targets.push((held + j) as Row);
            }
        }
    }
    let write = if targets.is_empty() { Write::Discard } else { Write::Rows(&targets) };
    let segment = &Segment {
        input: segment.input,
        positions: segment.positions,
        mask: segment.mask,
        keys: None,
        bias: segment.bias,
        write,
        rows_out: RowsOut::None,
        condition: None,
        cache: None,
    };
    let plain = head.cached.iter().enumerate().all(|(i, &p)| i == p as usize);
    let mut visible = Visible::new();
    let reading = Reading { cached: head.cached, plain, keys: head.keys, window: head.window };
    visible.fill(segment, reading);

    let bias_width = head.longest + rank.len();
    let mut mask = vec![HIDDEN; active.len() * columns];
    let mut seeing = vec![0f32; active.len()];
    for (a, &i) in active.iter().enumerate() {
        for span in visible.row(i as usize) {
            for &from in &origin[span.row as usize..(span.row + span.len) as usize] {
                let (column, bias_column) = match from {
                    Err(row) => (row, row),
                    Ok(j) => match rank[j] {
                        Some(r) => (held + r, head.longest + j),
                        None => continue, // the row left the pass in an earlier layer
                    },
                };
                let bias = if segment.bias.is_empty() {
                    0.0
                } else {
                    segment.bias[i as usize * bias_width + bias_column]
                };
                // A bias of minus infinity hides a key as a mask does.
                if bias > HIDDEN {
                    mask[a * columns + column] = bias;
                    seeing[a] = 1.0;
                }
            }
        }
    }
    let blind = seeing.contains(&0.0);
    Ok(Some(Sight {
        mask: Tensor::from_vec(mask, (active.len(), columns), device)?,
        seeing: if blind {
            Some(Tensor::from_vec(seeing, (active.len(), 1), device)?)
        } else {
            None
        },
    }))
}
