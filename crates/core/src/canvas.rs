//! The canvas of a diffusion language model: a text of fixed length in which some tokens are still
//! masks.

use serde::Serialize;

use crate::{Error, Position, Result, TokenId};

/// How a model fills masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Filling {
    /// The token that stands for "not known yet". It is read, never written.
    pub mask: TokenId,
    /// Whether row `i` predicts the token at `i + 1`, as in a model that was made from an
    /// autoregressive one, instead of its own.
    pub shift: bool,
    /// Whether a row reads only what was written before it, in any order: such a model fills one hole
    /// after another, and its masks read nothing that is not known.
    pub any_subset: bool,
}

impl Filling {
    /// The row whose logits predict the token at `position`. A shifted model predicts its first
    /// token, which has no row before it, from its own.
    pub fn row_of(&self, position: Position) -> Position {
        position.saturating_sub(Position::from(self.shift))
    }
}

/// How a token of a canvas came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "origin", rename_all = "snake_case")]
pub enum Origin {
    /// It is not there yet.
    Masked,
    /// It was given: prompt or template. It never changes.
    Given,
    /// It was put there before the first step, as a guess of the answer.
    Prior,
    /// A step wrote it.
    Committed {
        /// Which one, from 0.
        step: u32,
    },
}

/// A text of fixed length, prompt first, with masks where nothing has been decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    tokens: Vec<TokenId>,
    origins: Vec<Origin>,
    prompt: usize,
    mask: TokenId,
    masks: usize,
}

impl Canvas {
    /// `prompt`, then `length` masks.
    pub fn new(prompt: &[TokenId], length: usize, mask: TokenId) -> Self {
        let mut tokens = prompt.to_vec();
        tokens.resize(prompt.len() + length, mask);
        let mut origins = vec![Origin::Given; prompt.len()];
        origins.resize(tokens.len(), Origin::Masked);
        Self { tokens, origins, prompt: prompt.len(), mask, masks: length }
    }

    /// All tokens, prompt first; the mask where nothing is decided.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// How each token came to be.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Tokens of the prompt.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The mask token.
    pub fn mask(&self) -> TokenId {
        self.mask
    }

    /// Number of masks left.
    pub fn masks(&self) -> usize {
        self.masks
    }

    /// Whether `position` is a mask; false beyond the end.
    pub fn is_masked(&self, position: Position) -> bool {
        self.origins.get(position as usize) == Some(&Origin::Masked)
    }

    /// Positions of the masks, ascending.
    pub fn masked(&self) -> impl Iterator<Item = Position> {
        let masks = self.origins.iter().zip(0..).filter(|(origin, _)| **origin == Origin::Masked);
        masks.map(|(_, position)| position)
    }

    /// Writes a token of the template: it stays for good.
    ///
    /// # Errors
    /// [`Error::Plan`] for a position that is not a mask, or the mask token itself.
    pub fn give(&mut self, position: Position, token: TokenId) -> Result<()> {
        self.write(position, token, Origin::Given)
    }

    /// Writes a guess of the answer before the first step.
    ///
    /// # Errors
    /// As [`Canvas::give`].
    pub fn guess(&mut self, position: Position, token: TokenId) -> Result<()> {
        self.write(position, token, Origin::Prior)
    }

    /// Fills a mask in step `step`.
    ///
    /// # Errors
    /// As [`Canvas::give`].
    pub fn fill(&mut self, position: Position, token: TokenId, step: u32) -> Result<()> {
        self.write(position, token, Origin::Committed { step })
    }

    fn write(&mut self, position: Position, token: TokenId, origin: Origin) -> Result<()> {
        if !self.is_masked(position) {
            return Err(Error::plan(format!("position {position} is no mask to be filled")));
        }
        if token == self.mask {
            return Err(Error::plan(format!("position {position} is filled with a mask")));
        }
        self.tokens[position as usize] = token;
        self.origins[position as usize] = origin;
        self.masks -= 1;
        Ok(())
    }

    /// Masks a committed or guessed token again.
    ///
    /// # Errors
    /// [`Error::Plan`] for a position that was given or is a mask.
    pub fn remask(&mut self, position: Position) -> Result<()> {
        match self.origins.get(position as usize) {
            Some(Origin::Committed { .. } | Origin::Prior) => {
                self.tokens[position as usize] = self.mask;
                self.origins[position as usize] = Origin::Masked;
                self.masks += 1;
                Ok(())
            }
            _ => Err(Error::plan(format!("position {position} cannot be masked again"))),
        }
    }

    /// Cuts the canvas to its first `len` tokens.
    ///
    /// # Errors
    /// [`Error::Plan`] for a cut into the prompt or beyond the end.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len < self.prompt || len > self.len() {
            let (all, prompt) = (self.len(), self.prompt);
            return Err(Error::plan(format!("{len} of {all} tokens, {prompt} of them the prompt")));
        }
        let cut = self.origins.drain(len..).filter(|o| *o == Origin::Masked).count();
        self.masks -= cut;
        self.tokens.truncate(len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_counted_and_what_was_given_stays() {
        let mut canvas = Canvas::new(&[7, 8], 3, 99);
        assert_eq!((canvas.tokens(), canvas.masks()), (&[7, 8, 99, 99, 99][..], 3));
        canvas.give(3, 5).unwrap();
        canvas.fill(2, 4, 6).unwrap();
        assert_eq!(canvas.masked().collect::<Vec<_>>(), [4]);
        assert_eq!(canvas.origins()[2], Origin::Committed { step: 6 });
        assert!(canvas.fill(2, 4, 7).is_err() && canvas.fill(4, 99, 7).is_err());
        assert!(
            canvas.remask(3).is_err() && canvas.remask(0).is_err() && canvas.remask(4).is_err()
        );
        assert!(canvas.remask(9).is_err() && canvas.fill(9, 1, 0).is_err());
        canvas.remask(2).unwrap();
        canvas.guess(2, 6).unwrap();
        assert_eq!((canvas.origins()[2], canvas.masks()), (Origin::Prior, 1));
        assert!(canvas.truncate(1).is_err() && canvas.truncate(6).is_err());
        canvas.truncate(4).unwrap();
        assert_eq!((canvas.len(), canvas.masks()), (4, 0));
    }

    #[test]
    fn a_shifted_model_predicts_from_the_row_before() {
        let own = Filling { mask: 1, shift: false, any_subset: false };
        let shifted = Filling { mask: 1, shift: true, any_subset: false };
        assert_eq!((own.row_of(4), shifted.row_of(4), shifted.row_of(0)), (4, 3, 0));
    }
}
