//! What a trained model is worth: characters that come back, and segments beside words.

use serde::Serialize;
use tessera_model::toy::Stream;

use super::Model;
use super::generate::joined;
use crate::Result;

/// Most characters between where cuts are and the spaces that they go with.
const OFFSETS: i64 = 3;

/// Agreement of cuts with words, beside three simpler ways to cut as often.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cuts {
    /// F1 of the learnt starts.
    pub learnt: f64,
    /// At random.
    pub random: f64,
    /// In pieces of one length.
    pub even: f64,
    /// Where the next character is most uncertain, given the two before it.
    pub entropy: f64,
}

/// Figures of a text that was not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Report {
    /// Characters.
    pub characters: usize,
    /// Share of them that come back at `t = 0`.
    pub rebuilt: f64,
    /// Characters a segment, up to the next one.
    pub segment: f64,
    /// Segments that begin behind a space.
    pub words: Cuts,
    /// Segments that begin with a space.
    pub spaces: Cuts,
    /// Segments that begin at the same place before or behind each space, up to three characters away: each
    /// way to cut at its best place.
    pub near: Cuts,
    /// That place for the learnt starts, in characters behind the space.
    pub offset: i64,
}

fn f1(found: &[usize], wanted: &[usize]) -> f64 {
    let both = found.iter().filter(|f| wanted.contains(f)).count() as f64;
    2.0 * both / (found.len() + wanted.len()).max(1) as f64
}

/// The best agreement with places equally far from `spaces`, and how far.
fn best(found: &[usize], spaces: &[usize]) -> (f64, i64) {
    let at = |offset: i64| -> Vec<usize> {
        spaces.iter().filter_map(|&p| p.checked_add_signed(offset as isize)).collect()
    };
    let all = (-OFFSETS..=OFFSETS).map(|offset| (f1(found, &at(offset)), offset));
    all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0))
}

/// Entropy of the character behind each pair, in nats, counted on a text.
fn entropies(text: &[u32], of: &[u32]) -> Vec<f64> {
    use std::collections::HashMap;
    let mut counts: HashMap<(u32, u32), HashMap<u32, f64>> = HashMap::new();
    for w in text.windows(3) {
        *counts.entry((w[0], w[1])).or_default().entry(w[2]).or_default() += 1.0;
    }
    let entropy = |next: &HashMap<u32, f64>| {
        let all: f64 = next.values().sum();
        next.values().map(|n| -(n / all) * (n / all).ln()).sum::<f64>()
    };
    let of_pair: HashMap<(u32, u32), f64> =
        counts.iter().map(|(pair, next)| (*pair, entropy(next))).collect();
    (0..of.len())
        .map(|i| if i < 2 { 0.0 } else { *of_pair.get(&(of[i - 2], of[i - 1])).unwrap_or(&0.0) })
        .collect()
}

/// Measures a model on `held_out`, in documents of `length` characters; `training` is what entropies are
/// counted on.
///
/// # Errors
/// As [`Model::split`].
pub fn measure(model: &Model, training: &[u32], held_out: &[u32], length: usize) -> Result<Report> {
    let space = model.characters.iter().position(|&c| c == ' ').map(|i| i as u32);
    let mut stream = Stream::new(1);
    let (mut characters, mut right, mut segments) = (0usize, 0usize, 0usize);
    // Sets of starts over the whole text: learnt, random, even, entropy; words, spaces.
    let mut cuts: [Vec<usize>; 4] = Default::default();
    let mut wanted: [Vec<usize>; 2] = Default::default();
    for (document, ids) in held_out.chunks_exact(length).take(64).enumerate() {
        let (starts, unfolded) = model.rebuilt(ids)?;
        let text = joined(&starts, &unfolded, ids.len());
        right += text.iter().zip(ids).filter(|(a, b)| a == b).count();
        characters += ids.len();
        segments += starts.len();
        let base = document * length;
        let mut put = |to: usize, places: &mut dyn Iterator<Item = usize>| {
            cuts[to].extend(places.map(|p| base + p));
        };
        // The first character begins a segment for everyone.
        let n = starts.len() - 1;
        put(0, &mut starts[1..].iter().copied());
        let mut order: Vec<(u64, usize)> = (1..length).map(|p| (stream.bits(), p)).collect();
        order.sort_unstable();
        put(1, &mut order.iter().take(n).map(|&(_, p)| p));
        put(2, &mut (1..=n).map(|i| i * length / (n + 1)));
        let mut order: Vec<(f64, usize)> =
            entropies(training, ids).into_iter().zip(0..).skip(1).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        put(3, &mut order.iter().take(n).map(|&(_, p)| p));
        let is_space = |p: usize| Some(ids[p]) == space;
        wanted[0].extend((1..length).filter(|&p| is_space(p - 1)).map(|p| base + p));
        wanted[1].extend((1..length).filter(|&p| is_space(p)).map(|p| base + p));
    }
    let near = cuts.each_ref().map(|cuts| best(cuts, &wanted[1]));
    let against = |wanted: &[usize]| {
        let [learnt, random, even, entropy] = [0, 1, 2, 3].map(|i| f1(&cuts[i], wanted));
        Cuts { learnt, random, even, entropy }
    };
    Ok(Report {
        characters,
        rebuilt: right as f64 / characters.max(1) as f64,
        segment: characters as f64 / segments.max(1) as f64,
        words: against(&wanted[0]),
        spaces: against(&wanted[1]),
        near: Cuts { learnt: near[0].0, random: near[1].0, even: near[2].0, entropy: near[3].0 },
        offset: near[0].1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_scored_by_both_kinds_of_mistakes() {
        assert_eq!(f1(&[1, 5, 9], &[1, 5, 9]), 1.0);
        assert!((f1(&[1, 5], &[1, 5, 9, 12]) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(f1(&[], &[3]), 0.0);
        assert_eq!(best(&[3, 8, 12], &[1, 5, 10, 14]), (1.0, -2));
        let text = [0, 0, 1, 0, 0, 2, 0, 0, 1, 0, 0, 2];
        let found = entropies(&text, &[0, 0, 1, 0]);
        assert!((found[2] - 2f64.ln()).abs() < 1e-9 && found[3] == 0.0);
    }
}
