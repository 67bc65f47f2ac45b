//! Title: Scaling Diffusion Language Models via Adaptation from Autoregressive Models
//! Authors: Gong et al.
//! Year: 2024
//! Id: arXiv:2410.17891
//! Implemented: the autoregressive head keeps its shift (the row before a masked token predicts it);
//!   attention opens step by step, each pair of rows with the probability `step / anneal`, the same
//!   for all sequences of a step; the loss is that of masked diffusion.
//! Deviation: the sum is divided by the number of tokens, not of masked ones, so that it stays a bound.
//! Tag: DiffuLLaMA

use tessera_core::dist::Key;

use super::{MaskedDiffusion, Objective, Place};
use crate::network::{Batch, See};

/// The purpose of the numbers that open attention (`Key::purpose`).
const OPENING: u64 = 0x0_be11;

/// An autoregressive model becomes a masked-diffusion one.
#[derive(Debug, Clone, Copy)]
pub struct Adaptation {
    /// What it becomes.
    pub diffusion: MaskedDiffusion,
    /// Steps over which attention opens.
    pub anneal: u64,
}

impl Adaptation {
    fn see(&self, length: usize, place: Place) -> See {
        if place.step >= self.anneal {
            return See::Full;
        }
        let open = place.step as f64 / self.anneal as f64;
        let key = Key::new(place.seed, 0, place.step as u32).purpose(OPENING);
        let bit = |i: usize| i % length <= i / length || key.uniform(i as u32) < open;
        See::Bits((0..length * length).map(bit).collect())
    }
}

impl Objective for Adaptation {
    fn training(&self, rows: &[&[u32]], place: Place) -> Batch {
        let length = rows.first().map_or(0, |row| row.len());
        self.diffusion.masked(rows, place, self.see(length, place), 1)
    }

    fn held_out(&self, rows: &[Vec<u32>], strata: usize) -> Vec<Batch> {
        self.diffusion.bound(rows, strata, &See::Full, 1)
    }

    fn is_shifted(&self) -> bool {
        true
    }

    fn is_bidirectional(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_opens_from_causal_to_full() {
        let diffusion = MaskedDiffusion { mask: 9, epsilon: 1e-3, after: None };
        let adaptation = Adaptation { diffusion, anneal: 100 };
        let later = |step: u64| {
            let place = Place { seed: 1, step, first: 0, total: 1 };
            match adaptation.see(32, place) {
                See::Bits(bits) => {
                    assert!((0..1024).all(|i| i % 32 > i / 32 || bits[i]));
                    (0..1024).filter(|&i| i % 32 > i / 32 && bits[i]).count()
                }
                see => {
                    assert_eq!(see, See::Full);
                    496
                }
            }
        };
        assert_eq!((later(0), later(100)), (0, 496));
        assert!((200..300).contains(&later(50)), "{}", later(50));
    }
}
