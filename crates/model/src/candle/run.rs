//! One pass, from input rows to logits, taps and cache writes.

use candle_core::Tensor;
use tessera_core::{Error, HiddenSite, Layers, Pass, Segment, Sites, Taps, Write};

use super::attend::attend;
use super::ops::{linear, rms_norm, soft_cap};
use super::sight::readable;
use super::store::{LayerRows, Prepared};
use super::stream::Stream;
use super::weights::Layer;
use super::{CandleBackbone, CandleStore, Failure, PassTensors};
use crate::arch::Activation;

/// What the caches of the segments become; `None` where nothing is written.
pub(super) type Writes = Vec<Option<Prepared>>;

pub(super) fn run(model: &CandleBackbone, pass: &mut Pass<'_, '_>) -> Result<PassTensors, Failure> {
    let (shown, writes) = compute(model, pass)?;
    install(pass, writes);
    Ok(shown)
}

/// A tensor's values, row-major.
pub(super) fn numbers(tensor: &Tensor) -> Result<Vec<f32>, Failure> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
}

/// Puts the writes of a pass in place. Nothing here can fail.
pub(super) fn install(pass: &mut Pass<'_, '_>, writes: Writes) {
    for (segment, write) in pass.segments.iter_mut().zip(writes) {
        let store = segment.cache.as_deref_mut().map(|c| c.as_any_mut());
        if let (Some(write), Some(store)) =
            (write, store.and_then(|s| s.downcast_mut::<CandleStore>()))
        {
            store.install(write);
        }
    }
}

