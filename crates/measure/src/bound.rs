//! How well a model that fills masks predicts a text: an upper bound on its negative log-probability.
//!
//! The bound averages over all orders in which the text could have been written. Its k-form needs one
//! pass a draw: hide `k` tokens of `n` at random, `k` uniform in `1..=n`; the loss is `n / k` times the
//! summed surprise of the hidden ones (Shi et al. 2024, Nie et al. 2025). The numbers `k` of several
//! draws are spread evenly over their range, which changes nothing but the variance.

use tessera_core::dist::{Key, log_sum_exp};
use tessera_core::{
    Backbone, Error, Filling, Pass, Position, Result, Reveal, RowsOut, Segment, TokenId,
};

/// Draws of one pass.
const TOGETHER: usize = 8;

/// Estimates of the bound on `-ln p` of `text[visible..]` given the first `visible` tokens, in nats: one
/// for every draw.
///
/// # Errors
/// [`Error::Setting`] for a text without hidden tokens or, where the model predicts from the row
/// before, without a visible one; whatever a pass reports.
pub fn draws(
    backbone: &dyn Backbone,
    filling: Filling,
    text: &[TokenId],
    visible: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<f64>> {
    let n = text.len().saturating_sub(visible);
    if n == 0 || (filling.shift && visible == 0) {
        let value = format!("{visible} of {} tokens", text.len());
        return Err(Error::setting("visible", value, "at least 1 and fewer than all"));
    }
    let positions: Vec<Position> = (0..text.len() as Position).collect();
    let hidden: Vec<Vec<Position>> =
        (0..count).map(|draw| hide(visible, n, (draw, count), seed)).collect();
    let mut reveal = Reveal::new();
    let mut losses = Vec::with_capacity(count);
    for draws in hidden.chunks(TOGETHER) {
        let masked = |places: &Vec<Position>| {
            let mut tokens = text.to_vec();
            places.iter().for_each(|&p| tokens[p as usize] = filling.mask);
            tokens
        };
        let inputs: Vec<Vec<TokenId>> = draws.iter().map(masked).collect();
        let outs: Vec<Vec<u32>> =
            draws.iter().map(|d| d.iter().map(|&p| filling.row_of(p)).collect()).collect();
        let mut segments: Vec<Segment<'_>> = inputs
            .iter()
            .zip(&outs)
            .map(|(tokens, out)| Segment::canvas(tokens, &positions, RowsOut::Rows(out)))
            .collect();
        backbone.forward(&mut Pass::new(&mut segments), &mut reveal)?;
        let mut row = Vec::new();
        for (segment, places) in draws.iter().enumerate() {
            let mut sum = 0.0;
            for (i, &place) in places.iter().enumerate() {
                row.clear();
                row.extend_from_slice(reveal.logits(segment, i));
                row[filling.mask as usize] = f32::NEG_INFINITY;
                sum += log_sum_exp(&row)? - f64::from(row[text[place as usize] as usize]);
            }
            losses.push(sum * n as f64 / places.len() as f64);
        }
    }
    Ok(losses)
}

/// The positions that draw `draw` of `count` hides, ascending.
fn hide(visible: usize, n: usize, (draw, count): (usize, usize), seed: u64) -> Vec<Position> {
    let key = Key::new(seed, 0, draw as Position);
    let place = (draw as f64 + key.uniform(0)) / count as f64;
    let k = 1 + ((place * n as f64) as usize).min(n - 1);
    let mut all: Vec<Position> = (visible as Position..).take(n).collect();
    // The first k of a shuffle.
    let shuffle = key.purpose(1);
    for i in 0..k {
        let other = i + (shuffle.uniform(i as TokenId) * (n - i) as f64) as usize;
        all.swap(i, other);
    }
    all.truncate(k);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Chain;

    #[test]
    fn a_perfect_denoiser_has_the_texts_own_surprise() {
        let chain = Chain::seeded(4, 2, 2.0);
        let denoiser = chain.denoiser(64);
        let text = [0, 3, 1, 1, 2, 0, 3];
        let all = draws(&denoiser, chain.filling(), &text, 1, 4000, 7).unwrap();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / all.len() as f64;
        let error = (variance / all.len() as f64).sqrt();
        let exact = -chain.probability(0, &text[1..]).ln();
        assert!((mean - exact).abs() < 5.0 * error, "{mean} +/- {error}, exactly {exact}");
    }

    #[test]
    fn hidden_numbers_are_spread_over_the_whole_range() {
        let mut numbers: Vec<usize> = (0..8).map(|d| hide(2, 8, (d, 8), 3).len()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
        let places = hide(2, 8, (5, 8), 3);
        assert!(
            places.windows(2).all(|w| w[0] < w[1]) && places.iter().all(|p| (2..10).contains(p))
        );
    }

    #[test]
    fn a_text_without_hidden_tokens_is_refused() {
        let chain = Chain::seeded(4, 2, 2.0);
        let denoiser = chain.denoiser(64);
        let shifted = Filling { shift: true, ..chain.filling() };
        assert!(draws(&denoiser, chain.filling(), &[1, 2], 2, 4, 0).is_err());
        assert!(draws(&denoiser, shifted, &[1, 2], 0, 4, 0).is_err());
    }
}
