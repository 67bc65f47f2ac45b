//! The faithfulness metrics at their limits, and probes in one batch, on seeded random models.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use tessera_model::cpu::{CpuBackbone, Options};
use tessera_model::toy::{self, Flavour};
use tessera_runtime::reagent::faithful::Faithful;
use tessera_runtime::reagent::{ReAGent, explain_probes};
use tessera_testkit::Words;

fn model(flavour: Flavour) -> CpuBackbone {
    let mut blueprint = toy::blueprint(flavour);
    blueprint.spec.vocab = 258;
    let weights = toy::weights(&blueprint, 9);
    CpuBackbone::load(blueprint, &weights, Options::default(), &|_| ()).unwrap()
}

const CONTEXT: [u32; 8] = [72, 101, 108, 108, 111, 32, 119, 111];

#[test]
fn whole_importance_keeps_everything_and_none_masks_everything() {
    for flavour in Flavour::ALL {
        let model = model(flavour);
        let positions: Vec<usize> = (1..8).collect();
        let faithful = Faithful::new(&model, &CONTEXT, &positions).unwrap();
        assert!(faithful.nothing() > 0.0);
        // Everything kept is the model itself; everything gone is the distance that metrics divide by.
        let whole = faithful.metrics(&[1.0; 7], 3, 0).unwrap();
        assert!(whole.sufficiency > 1.0 - 1e-6, "{flavour:?}: {whole:?}");
        assert!((whole.comprehensiveness - 1.0).abs() < 1e-6, "{flavour:?}: {whole:?}");
        let none = faithful.metrics(&[0.0; 7], 3, 0).unwrap();
        assert!(none.sufficiency < 1e-6 && none.comprehensiveness < 1e-6, "{flavour:?}: {none:?}");
        let some = faithful.metrics(&[0.5, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1], 8, 0).unwrap();
        assert!((0.0..=1.0).contains(&some.sufficiency) && some.comprehensiveness > 0.0);
        assert_eq!(some, faithful.metrics(&[0.5, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1], 8, 0).unwrap());
    }
}

#[test]
fn a_batch_of_probes_is_its_single_runs_bit_for_bit() {
    let (model, words) = (model(Flavour::Qwen), Words::bytes());
    let positions: Vec<usize> = (0..8).collect();
    let settings = ReAGent { max_steps: 6, ..ReAGent::default() };
    let run = |numbers: &[u32]| {
        let none = &mut |_, _| ();
        explain_probes(&model, &words, &settings, &CONTEXT, &positions, None, numbers, none)
            .unwrap()
    };
    let all = run(&[0, 1, 2, 3, 4]);
    for number in 0..5 {
        assert_eq!(run(&[number]).probes[0], all.probes[number as usize]);
    }
}
