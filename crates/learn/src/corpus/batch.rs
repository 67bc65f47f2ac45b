//! Many prompts in one pass: texts that have nothing to do with one another grow as segments of the
//! same passes, and a text that ends makes room for the next.
//!
//! Products are batch-invariant and draws are keyed by (seed, index of the text, position), so a
//! text does not depend on its neighbours, nor on how many there are.

use tessera_core::dist::{Key, Sampler, Sampling};
use tessera_core::{
    Backbone, CacheOptions, KvStore, Pass, Position, Result, Reveal, Segment, TokenId, Vocabulary,
};

/// How texts are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Texts that share a pass. At least 1.
    pub width: usize,
    /// Most tokens of an answer. At least 1.
    pub most: usize,
    /// Penalties, truncations, temperature.
    pub sampling: Sampling,
    /// The seed of every draw.
    pub seed: u64,
}

/// A text that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which prompt it answers.
    pub index: u32,
    /// The answer's tokens, without the end token.
    pub tokens: Vec<TokenId>,
    /// Whether the model ended it; else it ran out of room.
    pub complete: bool,
}

/// One growing text.
struct Text {
    index: u32,
    prompt: usize,
    tokens: Vec<TokenId>,
    /// Positions of `tokens`, the same for every text: kept for the length of its life.
    positions: Vec<Position>,
    /// Rows in the cache; the tokens behind them go into the next pass.
    done: usize,
    cache: Box<dyn KvStore>,
}

/// What was computed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Forward passes.
    pub passes: u64,
    /// Rows of all passes, prompts included.
    pub rows: u64,
    /// Tokens drawn.
    pub drawn: u64,
}

/// The loop over texts.
pub struct Batch<'m> {
    backbone: &'m dyn Backbone,
    vocabulary: &'m dyn Vocabulary,
    settings: Settings,
    sampler: Sampler,
    texts: Vec<Text>,
    /// The first prompt with its cache: what later prompts begin with too is not computed again.
    stem: Option<(Vec<TokenId>, Box<dyn KvStore>)>,
    reveal: Reveal,
    work: Work,
}

impl<'m> Batch<'m> {
    /// Without texts yet.
    ///
    /// # Errors
    /// [`tessera_core::Error::Setting`] for a setting outside its range.
    pub fn new(
        backbone: &'m dyn Backbone,
        vocabulary: &'m dyn Vocabulary,
        settings: Settings,
    ) -> Result<Self> {
        let sampler = Sampler::new(settings.sampling)?;
        let positive = [("batch", settings.width), ("max-tokens", settings.most)];
        if let Some((name, value)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(tessera_core::Error::setting(name, value, "at least 1"));
        }
        let (texts, stem, work) = (Vec::new(), None, Work::default());
        Ok(Self {
            backbone,
            vocabulary,
            settings,
            sampler,
            texts,
            stem,
            reveal: Reveal::new(),
            work,
        })
    }

    /// What was computed so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Whether another text fits.
    pub fn has_room(&self) -> bool {
        self.texts.len() < self.settings.width
    }

    /// Whether no text is growing.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Begins the text with this index. Its prompt must not be empty.
    ///
    /// # Errors
    /// An empty prompt, one that does not leave room for the answer, or no memory for a cache.
    pub fn begin(&mut self, index: u32, prompt: Vec<TokenId>) -> Result<()> {
        let trained = self.backbone.spec().context;
        let needed = prompt.len() + self.settings.most;
        if prompt.is_empty() {
            return Err(tessera_core::Error::pass("a prompt without tokens"));
        }
        if needed > trained {
            return Err(tessera_core::Error::ContextFull { needed, limit: trained, trained });
        }
        let mut done = 0;
        let cache = match &self.stem {
            Some((stem, cache)) => {
                let common = stem.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                done = common.min(prompt.len() - 1);
                let mut cache = cache.fork()?;
                cache.rollback(stem.len() - done)?;
                cache
            }
            None => {
                let options = CacheOptions { capacity: needed, ..CacheOptions::default() };
                self.backbone.new_cache(options)?
            }
        };
        let positions = (0..needed as Position).collect();
        let prompt_len = prompt.len();
        self.texts.push(Text { index, prompt: prompt_len, tokens: prompt, positions, done, cache });
        Ok(())
    }

