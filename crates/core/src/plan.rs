//! Keep-plans: what a reduction policy returns, and the laws such a plan obeys.

use crate::cache::CacheTable;
use crate::{Error, Result, Row};

/// Rows folded into a kept row: `into = sum(weight * row)` over keys and values.
#[derive(Debug, Clone, PartialEq)]
pub struct Merge {
    /// The kept row that receives the sum.
    pub into: Row,
    /// Rows and their weights; `into` itself takes part only if it is listed.
    pub parts: Vec<(Row, f32)>,
}

/// The rows kept of one (layer, key head).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keep {
    /// Rows kept: sorted, unique, in range.
    pub rows: Vec<Row>,
    /// Merges applied before the others are dropped; each `into` is kept.
    pub merges: Vec<Merge>,
}

impl Keep {
    /// Keeps `rows` as they are.
    pub fn rows(rows: impl IntoIterator<Item = Row>) -> Self {
        Self { rows: rows.into_iter().collect(), merges: Vec::new() }
    }
}

/// Which cache rows stay, per layer and key head.
#[derive(Debug, Clone, PartialEq)]
pub struct KeepPlan {
    layers: usize,
    kv_heads: usize,
    keeps: Vec<Keep>,
}

impl KeepPlan {
    /// The same rows everywhere.
    pub fn uniform(layers: usize, kv_heads: usize, keep: Keep) -> Self {
        Self { layers, kv_heads, keeps: vec![keep] }
    }

    /// One list per (layer, key head), layer-major.
    ///
    /// # Errors
    /// [`Error::Plan`] unless there are `layers * kv_heads` lists.
    pub fn per_head(layers: usize, kv_heads: usize, keeps: Vec<Keep>) -> Result<Self> {
        if keeps.len() != layers * kv_heads {
            return Err(Error::plan(format!(
                "{} lists for {layers} layers of {kv_heads} heads",
                keeps.len()
            )));
        }
        // A one-element list is how a uniform plan is told apart.
        Ok(Self { layers, kv_heads, keeps })
    }

    /// Everything but the last `count` rows of each head, and of those the ones that `kept` numbers
    /// (from 0, ascending).
    ///
    /// # Errors
    /// As [`CacheTable::keep_last`].
    pub fn last(table: &CacheTable, count: usize, kept: &[Row]) -> Result<Self> {
        table.clone().keep_last(count, kept)?;
        let (layers, kv_heads) = (table.layers(), table.kv_heads());
        let keep = |held: usize| {
            let first = (held - count) as Row;
            Keep::rows((0..first).chain(kept.iter().map(|&r| first + r)))
        };
        if table.is_uniform() {
            return Ok(Self::uniform(layers, kv_heads, keep(table.len())));
        }
        let heads = (0..layers).flat_map(|l| (0..kv_heads).map(move |h| (l, h)));
        let keeps = heads.map(|(l, h)| keep(table.positions(l, h).len())).collect();
        Self::per_head(layers, kv_heads, keeps)
    }

    /// Whether every layer and head keeps the same rows by construction.
    pub fn is_uniform(&self) -> bool {
        self.keeps.len() == 1
    }

    /// The rows kept of (`layer`, `head`).
    pub fn keep(&self, layer: usize, head: usize) -> &Keep {
        if self.is_uniform() { &self.keeps[0] } else { &self.keeps[layer * self.kv_heads + head] }
    }

    /// Whether every head keeps equally many rows.
    pub fn is_level(&self) -> bool {
        self.keeps.windows(2).all(|w| w[0].rows.len() == w[1].rows.len())
    }

    /// Rows kept, summed over layers and heads.
    pub fn total_rows(&self) -> usize {
        let sum: usize = self.keeps.iter().map(|k| k.rows.len()).sum();
        if self.is_uniform() { sum * self.layers * self.kv_heads } else { sum }
    }

    /// Checks the laws against the table the plan is for: same shape; rows sorted, unique and in
    /// range; merges finite, in range, into kept rows.
    ///
    /// # Errors
    /// [`Error::Plan`] naming the first law broken and where.
    pub fn validate(&self, table: &CacheTable) -> Result<()> {
        if (self.layers, self.kv_heads) != (table.layers(), table.kv_heads()) {
            return Err(Error::plan(format!(
                "made for {}x{} heads, the cache has {}x{}",
                self.layers,
                self.kv_heads,
                table.layers(),
                table.kv_heads()
            )));
        }
        for layer in 0..self.layers {
            for head in 0..self.kv_heads {
                let held = table.positions(layer, head).len();
                check(self.keep(layer, head), held)
                    .map_err(|law| Error::plan(format!("layer {layer}, head {head}: {law}")))?;
                if self.is_uniform() && table.is_uniform() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn check(keep: &Keep, held: usize) -> std::result::Result<(), String> {
    if let Some(w) = keep.rows.windows(2).find(|w| w[0] >= w[1]) {
        return Err(format!("rows must be sorted and unique, found {} before {}", w[0], w[1]));
    }
    if let Some(&last) = keep.rows.last()
        && last as usize >= held
    {
        return Err(format!("row {last} is kept, but only {held} rows are held"));
    }
    for merge in &keep.merges {
        if keep.rows.binary_search(&merge.into).is_err() {
            return Err(format!("merge into row {}, which is not kept", merge.into));
        }
        if let Some((row, weight)) =
            merge.parts.iter().find(|(row, weight)| *row as usize >= held || !weight.is_finite())
        {
            return Err(format!("merge part row {row} with weight {weight} of {held} rows"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyForm;

    #[test]
    fn each_law_is_refused_by_name() {
        let mut table = CacheTable::new(1, 2, KeyForm::Rotated);
        table.append(&[0, 1, 2]);
        let plan = |keep| KeepPlan::uniform(1, 2, keep);
        assert!(plan(Keep::rows([0, 2])).validate(&table).is_ok());
        for (rows, law) in [(vec![1, 0], "sorted"), (vec![1, 1], "unique"), (vec![3], "held")] {
            let err = plan(Keep::rows(rows)).validate(&table).unwrap_err().to_string();
            assert!(err.contains(law), "{err}");
        }
        let lost = Keep { rows: vec![0], merges: vec![Merge { into: 1, parts: vec![(2, 0.5)] }] };
        assert!(plan(lost).validate(&table).is_err());
        assert!(KeepPlan::uniform(2, 2, Keep::default()).validate(&table).is_err());
        assert!(KeepPlan::per_head(2, 2, vec![Keep::default()]).is_err());
    }
}
