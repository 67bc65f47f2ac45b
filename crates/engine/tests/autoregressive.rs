//! The autoregressive loop against backbones whose answers are known.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::atomic::{AtomicBool, Ordering};

use tessera_core::dist::Sampling;
use tessera_core::{Control, Error, Event, FinishReason, TokenId, Vocabulary};
use tessera_engine::{Model, Outcome, Request, Sequence, generate, generate_in};
use tessera_testkit::{Scripted, Words};

/// A model that says `text` after a prompt of one token, byte by byte, then its end token.
fn parrot(words: &Words, text: &[u8]) -> Scripted {
    Scripted::saying(words.len(), 4096, words.encode_bytes(text), words.end())
}

fn greedy(prompt: Vec<TokenId>) -> Request {
    Request { sampling: Sampling::greedy(), ..Request::new(prompt) }
}

fn run(toy: &Scripted, words: &Words, request: &Request) -> Outcome {
    let model = Model { backbone: toy, vocabulary: words, draft: None, filling: None };
    let cancel = AtomicBool::new(false);
    generate(model, request, &mut |_| Control::Continue, &cancel).unwrap()
}

fn refused(toy: &Scripted, words: &Words, request: &Request) -> Error {
    let model = Model { backbone: toy, vocabulary: words, draft: None, filling: None };
    let cancel = AtomicBool::new(false);
    let error = generate(model, request, &mut |_| Control::Continue, &cancel).unwrap_err();
    assert_eq!(toy.passes(), 0, "refused before anything is computed");
    error
}

#[test]
fn it_says_what_the_model_says_and_stops_at_the_end_token() {
    let words = Words::bytes();
    let toy = parrot(&words, "Grüße, 世界!".as_bytes());
    let outcome = run(&toy, &words, &greedy(vec![0]));
    let choice = &outcome.choices[0];
    assert_eq!(choice.text, "Grüße, 世界!");
    assert_eq!(choice.tokens, words.encode_bytes("Grüße, 世界!".as_bytes()));
    assert_eq!(choice.reason, FinishReason::End { token: words.end() });
    let (n, stats) = (choice.tokens.len(), outcome.stats);
    assert_eq!((stats.prompt_tokens, stats.drawn_tokens, stats.decode_tokens), (1, n + 1, n));
    assert_eq!((stats.passes, stats.rows), (n + 1, n + 1));
    assert_eq!((toy.passes(), toy.rows()), (n + 1, n + 1));
}

#[test]
fn ignoring_the_end_token_goes_on() {
    let words = Words::bytes();
    let request = Request { ignore_end: true, max_tokens: Some(5), ..greedy(vec![0]) };
    let choice = run(&parrot(&words, b"ab"), &words, &request).choices.remove(0);
    assert_eq!((choice.text.as_str(), choice.reason), ("ab", FinishReason::Length));
    assert_eq!(choice.tokens[2..], [words.end(); 3]);
}

#[test]
fn a_stop_string_is_found_across_tokens_and_not_printed() {
    let words = Words::bytes();
    let toy = parrot(&words, b"one\nUse two\nUser: three");
    let stops = vec!["nothing".to_owned(), "\nUser:".to_owned()];
    let choice = run(&toy, &words, &Request { stops, ..greedy(vec![0]) }).choices.remove(0);
    assert_eq!(choice.text, "one\nUse two");
    assert_eq!(choice.reason, FinishReason::Stop { index: 1 });
    // The pass after the last token of the stop string is never run.
    assert_eq!(toy.passes(), "one\nUse two\nUser:".len());
}

#[test]
fn an_unfinished_stop_or_character_is_released_at_the_end() {
    let words = Words::bytes();
    let stops = vec!["END".to_owned()];
    let mut text = b"the EN".to_vec();
    text.push(0xe4);
    let request = Request { stops, ..greedy(vec![0]) };
    let choice = run(&parrot(&words, &text), &words, &request).choices.remove(0);
    assert_eq!(choice.text, "the EN\u{fffd}");
}