    /// One pass, and one more token for every text; returns those that ended with it.
    ///
    /// # Errors
    /// Whatever the backbone or the sampler reports.
    pub fn step(&mut self) -> Result<Vec<Ended>> {
        let mut segments = Vec::with_capacity(self.texts.len());
        for text in &mut self.texts {
            let rows = text.done..text.tokens.len();
            self.work.rows += rows.len() as u64;
            segments.push(Segment::causal(
                &text.tokens[rows.clone()],
                &text.positions[rows],
                &mut *text.cache,
            ));
        }
        self.backbone.forward(&mut Pass::new(&mut segments), &mut self.reveal)?;
        drop(segments);
        self.work.passes += 1;
        let mut ended = Vec::new();
        let mut kept = Vec::with_capacity(self.texts.len());
        for (at, mut text) in self.texts.drain(..).enumerate() {
            text.done = text.tokens.len();
            if self.stem.is_none() {
                self.stem = Some((text.tokens.clone(), text.cache.fork()?));
            }
            let key = Key::new(self.settings.seed, text.index, text.done as Position);
            // The penalties must not hold the prompt's words against the text.
            let history = &text.tokens[text.prompt..];
            let token = self.sampler.draw(self.reveal.logits(at, 0), history, key)?;
            self.work.drawn += 1;
            let complete = self.vocabulary.is_end(token);
            if !complete {
                text.tokens.push(token);
            }
            if complete || text.tokens.len() - text.prompt >= self.settings.most {
                let tokens = text.tokens.split_off(text.prompt);
                ended.push(Ended { index: text.index, tokens, complete });
            } else {
                kept.push(text);
            }
        }
        self.texts = kept;
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use tessera_testkit::{Scripted, Words};

    use super::*;

    /// Runs prompts through a batch of this width; answers by index.
    fn answers(width: usize, prompts: &[Vec<TokenId>]) -> Vec<Ended> {
        let model = Scripted::hashed(50, 1024, 3, 1.0);
        let words = Words::new((0..48u8).map(|b| [b]));
        let sampling = Sampling { top_k: 10, ..Sampling::default() };
        let settings = Settings { width, most: 20, sampling, seed: 9 };
        let mut batch = Batch::new(&model, &words, settings).unwrap();
        let (mut next, mut all) = (0, Vec::new());
        while next < prompts.len() || !batch.is_empty() {
            while batch.has_room() && next < prompts.len() {
                batch.begin(next as u32, prompts[next].clone()).unwrap();
                next += 1;
            }
            all.extend(batch.step().unwrap());
        }
        all.sort_by_key(|ended| ended.index);
        all
    }

    #[test]
    fn a_text_does_not_depend_on_its_neighbours() {
        let prompts: Vec<Vec<TokenId>> = (0..9)
            .map(|i| (0..5 + i % 3).map(|j| if j < 3 { j } else { i * 7 + j } % 50).collect())
            .collect();
        let alone = answers(1, &prompts);
        assert_eq!(alone.len(), prompts.len());
        for width in [2, 4, 16] {
            assert_eq!(answers(width, &prompts), alone);
        }
        assert!(alone.iter().all(|e| e.complete || e.tokens.len() == 20));
    }

    #[test]
    fn impossible_settings_and_prompts_are_refused() {
        let model = Scripted::hashed(50, 32, 3, 1.0);
        let words = Words::new((0..48u8).map(|b| [b]));
        let settings = Settings { width: 0, most: 20, sampling: Sampling::default(), seed: 9 };
        assert!(Batch::new(&model, &words, settings).is_err());
        let mut batch = Batch::new(&model, &words, Settings { width: 1, ..settings }).unwrap();
        assert!(batch.begin(0, vec![]).is_err());
        assert!(batch.begin(0, vec![1; 13]).is_err());
        assert!(batch.begin(0, vec![1; 12]).is_ok());
    }
}
