//! A source of a few equally probable texts: before anything is known its marginals are flat, and one
//! token tells which text it is.

use tessera_core::{Filling, TokenId};

use crate::Scripted;

/// Equally probable texts of one length, over tokens `0..states`; the token `states` is the mask.
#[derive(Debug, Clone)]
pub struct Modes {
    texts: Vec<Vec<TokenId>>,
    states: usize,
}

impl Modes {
    /// These texts, each once.
    pub fn new(texts: Vec<Vec<TokenId>>) -> Self {
        let largest = texts.iter().flatten().copied().max();
        Self { states: largest.map_or(0, |t| t as usize + 1), texts }
    }

    /// `ABAB...` or `CDCD...` of `length` tokens, then `filler` tokens `E`, of which nobody doubts.
    pub fn two(length: usize, filler: usize) -> Self {
        let text = |first: TokenId| {
            let mode = (0..length).map(|i| first + (i % 2) as TokenId);
            mode.chain(std::iter::repeat_n(4, filler)).collect()
        };
        Self::new(vec![text(0), text(2)])
    }

    /// Number of tokens.
    pub fn states(&self) -> usize {
        self.states
    }

    /// How its denoiser fills masks.
    pub fn filling(&self) -> Filling {
        Filling { mask: self.states as TokenId, shift: false, any_subset: false }
    }

    /// Whether `text` is one of the texts.
    pub fn makes(&self, text: &[TokenId]) -> bool {
        self.texts.iter().any(|t| t == text)
    }

    /// A perfect denoiser of an answer that follows `prompt` tokens.
    pub fn denoiser(&self, prompt: usize, context: usize) -> Scripted {
        let (source, mask) = (self.clone(), self.states as TokenId);
        Scripted::placed(self.states + 1, context, move |own, seen, logits| {
            let fits = |text: &&Vec<TokenId>| {
                seen.iter()
                    .filter(|&&(p, t)| p as usize >= prompt && t != mask)
                    .all(|&(p, token)| text.get(p as usize - prompt) == Some(&token))
            };
            let fitting: Vec<&Vec<TokenId>> = source.texts.iter().filter(fits).collect();
            let mut counts = vec![0.0f32; logits.len()];
            for text in &fitting {
                if let Some(token) = (own as usize).checked_sub(prompt).and_then(|at| text.get(at))
                {
                    counts[*token as usize] += 1.0;
                }
            }
            for (logit, count) in logits.iter_mut().zip(counts) {
                *logit = (count / fitting.len().max(1) as f32).ln().max(-60.0);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_tells_the_text() {
        let source = Modes::two(4, 2);
        assert!(source.makes(&[0, 1, 0, 1, 4, 4]) && source.makes(&[2, 3, 2, 3, 4, 4]));
        assert!(!source.makes(&[0, 3, 0, 1, 4, 4]));
        assert_eq!((source.states(), source.filling().mask), (5, 5));
    }
}
