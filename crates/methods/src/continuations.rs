//! What follows each of several texts: their next-token logits by one tree pass over one cache.
//!
//! Texts that begin alike share rows, in the cache and inside the pass. A row of a tree equals the row
//! of its chain, so an answer does not depend on which texts were asked together.

use tessera_core::{
    Backbone, CacheOptions, Error, Input, KvStore, Mask, Pass, Position, Result, Reveal, Row,
    RowsOut, Segment, TokenId, Write,
};

/// Rows of a causal pass that fills the cache, and of a tree.
const ROWS: usize = 256;

/// A row of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Branch {
    token: TokenId,
    parent: Option<u32>,
    depth: u32,
}

/// A cache and what was asked of it last.
pub struct Continuations<'m> {
    backbone: &'m dyn Backbone,
    cache: Box<dyn KvStore>,
    /// The tokens of the cache's rows.
    held: Vec<TokenId>,
    reveal: Reveal,
    passes: usize,
    rows: usize,
}

impl<'m> Continuations<'m> {
    /// With an empty cache.
    ///
    /// # Errors
    /// What the backbone says about a new cache.
    pub fn new(backbone: &'m dyn Backbone) -> Result<Self> {
        let cache = backbone.new_cache(CacheOptions::default())?;
        let (held, reveal) = (Vec::new(), Reveal::new());
        Ok(Self { backbone, cache, held, reveal, passes: 0, rows: 0 })
    }

    /// The model's passes so far.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// The rows of those passes.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What executes the passes.
    pub fn backbone(&self) -> &'m dyn Backbone {
        self.backbone
    }

    /// Calls `each` with the index of each text and the logits of the token after it, in order. None
    /// of the texts may be empty. The rows of the first text stay in the cache for the next call.
    ///
    /// # Errors
    /// An empty text, one longer than the model's context, whatever a pass reports or `each` returns.
    pub fn ask<T: AsRef<[TokenId]>>(
        &mut self,
        texts: &[T],
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let context = self.backbone.spec().context;
        for text in texts.iter().map(AsRef::as_ref) {
            if text.is_empty() {
                return Err(Error::pass("a text without a token has no next token"));
            }
            if text.len() > context {
                let (needed, limit) = (text.len(), context);
                return Err(Error::ContextFull { needed, limit, trained: context });
            }
        }
        let mut from = 0;
        while from < texts.len() {
            // As many texts as give a tree of at most ROWS rows, at least one.
            let base = self.settle(&texts[from..])?;
            let mut tree = Vec::new();
            let mut ends = Vec::new();
            let mut last = from;
            while last < texts.len() {
                let before = tree.len();
                let end = grow(&mut tree, &texts[last].as_ref()[base..]);
                if tree.len() > ROWS && last > from {
                    tree.truncate(before);
                    break;
                }
                ends.push(end);
                last += 1;
            }
            self.pass(base, &tree, &ends)?;
            self.keep(base, &tree, &ends, texts[from].as_ref())?;
            for (i, index) in (from..last).enumerate() {
                each(index, self.reveal.logits(0, i))?;
            }
            from = last;
        }
        Ok(())
    }

    /// Makes the cache hold exactly what all `texts` begin with, but no text whole; returns its length.
    fn settle<T: AsRef<[TokenId]>>(&mut self, texts: &[T]) -> Result<usize> {
        let Some(first) = texts.first().map(AsRef::as_ref) else { return Ok(0) };
        let alike =
            |a: &[TokenId], b: &[TokenId]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let shared = texts
            .iter()
            .map(|text| alike(first, text.as_ref()).min(text.as_ref().len() - 1))
            .min()
            .unwrap_or(0);
        let here = alike(&self.held, first).min(shared);
        self.cache.rollback(self.held.len() - here)?;
        self.held.truncate(here);
        // A short rest travels with the tree.
        if shared - here <= ROWS / 4 {
            return Ok(here);
        }
        for start in (here..shared).step_by(ROWS) {
            let tokens = &first[start..shared.min(start + ROWS)];
            let positions: Vec<Position> = (start as Position..).take(tokens.len()).collect();
            let mut segment = Segment::causal(tokens, &positions, &mut *self.cache);
            segment.rows_out = RowsOut::None;
            self.backbone.forward(&mut Pass::new(&mut [segment]), &mut self.reveal)?;
            self.held.extend_from_slice(tokens);
            self.passes += 1;
            self.rows += tokens.len();
        }
        Ok(shared)
    }

    fn pass(&mut self, base: usize, tree: &[Branch], ends: &[u32]) -> Result<()> {
        let tokens: Vec<TokenId> = tree.iter().map(|b| b.token).collect();
        let positions: Vec<Position> = tree.iter().map(|b| base as Position + b.depth).collect();
        let parent: Vec<Option<u32>> = tree.iter().map(|b| b.parent).collect();
        let mut segments = [Segment {
            input: Input::Tokens(&tokens),
            positions: &positions,
            mask: Mask::Tree { parent: &parent },
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out: RowsOut::Rows(ends),
            condition: None,
            cache: Some(&mut *self.cache),
        }];
        self.backbone.forward(&mut Pass::new(&mut segments), &mut self.reveal)?;
        self.passes += 1;
        self.rows += tree.len();
        Ok(())
    }

    /// Of the rows of the last pass keeps the path of its first text.
    fn keep(
        &mut self,
        base: usize,
        tree: &[Branch],
        ends: &[u32],
        first: &[TokenId],
    ) -> Result<()> {
        let mut path: Vec<Row> = Vec::new();
        let mut at = ends.first().copied();
        while let Some(row) = at {
            path.push(row);
            at = tree.get(row as usize).and_then(|b| b.parent);
        }
        path.reverse();
        self.cache.keep_last(tree.len(), &path)?;
        self.held.extend_from_slice(&first[base..]);
        Ok(())
    }
}

