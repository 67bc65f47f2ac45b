//! Every drafter on real models: the plain run's text, token for token, greedy and sampled, with and
//! without a cost curve, and again when the drafter has seen other texts.
//!
//! The gate runs a sample; `TESSERA_LONG=1` runs 50 prompts of 256 tokens on SmolLM2 and 10 of 128 on
//! Qwen 0.5B. `--nocapture` shows the tokens committed per pass.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use tessera_core::entry::Method;
use tessera_core::{Draft, DraftContext, DraftTree, Verdict};
use tessera_methods::draft::token_recycling::{self, Adjacency};
use tessera_methods::template::{RANK_PRIOR, RANKS};
use tessera_model::store::testing::find_test_model;
use tessera_runtime::{
    Control, CostCurve, METHODS, Message, MethodCall, MethodEntry, Options, Outcome, Prompt,
    Recipe, Request, Sampling, Sequence, Session,
};

const RECIPES: &[&str] = &[
    "prompt-lookup",
    "token-recycling",
    "token-recycling:template=paper",
    "token-recycling:template=chain,recycle_prompt=true",
    "cascade",
    "random-tree",
    "skipdecode-draft",
];

const SUBJECTS: [&str; 10] =
    ["tides", "bread", "sorting", "bees", "maps", "glass", "chess", "volcanoes", "bicycles", "ink"];

/// Chat, code, repetition and rewriting, by number.
fn prompt(i: usize) -> String {
    let subject = SUBJECTS[i / 5 % SUBJECTS.len()];
    match i % 5 {
        0 => format!("Explain {subject} to a child in a few sentences."),
        1 => format!("Write a Python function that counts {subject} in a list of strings."),
        2 => format!("Repeat this line ten times: all about {subject}, every single day."),
        3 => format!(
            "Rename `n` to `count` and print the whole function again:\n\ndef {subject}(n):\n    \
             total = 0\n    for i in range(n):\n        total += i * n\n    return total / n\n"
        ),
        _ => format!("List ten facts about {subject}, numbered."),
    }
}

fn recipe(text: &str) -> Recipe {
    Recipe::resolve(METHODS, &[MethodCall::parse(METHODS, text).unwrap()]).unwrap()
}

fn curve() -> CostCurve {
    let points = vec![(1, 1.0), (2, 1.0), (4, 1.2), (8, 1.5), (16, 2.9), (32, 5.2), (81, 13.0)];
    CostCurve { points, draft: 0.6, draft_row: 0.0 }
}

fn answer(session: &Session, sequence: &mut Sequence, request: &Request) -> Outcome {
    let cancel = AtomicBool::new(false);
    session.generate_in(sequence, request, &mut |_| Control::Continue, &cancel).unwrap()
}

/// Compares every recipe with the plain run on `prompts` prompts of `tokens` tokens.
fn equal_to_plain(model: &str, prompts: usize, tokens: usize) {
    let Some(path) = find_test_model(model) else { return };
    let session = Session::load(model, &path, &Options::default(), &|_| {}).unwrap();
    let samplings = [Sampling::greedy(), Sampling::default()];
    let mut requests: Vec<Request> = (0..prompts)
        .map(|i| {
            let mut request =
                session.request(&Prompt::Chat(&[Message::new("user", prompt(i))])).unwrap();
            request.sampling = samplings[i % 2];
            request.seed = i as u64;
            request.max_tokens = Some(tokens);
            request
        })
        .collect();
    let plain: Vec<Outcome> = requests
        .iter()
        .map(|request| answer(&session, &mut session.sequence().unwrap(), request))
        .collect();
    for text in RECIPES {
        for with_curve in [false, true] {
            let mut recipe = recipe(text);
            if with_curve {
                recipe = recipe.with_curve(curve()).unwrap();
            }
            // One sequence for all prompts: what the drafter has learnt is of other texts.
            let mut sequence = session.sequence().unwrap();
            let (mut passes, mut made) = (0, 0);
            for (i, (request, plain)) in requests.iter_mut().zip(&plain).enumerate() {
                request.recipe = recipe.clone();
                let with = answer(&session, &mut sequence, request);
                assert_eq!(with.choices, plain.choices, "{model}, {text}, prompt {i}");
                passes += with.stats.passes - 1;
                made += with.stats.decode_tokens;
            }
            let mean = made as f64 / passes as f64;
            let word = if with_curve { "with" } else { "without" };
            println!("{model}, {text}, {word} a curve: {mean:.2} tokens per pass");
        }
    }
}

