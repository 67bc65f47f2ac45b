//! Runs the passes of a benchmark: one cache, one token stream, timed parts only.

use std::time::{Duration, Instant};

use tessera_core::dist::Key;
use tessera_core::{
    Backbone, CacheOptions, Error, Input, KvStore, Mask, Pass, Position, Result, Reveal, RowsOut,
    Segment, TokenId, Write,
};

/// Rows per pass of a prefill: larger prompts are cut, as generation cuts them.
const CHUNK: usize = 512;

/// A model at work on one stream of tokens.
pub struct Driver<'a> {
    backbone: &'a dyn Backbone,
    cache: Box<dyn KvStore>,
    /// Rows in the cache: the stream's first ones.
    held: usize,
    tokens: Vec<TokenId>,
    positions: Vec<Position>,
    reveal: Reveal,
}

impl<'a> Driver<'a> {
    /// With an empty stream and room for `context` tokens.
    pub fn new(backbone: &'a dyn Backbone, context: usize) -> Result<Self> {
        let spec = backbone.spec();
        if context > spec.context {
            let value = format!("{context} (the model was trained for {})", spec.context);
            return Err(Error::setting("context", value, "at most the model's own context"));
        }
        let cache = backbone.new_cache(CacheOptions { capacity: context, ..Default::default() })?;
        Ok(Self {
            backbone,
            cache,
            held: 0,
            tokens: Vec::new(),
            positions: Vec::new(),
            reveal: Reveal::new(),
        })
    }

    /// Replaces the stream and empties the cache.
    pub fn set_tokens(&mut self, tokens: Vec<TokenId>) -> Result<()> {
        let vocab = self.backbone.spec().vocab;
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::pass(format!("token {bad} is outside the vocabulary of {vocab}")));
        }
        self.keep(0)?;
        self.positions = (0..tokens.len() as Position).collect();
        self.tokens = tokens;
        Ok(())
    }

    /// Any tokens do for a measurement: seeded ones from the first half of the vocabulary, where
    /// no control tokens are.
    pub fn any_tokens(&self, count: usize) -> Vec<TokenId> {
        let vocab = self.backbone.spec().vocab as u64;
        (0..count as u32).map(|i| (Key::new(7, 0, i).bits(0) % (vocab / 2).max(1)) as u32).collect()
    }

    fn keep(&mut self, count: usize) -> Result<()> {
        if count < self.held {
            self.cache.rollback(self.held - count)?;
            self.held = count;
        }
        Ok(())
    }

    fn check(&self, end: usize) -> Result<()> {
        let limit = self.tokens.len().min(self.backbone.spec().context);
        if end > limit {
            return Err(Error::pass(format!("{end} tokens are asked for, {limit} are there")));
        }
        Ok(())
    }

    /// Computes the stream's next `count` rows in one pass.
    fn advance(&mut self, count: usize, rows_out: RowsOut<'_>) -> Result<()> {
        let range = self.held..self.held + count;
        let mut segments = [Segment {
            input: Input::Tokens(&self.tokens[range.clone()]),
            positions: &self.positions[range],
            mask: Mask::Causal,
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out,
            condition: None,
            cache: Some(&mut *self.cache),
        }];
        self.backbone.forward(&mut Pass::new(&mut segments), &mut self.reveal)?;
        self.held += count;
        Ok(())
    }

    /// Makes the cache hold exactly the stream's first `count` tokens.
    fn hold(&mut self, count: usize) -> Result<()> {
        self.check(count)?;
        self.keep(count)?;
        while self.held < count {
            self.advance((count - self.held).min(CHUNK), RowsOut::None)?;
        }
        Ok(())
    }

    /// Time of a prompt of `count` tokens.
    pub fn prefill(&mut self, count: usize) -> Result<Duration> {
        self.check(count)?;
        self.keep(0)?;
        let start = Instant::now();
        while self.held < count {
            let rows = (count - self.held).min(CHUNK);
            let last = self.held + rows == count;
            self.advance(rows, if last { RowsOut::Last } else { RowsOut::None })?;
        }
        Ok(start.elapsed())
    }

    /// Time of `count` passes of one row after `context` tokens.
    pub fn decode(&mut self, context: usize, count: usize) -> Result<Duration> {
        self.check(context + count)?;
        self.hold(context)?;
        let start = Instant::now();
        for _ in 0..count {
            self.advance(1, RowsOut::Last)?;
        }
        Ok(start.elapsed())
    }

    /// Time of one pass of `count` rows after `context` tokens, logits at every row.
    pub fn rows(&mut self, context: usize, count: usize) -> Result<Duration> {
        self.check(context + count)?;
        self.hold(context)?;
        let start = Instant::now();
        self.advance(count, RowsOut::All)?;
        Ok(start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use tessera_testkit::Scripted;

    use super::*;

    #[test]
    fn the_cache_is_rolled_back_or_filled_never_redone() {
        let toy = Scripted::hashed(100, 2000, 1, 1.0);
        let mut driver = Driver::new(&toy, 1200).unwrap();
        driver.set_tokens(driver.any_tokens(1200)).unwrap();
        driver.decode(1000, 10).unwrap();
        assert_eq!((toy.rows(), toy.passes()), (1010, 12));
        // Less context, the same context, one more: a rollback, and one row.
        driver.rows(256, 4).unwrap();
        driver.rows(256, 4).unwrap();
        driver.rows(257, 4).unwrap();
        assert_eq!((toy.rows(), toy.passes()), (1022, 15));
        driver.prefill(600).unwrap();
        assert_eq!((toy.rows(), toy.passes()), (1622, 17));
        driver.hold(600).unwrap();
        assert_eq!(toy.rows(), 1622);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let toy = Scripted::hashed(100, 50, 1, 1.0);
        assert!(Driver::new(&toy, 51).is_err());
        let mut driver = Driver::new(&toy, 50).unwrap();
        assert!(driver.prefill(1).is_err());
        driver.set_tokens(vec![1; 60]).unwrap();
        assert!(driver.decode(45, 5).is_ok());
        assert!(driver.decode(45, 6).is_err());
        assert!(driver.set_tokens(vec![100]).is_err());
    }
}
