//! Title: Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative
//!   Decoding
//! Authors: Guo, Ermon
//! Year: 2025
//! Id: arXiv:2504.20456
//! Implemented: teacher forcing in one pass over two streams: content rows that read what was written
//!   before them (and one another where they are given), and a query row for every hole, which reads the
//!   content of lower rank and itself. Loss on holes alone, each weighing the same.
//! Deviation: a query is a mask token, as it is when the model is run; the order is shared by the
//!   sequences of a pass; in every second pass holes are written in random order instead of from left
//!   to right, because a guess ahead of the first hole meets gaps at its left, which the ascending order
//!   never shows; the share of holes is uniform in (0, 1], not annealed to 0.85 and more.
//! Held out: everything from left to right after a row's first token, so the figure is a perplexity, and
//!   that of an autoregressive model on the same rows is its measure.
//! Tag: ASSD

use tessera_core::dist::Key;

use super::{Objective, Place};
use crate::network::{Batch, See, Target};

/// The purposes of numbers (`Key::purpose`): which tokens are holes, in which order they are written.
const HOLES: u64 = 0x0a55_d001;
const ORDER: u64 = 0x0a55_d002;

/// Any subset of a text from any other.
#[derive(Debug, Clone, Copy)]
pub struct AnySubset {
    /// The mask token.
    pub mask: u32,
}

/// When a position was written: 0 for what is given, else 1, 2, ...
type Ranks = Vec<usize>;

/// Who reads whom, content rows first, then the query rows of the same positions.
fn see(ranks: &Ranks) -> See {
    let (length, rows) = (ranks.len(), 2 * ranks.len());
    let mut bits = vec![false; rows * rows];
    for (row, line) in bits.chunks_exact_mut(rows).enumerate() {
        let (own, is_query) = (ranks[row % length], row >= length);
        let given = own == 0 && !is_query;
        for (bit, &rank) in line.iter_mut().zip(ranks) {
            *bit = rank < own || (given && rank == 0);
        }
        line[row] = true;
    }
    See::Streams(bits)
}

impl AnySubset {
    /// A pass over `rows`, whose holes are the positions of a rank above 0.
    fn batch(&self, rows: &[&[u32]], ranks: &Ranks, total: usize) -> Batch {
        let holes = ranks.iter().filter(|&&rank| rank > 0).count();
        let weight = 1.0 / (total * holes) as f32;
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for row in rows {
            tokens.extend_from_slice(row);
            let first = tokens.len() as u32;
            tokens.resize(tokens.len() + row.len(), self.mask);
            for (place, (&token, &rank)) in (first..).zip(row.iter().zip(ranks)) {
                if rank > 0 && token != self.mask {
                    targets.push(Target { row: place, token, weight });
                }
            }
        }
        Batch { tokens, see: see(ranks), targets }
    }
}

/// Which positions are holes, and when each is written; a row's first token is always given.
fn ranks(length: usize, key: Key, ascending: bool) -> Ranks {
    let share = 1.0 - key.purpose(HOLES).uniform(0);
    let mut holes: Vec<u32> =
        (1..length as u32).filter(|&i| key.purpose(HOLES).uniform(i) < share).collect();
    if holes.is_empty() {
        holes.push(length as u32 - 1);
    }
    if !ascending {
        holes.sort_by_key(|&i| key.purpose(ORDER).bits(i));
    }
    let mut ranks = vec![0; length];
    (1..).zip(holes).for_each(|(rank, hole)| ranks[hole as usize] = rank);
    ranks
}

impl Objective for AnySubset {
    fn training(&self, rows: &[&[u32]], place: Place) -> Batch {
        let length = rows.first().map_or(0, |row| row.len());
        let key = Key::new(place.seed, place.first as u32, place.step as u32);
        self.batch(rows, &ranks(length, key, place.step.is_multiple_of(2)), place.total)
    }

    fn held_out(&self, rows: &[Vec<u32>], _strata: usize) -> Vec<Batch> {
        let part = |some: &[Vec<u32>]| {
            let some: Vec<&[u32]> = some.iter().map(Vec::as_slice).collect();
            let ranks: Ranks = (0..some[0].len()).collect();
            self.batch(&some, &ranks, rows.len())
        };
        rows.chunks(4).map(part).collect()
    }

    fn is_shifted(&self) -> bool {
        false
    }

    fn is_bidirectional(&self) -> bool {
        true
    }

    fn is_any_subset(&self) -> bool {
        true
    }

    fn figure(&self) -> &'static str {
        "perplexity"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 99;

    fn bits(see: &See) -> &[bool] {
        match see {
            See::Streams(bits) => bits,
            other => panic!("{other:?}"),
        }
    }

    /// Ranks of a row of four: the first and the third are given, then the last, then the second.
    const RANKS: [usize; 4] = [0, 2, 0, 1];

    #[test]
    fn streams_are_causal_in_rank() {
        let see = see(&RANKS.to_vec());
        let reads = |row: usize| -> Vec<usize> {
            (0..8).filter(|column| bits(&see)[row * 8 + column]).collect()
        };
        assert_eq!(reads(0), [0, 2]);
        assert_eq!(reads(2), [0, 2]);
        assert_eq!(reads(3), [0, 2, 3]);
        assert_eq!(reads(1), [0, 1, 2, 3]);
        // Queries read content of lower rank and themselves, and nothing reads them.
        assert_eq!(reads(7), [0, 2, 7]);
        assert_eq!(reads(5), [0, 2, 3, 5]);
    }

    #[test]
    fn targets_are_the_holes_at_their_query_rows() {
        let rows: [&[u32]; 2] = [&[9, 1, 2, 3], &[9, 4, 5, 6]];
        let batch = AnySubset { mask: MASK }.batch(&rows, &RANKS.to_vec(), 2);
        assert_eq!(batch.tokens[..8], [9, 1, 2, 3, MASK, MASK, MASK, MASK]);
        let seen: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token)).collect();
        assert_eq!(seen, [(5, 1), (7, 3), (13, 4), (15, 6)]);
        assert!(batch.targets.iter().all(|t| t.weight == 0.25));
    }

    #[test]
    fn orders_are_ascending_and_random_in_turns_and_the_first_token_is_given() {
        for step in 0..200 {
            let ranks = ranks(32, Key::new(1, 0, step), step % 2 == 0);
            assert_eq!(ranks[0], 0);
            let holes: Vec<usize> = ranks.iter().copied().filter(|&r| r > 0).collect();
            assert!(!holes.is_empty());
            let mut sorted = holes.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (1..=holes.len()).collect::<Vec<_>>());
            assert!(step % 2 == 1 || holes == sorted);
        }
    }

    #[test]
    fn held_out_is_from_left_to_right() {
        let rows = vec![vec![9, 1, 2, 3]; 5];
        let batches = AnySubset { mask: MASK }.held_out(&rows, 8);
        let weights: f32 = batches.iter().flat_map(|b| &b.targets).map(|t| t.weight).sum();
        assert!((weights - 1.0).abs() < 1e-6);
        let reads: Vec<usize> = (0..8).filter(|c| bits(&batches[0].see)[6 * 8 + c]).collect();
        assert_eq!(reads, [0, 1, 6], "the query at 2 reads the content before it");
    }
}