#[test]
fn events_add_up_to_the_outcome_and_never_split_a_character() {
    let words = Words::bytes();
    let toy = parrot(&words, "aé世🦀 stop here".as_bytes());
    let request = Request { stops: vec!["stop".to_owned()], ..greedy(vec![7; 30]) };
    let request = Request { prompt: vec![0], ..request };
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let (mut text, mut tokens, mut ends, mut steps, mut rows) = (String::new(), vec![], 0, 0, 0);
    let mut listen = |event: Event<'_>| {
        match event {
            Event::Committed { choice, tokens: new, text: piece } => {
                assert_eq!((choice, ends), (0, 0));
                assert!(new.len() <= 1);
                tokens.extend_from_slice(new);
                text.push_str(piece);
            }
            Event::Finished { .. } => ends += 1,
            Event::Step { rows: r, committed } => {
                steps += committed;
                rows += r;
            }
            _ => {}
        }
        Control::Continue
    };
    let outcome = generate(model, &request, &mut listen, &AtomicBool::new(false)).unwrap();
    assert_eq!(
        (text, tokens),
        (outcome.choices[0].text.clone(), outcome.choices[0].tokens.clone())
    );
    assert_eq!((ends, steps), (1, outcome.stats.decode_tokens));
    assert_eq!(rows + 1, outcome.stats.rows);
    assert_eq!(outcome.choices[0].text, "aé世🦀 ");
}

#[test]
fn chunks_of_the_prompt_are_irrelevant_to_the_result() {
    let words = Words::bytes();
    let toy = Scripted::hashed(words.len(), 4096, 5, 9.0);
    let prompt: Vec<TokenId> = (0..97).collect();
    let base = Request { max_tokens: Some(30), ..Request::new(prompt) };
    let want = run(&toy, &words, &base).choices;
    for chunk in [1, 2, 31, 96, 97, 98] {
        assert_eq!(run(&toy, &words, &Request { chunk, ..base.clone() }).choices, want, "{chunk}");
    }
    let other = Request { seed: 1, ..base.clone() };
    assert_ne!(run(&toy, &words, &other).choices, want);
}

#[test]
fn choices_share_the_prompt_and_have_their_own_keys() {
    let words = Words::bytes();
    let toy = Scripted::hashed(words.len(), 4096, 5, 9.0);
    let base = Request { max_tokens: Some(25), seed: 3, ..Request::new(vec![1, 2, 3, 4, 5]) };
    let one = run(&toy, &words, &base);
    let before = toy.rows();
    let five = run(&toy, &words, &Request { choices: 5, ..base.clone() });
    assert!(toy.rows() - before <= 5 + 5 * 24, "the prompt is computed once");
    assert_eq!(five.choices[0], one.choices[0], "a choice does not depend on the others");
    for (a, b) in (0..5).flat_map(|a| (0..a).map(move |b| (a, b))) {
        assert_ne!(five.choices[a].tokens, five.choices[b].tokens, "choices {a} and {b}");
    }
    let three = run(&toy, &words, &Request { choices: 3, ..base });
    assert_eq!(three.choices[..], five.choices[..3]);
}

#[test]
fn choices_end_one_by_one() {
    // Ends as soon as the last byte seen is even: at different steps for different choices.
    let words = Words::bytes();
    let end = words.end();
    let toy = Scripted::new(words.len(), 64, move |seen, logits| {
        let last = seen.last().map_or(0, |s| s.1);
        if seen.len() > 3 && last.is_multiple_of(3) {
            logits[end as usize] = 100.0;
        }
    });
    let base =
        Request { sampling: Sampling::neutral(), max_tokens: Some(40), ..Request::new(vec![1]) };
    let together = run(&toy, &words, &Request { choices: 8, ..base.clone() });
    let lengths: Vec<usize> = together.choices.iter().map(|c| c.tokens.len()).collect();
    assert!(lengths.iter().any(|&n| n != lengths[0]), "{lengths:?}");
    assert_eq!(together.choices[0], run(&toy, &words, &base).choices[0]);
    let longest = lengths.iter().max().unwrap();
    assert!(together.stats.passes <= longest + 1, "finished choices cost no passes");
}

#[test]
fn the_context_ends_a_run_and_refuses_a_prompt_that_leaves_no_room() {
    let words = Words::bytes();
    let toy = Scripted::hashed(words.len(), 20, 5, 9.0);
    let request = Request { ignore_end: true, ..Request::new(vec![1; 15]) };
    let choice = run(&toy, &words, &request).choices.remove(0);
    assert_eq!((choice.tokens.len(), choice.reason), (5, FinishReason::ContextFull));
    let small = Request { context: Some(17), ..request.clone() };
    assert_eq!(run(&toy, &words, &small).choices[0].tokens.len(), 2);
    let exact = Request { max_tokens: Some(5), ..request.clone() };
    assert_eq!(run(&toy, &words, &exact).choices[0].reason, FinishReason::Length);

    let toy = Scripted::hashed(words.len(), 20, 5, 9.0);
    let long = Request { prompt: vec![1; 20], ..request.clone() };
    let error = refused(&toy, &words, &long);
    assert_eq!(error, Error::ContextFull { needed: 21, limit: 20, trained: 20 });
    let none = Request { max_tokens: Some(0), ..long };
    assert!(run(&toy, &words, &none).choices[0].tokens.is_empty());
}