/// Runs a pass without touching the caches.
pub(super) fn compute(
    model: &CandleBackbone,
    pass: &mut Pass<'_, '_>,
) -> Result<(PassTensors, Writes), Failure> {
    let segments: &[Segment<'_>] = pass.segments;
    let sites = &mut pass.sites;
    let (layers, taps) = (pass.layers, pass.taps);
    if segments.is_empty() {
        return Err(Error::pass("segments: a pass needs at least one").into());
    }
    check_pass(model, layers, taps)?;
    let mut streams = Vec::with_capacity(segments.len());
    for segment in segments {
        streams.push(Stream::open(model, segment, taps)?);
    }
    tap_hidden(model, &mut streams, taps, HiddenSite::Embedding)?;

    for (index, layer) in model.weights.layers.iter().enumerate() {
        for stream in &mut streams {
            stream.made.push(LayerRows { active: stream.active.clone(), fresh: None });
        }
        if layers.runs(index) {
            let mut site = sites.as_deref_mut();
            run_layer(model, index, layer, &mut streams, taps, site.as_deref_mut())?;
            tap_hidden(model, &mut streams, taps, HiddenSite::After(index))?;
            if let Some(site) = site.filter(|s| s.keeps(index)) {
                for (number, stream) in streams.iter_mut().enumerate() {
                    stream.ask_keep(number, index, site)?;
                }
            }
        } else {
            tap_hidden(model, &mut streams, taps, HiddenSite::After(index))?;
        }
    }
    tap_hidden(model, &mut streams, taps, HiddenSite::Final)?;
    let logits = logits(model, &streams)?;
    let mut writes = Vec::with_capacity(streams.len());
    for stream in &streams {
        let write = if readable(stream.segment) { stream.segment.write } else { Write::Discard };
        writes.push(match (&stream.segment.cache, write) {
            (None, _) | (_, Write::Discard) => None,
            _ => Some(stream.store().prepare(write, stream.segment.positions, &stream.made)?),
        });
    }
    let (hidden, taps) = streams.into_iter().map(Stream::shown).unzip();
    Ok((PassTensors { logits, hidden, taps }, writes))
}

/// The logits of the wanted rows, per segment. Rows of all segments share one product.
fn logits(
    model: &CandleBackbone,
    streams: &[Stream<'_, '_>],
) -> Result<Vec<Option<Tensor>>, Failure> {
    let mut wanted = Vec::with_capacity(streams.len());
    for stream in streams {
        wanted.push(stream.wanted()?);
    }
    let states: Vec<&Tensor> = wanted.iter().flatten().collect();
    if states.is_empty() {
        return Ok(wanted);
    }
    let weights = &model.weights;
    let x = rms_norm(&Tensor::cat(&states, 0)?, &weights.norm, model.blueprint.norm_eps)?;
    let head = weights.head.as_ref().unwrap_or(&weights.embedding);
    let all = soft_cap(linear(&x, head, None)?, model.blueprint.logit_softcap)?;
    let mut at = 0;
    let mut each = Vec::with_capacity(wanted.len());
    for states in &wanted {
        each.push(match states {
            None => None,
            Some(states) => {
                let rows = states.dim(0)?;
                at += rows;
                Some(all.narrow(0, at - rows, rows)?)
            }
        });
    }
    Ok(each)
}

/// One decoder layer over all streams; rows share the matrix products, attention is per stream.
fn run_layer(
    model: &CandleBackbone,
    index: usize,
    layer: &Layer,
    streams: &mut [Stream<'_, '_>],
    taps: Taps<'_>,
    mut sites: Option<&mut (dyn Sites + '_)>,
) -> Result<(), Failure> {
    let blueprint = &model.blueprint;
    let (spec, eps) = (&blueprint.spec, blueprint.norm_eps);
    let states: Vec<&Tensor> = streams.iter().filter_map(|s| s.x.as_ref()).collect();
    if states.is_empty() {
        return Ok(());
    }
    let x = Tensor::cat(&states, 0)?;
    let rows = x.dim(0)?;

    let h = rms_norm(&x, &layer.attn_norm, eps)?;
    let project = |part: &super::weights::Linear, heads: usize| {
        linear(&h, &part.weight, part.bias.as_ref())?.reshape((rows, heads, spec.head_dim))
    };
    let mut q = project(&layer.q, spec.heads)?;
    let mut k = project(&layer.k, spec.kv_heads)?;
    let v = project(&layer.v, spec.kv_heads)?;
    if let Some((q_norm, k_norm)) = &layer.qk_norm {
        q = rms_norm(&q, q_norm, eps)?;
        k = rms_norm(&k, k_norm, eps)?;
    }
    let mut at = 0;
    let mut read = Vec::with_capacity(states.len());
    for (number, stream) in streams.iter_mut().enumerate() {
        let n = stream.active.len();
        if n == 0 {
            continue;
        }
        let part = |x: &Tensor| x.narrow(0, at, n);
        let (q, k, v) = (part(&q)?, part(&k)?, part(&v)?);
        let site = sites.as_deref_mut().filter(|s| s.reads(index));
        let own = super::attend::Own { number, index, q, k, v };
        read.push(attend(model, layer, stream, own, taps, site)?);
        at += n;
    }
    let mut o = linear(&Tensor::cat(&read, 0)?, &layer.output.weight, None)?;
    if let Some((norm, _)) = &layer.post_norms {
        o = rms_norm(&o, norm, eps)?;
    }
    let x = (x + o)?;

    let h = rms_norm(&x, &layer.ffn_norm, eps)?;
    let gate = linear(&h, &layer.gate.weight, None)?;
    let gate = match blueprint.activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    let up = linear(&h, &layer.up.weight, None)?;
    let mut o = linear(&(gate * up)?, &layer.down.weight, None)?;
    if let Some((_, norm)) = &layer.post_norms {
        o = rms_norm(&o, norm, eps)?;
    }
    let x = (x + o)?;

    let mut at = 0;
    for stream in streams {
        let n = stream.active.len();
        if n > 0 {
            stream.x = Some(x.narrow(0, at, n)?);
            at += n;
        }
    }
    Ok(())
}

fn tap_hidden(
    model: &CandleBackbone,
    streams: &mut [Stream<'_, '_>],
    taps: Taps<'_>,
    site: HiddenSite,
) -> Result<(), Failure> {
    if taps.hidden.contains(&site) {
        for stream in streams {
            let mut state = stream.full(model.blueprint.spec.hidden)?;
            if site == HiddenSite::Final {
                state = rms_norm(&state, &model.weights.norm, model.blueprint.norm_eps)?;
            }
            stream.show(taps, site, &state);
        }
    }
    Ok(())
}

/// Checks what does not belong to a segment.
fn check_pass(model: &CandleBackbone, layers: Layers<'_>, taps: Taps<'_>) -> Result<(), Failure> {
    let count = model.blueprint.spec.layers;
    let fail = |what: String| Err(Failure::Core(Error::Pass { what }));
    match layers {
        Layers::First(n) if n > count => {
            return fail(format!("layers: the first {n} of a model of {count}"));
        }
        Layers::Only(list)
            if list.windows(2).any(|w| w[0] >= w[1]) || list.iter().any(|&l| l >= count) =>
        {
            return fail(format!("layers: {list:?} must ascend and lie below {count}"));
        }
        _ => {}
    }
    let beyond = |list: &[usize]| list.iter().copied().find(|&l| l >= count);
    let hidden = taps.hidden.iter().find_map(|site| match site {
        HiddenSite::After(l) if *l >= count => Some(*l),
        _ => None,
    });
    let asked = [hidden, beyond(taps.attention), beyond(taps.keys), beyond(taps.queries)];
    match asked.into_iter().flatten().next() {
        Some(l) => fail(format!("taps: layer {l} of a model of {count}")),
        None => Ok(()),
    }
}
