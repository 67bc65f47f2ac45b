//! A check of methods that fill masks, on a source whose every conditional is known.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::AtomicBool;

use tessera_core::Filling;
use tessera_core::dist::Sampling;
use tessera_core::entry::MethodCall;
use tessera_engine::{CostCurve, Model};
use tessera_measure::check::{Plan, Setting, Task, measure};
use tessera_measure::lineup::Lineup;
use tessera_measure::record::{ModelLine, Part, Record, Word};
use tessera_measure::workload::Expected;
use tessera_measure::{table, trial};
use tessera_methods::ENTRIES;
use tessera_testkit::{Chain, Words};

fn record(method: &str) -> Record {
    record_with(method, false, false)
}

/// With `any_subset`, of a model that writes one hole after another; with `whole`, right answers are whole
/// texts.
fn record_with(method: &str, any_subset: bool, whole: bool) -> Record {
    let chain = Chain::seeded(6, 4, 8.0);
    let (denoiser, writer) = (chain.denoiser(128), chain.writer(128));
    let letters = Words::new((0..=chain.states()).map(|i| [b'a' + i as u8]));
    let filling = Some(Filling { any_subset, ..chain.filling() });
    let model = Model { backbone: &denoiser, vocabulary: &letters, draft: Some(&writer), filling };
    let mut tasks: Vec<Task> = (0..6)
        .map(|i| Task {
            category: "story".to_owned(),
            name: format!("story-{i}"),
            tokens: vec![i % 6, (i + 2) % 6],
            expected: None,
        })
        .collect();
    // Three that have a right answer: what the template says, something else, and what nobody can know.
    let given = vec![(0, 3), (1, 2)];
    for (i, tokens) in [vec![3, 2], vec![3, 4], vec![3, 2, 9]].into_iter().enumerate() {
        let template = given.clone();
        let expected = Some(Expected { tokens, template, length: 4, whole, ..Expected::default() });
        let name = format!("known-{i}");
        tasks.push(Task { category: "known".to_owned(), name, tokens: vec![1, 2], expected });
    }
    let call = MethodCall::parse(ENTRIES, method).unwrap();
    let lineup = Lineup::new(ENTRIES, &call, &[], &trial::offer(model)).unwrap();
    let sampling = Sampling::neutral();
    let plan = Plan { turns: 2, tokens: 24, sampling, seed: 1, hot: true, limit: None };
    let line = || ModelLine { name: "toy".to_owned(), detail: "toy".to_owned(), threads: 1 };
    let setting = Setting {
        model: line(),
        draft_model: Some(line()),
        workload: "toy".to_owned(),
        curve: (CostCurve { points: vec![(1, 1.0), (32, 4.0)], draft: 0.0, draft_row: 0.0 }, 1.0),
        quick: false,
        command: "tessera check".to_owned(),
        version: "tessera".to_owned(),
    };
    let idle = AtomicBool::new(false);
    let measured = measure(model, &lineup, &tasks, &plan, &idle, &mut |_, _| {}).unwrap();
    measured.record(model, &lineup, &plan, setting).unwrap()
}

#[test]
fn passes_rows_and_texts_stand_side_by_side() {
    let record = record("threshold:tau=0.5");
    let of = |part| &record.arm(part).unwrap().overall;
    let (plain, method, control) = (of(Part::Plain), of(Part::Method), of(Part::Control));
    // 24 masks, one a pass, 26 rows each.
    assert_eq!((plain.counts.all_passes(), plain.counts.rows()), (6 * 24, 6 * 24 * 26));
    assert_eq!(plain.counts.committed, 6 * 24);
    assert!(method.counts.all_passes() < plain.counts.all_passes() * 3 / 4);
    // The control takes as many passes, prompt by prompt.
    assert_eq!(control.counts.all_passes(), method.counts.all_passes());
    assert!(record.arm(Part::Rival).is_none() && record.is_canvas());
    // The judge knows the source: fills in any order, several at a time, are worse than sure ones.
    assert!(control.text.perplexity > method.text.perplexity, "{control:?} {method:?}");
    let shown = table::render(&record);
    for word in ["rows a token", "distinct-2", "random order", "perplexity under toy"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
}

#[test]
fn a_random_order_is_not_taken_for_a_gain() {
    let record = record("confidence:score=random,steps=6");
    assert_eq!(record.arm(Part::Rival).unwrap().label, "threshold");
    assert_eq!(record.verdict.word, Word::NotHere, "{}", record.verdict.reason);
}

#[test]
fn right_answers_are_counted_and_leave_the_speed_alone() {
    let record = record("threshold:tau=0.5");
    for arm in &record.arms {
        let known = arm.categories.iter().find(|row| row.category == "known").unwrap();
        assert_eq!((known.text.right, known.text.texts), (Some(1), 3), "{}", arm.label);
        let story = arm.categories.iter().find(|row| row.category == "story").unwrap();
        assert_eq!((story.text.right, arm.overall.text.right), (None, None));
        assert_eq!(arm.overall.counts, story.counts);
    }
    let shown = table::render(&record);
    assert!(shown.contains("1/3") && shown.contains("known: right answers"), "{shown}");
}

#[test]
fn answers_with_room_count_for_the_speed_and_have_to_be_the_whole_text() {
    let record = record_with("threshold:tau=0.5", false, true);
    for arm in &record.arms {
        assert_eq!(arm.categories.len(), 2, "{}", arm.label);
        let stories = arm.categories[0].counts.committed;
        assert!(arm.overall.counts.committed > stories && arm.overall.text.texts == 9);
        // Four tokens are more than the two that are right; not every text has a right answer.
        assert_eq!((arm.categories[1].text.right, arm.overall.text.right), (Some(0), None));
    }
}

#[test]
fn any_subset_decoding_is_set_beside_one_hole_a_pass() {
    let record = record_with("any-subset", true, false);
    let parts: Vec<Part> = record.arms.iter().map(|arm| arm.part).collect();
    assert_eq!(parts, [Part::Plain, Part::Method]);
    let of = |part| &record.arm(part).unwrap().overall;
    let (plain, method) = (of(Part::Plain), of(Part::Method));
    assert_eq!((method.text.same, method.text.texts), (6, 6), "keyed: the very tokens");
    assert!(method.counts.all_passes() <= plain.counts.all_passes());
}
