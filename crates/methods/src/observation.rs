//! A pass over a finished prompt that only looks: which keys would some rows attend to?

use tessera_core::{
    HeadSum, Input, KeySet, Mask, Pass, Position, Received, ReduceContext, Result, Reveal, Row,
    RowsOut, Segment, TokenId, Write,
};

/// The rows that look.
#[derive(Debug, Clone, Copy)]
pub struct Onlookers<'a> {
    /// Their tokens.
    pub tokens: &'a [TokenId],
    /// Position of the first one; the others follow.
    pub position: Position,
    /// They read cached rows at positions below this one only.
    pub below: Position,
    /// Whether each of them reads those before it, as in a text, or the cache and itself only.
    pub linked: bool,
}

/// Attention received from some rows, summed over them.
#[derive(Debug, Clone)]
pub struct Observed {
    /// By layer: `groups x columns`.
    layers: Vec<Vec<f32>>,
    /// Rows of the longest head of the cache.
    cached: usize,
    columns: usize,
}

impl Observed {
    /// What the first `held` cached rows received in a layer from a group of heads.
    pub fn cached(&self, layer: usize, group: usize, held: usize) -> &[f32] {
        &self.layers[layer][group * self.columns..][..held.min(self.cached)]
    }

    /// What the rows that looked received from one another.
    pub fn own(&self, layer: usize, group: usize) -> &[f32] {
        &self.layers[layer][group * self.columns..][self.cached..self.columns]
    }
}

/// Lets rows look at the cache of a prompt, which stays as it is.
///
/// # Errors
/// Whatever the pass reports.
pub fn observe(
    context: &mut ReduceContext<'_>,
    rows: Onlookers<'_>,
    heads: HeadSum,
) -> Result<Observed> {
    let count = rows.tokens.len();
    let positions: Vec<Position> = (rows.position..).take(count).collect();
    let alone = vec![None; count];
    let layers: Vec<usize> = (0..context.target.backbone.spec().layers).collect();
    let table = context.target.cache.table();
    let cached = table.len();
    let seen = |layer, head| -> Vec<Row> {
        let held = table.positions(layer, head).iter().enumerate();
        held.filter(|(_, p)| **p < rows.below).map(|(row, _)| row as Row).collect()
    };
    let (one, each): (Vec<Row>, Vec<Vec<Row>>);
    let keys = if table.next_position() <= rows.below {
        None
    } else if table.is_uniform() {
        one = seen(0, 0);
        Some(KeySet::Rows(&one))
    } else {
        let heads = layers.iter().flat_map(|&l| (0..table.kv_heads()).map(move |h| (l, h)));
        each = heads.map(|(l, h)| seen(l, h)).collect();
        Some(KeySet::PerHead(&each))
    };
    let mut segments = [Segment {
        input: Input::Tokens(rows.tokens),
        positions: &positions,
        mask: if rows.linked { Mask::Causal } else { Mask::Tree { parent: &alone } },
        keys,
        bias: &[],
        write: Write::Discard,
        rows_out: RowsOut::None,
        condition: None,
        cache: Some(&mut *context.target.cache),
    }];
    let mut pass = Pass::new(&mut segments);
    pass.taps.received = Received { layers: &layers, heads, by_row: false };
    let mut reveal = Reveal::new();
    context.target.backbone.forward(&mut pass, &mut reveal)?;
    let layers = reveal.segments.pop().map(|s| s.received).unwrap_or_default();
    Ok(Observed { layers, cached, columns: cached + count })
}
