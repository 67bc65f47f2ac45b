//! Tests of what is still known when less is remembered, on toys.

use super::*;

use tessera_core::entry::MethodCall;
use tessera_runtime::METHODS;
use tessera_testkit::{Scripted, Words};

use crate::longtext::Question;
use crate::samples;

/// A model that reads on in the oldest thing it sees that followed the last token before, as far
/// as it sees any: what is evicted cannot be said.
fn reader() -> Scripted {
    Scripted::new(258, 256, |seen, logits| {
        let last = seen[seen.len() - 1].1;
        let known = seen.windows(2).find(|w| w[0].1 == last && w[1].0 == w[0].0 + 1);
        logits[known.map_or(0, |w| w[1].1 as usize)] = 9.0;
    })
}

fn reading() -> Reading {
    let text = "q1234567890abcdefghijklmnoprstuvwxyz".to_owned();
    let ask = |q: &str, a: &str| Question { text: q.into(), answer: a.into(), depth: 0 };
    let questions = vec![ask("q", "123"), ask("w", "xyz")];
    let tokens = |t: &str| t.bytes().map(u32::from).collect::<Vec<_>>();
    Reading {
        task: "recall".into(),
        name: "recall-1".into(),
        prompts: questions.iter().map(|q| tokens(&format!("{text}{}", q.text))).collect(),
        text: LongText { task: "recall", text, questions },
    }
}

#[test]
fn what_is_evicted_is_no_longer_known_and_a_whole_budget_is_the_plain_run() {
    let (toy, words) = (reader(), Words::bytes());
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let mut call = MethodCall { id: "streaming".to_owned(), ..MethodCall::default() };
    call.settings.insert("budget".into(), json!(12));
    call.settings.insert("sinks".into(), json!(0));
    let lineup = Lineup::new(METHODS, &call, &[], &samples::offer()).unwrap();
    let texts = [reading()];
    let task = Task {
        category: "recall".into(),
        name: "recall-1".into(),
        tokens: texts[0].prompts[0].clone(),
        expected: None,
    };
    let sweep = Some(("budget".to_owned(), vec![json!(64)]));
    let plan = Plan { answer: 3, speed: 4, scored: 5, sweep, seed: 0, limit: None };
    let never = AtomicBool::new(false);
    let tasks = [task];
    let (_, found) =
        measure(model, &lineup, &texts, &tasks, &plan, &never, &mut |_, _| {}).unwrap();
    let right = |part, value: Value| {
        let point = found.point(part, &value).unwrap();
        (point.all().unwrap().right, point.kept)
    };
    assert_eq!(right(Part::Plain, Value::Null), (2, 1.0));
    let (answers, kept) = right(Part::Method, json!(12));
    assert!(answers == 1 && kept < 0.5, "{answers} {kept}");
    assert_eq!(right(Part::Method, json!(64)), (2, 1.0));
    let own = found.point(Part::Method, &json!(12)).unwrap().all().unwrap();
    assert_eq!((own.over_plain.median, own.over_plain.count), (-50.0, 2));
    let plain = &found.points[0];
    assert_eq!(plain.perplexity, found.point(Part::Method, &json!(64)).unwrap().perplexity);
    assert_eq!(found.values(), [&json!(12), &json!(64)]);
}

#[test]
fn sweeps_are_read_as_typed() {
    let (name, values) = parse_sweep("budget=64, 128").unwrap();
    assert_eq!((name.as_str(), values), ("budget", vec![json!(64), json!(128)]));
    assert_eq!(parse_sweep("min-tokens=1").unwrap().0, "min_tokens");
    assert_eq!(parse_sweep("mode=shared").unwrap().1, [json!("shared")]);
    for bad in ["budget", "=3", &format!("a={}", vec!["1"; 17].join(","))] {
        assert!(parse_sweep(bad).unwrap_err().to_string().contains("--sweep"), "{bad}");
    }
}
