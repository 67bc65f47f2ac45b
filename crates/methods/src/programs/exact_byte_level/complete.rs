//! What follows a text: byte by byte under the exact law, or token by token (plain, and healed).

use tessera_core::dist::scalar::ln;
use tessera_core::dist::{Key, Sampler};
use tessera_core::{Control, Result, TokenId};

use super::covers::END;
use super::ensemble::Ensemble;
use super::heal::Healing;
use super::lexicon::Lexicon;
use crate::continuations::Continuations;

/// Share of a text's probability that its own tokens must have before tokens may take over.
pub const SETTLED: f64 = 0.999;

/// Why a completion is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As many bytes as were asked for.
    Full,
    /// The model ended the text.
    End,
    /// The listener had enough.
    Heard,
    /// No model says anything about what follows.
    Lost,
    /// The text ends at a boundary of tokens, of which these spell it: go on with
    /// [`Tokens`].
    Settled(Vec<TokenId>),
}

/// Draws bytes until `most` are there. With `settle`, stops at the first boundary between tokens.
///
/// # Errors
/// As [`Ensemble::advance`]; settings of the sampler that cannot be.
pub fn bytes(
    ensemble: &mut Ensemble<'_>,
    sampler: &mut Sampler,
    seed: u64,
    most: usize,
    settle: bool,
    hear: &mut dyn FnMut(&[u8]) -> Control,
) -> Result<Ended> {
    let mut history = Vec::new();
    for made in 0..most {
        if settle
            && let Some((tokens, share)) = ensemble.members().next().and_then(|m| m.settled())
            && share >= SETTLED
        {
            return Ok(Ended::Settled(tokens));
        }
        let law = ensemble.distribution();
        let logits: Vec<f32> =
            law.iter().map(|&p| if p > 0.0 { ln(p) as f32 } else { f32::NEG_INFINITY }).collect();
        let symbol = sampler.draw(&logits, &history, Key::new(seed, 0, made as u32))?;
        if symbol as usize == END {
            return Ok(Ended::End);
        }
        let byte = symbol as u8;
        history.push(symbol);
        let goes_on = ensemble.advance(byte)?;
        if hear(&[byte]) == Control::Stop {
            return Ok(Ended::Heard);
        }
        if !goes_on {
            return Ok(Ended::Lost);
        }
    }
    Ok(Ended::Full)
}

/// A completion by tokens.
pub struct Tokens<'a, 'm> {
    /// The model.
    pub ask: &'a mut Continuations<'m>,
    /// Its vocabulary.
    pub lexicon: &'a Lexicon<'m>,
    /// The text so far, and what precedes it.
    pub tokens: Vec<TokenId>,
    /// What the next tokens must spell first.
    pub healing: Healing,
}

impl Tokens<'_, '_> {
    /// Draws tokens until at least `most` new bytes are there; the last token is heard up to there.
    ///
    /// # Errors
    /// A text longer than the context, whatever a pass reports, settings of the sampler that cannot be.
    pub fn run(
        &mut self,
        sampler: &mut Sampler,
        seed: u64,
        most: usize,
        hear: &mut dyn FnMut(&[u8]) -> Control,
    ) -> Result<Ended> {
        let mut made = 0;
        let mut row = Vec::new();
        while made < most {
            let texts = [&self.tokens[..]];
            self.ask.ask(&texts, &mut |_, logits| {
                row.clear();
                row.extend_from_slice(logits);
                Ok(())
            })?;
            self.healing.mask(self.lexicon, &mut row);
            let position = self.tokens.len() as u32;
            let token = sampler.draw(&row, &self.tokens, Key::new(seed, 0, position))?;
            if self.lexicon.ends().contains(&token) {
                return Ok(Ended::End);
            }
            self.tokens.push(token);
            let new = self.healing.take(self.lexicon.bytes(token));
            let new = &new[..new.len().min(most - made)];
            made += new.len();
            if !new.is_empty() && hear(new) == Control::Stop {
                return Ok(Ended::Heard);
            }
        }
        Ok(Ended::Full)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tessera_core::dist::Sampling;
    use tessera_testkit::{Scripted, Words};

    use super::super::{ByteModel, ExactByteLevel};
    use super::*;

    /// After `h` comes `ello`; with `he` as a token of its own, nothing that was learnt follows.
    fn toy() -> (Words, Scripted) {
        let words = Words::new(["h", "e", "l", "o", "hello", "he", "!"]);
        let toy = Scripted::new(9, 64, |seen, logits| match seen[seen.len() - 1].1 {
            7 => logits[4] = 12.0,
            4 => logits[8] = 12.0,
            _ => logits[6] = 12.0,
        });
        (words, toy)
    }

    fn greedy() -> Sampler {
        Sampler::new(Sampling::greedy()).unwrap()
    }

    fn exactly(settle: bool) -> (String, Ended) {
        let (words, toy) = toy();
        let lexicon = Arc::new(Lexicon::new(&words));
        let settings = ExactByteLevel::default();
        let model = ByteModel::new(&toy, lexicon, settings, &[words.control()]).unwrap();
        let mut ensemble = Ensemble::new(vec![model], &[]).unwrap();
        ensemble.start(b"he").unwrap();
        let mut heard = Vec::new();
        let ended = bytes(&mut ensemble, &mut greedy(), 0, 9, settle, &mut |b| {
            heard.extend_from_slice(b);
            Control::Continue
        });
        (String::from_utf8(heard).unwrap(), ended.unwrap())
    }

    fn by_tokens(heal: bool) -> (String, Ended) {
        let (words, toy) = toy();
        let lexicon = Lexicon::new(&words);
        let mut ask = Continuations::new(&toy).unwrap();
        let mut tokens = vec![words.control(), 5];
        let healing = if heal { Healing::new(&lexicon, &mut tokens) } else { Healing::default() };
        let mut run = Tokens { ask: &mut ask, lexicon: &lexicon, tokens, healing };
        let mut heard = Vec::new();
        let ended = run.run(&mut greedy(), 0, 9, &mut |b| {
            heard.extend_from_slice(b);
            Control::Continue
        });
        (String::from_utf8(heard).unwrap(), ended.unwrap())
    }

    #[test]
    fn a_cut_token_is_completed_exactly_and_by_healing_but_not_plainly() {
        assert_eq!(exactly(false), ("llo".to_owned(), Ended::End));
        assert_eq!(by_tokens(true), ("llo".to_owned(), Ended::End));
        assert_eq!(by_tokens(false), ("!!!!!!!!!".to_owned(), Ended::Full));
        let (text, ended) = exactly(true);
        assert_eq!((text.as_str(), ended), ("llo", Ended::Settled(vec![7, 4])));
    }
}