#[test]
fn impossible_requests_are_refused_by_name() {
    let words = Words::bytes();
    let toy = Scripted::hashed(words.len(), 20, 5, 9.0);
    let base = Request::new(vec![1]);
    let bad = |sampling| Request { sampling, ..base.clone() };
    for (request, word) in [
        (Request::new(vec![]), "prompt"),
        (Request { choices: 0, ..base.clone() }, "choices"),
        (Request { choices: 65, ..base.clone() }, "choices"),
        (Request { context: Some(21), ..base.clone() }, "context"),
        (Request { context: Some(0), ..base.clone() }, "context"),
        (Request { chunk: 0, ..base.clone() }, "chunk"),
        (Request { stops: vec![String::new()], ..base.clone() }, "stop"),
        (bad(Sampling { temperature: -1.0, ..Sampling::default() }), "temperature"),
        (bad(Sampling { top_p: 0.0, ..Sampling::default() }), "top-p"),
    ] {
        let error = refused(&toy, &words, &request).to_string();
        assert!(error.contains(word), "{error}");
    }
    let outside = Request::new(vec![5000]);
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let cancel = AtomicBool::new(false);
    let error = generate(model, &outside, &mut |_| Control::Continue, &cancel).unwrap_err();
    assert!(error.to_string().contains("5000"), "{error}");
}

#[test]
fn cancelling_keeps_what_was_made() {
    let words = Words::bytes();
    let toy = parrot(&words, b"0123456789");
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let request = greedy(vec![0]);
    let whole = run(&toy, &words, &request).choices.remove(0).text;

    // By the listener, by the flag, and by the flag before the first pass.
    let never = AtomicBool::new(false);
    let mut seen = 0;
    let mut stop_at_four = |event: Event<'_>| {
        seen += usize::from(matches!(event, Event::Committed { .. }));
        if seen == 4 { Control::Stop } else { Control::Continue }
    };
    let by_listener = generate(model, &request, &mut stop_at_four, &never).unwrap();
    assert_eq!(by_listener.choices[0].text, whole[..4]);
    assert_eq!(by_listener.choices[0].reason, FinishReason::Cancelled);

    let flag = AtomicBool::new(false);
    let mut raise = |event: Event<'_>| {
        if matches!(event, Event::PrefillDone { .. }) {
            flag.store(true, Ordering::Relaxed);
        }
        Control::Continue
    };
    let by_flag = generate(model, &request, &mut raise, &flag).unwrap();
    assert_eq!(by_flag.choices[0].text, whole[..1]);
    assert_eq!(by_flag.choices[0].reason, FinishReason::Cancelled);

    let passes = toy.passes();
    let mut reasons = vec![];
    let mut note = |event: Event<'_>| {
        if let Event::Finished { reason, .. } = event {
            reasons.push(reason);
        }
        Control::Continue
    };
    let at_once = generate(model, &request, &mut note, &flag).unwrap();
    assert_eq!((at_once.choices[0].tokens.len(), toy.passes()), (0, passes));
    assert_eq!(reasons, [FinishReason::Cancelled]);
}

#[test]
fn cancelling_releases_withheld_text_and_stops_between_chunks() {
    let words = Words::bytes();
    let toy = parrot(&words, b"abcdef");
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let request = Request { stops: vec!["abcX".to_owned()], ..greedy(vec![0]) };
    let mut tokens = 0;
    let mut stop_at_two = |event: Event<'_>| {
        if let Event::Committed { tokens: new, text, .. } = event {
            tokens += new.len();
            assert!(new.is_empty() || text.is_empty(), "withheld until it is known");
        }
        if tokens == 2 { Control::Stop } else { Control::Continue }
    };
    let outcome = generate(model, &request, &mut stop_at_two, &AtomicBool::new(false)).unwrap();
    assert_eq!(outcome.choices[0].text, "ab");

    let toy = Scripted::hashed(words.len(), 4096, 1, 1.0);
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let request = Request { chunk: 10, ..greedy(vec![1; 100]) };
    let mut stop_at_thirty = |event: Event<'_>| match event {
        Event::Prefill { done: 30, total: 100 } => Control::Stop,
        _ => Control::Continue,
    };
    let mut sequence = Sequence::new(&toy, 100).unwrap();
    let never = AtomicBool::new(false);
    generate_in(model, &mut sequence, &request, &mut stop_at_thirty, &never).unwrap();
    assert_eq!((toy.rows(), sequence.tokens().len()), (30, 30));
    // What was computed is not lost.
    let mut go = |_: Event<'_>| Control::Continue;
    let request = Request { max_tokens: Some(1), ..request };
    let outcome = generate_in(model, &mut sequence, &request, &mut go, &never).unwrap();
    assert_eq!((outcome.stats.reused_tokens, toy.rows()), (30, 100));
}

