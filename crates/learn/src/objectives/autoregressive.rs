//! Title: (next-token prediction)
//! Implemented: cross-entropy of every token but a row's first, given those before it.
//! Tag: AR

use super::{Objective, Place};
use crate::network::{Batch, See, Target};

/// Each token from those before it.
#[derive(Debug, Clone, Copy)]
pub struct Autoregressive;

/// Rows one after another, with a target for every token but the first of each.
fn whole(rows: &[&[u32]], total: usize) -> Batch {
    let mut targets = Vec::new();
    let mut tokens = Vec::new();
    for row in rows {
        let start = tokens.len() as u32;
        let weight = 1.0 / (total * (row.len() - 1)) as f32;
        let pairs = (start..).zip(&row[1..]);
        targets.extend(pairs.map(|(row, &token)| Target { row, token, weight }));
        tokens.extend_from_slice(row);
    }
    Batch { tokens, see: See::Causal, targets }
}

impl Objective for Autoregressive {
    fn training(&self, rows: &[&[u32]], place: Place) -> Batch {
        whole(rows, place.total)
    }

    fn held_out(&self, rows: &[Vec<u32>], _strata: usize) -> Vec<Batch> {
        rows.chunks(8)
            .map(|some| whole(&some.iter().map(Vec::as_slice).collect::<Vec<_>>(), rows.len()))
            .collect()
    }

    fn is_shifted(&self) -> bool {
        true
    }

    fn is_bidirectional(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_predicted_from_the_row_before() {
        let rows: [&[u32]; 2] = [&[9, 1, 2], &[9, 3, 4]];
        let batch = Autoregressive.training(&rows, Place { seed: 0, step: 0, first: 0, total: 4 });
        let seen: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token)).collect();
        assert_eq!(seen, [(0, 1), (1, 2), (3, 3), (4, 4)]);
        assert!(batch.targets.iter().all(|t| t.weight == 1.0 / 8.0));
        assert_eq!(batch.see, See::Causal);
    }
}
