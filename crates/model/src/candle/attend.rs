//! Attention of one stream in one layer.

use candle_core::{D, Tensor};
use tessera_core::pass::{KeyReader, ReadEvidence};
use tessera_core::{KeyForm, KeySet, KvStore, Received, Row, Sites, Taps, Write};

use super::ops::{round_half, soft_cap, softmax};
use super::run::numbers;
use super::sight::{self, Sight, readable, sight};
use super::store::Fresh;
use super::stream::{Stream, check_list, head_keys};
use super::weights::Layer;
use super::{CandleBackbone, Failure};

/// A stream's own part of a layer, before position encoding: `active x heads x head_dim`.
pub(super) struct Own {
    /// The stream's number in the pass.
    pub number: usize,
    /// The layer's.
    pub index: usize,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// What the stream's rows read, `active x (heads * head_dim)`. Leaves the layer's new keys and
/// values in the stream.
pub(super) fn attend(
    model: &CandleBackbone,
    layer: &Layer,
    stream: &mut Stream<'_, '_>,
    own: Own,
    taps: Taps<'_>,
    site: Option<&mut (dyn Sites + '_)>,
) -> Result<Tensor, Failure> {
    let spec = &model.blueprint.spec;
    let (kv_heads, group, d) = (spec.kv_heads, spec.heads / spec.kv_heads, spec.head_dim);
    let index = own.index;
    let rows = stream.active.len();
    let positions = stream.positions();
    let form = stream.store().table().form();
    let rounded = |x: Tensor| if model.options.kv_f16 { round_half(&x) } else { Ok(x) };

    let q = layer.rope.apply(&own.q, positions.iter().copied(), &stream.device)?;
    let turn = |x: &Tensor| layer.rope.apply(x, positions.iter().copied(), &stream.device);
    let keys = rounded(if form == KeyForm::Plain { own.k } else { turn(&own.k)? })?;
    let fresh = Fresh { keys, values: rounded(own.v)? };

    if taps.queries.contains(&index) {
        let block = spread(stream, &numbers(&q)?, spec.heads * d);
        put(&mut stream.reveal.queries, taps.queries, index, block);
    }
    if taps.keys.contains(&index) {
        // As attention sees them: rounded, and turned whenever that happens.
        let seen = if form == KeyForm::Plain { turn(&fresh.keys)? } else { fresh.keys.clone() };
        let block = spread(stream, &numbers(&seen)?, kv_heads * d);
        put(&mut stream.reveal.keys, taps.keys, index, block);
    }
    let narrowed = match site {
        Some(site) => ask_read(model, stream, own.number, index, &q, &fresh, site)?,
        None => None,
    };

    let longest = stream.store().table().len();
    let tapped = taps.attention.contains(&index) || taps.received.layers.contains(&index);
    let columns = longest + stream.segment.positions.len();
    let mut shown = vec![0f32; if tapped { rows * spec.heads * columns } else { 0 }];
    let mut outs = Vec::with_capacity(kv_heads);
    for head in 0..kv_heads {
        let Some(sight) = look(stream, layer, index, head, narrowed.as_deref())? else {
            outs.push(Tensor::zeros((group, rows, d), q.dtype(), &stream.device)?);
            continue;
        };
        let (k, v) = gather(stream, layer, index, head, form, &fresh)?;
        let q = q.narrow(1, head * group, group)?.transpose(0, 1)?.contiguous()?;
        let scores = q.reshape((group * rows, d))?.matmul(&k.t()?)?.reshape((group, rows, ()))?;
        let scores = (scores * f64::from(model.blueprint.attention_scale))?;
        let scores = soft_cap(scores, model.blueprint.attention_softcap)?;
        let mut probs = softmax(&scores.broadcast_add(&sight.mask)?)?;
        if let Some(seeing) = &sight.seeing {
            probs = probs.broadcast_mul(seeing)?;
        }
        if tapped {
            let n = probs.dim(D::Minus1)?;
            let held = stream.store().table().positions(index, head).len();
            for (i, line) in numbers(&probs)?.chunks_exact(n).enumerate() {
                let (member, row) = (i / rows, i % rows);
                let at = (row * spec.heads + head * group + member) * columns;
                shown[at..at + held].copy_from_slice(&line[..held]);
                for (value, &row) in line[held..].iter().zip(&stream.active) {
                    shown[at + longest + row as usize] = *value;
                }
            }
        }
        outs.push(probs.reshape((group * rows, ()))?.matmul(&v)?.reshape((group, rows, d))?);
    }
    if tapped {
        let block = spread(stream, &shown, spec.heads * columns);
        let sums = received(&block, columns, (spec.heads, kv_heads), taps.received);
        put(&mut stream.reveal.received, taps.received.layers, index, sums);
        put(&mut stream.reveal.attention, taps.attention, index, block);
    }
    if readable(stream.segment) {
        stream.made[index].fresh = Some(fresh);
    }
    Ok(Tensor::cat(&outs, 0)?.transpose(0, 1)?.contiguous()?.reshape((rows, spec.heads * d))?)
}

/// The sight of one head, from the stream's store where layers share it.
fn look(
    stream: &mut Stream<'_, '_>,
    layer: &Layer,
    index: usize,
    head: usize,
    narrowed: Option<&[Vec<Row>]>,
) -> Result<Option<Sight>, Failure> {
    let table = stream.store().table();
    let own_keys = matches!(stream.segment.keys, Some(KeySet::PerHead(_)));
    let shared = table.is_uniform() && narrowed.is_none() && !own_keys;
    if shared && let Some((_, known)) = stream.sights.iter().find(|(w, _)| *w == layer.window) {
        return Ok(known.clone());
    }
    let allowed = head_keys(stream.segment.keys, index, head, table.kv_heads());
    let both: Vec<Row>;
    let keys = match (allowed, narrowed.map(|lists| lists[head].as_slice())) {
        (Some(allowed), Some(chosen)) => {
            both = chosen.iter().copied().filter(|r| allowed.binary_search(r).is_ok()).collect();
            Some(both.as_slice())
        }
        (allowed, chosen) => allowed.or(chosen),
    };
    let cached = table.positions(index, head);
    let head = sight::Head { cached, longest: table.len(), keys, window: layer.window };
    let made = sight(stream.segment, &head, &stream.active, &stream.device)?;
    if shared {
        stream.sights.push((layer.window, made.clone()));
    }
    Ok(made)
}

/// Keys (after position encoding) and values of one head, in the columns of its sight.
fn gather(
    stream: &Stream<'_, '_>,
    layer: &Layer,
    index: usize,
    head: usize,
    form: KeyForm,
    fresh: &Fresh,
) -> Result<(Tensor, Tensor), Failure> {
    let store = stream.store();
    let held = store.head(index, head).as_ref();
    let new = if readable(stream.segment) { Some(fresh.head(head)?) } else { None };
    let parts = [held.map(|(k, _)| k), new.as_ref().map(|(k, _)| k)];
    let mut k = Tensor::cat(&parts.into_iter().flatten().collect::<Vec<_>>(), 0)?;
    let parts = [held.map(|(_, v)| v), new.as_ref().map(|(_, v)| v)];
    let v = Tensor::cat(&parts.into_iter().flatten().collect::<Vec<_>>(), 0)?;
    if form == KeyForm::Plain {
        let mut positions = store.table().positions(index, head).to_vec();
        if new.is_some() {
            positions.extend(stream.positions());
        }
        let turned = layer.rope.apply(&k.unsqueeze(1)?, positions.into_iter(), &stream.device)?;
        k = turned.squeeze(1)?;
    }
    Ok((k, v))
}

/// Spreads a block of the active rows over all rows of the segment; zeros elsewhere.
fn spread(stream: &Stream<'_, '_>, block: &[f32], width: usize) -> Vec<f32> {
    let mut all = vec![0f32; stream.segment.positions.len() * width];
    for (line, &row) in block.chunks_exact(width).zip(&stream.active) {
        all[row as usize * width..][..width].copy_from_slice(line);
    }
    all
}

/// Sums a block of attention, `rows x heads x columns`, as `wanted` says.
fn received(
    block: &[f32],
    columns: usize,
    (heads, kv_heads): (usize, usize),
    wanted: Received<'_>,
) -> Vec<f32> {
    let groups = wanted.heads.groups(heads, kv_heads);
    let rows = if wanted.by_row { block.len() / (heads * columns) } else { 1 };
    let mut sums = vec![0f32; rows * groups * columns];
    for (i, line) in block.chunks_exact(columns).enumerate() {
        let row = if wanted.by_row { i / heads } else { 0 };
        let at = (row * groups + i % heads * groups / heads) * columns;
        sums[at..at + columns].iter_mut().zip(line).for_each(|(sum, p)| *sum += p);
    }
    sums
}

fn put(slots: &mut [Vec<f32>], asked: &[usize], layer: usize, block: Vec<f32>) {
    for (slot, _) in slots.iter_mut().zip(asked).filter(|(_, asked)| **asked == layer) {
        slot.clone_from(&block);
    }
}

/// The keys of one layer on the host, rows of the running pass included.
struct HostKeys {
    heads: Vec<Vec<f32>>,
    head_dim: usize,
}

impl KeyReader for HostKeys {
    fn rows(&self, head: usize) -> usize {
        self.heads.get(head).map_or(0, |keys| keys.len() / self.head_dim)
    }

    fn key(&self, head: usize, row: Row, out: &mut [f32]) {
        let at = row as usize * self.head_dim;
        match self.heads.get(head).and_then(|keys| keys.get(at..at + self.head_dim)) {
            Some(key) => out.copy_from_slice(key),
            None => out.fill(0.0),
        }
    }
}

/// Asks a policy which cached rows each key head reads.
fn ask_read(
    model: &CandleBackbone,
    stream: &Stream<'_, '_>,
    number: usize,
    index: usize,
    q: &Tensor,
    fresh: &Fresh,
    site: &mut dyn Sites,
) -> Result<Option<Vec<Vec<Row>>>, Failure> {
    let (kv_heads, d) = (model.blueprint.spec.kv_heads, model.blueprint.spec.head_dim);
    let store = stream.store();
    let mut heads = Vec::with_capacity(kv_heads);
    for head in 0..kv_heads {
        let mut keys = match store.head(index, head) {
            Some((k, _)) => numbers(k)?,
            None => Vec::new(),
        };
        if readable(stream.segment) {
            let new = numbers(&fresh.head(head)?.0)?;
            match stream.segment.write {
                Write::Rows(rows) => {
                    for (key, &row) in new.chunks_exact(d).zip(&stream.active) {
                        keys[rows[row as usize] as usize * d..][..d].copy_from_slice(key);
                    }
                }
                Write::Append | Write::Discard => keys.extend(new),
            }
        }
        heads.push(keys);
    }
    let (queries, positions) = (numbers(q)?, stream.positions());
    let evidence = ReadEvidence {
        segment: number,
        layer: index,
        queries: &queries,
        positions: &positions,
        cached: store.table().len(),
        keys: &HostKeys { heads, head_dim: d },
    };
    let Some(lists) = site.read(&evidence)? else { return Ok(None) };
    if lists.len() != kv_heads {
        let what = format!("read: {} lists for {kv_heads} key heads", lists.len());
        return Err(tessera_core::Error::plan(what).into());
    }
    for (head, rows) in lists.iter().enumerate() {
        check_list("read", rows, store.table().positions(index, head).len())?;
    }
    Ok(Some(lists))
}
