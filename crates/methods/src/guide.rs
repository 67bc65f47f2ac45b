//! A causal model beside one that fills masks: what it says of texts that change in the middle.

use std::fmt;

use tessera_core::{
    Backbone, CacheOptions, Error, KvStore, Pass, Position, Result, Reveal, RowsOut, Segment,
    TokenId,
};

/// A causal model's memory of the text that it read last.
#[derive(Default)]
pub(crate) struct Guide {
    store: Option<Box<dyn KvStore>>,
    held: Vec<TokenId>,
    /// Passes so far.
    pub(crate) passes: usize,
    /// Rows computed so far.
    pub(crate) rows: usize,
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("held", &self.held.len()).field("rows", &self.rows).finish()
    }
}

impl Guide {
    /// Reads `text` and calls `visit` with every row from `from` on and the logits of what follows it.
    /// Rows that are held from the last call are not computed again.
    ///
    /// # Errors
    /// Whatever the pass reports.
    pub(crate) fn read(
        &mut self,
        backbone: &dyn Backbone,
        text: &[TokenId],
        from: usize,
        visit: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let common = self.held.iter().zip(text).take_while(|(a, b)| a == b).count().min(from);
        let mut store = match self.store.take() {
            Some(store) => store,
            None => {
                let options = CacheOptions { capacity: text.len(), ..CacheOptions::default() };
                backbone.new_cache(options)?
            }
        };
        store.rollback(self.held.len() - common)?;
        self.held.truncate(common);
        let fresh = &text[common..];
        let positions: Vec<Position> = (common as Position..).take(fresh.len()).collect();
        let wanted: Vec<u32> = ((from - common) as u32..fresh.len() as u32).collect();
        let mut reveal = Reveal::new();
        let mut segment = Segment::causal(fresh, &positions, &mut *store);
        segment.rows_out = RowsOut::Rows(&wanted);
        let done = backbone.forward(&mut Pass::new(&mut [segment]), &mut reveal);
        self.store = Some(store);
        done?;
        self.held.extend_from_slice(fresh);
        self.passes += 1;
        self.rows += fresh.len();
        for (i, &row) in wanted.iter().enumerate() {
            visit(common + row as usize, reveal.logits(0, i))?;
        }
        Ok(())
    }
}

/// The guide of a session, or what is missing.
pub(crate) fn present<'a>(slug: &str, guide: Option<&'a dyn Backbone>) -> Result<&'a dyn Backbone> {
    guide.ok_or_else(|| Error::Method {
        method: slug.to_owned(),
        what: "needs a causal model with the same vocabulary (--draft-model)".to_owned(),
    })
}

/// The most probable continuation of `prompt` by `length` tokens, and how probable each of them was.
///
/// # Errors
/// Whatever a pass reports.
pub(crate) fn greedy(
    backbone: &dyn Backbone,
    prompt: &[TokenId],
    length: usize,
    allowed: &dyn Fn(TokenId) -> bool,
) -> Result<Vec<(TokenId, f64)>> {
    let mut guide = Guide::default();
    let mut text = prompt.to_vec();
    let mut made = Vec::with_capacity(length);
    while made.len() < length {
        let from = text.len() - 1;
        let mut next = None;
        guide.read(backbone, &text, from, &mut |_, logits| {
            let mut logits = logits.to_vec();
            let ids = 0..logits.len() as TokenId;
            ids.filter(|&id| !allowed(id)).for_each(|id| logits[id as usize] = f32::NEG_INFINITY);
            let (token, top) = tessera_core::dist::argmax(&logits)?;
            let probability = (f64::from(top) - tessera_core::dist::log_sum_exp(&logits)?).exp();
            next = Some((token, probability));
            Ok(())
        })?;
        let Some((token, probability)) = next else { break };
        text.push(token);
        made.push((token, probability));
    }
    Ok(made)
}
