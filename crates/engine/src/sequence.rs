//! A cache with the tokens whose rows it holds, so that the next request can reuse a beginning.

use serde_json::Value;
use tessera_core::{Backbone, CacheOptions, Draft, KvStore, Result, TokenId};

use crate::recipe::Recipe;

/// The memory of one sequence between requests: a chat's turns, say.
pub struct Sequence {
    pub(crate) cache: Box<dyn KvStore>,
    pub(crate) tokens: Vec<TokenId>,
    /// The drafter of the last request with the recipe it was made for: what it has learnt serves
    /// the next one.
    drafter: Option<(Value, Box<dyn Draft>)>,
}

impl Sequence {
    /// An empty memory with room for `capacity` tokens (it grows beyond that as needed).
    ///
    /// # Errors
    /// As [`Backbone::new_cache`].
    pub fn new(backbone: &dyn Backbone, capacity: usize) -> Result<Self> {
        let cache = backbone.new_cache(CacheOptions { capacity, ..CacheOptions::default() })?;
        Ok(Self { cache, tokens: Vec::new(), drafter: None })
    }

    /// Puts the drafter of the last request in the place of a fresh one of the same recipe.
    pub(crate) fn seat(&mut self, recipe: &Recipe, fresh: &mut Option<Box<dyn Draft>>) {
        let kept = self.drafter.take().filter(|(made_for, _)| *made_for == recipe.to_json());
        if let (Some(place), Some((_, drafter))) = (fresh, kept) {
            *place = drafter;
        }
    }

    pub(crate) fn keep_drafter(&mut self, recipe: &Recipe, drafter: Option<Box<dyn Draft>>) {
        self.drafter = drafter.map(|drafter| (recipe.to_json(), drafter));
    }

    /// The tokens whose rows the cache holds.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Bytes of the cache.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Keeps the first `count` tokens.
    ///
    /// # Errors
    /// As [`KvStore::rollback`].
    pub fn truncate(&mut self, count: usize) -> Result<()> {
        if count < self.tokens.len() {
            self.cache.rollback(self.tokens.len() - count)?;
            self.tokens.truncate(count);
        }
        Ok(())
    }

    /// Drops everything that is not the beginning of `prompt`; returns how many tokens stay. At
    /// least the prompt's last token is dropped: its logits have to be computed.
    ///
    /// # Errors
    /// As [`KvStore::rollback`].
    pub(crate) fn adopt(&mut self, prompt: &[TokenId]) -> Result<usize> {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1));
        self.truncate(kept)?;
        Ok(kept)
    }
}
