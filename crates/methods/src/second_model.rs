//! A draft model at work: its cache, kept in step with the text, and a tree of guesses behind it.
//!
//! The cache holds the rows of the text and, after them, the rows of the guesses that were computed
//! last (the *branch*). When the text has grown, the rows of guesses that became text are kept and
//! the others dropped, so nothing is computed twice, whatever was accepted and for whatever reason.

use std::fmt;

use tessera_core::{
    Backbone, CacheOptions, Error, Input, KvStore, Mask, Pass, Position, Result, Reveal, Row,
    RowsOut, Segment, TokenId, Write,
};

/// Text rows per pass.
const CHUNK: usize = 512;

/// A computed guess.
#[derive(Debug, Clone, Copy)]
struct Twig {
    /// The twig above it; `None` for one that follows the text.
    parent: Option<u32>,
    token: TokenId,
    depth: u32,
}

/// The draft model's state for one sequence.
#[derive(Default)]
pub struct SecondModel {
    cache: Option<Box<dyn KvStore>>,
    /// Tokens of the cache's first rows.
    text: Vec<TokenId>,
    /// Guesses whose rows follow them.
    branch: Vec<Twig>,
    reveal: Reveal,
    positions: Vec<Position>,
    bits: Vec<bool>,
}

impl fmt::Debug for SecondModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecondModel({} rows, {} guesses)", self.text.len(), self.branch.len())
    }
}

impl SecondModel {
    /// Computes what the cache lacks of `tokens`; then [`SecondModel::logits`]`(0)` are those after
    /// the last of them. `false`, with nothing computed, if they do not fit the model's context or
    /// vocabulary.
    ///
    /// # Errors
    /// Whatever a pass reports; the state still matches the cache.
    pub fn follow(&mut self, model: &dyn Backbone, tokens: &[TokenId]) -> Result<bool> {
        let spec = model.spec();
        if tokens.is_empty() || tokens.len() > spec.context {
            return Ok(false);
        }
        let shared = self.text.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        if tokens[shared..].iter().any(|&t| t as usize >= spec.vocab) {
            return Ok(false);
        }
        let cache = match &mut self.cache {
            Some(cache) => cache,
            none => none.insert(
                model.new_cache(CacheOptions { capacity: tokens.len(), ..Default::default() })?,
            ),
        };
        settle(&mut **cache, &mut self.text, &mut self.branch, tokens)?;
        let shared = self.text.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token's logits have to be computed.
        let kept = shared.min(tokens.len() - 1);
        cache.rollback(self.text.len() - kept)?;
        self.text.truncate(kept);
        while self.text.len() < tokens.len() {
            let done = self.text.len();
            let chunk = &tokens[done..(done + CHUNK).min(tokens.len())];
            self.positions.clear();
            self.positions.extend((done as Position..).take(chunk.len()));
            let mut segment = Segment::causal(chunk, &self.positions, &mut **cache);
            let last = done + chunk.len() == tokens.len();
            segment.rows_out = if last { RowsOut::Last } else { RowsOut::None };
            model.forward(&mut Pass::new(&mut [segment]), &mut self.reveal)?;
            self.text.extend_from_slice(chunk);
        }
        Ok(true)
    }

    /// How many of `tokens` have no row yet.
    pub fn unread(&self, tokens: &[TokenId]) -> usize {
        tokens.len() - self.text.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }

    /// How deep a guess may be for [`SecondModel::grow`] to compute its row.
    pub fn deepest(&self, model: &dyn Backbone) -> u32 {
        model.spec().context.saturating_sub(self.text.len()) as u32
    }

