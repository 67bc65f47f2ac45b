//! Title: Simple and Effective Masked Diffusion Language Models
//! Authors: Sahoo et al.
//! Year: 2024
//! Id: arXiv:2406.07524
//! Implemented: the continuous-time bound with a linear schedule. One `t` a row, stratified over the
//!   rows of a step; each token but the first, or each behind a separator, is masked with
//!   `p = eps + (1 - eps) t` (Nie et al., arXiv:2502.09992) and weighs `1 / p`; visible tokens have no loss; the mask is never predicted.
//!   Held out: the any-order form, `k` masks at random with weight `N / k`, `k` stratified.
//! Left out: time conditioning, other schedules.
//! Tag: MDLM

use tessera_core::dist::Key;

use super::{Objective, Place};
use crate::network::{Batch, See, Target};

/// The purposes of numbers (`Key::purpose`): times, masks, and those of the held-out figure.
const TIMES: u64 = 0x71_3e5;
const MASKS: u64 = 0x3a_545;
const SUBSETS: u64 = 0x5b_5e7;
/// The seed of the held-out figure: the same masks for every model.
const HELD_OUT: u64 = 7;

/// Masked tokens from all that is visible.
#[derive(Debug, Clone, Copy)]
pub struct MaskedDiffusion {
    /// The mask token.
    pub mask: u32,
    /// Least probability of a mask.
    pub epsilon: f32,
    /// The token of which the first one in a row ends what is given: only what is behind it is masked.
    pub after: Option<u32>,
}

impl MaskedDiffusion {
    /// How many tokens at the beginning of a row are always visible; at least one.
    fn given(&self, row: &[u32]) -> usize {
        let separator = self.after.and_then(|after| row.iter().position(|&t| t == after));
        // A row without anything behind its separator would have nothing to predict.
        (separator.unwrap_or(0) + 1).min(row.len() - 1)
    }

    /// Masks the places of a row that `chosen` names (never a given one), with targets of this
    /// weight, `shift` rows ahead of the token.
    fn hide(&self, batch: &mut Batch, row: &[u32], chosen: &[bool], weight: f32, shift: u32) {
        let start = batch.tokens.len() as u32;
        for (i, (&token, &hidden)) in (start..).zip(row.iter().zip(chosen)) {
            batch.tokens.push(if hidden { self.mask } else { token });
            // A text that spells the mask itself has nothing to predict there.
            if hidden && token != self.mask {
                batch.targets.push(Target { row: i - shift, token, weight });
            }
        }
    }

    /// A batch to learn from; `shift` is 1 for models whose row before a token predicts it.
    pub(super) fn masked(&self, rows: &[&[u32]], place: Place, see: See, shift: u32) -> Batch {
        let mut batch = Batch { tokens: Vec::new(), see, targets: Vec::new() };
        let step = Key::new(place.seed, 0, place.step as u32);
        let offset = step.purpose(TIMES).uniform(0);
        for (i, row) in (place.first..).zip(rows) {
            let t = (offset + i as f64 / place.total as f64).fract() as f32;
            let p = self.epsilon + (1.0 - self.epsilon) * t;
            let key = Key::new(place.seed, i as u32, place.step as u32).purpose(MASKS);
            let given = self.given(row);
            let chosen: Vec<bool> = (0..row.len() as u32)
                .map(|at| at as usize >= given && key.uniform(at) < f64::from(p))
                .collect();
            let weight = 1.0 / (p * (place.total * (row.len() - given)) as f32);
            self.hide(&mut batch, row, &chosen, weight, shift);
        }
        batch
    }

    /// The batches of the bound.
    pub(super) fn bound(
        &self,
        rows: &[Vec<u32>],
        strata: usize,
        see: &See,
        shift: u32,
    ) -> Vec<Batch> {
        let mut batches = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut batch = Batch { tokens: Vec::new(), see: see.clone(), targets: Vec::new() };
            let given = self.given(row);
            let n = row.len() - given;
            let key = Key::new(HELD_OUT, index as u32, 0).purpose(SUBSETS);
            for stratum in 0..strata {
                let within = key.uniform(stratum as u32);
                let k = 1 + ((stratum as f64 + within) / strata as f64 * n as f64) as usize;
                let k = k.min(n);
                let order = key.purpose(stratum as u64 + 1);
                let mut places: Vec<u32> = (given as u32..row.len() as u32).collect();
                places.sort_by_key(|&at| order.bits(at));
                let mut chosen = vec![false; row.len()];
                places[..k].iter().for_each(|&at| chosen[at as usize] = true);
                let weight = 1.0 / (k * rows.len() * strata) as f32;
                self.hide(&mut batch, row, &chosen, weight, shift);
            }
            batches.push(batch);
        }
        batches
    }
}

