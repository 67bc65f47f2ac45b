//! Requests that share passes give what each gives alone: every recipe, requests that come and go, and
//! one that fails among them.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_model::toy::{self, Flavour};
use tessera_runtime::{
    Control, CostCurve, Event, FinishReason, METHODS, MethodCall, Options, Outcome, Recipe,
    Request, Sampling, Session, Shape,
};

const RECIPES: &[&str] = &[
    "",
    "prompt-lookup",
    "token-recycling",
    "cascade:budget=8",
    "random-tree",
    "skipdecode-draft",
    "skipdecode:e_max=0.9,e_min=0.5",
    "treekv:budget=24",
    "snapkv:budget=16",
    "streaming:budget=16",
    "fasa",
    "token-sparse-attention",
    "regex:pattern=[a-z ]{40}",
];

fn session() -> Session {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("toy.gguf");
    std::fs::write(&path, toy::gguf(Flavour::Llama, 5)).unwrap();
    let options = Options { threads: 1, offline: true, ..Options::default() };
    Session::load("toy", &path, &options, &|_| ()).unwrap()
}

fn recipe(text: &str) -> Recipe {
    if text.is_empty() {
        return Recipe::plain();
    }
    let call = MethodCall::parse(METHODS, text).unwrap();
    Recipe::resolve(METHODS, &[call]).unwrap()
}

/// A request that differs from the others in everything.
fn request(session: &Session, i: usize, recipe: Recipe) -> Request {
    let words = ["tides and the moon ", "abc abc abc ", "a list of bees, ", "1 2 3 4 1 2 3 4 "];
    let text = words[i % words.len()].repeat(1 + i * 5 % 7);
    let mut request = Request::new(session.vocabulary().encode(&text));
    request.sampling = match recipe.is_constrained() {
        true => Sampling::neutral(),
        false => [Sampling::greedy(), Sampling::default()][i % 2],
    };
    request.seed = i as u64;
    request.max_tokens = Some([1, 7, 20, 45][i % 4]);
    request.choices = 1 + i % 3;
    request.ignore_end = i.is_multiple_of(5) && !recipe.is_constrained();
    request.recipe = recipe;
    request
}

fn alone(session: &Session, request: &Request) -> Outcome {
    session.generate(request, &mut |_| Control::Continue, &AtomicBool::new(false)).unwrap()
}

/// Adds the requests a few at a time while others run; returns what came of them.
fn together(session: &Session, requests: &[Request], shape: Shape) -> Vec<Option<Outcome>> {
    let mut batch = session.batch(shape);
    let mut outcomes: Vec<Option<Outcome>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.iter().enumerate();
    let mut steps = 0;
    loop {
        let come = if steps % 3 == 0 { 2 } else { 0 };
        let mut last = true;
        for (id, request) in waiting.by_ref().take(come) {
            let ready = session.ready(request.clone()).unwrap();
            assert!(batch.takes(&ready).unwrap());
            let sequence = session.sequence().unwrap();
            let listener = Box::new(|_: Event<'_>| Control::Continue);
            assert!(batch.add(id as u64, sequence, ready, listener).is_ok());
            last = false;
        }
        if batch.is_empty() && last && come > 0 {
            return outcomes;
        }
        for ended in batch.step() {
            outcomes[ended.id as usize] = Some(ended.outcome.unwrap());
        }
        steps += 1;
    }
}

#[test]
fn every_recipe_gives_the_same_text_beside_others() {
    let session = session();
    let curve = CostCurve { points: vec![(1, 1.0), (8, 1.5)], draft: 0.6, draft_row: 0.0 };
    let mut requests = Vec::new();
    for (i, text) in RECIPES.iter().cycle().take(3 * RECIPES.len()).enumerate() {
        let mut own = recipe(text);
        if i >= 2 * RECIPES.len() {
            own = own.with_curve(curve.clone()).unwrap();
        }
        requests.push(request(&session, i, own));
    }
    let expected: Vec<Outcome> = requests.iter().map(|r| alone(&session, r)).collect();
    for shape in [Shape::default(), Shape { beside: 3, alone: 7 }] {
        for (i, made) in together(&session, &requests, shape).into_iter().enumerate() {
            let text = RECIPES[i % RECIPES.len()];
            assert_eq!(
                made.unwrap().choices,
                expected[i].choices,
                "{text}, request {i}, {shape:?}"
            );
        }
    }
}

#[test]
fn texts_share_passes() {
    let session = session();
    let requests: Vec<Request> = (0..8)
        .map(|i| {
            let mut one = request(&session, i, Recipe::plain());
            (one.max_tokens, one.choices, one.ignore_end) = (Some(16), 1, true);
            one
        })
        .collect();
    let mut batch = session.batch(Shape::default());
    for (id, request) in requests.iter().enumerate() {
        let listener = Box::new(|_: Event<'_>| Control::Continue);
        let sequence = session.sequence().unwrap();
        assert!(batch.add(id as u64, sequence, request.clone(), listener).is_ok());
    }
    let mut steps = 0;
    while !batch.is_empty() {
        batch.step();
        steps += 1;
    }
    // The prompts take a pass or two, and the others are shared by all eight.
    assert!((16..24).contains(&steps), "{steps}");
}

#[test]
fn one_that_is_stopped_or_fails_does_not_touch_the_others() {
    let session = session();
    let mut requests: Vec<Request> =
        (0..6).map(|i| request(&session, 4 * i + 3, Recipe::plain())).collect();
    requests.iter_mut().for_each(|r| r.ignore_end = true);
    let expected: Vec<Outcome> = requests.iter().map(|r| alone(&session, r)).collect();
    let mut batch = session.batch(Shape::default());
    for (id, request) in requests.iter().enumerate() {
        // Request 2 is stopped by its listener, request 4 by the owner.
        let listener = move |event: Event<'_>| match event {
            Event::Step { .. } if id == 2 => Control::Stop,
            _ => Control::Continue,
        };
        let sequence = session.sequence().unwrap();
        assert!(batch.add(id as u64, sequence, request.clone(), Box::new(listener)).is_ok());
    }
    let refused = Request { max_tokens: Some(1), ..Request::new(Vec::new()) };
    let listener = Box::new(|_: Event<'_>| Control::Continue);
    assert!(batch.add(9, session.sequence().unwrap(), refused, listener).is_err());
    let mut steps = 0;
    while !batch.is_empty() {
        for ended in batch.step() {
            let (id, outcome) = (ended.id as usize, ended.outcome.unwrap());
            if id == 2 || id == 4 {
                assert_eq!(outcome.choices[0].reason, FinishReason::Cancelled);
                let made = &outcome.choices[0].tokens;
                assert!(expected[id].choices[0].tokens.starts_with(made));
            } else {
                assert_eq!(outcome.choices, expected[id].choices);
            }
        }
        steps += 1;
        if steps == 5 {
            batch.stop(4);
        }
    }
}