    /// Computes guesses (the number of the guess above each, which may be an earlier one of the same
    /// call, and its token) in one pass; returns the number of the first, the others follow. [`SecondModel::logits`]`(i)` are then those
    /// after the `i`-th.
    ///
    /// # Errors
    /// Whatever a pass reports; [`Error::Plan`] before [`SecondModel::follow`].
    pub fn grow(
        &mut self,
        model: &dyn Backbone,
        guesses: &[(Option<u32>, TokenId)],
    ) -> Result<u32> {
        let Some(cache) = &mut self.cache else {
            return Err(Error::plan("the draft model has not seen the text yet"));
        };
        let (base, first) = (self.text.len(), self.branch.len() as u32);
        let mut all = self.branch.clone();
        for &(parent, token) in guesses {
            let above = match parent {
                None => 0,
                Some(parent) => match all.get(parent as usize) {
                    Some(twig) => twig.depth,
                    None => return Err(Error::plan(format!("no guess {parent} to grow from"))),
                },
            };
            all.push(Twig { parent, token, depth: above + 1 });
        }
        let twigs = &all[self.branch.len()..];
        self.positions.clear();
        self.positions.extend(twigs.iter().map(|t| base as Position + t.depth - 1));
        let tokens: Vec<TokenId> = twigs.iter().map(|t| t.token).collect();
        // A chain reads all there is before each row: the cheap mask says so.
        let chain = all.iter().zip(1..).all(|(twig, depth)| twig.depth == depth);
        let columns = base + self.branch.len() + guesses.len();
        self.bits.clear();
        if !chain {
            self.bits.resize(guesses.len() * columns, false);
            for (i, (twig, bits)) in twigs.iter().zip(self.bits.chunks_mut(columns)).enumerate() {
                bits[..base].fill(true);
                bits[base + self.branch.len() + i] = true;
                let up = |&at: &u32| all[at as usize].parent;
                for at in std::iter::successors(twig.parent, up) {
                    bits[base + at as usize] = true;
                }
            }
        }
        let mask = match chain {
            true => Mask::Causal,
            false => Mask::Explicit { bits: &self.bits, columns },
        };
        let segment = Segment {
            input: Input::Tokens(&tokens),
            positions: &self.positions,
            mask,
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out: RowsOut::All,
            condition: None,
            cache: Some(&mut **cache),
        };
        model.forward(&mut Pass::new(&mut [segment]), &mut self.reveal)?;
        self.branch = all;
        Ok(first)
    }

    /// Logits of the `i`-th row wanted of the last pass, those of the first `vocab` tokens: where
    /// the two vocabularies are padded to different lengths, only tokens of both can be guessed.
    pub fn logits(&self, i: usize, vocab: usize) -> &[f32] {
        let logits = self.reveal.logits(0, i);
        &logits[..logits.len().min(vocab)]
    }
}