/// Adds a path of tokens to a tree, sharing what is there; returns its last row. `tokens` is not empty.
fn grow(tree: &mut Vec<Branch>, tokens: &[TokenId]) -> u32 {
    let (mut parent, mut depth) = (None, 0);
    for &token in tokens {
        let there = tree.iter().position(|b| b.parent == parent && b.token == token);
        let row = there.unwrap_or_else(|| {
            tree.push(Branch { token, parent, depth });
            tree.len() - 1
        });
        (parent, depth) = (Some(row as u32), depth + 1);
    }
    parent.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Scripted;

    fn plainly(toy: &Scripted, text: &[TokenId]) -> Vec<f32> {
        let positions: Vec<Position> = (0..text.len() as Position).collect();
        let mut cache = toy.new_cache(CacheOptions::default()).unwrap();
        let mut reveal = Reveal::new();
        let segment = Segment::causal(text, &positions, &mut *cache);
        toy.forward(&mut Pass::new(&mut [segment]), &mut reveal).unwrap();
        reveal.logits(0, 0).to_vec()
    }

    #[test]
    fn answers_are_those_of_the_texts_alone_whatever_was_asked_before() {
        let toy = Scripted::hashed(40, 2000, 5, 1.0);
        let long: Vec<TokenId> = (0..900).map(|i| i * 7 % 40).collect();
        let mut ask = Continuations::new(&toy).unwrap();
        let with = |cut: usize, more: &[TokenId]| [&long[..cut], more].concat();
        for texts in [
            vec![with(700, &[1, 2]), with(700, &[1, 3, 4]), with(700, &[]), with(690, &[5])],
            vec![with(702, &[9])],
            vec![with(0, &[3]), with(0, &[4, 5])],
            vec![with(0, &[3]), with(0, &[3]), with(900, &[])],
            (0..300).map(|i| with(5, &[i % 40, i / 40])).collect(),
        ] {
            let mut seen = 0;
            ask.ask(&texts, &mut |i, logits| {
                assert_eq!(logits, plainly(&toy, &texts[i]));
                seen += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, texts.len());
        }
    }

    #[test]
    fn what_is_cached_is_not_computed_again() {
        let toy = Scripted::hashed(40, 2000, 5, 1.0);
        let mut ask = Continuations::new(&toy).unwrap();
        ask.ask(&[[1, 2, 3, 4]], &mut |_, _| Ok(())).unwrap();
        ask.ask(&[[1, 2, 3, 4, 5]], &mut |_, _| Ok(())).unwrap();
        assert_eq!((ask.passes(), ask.rows()), (2, 5));
        // Three texts that part after the first two tokens: five rows that are not held.
        let texts = [vec![1, 2, 9, 9], vec![1, 2, 9, 8], vec![1, 2, 7, 7]];
        ask.ask(&texts, &mut |_, _| Ok(())).unwrap();
        assert_eq!((ask.passes(), ask.rows()), (3, 10));
    }

    #[test]
    fn empty_and_overlong_texts_are_refused() {
        let toy = Scripted::hashed(4, 8, 5, 1.0);
        let mut ask = Continuations::new(&toy).unwrap();
        assert!(ask.ask(&[Vec::new()], &mut |_, _| Ok(())).is_err());
        assert!(ask.ask(&[vec![0; 9]], &mut |_, _| Ok(())).is_err());
        assert!(ask.ask(&[vec![0; 8]], &mut |_, _| Ok(())).is_ok());
    }
}