fn long() -> bool {
    std::env::var_os("TESSERA_LONG").is_some_and(|v| v == "1")
}

#[test]
fn smollm2_says_the_same_with_every_drafter() {
    let (prompts, tokens) = if long() { (50, 256) } else { (5, 32) };
    equal_to_plain("smollm2", prompts, tokens);
}

#[test]
fn qwen_says_the_same_with_every_drafter() {
    let (prompts, tokens) = if long() { (10, 128) } else { (2, 12) };
    equal_to_plain("qwen2.5-coder:0.5b", prompts, tokens);
}

#[test]
fn a_schedule_of_layers_is_plain_when_all_run_and_leaves_no_rows_behind() {
    let Some(path) = find_test_model("smollm2") else { return };
    let session = Session::load("smollm2", &path, &Options::default(), &|_| {}).unwrap();
    let mut request = session.request(&Prompt::Chat(&[Message::new("user", prompt(0))])).unwrap();
    request.max_tokens = Some(24);
    request.choices = 2;
    let mut sequence = session.sequence().unwrap();
    let plain = answer(&session, &mut sequence, &request);
    for (text, same) in [("skipdecode:e_max=1,e_min=1", true), ("skipdecode", false)] {
        request.recipe = recipe(text);
        let with = answer(&session, &mut sequence, &request);
        assert_eq!(with.choices == plain.choices, same, "{text}");
        assert_eq!(sequence.tokens(), request.prompt);
    }
    // What the schedule skipped is not read by the next request.
    request.recipe = Recipe::plain();
    assert_eq!(answer(&session, &mut sequence, &request).choices, plain.choices);
}

/// Guesses nothing and counts at which rank of its predecessor's row each token is.
#[derive(Debug, Default)]
struct Watch(Adjacency);

/// Tokens by rank; the last place counts those of no rank.
static FOUND: Mutex<[u32; RANKS + 1]> = Mutex::new([0; RANKS + 1]);

static WATCH: MethodEntry = MethodEntry {
    build: |_| Ok(Method::Draft(Box::new(Watch::default()))),
    ..token_recycling::ENTRY
};

impl Draft for Watch {
    fn budget(&self) -> usize {
        0
    }

    fn draft(&mut self, _: &mut DraftContext<'_>, _: &mut DraftTree) -> tessera_core::Result<()> {
        Ok(())
    }

    fn observe(&mut self, verdict: &Verdict<'_>) -> tessera_core::Result<()> {
        let row = verdict.tokens.last().map_or(&[][..], |&root| self.0.row(root));
        if !row.is_empty() {
            let rank = row.iter().position(|&t| t == verdict.next).unwrap_or(RANKS);
            FOUND.lock().unwrap()[rank] += 1;
        }
        self.0.recycle(verdict);
        Ok(())
    }
}

#[test]
fn ranks_come_true_in_the_order_of_their_prior() {
    let Some(path) = find_test_model("smollm2") else { return };
    let session = Session::load("smollm2", &path, &Options::default(), &|_| {}).unwrap();
    let call = MethodCall { id: WATCH.slug.to_owned(), ..MethodCall::default() };
    let mut sequence = session.sequence().unwrap();
    let (prompts, tokens) = if long() { (50, 256) } else { (5, 96) };
    for i in 0..prompts {
        let message = [Message::new("user", prompt(i))];
        let mut request = session.request(&Prompt::Chat(&message)).unwrap();
        request.recipe = Recipe::resolve(&[&WATCH], std::slice::from_ref(&call)).unwrap();
        request.sampling = Sampling::greedy();
        request.max_tokens = Some(tokens);
        answer(&session, &mut sequence, &request);
    }
    let found = *FOUND.lock().unwrap();
    let all = f64::from(found.iter().sum::<u32>());
    let shares = found.map(|n| f64::from(n) / all);
    println!("smollm2, greedy: shares by rank {shares:.3?} of {all} tokens; prior {RANK_PRIOR:?}");
    assert!(shares[0] > shares[1] && shares[2..RANKS].iter().all(|s| *s < shares[1]), "{shares:?}");
}