/// Keeps the branch's rows that `tokens` goes through and drops the others.
fn settle(
    cache: &mut dyn KvStore,
    text: &mut Vec<TokenId>,
    branch: &mut Vec<Twig>,
    tokens: &[TokenId],
) -> Result<()> {
    if branch.is_empty() {
        return Ok(());
    }
    let mut kept: Vec<Row> = Vec::new();
    if let Some(news) = tokens.strip_prefix(&text[..]) {
        for &token in news {
            let at = kept.last().copied();
            match branch.iter().position(|t| t.parent == at && t.token == token) {
                Some(next) => kept.push(next as Row),
                None => break,
            }
        }
    }
    cache.keep_last(branch.len(), &kept)?;
    text.extend(kept.iter().map(|&row| branch[row as usize].token));
    branch.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Scripted;

    /// The logits after `path` below `text`, computed afresh.
    fn fresh(model: &Scripted, text: &[TokenId], path: &[TokenId]) -> Vec<f32> {
        let mut second = SecondModel::default();
        let whole: Vec<TokenId> = [text, path].concat();
        assert!(second.follow(model, &whole).unwrap());
        second.logits(0, usize::MAX).to_vec()
    }

    #[test]
    fn a_node_of_a_grown_tree_equals_its_path() {
        let model = Scripted::hashed(9, 64, 3, 5.0);
        let text = [1, 2, 3, 4];
        let mut second = SecondModel::default();
        assert!(second.follow(&model, &text).unwrap());
        assert_eq!(second.logits(0, 9), fresh(&model, &text, &[]));
        assert_eq!(second.grow(&model, &[(None, 5), (None, 6)]).unwrap(), 0);
        assert_eq!(second.logits(1, 9), fresh(&model, &text, &[6]));
        assert_eq!(second.grow(&model, &[(Some(1), 7), (Some(0), 7), (Some(1), 8)]).unwrap(), 2);
        for (i, path) in [[6, 7], [5, 7], [6, 8]].iter().enumerate() {
            assert_eq!(second.logits(i, 9), fresh(&model, &text, path), "{path:?}");
        }
        second.grow(&model, &[(Some(4), 0)]).unwrap();
        assert_eq!(second.logits(0, 9), fresh(&model, &text, &[6, 8, 0]));
        // The text goes on along the tree and past it: three rows are there, two are computed.
        let rows = model.rows();
        let next = [1, 2, 3, 4, 6, 8, 0, 1, 1];
        assert!(second.follow(&model, &next).unwrap());
        assert_eq!(model.rows() - rows, 2);
        assert_eq!(second.logits(0, 9), fresh(&model, &next, &[]));
        // It goes on beside the tree.
        second.grow(&model, &[(None, 2)]).unwrap();
        second.grow(&model, &[(Some(0), 3)]).unwrap();
        assert_eq!(second.logits(0, 9), fresh(&model, &next, &[2, 3]));
        let beside = [1, 2, 3, 4, 6, 8, 0, 1, 1, 2, 4];
        let rows = model.rows();
        assert!(second.follow(&model, &beside).unwrap());
        assert_eq!(model.rows() - rows, 1);
        assert_eq!(second.logits(0, 9), fresh(&model, &beside, &[]));
        // Another request: only the common beginning stays.
        let other = [1, 2, 3, 7, 7];
        let rows = model.rows();
        assert!(second.follow(&model, &other).unwrap());
        assert_eq!(model.rows() - rows, 2);
        assert_eq!(second.logits(0, 9), fresh(&model, &other, &[]));
        // The very same text: its last row is computed again, for its logits.
        assert!(second.follow(&model, &other).unwrap());
        assert_eq!(second.logits(0, 9), fresh(&model, &other, &[]));
    }

    #[test]
    fn one_pass_takes_guesses_that_stand_on_one_another() {
        let model = Scripted::hashed(9, 64, 3, 5.0);
        let mut second = SecondModel::default();
        assert!(second.follow(&model, &[1, 2]).unwrap());
        let tree = [(None, 5), (Some(0), 6), (Some(1), 7), (None, 4), (Some(3), 6)];
        assert_eq!(second.grow(&model, &tree).unwrap(), 0);
        for (i, path) in [&[5][..], &[5, 6], &[5, 6, 7], &[4], &[4, 6]].iter().enumerate() {
            assert_eq!(second.logits(i, 9), fresh(&model, &[1, 2], path), "{path:?}");
        }
        assert!(second.follow(&model, &[1, 2, 3]).unwrap());
        assert_eq!(second.grow(&model, &[(None, 5), (Some(0), 6)]).unwrap(), 0);
        assert_eq!(second.logits(1, 9), fresh(&model, &[1, 2, 3], &[5, 6]));
        assert!(second.grow(&model, &[(Some(7), 1)]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_not_computed() {
        let model = Scripted::hashed(9, 6, 3, 5.0);
        let mut second = SecondModel::default();
        assert!(second.grow(&model, &[(None, 1)]).is_err());
        assert!(!second.follow(&model, &[1; 7]).unwrap());
        assert!(!second.follow(&model, &[1, 9]).unwrap());
        assert_eq!(model.passes(), 0);
        assert!(second.follow(&model, &[1; 4]).unwrap());
        assert_eq!((second.deepest(&model), second.logits(0, 5).len()), (2, 5));
    }

    #[test]
    fn a_long_text_is_computed_in_pieces() {
        let model = Scripted::hashed(9, 2000, 3, 5.0);
        let text: Vec<TokenId> = (0..1300).map(|i| i % 9).collect();
        let mut second = SecondModel::default();
        assert!(second.follow(&model, &text).unwrap());
        assert_eq!((model.passes(), model.rows()), (3, 1300));
    }
}
