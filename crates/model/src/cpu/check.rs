//! Whether the parts of a pass fit one another, the model and the caches: asked before anything runs.

use tessera_core::visible::check_segment;
use tessera_core::{Error, HiddenSite, KeySet, KvStore, Layers, Mask, Pass, Result, Row, Write};

use super::CpuBackbone;
use super::store::CpuStore;

impl CpuBackbone {
    pub(super) fn check(&self, pass: &Pass<'_, '_>) -> Result<()> {
        if pass.segments.is_empty() {
            return Err(Error::pass("segments: a pass needs at least one"));
        }
        let spec = &self.blueprint.spec;
        for (i, segment) in pass.segments.iter().enumerate() {
            let mut cached = 0;
            if let Some(cache) = &segment.cache {
                let Some(store) = cache.as_any().downcast_ref::<CpuStore>() else {
                    return Err(Error::pass(format!(
                        "segment {i}: the cache was made by another backbone"
                    )));
                };
                if store.layers.len() != spec.layers || store.table().kv_heads() != spec.kv_heads {
                    return Err(Error::pass(format!(
                        "segment {i}: the cache was made for another model"
                    )));
                }
                cached = store.table().len();
                if !store.table().is_uniform()
                    && (!segment.bias.is_empty()
                        || matches!(segment.mask, Mask::Explicit { .. })
                        || matches!(segment.write, Write::Rows(_)))
                {
                    return Err(Error::pass(format!(
                        "segment {i}: bias, explicit masks and refreshed rows need a cache whose \
                         heads all hold the same rows"
                    )));
                }
            }
            check_segment(segment, cached, spec.hidden, spec.vocab)
                .map_err(|e| in_segment(e, i))?;
            if let Some(KeySet::PerHead(heads)) = segment.keys
                && heads.len() != spec.layers * spec.kv_heads
            {
                return Err(Error::pass(format!(
                    "segment {i}: keys: {} lists for {} layers of {} heads",
                    heads.len(),
                    spec.layers,
                    spec.kv_heads
                )));
            }
            if segment.condition.is_some() {
                return Err(self.unsupported("conditions"));
            }
        }
        let last = match pass.layers {
            Layers::All => None,
            Layers::First(n) => n.checked_sub(1),
            Layers::Only(list) => {
                if list.windows(2).any(|w| w[0] >= w[1]) {
                    return Err(Error::pass("layers: must be strictly ascending"));
                }
                list.last().copied()
            }
        };
        let tapped = pass.taps.attention.iter().chain(pass.taps.keys).chain(pass.taps.queries);
        let tapped = tapped.chain(pass.taps.received.layers);
        let hidden = pass.taps.hidden.iter().filter_map(|s| match s {
            HiddenSite::After(l) => Some(l),
            HiddenSite::Embedding | HiddenSite::Final => None,
        });
        match last.iter().chain(tapped).chain(hidden).find(|&&l| l >= spec.layers) {
            Some(l) => Err(Error::pass(format!("layer {l} of a model of {}", spec.layers))),
            None => Ok(()),
        }
    }
}

fn in_segment(error: Error, i: usize) -> Error {
    match error {
        Error::Pass { what } => Error::Pass { what: format!("segment {i}: {what}") },
        other => other,
    }
}

/// Checks the answer of a policy that chose what to read.
pub(super) fn check_read_set(
    lists: &[Vec<Row>],
    store: &CpuStore,
    l: usize,
    kv_heads: usize,
) -> Result<()> {
    if lists.len() != kv_heads {
        return Err(Error::plan(format!(
            "layer {l}: {} read sets for {kv_heads} key heads",
            lists.len()
        )));
    }
    for (h, rows) in lists.iter().enumerate() {
        let held = store.table().positions(l, h).len();
        let sorted = rows.windows(2).all(|w| w[0] < w[1]);
        if !sorted || rows.last().is_some_and(|&r| r as usize >= held) {
            return Err(Error::plan(format!(
                "layer {l}, head {h}: rows to read must be sorted, unique and below {held}"
            )));
        }
    }
    Ok(())
}
