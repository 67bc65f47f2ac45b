//! Token recycling and its kin on toys: exact whatever the matrix holds, and worth its guesses where
//! a text repeats itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::dist::{Key, Sampling};
use tessera_core::entry::{Method, MethodCall, MethodEntry};
use tessera_core::{Control, Event, TokenId};
use tessera_engine::{CostCurve, Model, Outcome, Recipe, Request, generate};
use tessera_methods::ENTRIES;
use tessera_methods::draft::cascade::{self, Cascade, Merger};
use tessera_methods::draft::token_recycling::{self, Adjacency, Recycler, Shape, TokenRecycling};
use tessera_testkit::laws::{hashed_toy, repeating_toy};
use tessera_testkit::{Scripted, Words};

const VOCAB: TokenId = 258;

/// Rows full of random tokens, some of them unseen, some short, all the same in every run.
fn random_rows() -> Adjacency {
    let mut matrix = Adjacency::default();
    for token in 0..VOCAB {
        let key = Key::new(99, 0, token);
        let length = key.bits(100) as u32 % 10;
        // Repeats within a row, and tokens that no vocabulary has, are among them.
        matrix.set(token, (0..length).map(|i| (key.bits(i) % 300) as TokenId));
    }
    matrix
}

/// Every row full of token 0, as a matrix that was set to zero and never filled.
fn zero_rows() -> Adjacency {
    let mut matrix = Adjacency::default();
    (0..VOCAB).for_each(|token| matrix.set(token, [0; 8]));
    matrix
}

/// Rows that say what the repeating toy never says.
fn stale_rows() -> Adjacency {
    let mut matrix = Adjacency::default();
    (0..VOCAB).for_each(|token| matrix.set(token, (0..8).map(|i| (token * 7 + i * 16) % VOCAB)));
    matrix
}

const PAPER: TokenRecycling =
    TokenRecycling { template: Shape::Paper, budget: 0, recycle_prompt: false };

macro_rules! fuzzed {
    ($($name:ident: $ours:expr, $drafter:expr;)*) => {$(
        static $name: MethodEntry = MethodEntry {
            build: |_| Ok(Method::Draft(Box::new($drafter))),
            ..$ours
        };
    )*};
}

fuzzed! {
    RANDOM: token_recycling::ENTRY, Recycler::with(&PAPER, random_rows());
    ZERO: token_recycling::ENTRY, Recycler::with(&PAPER, zero_rows());
    STALE: token_recycling::ENTRY, Recycler::with(&PAPER, stale_rows());
    MERGED_RANDOM: cascade::ENTRY, Merger::with(all_guesses(), random_rows());
    MERGED_ZERO: cascade::ENTRY, Merger::with(all_guesses(), zero_rows());
    MERGED_STALE: cascade::ENTRY, Merger::with(all_guesses(), stale_rows());
}

fn all_guesses() -> Cascade {
    Cascade { budget: 20, floor: 0.0, ..Cascade::default() }
}

fn run(toy: &Scripted, recipe: Recipe, sampling: Sampling) -> (Outcome, Vec<usize>) {
    let words = Words::bytes();
    let mut request = Request { recipe, sampling, ..Request::new(words.encode_bytes(b"a prompt")) };
    request.max_tokens = Some(120);
    request.ignore_end = true;
    let model = Model { backbone: toy, vocabulary: &words, draft: None, filling: None };
    let mut steps = Vec::new();
    let mut listen = |event: Event<'_>| {
        if let Event::Step { committed, .. } = event {
            steps.push(committed);
        }
        Control::Continue
    };
    let outcome = generate(model, &request, &mut listen, &AtomicBool::new(false)).unwrap();
    (outcome, steps)
}

fn recipe(text: &str) -> Recipe {
    Recipe::resolve(ENTRIES, &[MethodCall::parse(ENTRIES, text).unwrap()]).unwrap()
}

/// Tokens committed per decoding pass.
fn mean(outcome: &Outcome) -> f64 {
    outcome.stats.decode_tokens as f64 / (outcome.stats.passes - 1) as f64
}

#[test]
fn the_text_does_not_depend_on_what_the_matrix_holds() {
    for entry in [&RANDOM, &ZERO, &STALE, &MERGED_RANDOM, &MERGED_ZERO, &MERGED_STALE] {
        let call = MethodCall { id: entry.slug.to_owned(), ..MethodCall::default() };
        for toy in [hashed_toy(11), repeating_toy()] {
            for sampling in [Sampling::greedy(), Sampling::neutral(), Sampling::default()] {
                let recipe = Recipe::resolve(&[entry], std::slice::from_ref(&call)).unwrap();
                let (with, _) = run(&toy, recipe, sampling);
                let (plain, _) = run(&toy, Recipe::plain(), sampling);
                assert_eq!(with.choices, plain.choices, "{}", entry.slug);
                assert!(with.stats.drafted_tokens > 0);
            }
        }
    }
}

#[test]
fn steps_add_up_and_commit_1_to_7_tokens_with_the_papers_tree() {
    let toy = repeating_toy();
    let (outcome, steps) = run(&toy, recipe("token-recycling:template=paper"), Sampling::greedy());
    assert!(steps.iter().all(|n| (1..=7).contains(n)), "{steps:?}");
    assert_eq!(steps.iter().sum::<usize>(), outcome.stats.decode_tokens);
    assert_eq!(outcome.choices[0].tokens.len(), outcome.stats.drawn_tokens);
}

#[test]
fn a_tree_of_the_root_only_is_the_plain_run_pass_by_pass() {
    let toy = repeating_toy();
    for slug in ["token-recycling", "cascade", "random-tree", "skipdecode-draft"] {
        let (with, _) = run(&toy, recipe(&format!("{slug}:budget=0")), Sampling::neutral());
        let (plain, _) = run(&toy, Recipe::plain(), Sampling::neutral());
        assert_eq!(with.choices, plain.choices);
        assert_eq!((with.stats.rows, with.stats.drafted_tokens), (plain.stats.rows, 0));
    }
}

#[test]
fn guesses_are_worth_their_rows_where_text_repeats_and_random_ones_are_not() {
    let toy = repeating_toy();
    let passes = |text: &str| mean(&run(&toy, recipe(text), Sampling::greedy()).0);
    let (tree, chain) = (passes("token-recycling"), passes("token-recycling:template=chain"));
    let (paper, merged) = (passes("token-recycling:template=paper"), passes("cascade"));
    let random = passes("random-tree:words=vocabulary");
    assert!(
        tree > 1.5 && chain > 1.2 && paper >= tree && merged > tree,
        "{tree} {chain} {paper} {merged}"
    );
    assert!(random < 1.1, "{random}");
}

#[test]
fn what_does_not_pay_by_the_cost_curve_is_left_out() {
    let points = vec![(1, 1.0), (2, 1.0), (4, 1.2), (8, 1.5), (16, 2.9), (32, 5.2)];
    let curve = CostCurve { points, draft: 0.0, draft_row: 0.0 };
    for slug in ["token-recycling:template=paper", "random-tree:template=paper", "cascade"] {
        let toy = hashed_toy(11);
        let (with, _) =
            run(&toy, recipe(slug).with_curve(curve.clone()).unwrap(), Sampling::greedy());
        let (plain, _) = run(&toy, Recipe::plain(), Sampling::greedy());
        assert_eq!(with.choices, plain.choices);
        let rows = with.stats.rows - plain.stats.rows;
        assert!(rows < 4 * plain.stats.passes, "{slug}: {rows} rows of guesses that fail");
    }
}
