//! What only the candle backbone promises: plain `f32`, gradients, refusals by name.

use super::naive::Naive;
use candle_core::Tensor;
use tessera_core::{
    Backbone, CacheOptions, Condition, HiddenSite, Input, Keep, KeepPlan, KeyForm, KeySet, KvStore,
    Layers, Mask, Pass, Position, Reveal, RowsOut, Segment, Write,
};
use tessera_model::candle::{CandleBackbone, CandleOptions};
use tessera_model::toy::{self, Flavour, Stream};

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut stream = Stream::new(seed);
    (0..n).map(|_| stream.below(97)).collect()
}

fn cache(backbone: &dyn Backbone) -> Box<dyn KvStore> {
    backbone.new_cache(CacheOptions { capacity: 0, form: KeyForm::Rotated }).unwrap()
}

/// Logits of `tokens` appended to `cache` as a chain, one row each.
fn append(backbone: &dyn Backbone, cache: &mut dyn KvStore, tokens: &[u32]) -> Vec<f32> {
    let next = cache.table().next_position();
    let positions: Vec<Position> = (next..next + tokens.len() as u32).collect();
    let segment = Segment::causal(tokens, &positions, cache);
    let mut segments = [Segment { rows_out: RowsOut::All, ..segment }];
    let mut reveal = Reveal::new();
    backbone.forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
    reveal.all_logits().to_vec()
}

fn toy_candle(options: CandleOptions) -> CandleBackbone {
    CandleBackbone::random(toy::blueprint(Flavour::Qwen), 3, options).unwrap()
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let backbone = toy_candle(CandleOptions::default());
    let other = Naive::new(backbone.blueprint(), &toy::weights(backbone.blueprint(), 1), true);
    let (mut own, mut foreign) = (cache(&backbone), cache(&other));
    append(&backbone, &mut *own, &tokens(4, 1));
    let keeps = (0..4).map(|i| Keep::rows(0..i)).collect();
    own.compact(&KeepPlan::per_head(2, 2, keeps).unwrap()).unwrap();
    let text = [1, 2];
    let mut expect = |needle: &str,
                      edit: &dyn Fn(&mut Segment<'_>),
                      edit_pass: &dyn Fn(&mut Pass<'_, '_>),
                      foreign_cache: bool| {
        let cache: &mut dyn KvStore = if foreign_cache { &mut *foreign } else { &mut *own };
        let mut segments = [Segment::causal(&text, &[4, 5], cache)];
        edit(&mut segments[0]);
        let mut pass = Pass::new(&mut segments);
        edit_pass(&mut pass);
        let error = backbone.forward(&mut pass, &mut Reveal::new()).unwrap_err().to_string();
        assert!(error.contains(needle), "{error:?} does not name {needle:?}");
    };
    let (no, none) = (|_: &mut Segment<'_>| {}, |_: &mut Pass<'_, '_>| {});
    expect("conditions", &|s| s.condition = Some(Condition::Time(0.5)), &none, false);
    expect("another backbone", &no, &none, true);
    expect("keys: row 0", &|s| s.keys = Some(KeySet::Rows(&[0])), &none, false);
    expect(
        "keys: 1 lists",
        &|s| s.keys = Some(KeySet::PerHead(const { &[Vec::new()] })),
        &none,
        false,
    );
    expect("write: row 2", &|s| s.write = Write::Rows(&[2, 0]), &none, false);
    expect("bias", &|s| s.bias = &[f32::NAN; 10], &none, false);
    expect("layers", &no, &|p| p.layers = Layers::First(3), false);
    expect("layers", &no, &|p| p.layers = Layers::Only(&[1, 0]), false);
    expect("layers", &no, &|p| p.layers = Layers::Only(&[2]), false);
    expect("taps", &no, &|p| p.taps.keys = &[2], false);
    expect("taps", &no, &|p| p.taps.hidden = &[HiddenSite::After(2)], false);
    assert!(!backbone.capabilities().condition);
    let mut weights = toy::weights(backbone.blueprint(), 1);
    weights.remove("blk.1.ffn_up.weight");
    let load = |weights: &toy::ToyWeights| {
        let made = CandleBackbone::from_weights(
            toy::blueprint(Flavour::Qwen),
            weights,
            CandleOptions::default(),
        );
        made.err().unwrap().to_string()
    };
    assert!(load(&weights).contains("blk.1.ffn_up.weight"));
    weights.insert("blk.1.ffn_up.weight".into(), (vec![64, 96], vec![0.0; 64 * 96]));
    assert!(load(&weights).contains("[96, 64]"));
}

#[test]
fn without_rounding_the_reference_is_met_closely() {
    for flavour in Flavour::ALL {
        let blueprint = toy::blueprint(flavour);
        let weights = toy::weights(&blueprint, 3);
        let options = CandleOptions { kv_f16: false, ..CandleOptions::default() };
        let tested = CandleBackbone::from_weights(blueprint.clone(), &weights, options).unwrap();
        let reference = Naive::new(&blueprint, &weights, false);
        let text = tokens(24, 5);
        let run = |b: &dyn Backbone| append(b, &mut *cache(b), &text);
        for (a, b) in run(&reference).iter().zip(run(&tested)) {
            assert!((a - b).abs() < 3e-5, "{flavour:?}: {a} and {b}");
        }
    }
}

#[test]
fn gradients_reach_every_weight() {
    for flavour in Flavour::ALL {
        let options = CandleOptions { kv_f16: false, train: true, ..CandleOptions::default() };
        let backbone = CandleBackbone::random(toy::blueprint(flavour), 4, options).unwrap();
        let text = tokens(12, 6);
        let positions: Vec<Position> = (0..12).collect();
        let loss = || -> Tensor {
            let mut segments = [Segment {
                input: Input::Tokens(&text),
                positions: &positions,
                mask: Mask::Causal,
                keys: None,
                bias: &[],
                write: Write::Discard,
                rows_out: RowsOut::All,
                condition: None,
                cache: None,
            }];
            let mut pass = Pass::new(&mut segments);
            let shown = backbone.forward_tensors(&mut pass).unwrap();
            // Any smooth function of all logits will do.
            shown.logits[0].as_ref().unwrap().sin().unwrap().mean_all().unwrap()
        };
        let grads = loss().backward().unwrap();
        let mut stream = Stream::new(9);
        assert_eq!(backbone.vars().len(), toy::weights(backbone.blueprint(), 4).len());
        for (name, var) in backbone.vars() {
            let grad = grads.get(var).unwrap_or_else(|| panic!("no gradient for {name}"));
            let grad = grad.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let old = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // Along a random direction, the slope by differences and by the gradient.
            let way: Vec<f32> = old.iter().map(|_| stream.normal()).collect();
            let norm = way.iter().map(|w| w * w).sum::<f32>().sqrt();
            let expected: f32 = grad.iter().zip(&way).map(|(g, w)| g * w / norm).sum();
            let step = 1e-2;
            let at = |sign: f32| {
                let moved: Vec<f32> =
                    old.iter().zip(&way).map(|(x, w)| x + sign * step * w / norm).collect();
                let moved = Tensor::from_vec(moved, var.shape(), var.device()).unwrap();
                var.set(&moved).unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let found = (at(1.0) - at(-1.0)) / (2.0 * step);
            let back = Tensor::from_vec(old.clone(), var.shape(), var.device()).unwrap();
            var.set(&back).unwrap();
            assert!(
                (found - expected).abs() < 2e-4 + 0.05 * expected.abs(),
                "{flavour:?} {name}: {found} by differences, {expected} by the gradient"
            );
        }
    }
}