impl Objective for MaskedDiffusion {
    fn training(&self, rows: &[&[u32]], place: Place) -> Batch {
        self.masked(rows, place, See::Full, 0)
    }

    fn held_out(&self, rows: &[Vec<u32>], strata: usize) -> Vec<Batch> {
        self.bound(rows, strata, &See::Full, 0)
    }

    fn is_shifted(&self) -> bool {
        false
    }

    fn is_bidirectional(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 99;
    const OBJECTIVE: MaskedDiffusion = MaskedDiffusion { mask: MASK, epsilon: 1e-3, after: None };

    fn rows() -> Vec<Vec<u32>> {
        (0..64).map(|r| (0..65).map(|i| (r + i) % 50).collect()).collect()
    }

    #[test]
    fn targets_are_the_masked_tokens_and_nothing_else() {
        let rows = rows();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let place = Place { seed: 3, step: 5, first: 0, total: 64 };
        for shift in [0, 1] {
            let batch = OBJECTIVE.masked(&rows, place, See::Full, shift);
            let flat = rows.concat();
            let masked: Vec<u32> =
                (0..).zip(&batch.tokens).filter(|(_, t)| **t == MASK).map(|(i, _)| i).collect();
            let targets: Vec<u32> = batch.targets.iter().map(|t| t.row + shift).collect();
            assert_eq!(masked, targets);
            assert!(batch.targets.iter().all(|t| flat[(t.row + shift) as usize] == t.token));
            assert!(masked.iter().all(|i| i % 65 != 0), "a row's first token stays");
        }
    }

    #[test]
    fn what_is_given_is_never_masked() {
        let row: Vec<u32> = (0..40).collect();
        let objective = MaskedDiffusion { after: Some(17), ..OBJECTIVE };
        for step in 0..50 {
            let place = Place { seed: 3, step, first: 0, total: 1 };
            let batch = objective.training(&[&row], place);
            assert_eq!(batch.tokens[..18], row[..18]);
        }
        let bound = objective.held_out(std::slice::from_ref(&row), 8);
        assert!(bound[0].tokens.chunks(40).all(|part| part[..18] == row[..18]));
        let weights: f32 = bound[0].targets.iter().map(|t| t.weight).sum();
        assert!((weights - 1.0).abs() < 1e-5, "a constant loss of 1 is 1 a token: {weights}");
        // Nothing behind the separator, or none at all.
        assert_eq!(objective.given(&row[..18]), 17);
        assert_eq!(objective.given(&row[..10]), 1);
    }

    #[test]
    fn times_are_stratified_and_weights_make_up_for_them() {
        let rows = rows();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let (mut sum, mut share) = (0.0, 0.0);
        let steps = 40;
        for step in 0..steps {
            let batch = OBJECTIVE.training(&rows, Place { seed: 3, step, first: 0, total: 64 });
            sum += batch.targets.iter().map(|t| f64::from(t.weight)).sum::<f64>();
            share += batch.targets.len() as f64 / (64.0 * 64.0);
        }
        // A constant loss of 1 has the mean 1, and half of all tokens are masked.
        assert!((sum / steps as f64 - 1.0).abs() < 0.1, "{sum}");
        assert!((share / steps as f64 - 0.5).abs() < 0.02, "{share}");
    }

    #[test]
    fn parts_of_a_step_are_the_step() {
        let rows = rows();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let place = |first| Place { seed: 3, step: 1, first, total: 64 };
        let whole = OBJECTIVE.training(&rows, place(0));
        let (a, b) =
            (OBJECTIVE.training(&rows[..24], place(0)), OBJECTIVE.training(&rows[24..], place(24)));
        assert_eq!(whole.tokens, [a.tokens, b.tokens].concat());
    }

    #[test]
    fn the_bound_averages_over_any_order() {
        // Row [., 1, 2, 3]: the k-form over all subsets is the mean over orders of the sum of
        // losses; with a loss of `k^2` for each masked token it is (1 + 4 + 9) / 3 a token.
        let batches = OBJECTIVE.held_out(&[vec![0, 1, 2, 3]], 3000);
        let batch = &batches[0];
        let mut total = 0.0;
        for (s, part) in batch.tokens.chunks(4).enumerate() {
            let k = part.iter().filter(|&&t| t == MASK).count();
            let here = batch.targets.iter().filter(|t| t.row as usize / 4 == s);
            total += here.map(|t| f64::from(t.weight) * (k * k) as f64).sum::<f64>();
        }
        assert!((total - 14.0 / 3.0).abs() < 0.01, "{total}");
    }
}
