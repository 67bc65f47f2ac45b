//! Files of models that fill masks: a session finds out by itself how they are read.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::dist::Sampling;
use tessera_core::{Control, Event, Filling};
use tessera_methods::ENTRIES;
use tessera_model::toy::{self, Flavour};
use tessera_runtime::{MethodCall, Options, Prompt, Recipe, Session};

fn options() -> Options {
    Options { threads: 1, offline: true, ..Options::default() }
}

#[test]
fn a_file_says_how_its_masks_are_filled_and_a_session_fills_them() {
    let scratch = tempfile::tempdir().unwrap();
    for shift in [false, true] {
        let path = scratch.path().join("denoiser.gguf");
        std::fs::write(&path, toy::denoiser_gguf(shift, 5)).unwrap();
        let session = Session::load("denoiser", &path, &options(), &|_| ()).unwrap();
        assert_eq!(session.info().arch, if shift { "dream" } else { "llada" });
        assert_eq!(session.filling(), Some(Filling { mask: 258, shift, any_subset: false }));
        assert!(session.offer().mask_token && !session.offer().any_subset);
        // The file calls the mask a word; it is none, and no text makes it.
        assert!(session.vocabulary().is_control(258));
        assert!(!session.vocabulary().encode("a <|mask|> b").contains(&258));
        for methods in [&[][..], &["prefix-cache", "blocks:length=4", "freedave"]] {
            let mut request = session.request(&Prompt::Raw("Hello")).unwrap();
            let calls: Vec<MethodCall> =
                methods.iter().map(|m| MethodCall::parse(ENTRIES, m).unwrap()).collect();
            request.recipe = Recipe::resolve(ENTRIES, &calls).unwrap();
            request.sampling = Sampling::neutral();
            (request.max_tokens, request.ignore_end) = (Some(12), true);
            let mut filled = 0;
            let mut listener = |event: Event<'_>| {
                if let Event::Denoised { positions, .. } = event {
                    filled += positions.len();
                }
                Control::Continue
            };
            let made = session.generate(&request, &mut listener, &AtomicBool::new(false)).unwrap();
            assert_eq!((made.choices[0].tokens.len(), filled), (12, 12), "{methods:?}");
            assert!(!made.choices[0].tokens.contains(&258));
        }
        let error = session.expect_causal("bench").unwrap_err();
        assert!(error.is_usage());
        let line = error.to_string();
        assert!(
            line.starts_with("bench: is for") && line.contains("denoiser fills masks"),
            "{line}"
        );
    }
}

#[test]
fn a_model_that_writes_any_subset_does_so_without_being_asked_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("subsets.gguf");
    std::fs::write(&path, toy::any_subset_gguf(5)).unwrap();
    let session = Session::load("subsets", &path, &options(), &|_| ()).unwrap();
    assert!(session.offer().any_subset && session.filling().unwrap().any_subset);
    let run = |method: &[&str], template: &[(u32, u32)]| {
        let mut request = session.request(&Prompt::Raw("Hello")).unwrap();
        let calls: Vec<MethodCall> =
            method.iter().map(|m| MethodCall::parse(ENTRIES, m).unwrap()).collect();
        request.recipe = Recipe::resolve(ENTRIES, &calls).unwrap();
        request.sampling = Sampling { temperature: 0.3, ..Sampling::neutral() };
        (request.max_tokens, request.ignore_end) = (Some(24), true);
        request.canvas.template = template.to_vec();
        let cancel = AtomicBool::new(false);
        session.generate(&request, &mut |_| Control::Continue, &cancel)
    };
    for template in [&[][..], &[(3, 65), (4, 66), (17, 67)]] {
        let plain = run(&[], template).unwrap();
        let holes = 24 - template.len();
        // The prompt's pass, then one for every hole.
        assert_eq!(plain.stats.passes, 1 + holes);
        let guessed = run(&["any-subset"], template).unwrap();
        assert_eq!(guessed.choices, plain.choices);
        assert!(guessed.stats.passes <= plain.stats.passes);
        assert!(guessed.stats.drafted_tokens > 0);
    }
    let error = run(&["threshold"], &[]).unwrap_err().to_string();
    assert!(error.contains("`threshold`") || error.contains("threshold"), "{error}");
    assert!(error.contains("any-subset"), "{error}");
}

#[test]
fn a_model_that_fills_masks_is_no_draft_model() {
    let scratch = tempfile::tempdir().unwrap();
    let (target, draft) = (scratch.path().join("target.gguf"), scratch.path().join("draft.gguf"));
    std::fs::write(&target, toy::gguf(Flavour::Llama, 1)).unwrap();
    std::fs::write(&draft, toy::denoiser_gguf(false, 1)).unwrap();
    let draft_model = Some(draft.to_string_lossy().into_owned());
    let options = Options { draft_model, ..options() };
    let error = Session::load("target", &target, &options, &|_| ()).err().unwrap().to_string();
    assert!(error.starts_with("draft-model: is for") && error.contains("fills masks"), "{error}");
}
