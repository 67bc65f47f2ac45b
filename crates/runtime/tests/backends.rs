//! A session answers the same on either backbone, up to the arithmetic: candle computes in f32,
//! the cpu backbone with activations in int8.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::{CacheOptions, Pass, Reveal, Segment};
use tessera_model::toy::{Flavour, gguf};
use tessera_runtime::{Backend, Control, Message, Options, Prompt, Sampling, Session};

const TOKENS: usize = 24;

fn answer(session: &Session) -> (Vec<u32>, Vec<u32>) {
    let question = [Message::new("user", "Tell me a \u{e9}tude.")];
    let mut request = session.request(&Prompt::Chat(&question)).unwrap();
    request.sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    request.max_tokens = Some(TOKENS);
    let never = AtomicBool::new(false);
    let outcome = session.generate(&request, &mut |_| Control::Continue, &never).unwrap();
    (request.prompt, outcome.choices[0].tokens.clone())
}

/// Logits of what follows `tokens`.
fn logits(session: &Session, tokens: &[u32]) -> Vec<f32> {
    let mut cache = session.backbone().new_cache(CacheOptions::default()).unwrap();
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut segments = [Segment::causal(tokens, &positions, &mut *cache)];
    let mut reveal = Reveal::new();
    session.backbone().forward(&mut Pass::new(&mut segments), &mut reveal).unwrap();
    reveal.logits(0, 0).to_vec()
}

/// Where the texts part, the two candidates must have been nearly equal to both backbones: an
/// argmax may flip by rounding alone, and what follows then differs freely.
#[test]
fn both_backbones_give_nearly_the_same_greedy_text() {
    let directory = tempfile::tempdir().unwrap();
    for flavour in Flavour::ALL {
        let path = directory.path().join(format!("{flavour:?}.gguf"));
        std::fs::write(&path, gguf(flavour, 5)).unwrap();
        let open = |backend| {
            let options = Options { backend, ..Options::default() };
            Session::load("toy", &path, &options, &|_| {}).unwrap()
        };
        let (cpu, candle) = (open(Backend::Cpu), open(Backend::Candle));
        assert_eq!(candle.info().detail, "candle");
        let ((prompt, a), (same, b)) = (answer(&cpu), answer(&candle));
        assert_eq!(prompt, same);
        let shared = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        assert!(shared >= 2, "{flavour:?}: {a:?} and {b:?}");
        if shared < a.len().min(b.len()) {
            let context = [&prompt[..], &a[..shared]].concat();
            let (x, y) = (a[shared] as usize, b[shared] as usize);
            for session in [&cpu, &candle] {
                let logits = logits(session, &context);
                let gap = (logits[x] - logits[y]).abs();
                assert!(gap < 0.15, "{flavour:?}, token {shared}: {x} or {y}, {gap} apart");
            }
        }
    }
}

#[test]
fn threads_that_candle_cannot_take_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("toy.gguf");
    std::fs::write(&path, gguf(Flavour::Llama, 5)).unwrap();
    let options = Options { backend: Backend::Candle, threads: 777, ..Options::default() };
    let error = Session::load("toy", &path, &options, &|_| {}).err().unwrap();
    assert!(error.is_usage() && error.to_string().contains("RAYON_NUM_THREADS=777"), "{error}");
}
