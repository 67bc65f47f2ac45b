//! The backbones a session can run on.

use std::sync::Arc;

use serde::Serialize;
use tessera_core::Backbone;
use tessera_kernels::Pool;
use tessera_model::TensorSource;
use tessera_model::arch::Blueprint;
use tessera_model::cpu::{self, CpuBackbone};

use crate::{Options, Result};

/// What executes passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Own kernels.
    #[default]
    Cpu,
    /// The candle library, in f32: slower, differentiable. Part of builds with the cargo feature
    /// `candle` only.
    Candle,
}

/// A backbone with weights, and the facts about it that [`Backbone`] does not tell.
pub(crate) struct Loaded {
    pub backbone: Box<dyn Backbone>,
    /// Its name, with its instruction path if it has one.
    pub detail: String,
    pub threads: usize,
    /// Weight bytes read for one token.
    pub bytes_per_token: usize,
    /// Weight types that take a slower, generic path.
    pub generic_types: Vec<String>,
    /// Its threads, for a draft model that shares them.
    pub pool: Option<Arc<Pool>>,
}

/// Puts the weights on the backbone that `options` name.
pub(crate) fn load(
    blueprint: &Blueprint,
    weights: &dyn TensorSource,
    options: &Options,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Loaded> {
    match options.backend {
        Backend::Cpu => {
            let settings = cpu::Options { threads: options.threads, ..Default::default() };
            let backbone = CpuBackbone::load(blueprint.clone(), weights, settings, progress)?;
            Ok(Loaded {
                detail: format!("{} {}", backbone.name(), backbone.isa()),
                threads: backbone.threads(),
                bytes_per_token: backbone.bytes_per_token(),
                generic_types: backbone.generic_types().into_iter().map(str::to_owned).collect(),
                pool: Some(backbone.pool()),
                backbone: Box::new(backbone),
            })
        }
        Backend::Candle => candle(blueprint, weights, options),
    }
}

#[cfg(feature = "candle")]
fn candle(blueprint: &Blueprint, weights: &dyn TensorSource, options: &Options) -> Result<Loaded> {
    use tessera_model::candle::{CandleBackbone, CandleOptions, threads};

    let threads = threads();
    if options.threads != 0 && options.threads != threads {
        let what = format!(
            "threads = {}: the candle backend fixes its {threads} when the process starts. \
             Next: leave threads out, or set RAYON_NUM_THREADS={}",
            options.threads, options.threads
        );
        return Err(crate::Error::Option { what });
    }
    let settings = CandleOptions::default();
    let backbone = CandleBackbone::from_weights(blueprint.clone(), weights, settings)?;
    Ok(Loaded {
        detail: backbone.name().to_owned(),
        threads,
        bytes_per_token: backbone.bytes_per_token(),
        generic_types: Vec::new(),
        pool: None,
        backbone: Box::new(backbone),
    })
}

#[cfg(not(feature = "candle"))]
fn candle(_: &Blueprint, _: &dyn TensorSource, _: &Options) -> Result<Loaded> {
    let what = "backend = candle: is not part of this build. \
                Next: cargo run --release --features candle -- ..., or --backend cpu";
    Err(crate::Error::Option { what: what.to_owned() })
}
