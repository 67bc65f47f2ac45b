//! Tests of checks, on toys.

use tessera_core::entry::MethodCall;
use tessera_testkit::laws::repeating_toy;
use tessera_testkit::{Scripted, Words};

use super::*;
use crate::record::Word;
use crate::samples::{self, TOYS};

fn tasks() -> Vec<Task> {
    let task = |category: &str, i: u32| Task {
        category: category.to_owned(),
        name: format!("{category}-{i}"),
        tokens: (0..12).map(|j| (i * 7 + j * 3) % 50).collect(),
        expected: None,
    };
    vec![task("a", 1), task("b", 2), task("a", 3)]
}

fn plan() -> Plan {
    let sampling = Sampling::greedy();
    Plan { turns: 2, tokens: 20, sampling, seed: 0, hot: true, limit: None }
}

fn record_of(slug: &str, with: &[&str]) -> Record {
    let call = |slug: &str| MethodCall { id: slug.to_owned(), ..MethodCall::default() };
    let with: Vec<MethodCall> = with.iter().map(|slug| call(slug)).collect();
    let lineup = Lineup::new(TOYS, &call(slug), &with, &samples::offer()).unwrap();
    let (toy, words, tasks) = (repeating_toy(), Words::bytes(), tasks());
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let never = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut hear = |done, total| seen.push((done, total));
    let done = measure(model, &lineup, &tasks, &plan(), &never, &mut hear).unwrap();
    assert_eq!(seen, (0..6).map(|i| (i, 6)).collect::<Vec<_>>());
    done.record(model, &lineup, &plan(), samples::setting()).unwrap()
}

#[test]
fn counts_and_agreement_are_those_of_the_texts() {
    let record = record_of("prompt-lookup", &[]);
    let plain = &record.arms[0].overall;
    assert_eq!((plain.counts.per_pass(), plain.speed), (1.0, None));
    let method = &record.arm(Part::Method).unwrap().overall;
    assert_eq!(method.counts.committed, plain.counts.committed);
    assert!(method.counts.per_pass() > 1.0 && method.counts.accepted > 0);
    assert_eq!((method.text.same, method.text.texts, method.text.share), (3, 3, 1.0));
    assert_eq!(method.speed.unwrap().count, 3);
    // The prediction for the one prompt of a category by hand: its passes through the curve.
    let one = &record.arm(Part::Method).unwrap().categories[1];
    let cost: f64 = one.counts.passes.iter().map(|(&r, &n)| samples::cost(r) * n as f64).sum();
    let most = one.counts.committed as f64 / cost;
    assert!(one.predicted <= most && one.predicted > most * 0.5, "{one:?}");
    let names: Vec<&str> = record.arms[0].categories.iter().map(|r| r.category.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    // A drafter that guesses as the model does commits more per pass than one by chance.
    let control = &record.arm(Part::Control).unwrap().overall;
    assert!(control.counts.per_pass() < method.counts.per_pass());
    assert_eq!(control.text.same, 3);
}

#[test]
fn a_method_that_changes_the_text_is_found() {
    let record = record_of("gullible", &["wishful"]);
    let text = &record.arm(Part::Method).unwrap().overall.text;
    assert!(text.same < 3 && text.share < 1.0, "{text:?}");
    let first = text.first.as_ref().unwrap();
    assert!(first.plain != first.other && first.at >= 1);
    assert_eq!(record.verdict.word, Word::NotHere);
    assert!(record.verdict.reason.contains("tessera verify"), "{}", record.verdict.reason);
}

#[test]
fn time_and_ctrl_c_end_it_between_prompts() {
    let call = MethodCall { id: "wishful".to_owned(), ..MethodCall::default() };
    let lineup = Lineup::new(TOYS, &call, &[], &samples::offer()).unwrap();
    let (toy, words, tasks) = (Scripted::hashed(258, 512, 1, 4.0), Words::bytes(), tasks());
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let plan = Plan { limit: Some(Duration::ZERO), ..plan() };
    let never = AtomicBool::new(false);
    let done = measure(model, &lineup, &tasks, &plan, &never, &mut |_, _| {}).unwrap();
    let record = done.record(model, &lineup, &plan, samples::setting()).unwrap();
    assert_eq!((record.workload.prompts, record.workload.planned), (1, 3));
    let raised = AtomicBool::new(true);
    let stopped = measure(model, &lineup, &tasks, &plan, &raised, &mut |_, _| {});
    assert!(matches!(stopped, Err(Error::Stopped)));
}