#[test]
fn the_next_turn_reuses_the_common_beginning_and_says_the_same() {
    let words = Words::bytes();
    let toy = Scripted::hashed(words.len(), 4096, 5, 9.0);
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let never = AtomicBool::new(false);
    let mut go = |_: Event<'_>| Control::Continue;
    let mut sequence = Sequence::new(&toy, 10).unwrap();
    let mut prompt: Vec<TokenId> = vec![9, 8, 7, 6];
    for turn in 0..4 {
        let request = Request {
            max_tokens: Some(10),
            seed: turn,
            ignore_end: true,
            ..Request::new(prompt.clone())
        };
        let warm = generate_in(model, &mut sequence, &request, &mut go, &never).unwrap();
        let cold = generate(model, &request, &mut go, &never).unwrap();
        assert_eq!(warm.choices, cold.choices, "turn {turn}");
        let expected = if turn == 0 { 0 } else { prompt.len() - 3 };
        assert_eq!(warm.stats.reused_tokens, expected);
        prompt.extend(&warm.choices[0].tokens);
        // The last token was drawn but never computed; two more come from the next question.
        prompt.extend([1, 2]);
    }
    // The same prompt again: all but its last token is there.
    let request = Request { max_tokens: Some(1), ..Request::new(prompt[..8].to_vec()) };
    let again = generate_in(model, &mut sequence, &request, &mut go, &never).unwrap();
    assert_eq!(again.stats.reused_tokens, 7);
    assert_eq!(again.choices, generate(model, &request, &mut go, &never).unwrap().choices);
    // A prompt with nothing in common starts afresh.
    let request = Request { max_tokens: Some(1), ..Request::new(vec![100, 101]) };
    let other = generate_in(model, &mut sequence, &request, &mut go, &never).unwrap();
    assert_eq!(other.stats.reused_tokens, 0);
    assert_eq!(sequence.tokens(), [100, 101]);
}

#[test]
fn broken_logits_are_an_error_and_the_memory_survives() {
    let words = Words::bytes();
    let toy = Scripted::new(words.len(), 64, |seen, logits| {
        logits[65] = if seen.len() == 6 { f32::NAN } else { 5.0 };
    });
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let never = AtomicBool::new(false);
    let mut sequence = Sequence::new(&toy, 10).unwrap();
    let mut go = |_: Event<'_>| Control::Continue;
    let request = greedy(vec![1, 2, 3]);
    let error = generate_in(model, &mut sequence, &request, &mut go, &never).unwrap_err();
    assert!(error.to_string().contains("token 65 has NaN"), "{error}");
    assert_eq!(sequence.tokens(), [1, 2, 3, 65, 65, 65]);
    let short = Request { max_tokens: Some(2), ..request };
    let outcome = generate_in(model, &mut sequence, &short, &mut go, &never).unwrap();
    assert_eq!(outcome.choices[0].text, "AA");
}

#[test]
fn a_forced_text_is_followed_and_weighed() {
    let words = Words::bytes();
    // Three tokens of equal probability, all others impossible: each forced token has 1/3.
    let toy = Scripted::new(words.len(), 64, |_, logits| {
        logits.fill(f32::NEG_INFINITY);
        logits[65..68].fill(2.0);
    });
    let request = Request { forced: vec![65, 67, 66, 65], ..greedy(vec![0]) };
    let outcome = run(&toy, &words, &request);
    let choice = &outcome.choices[0];
    assert_eq!((choice.tokens.as_slice(), choice.text.as_str()), (&[65, 67, 66, 65][..], "ACBA"));
    assert_eq!(choice.reason, FinishReason::Length);
    assert!(choice.logprobs.iter().all(|p| (p + 3f64.ln()).abs() < 1e-6), "{:?}", choice.logprobs);
    assert_eq!(choice.logprobs.len(), 4);
    let fewer = Request { max_tokens: Some(2), ..request.clone() };
    assert_eq!(run(&toy, &words, &fewer).choices[0].tokens, [65, 67]);
    let unknown = Request { forced: vec![1 << 20], ..request };
    let toy = parrot(&words, b"ab");
    assert!(refused(&toy, &words, &unknown).to_string().contains("forced"));
}
