//! A cache with the tokens whose rows it holds, so that the next request can reuse a beginning.

use serde_json::Value;
use tessera_core::{Backbone, CacheOptions, Draft, KvStore, Result, TokenId};

use crate::recipe::Recipe;

/// The memory of one sequence between requests: a chat's turns, say.
pub struct Sequence {
    pub(crate) cache: Box<dyn KvStore>,
    pub(crate) tokens: Vec<TokenId>,
    /// Whether the cache was reduced: its rows are not the plain run's, so no request may read them.
    pub(crate) spoilt: bool,
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
        Ok(Self { cache, tokens: Vec::new(), spoilt: false, drafter: None })
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

    /// The tokens whose rows the cache holds as the plain run would; none once it was reduced.
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

    /// An independent copy without the drafter: requests that begin alike can be continued in many
    /// ways after their common beginning was computed once.
    ///
    /// # Errors
    /// As [`KvStore::fork`].
    pub fn fork(&self) -> Result<Self> {
        let (cache, tokens) = (self.cache.fork()?, self.tokens.clone());
        Ok(Self { cache, tokens, spoilt: self.spoilt, drafter: None })
    }

    /// Notes that the cache no longer holds the plain run's rows.
    pub(crate) fn spoil(&mut self) {
        self.tokens.clear();
        self.spoilt = true;
    }

    /// Drops everything that is not the beginning of `prompt`, and everything if the cache was
    /// reduced; returns how many tokens stay. At least the prompt's last token is dropped: its logits
    /// have to be computed.
    ///
    /// # Errors
    /// As [`KvStore::rollback`] and [`Backbone::new_cache`].
    pub(crate) fn adopt(&mut self, backbone: &dyn Backbone, prompt: &[TokenId]) -> Result<usize> {
        if self.spoilt {
            self.cache = backbone.new_cache(CacheOptions::default())?;
            self.tokens.clear();
            self.spoilt = false;
        }
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len().saturating_sub(1));
        self.truncate(kept)?;
        Ok(kept)
    }
}
