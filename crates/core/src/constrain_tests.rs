//! Guards, predicates and masking by hand.

use super::*;
use crate::dist::Sampling;
use crate::predicate::{Judged, Judgement, Predicate};

/// Words "a", "b", "ab", a byte that begins a character, a control token, an end token.
struct Six;

const WORDS: [&[u8]; 4] = [b"a", b"b", b"ab", &[0xc3]];

impl Vocabulary for Six {
    fn len(&self) -> usize {
        6
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        WORDS.get(token as usize).copied().unwrap_or_default()
    }

    fn is_control(&self, token: TokenId) -> bool {
        token >= 4
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == 5
    }

    fn encode(&self, _: &str) -> Vec<TokenId> {
        Vec::new()
    }
}

/// Texts `ab`, any number of times; may end after each.
#[derive(Debug)]
struct Repeated;

impl Predicate for Repeated {
    fn judge(&self, text: &[u8]) -> Result<Judgement> {
        let allowed = text.iter().zip(b"ab".iter().cycle()).all(|(a, b)| a == b);
        Ok(Judgement { allowed, complete: allowed && text.len().is_multiple_of(2) })
    }
}

#[derive(Debug)]
struct Nothing;

impl Predicate for Nothing {
    fn judge(&self, _: &[u8]) -> Result<Judgement> {
        Ok(Judgement { allowed: false, complete: false })
    }
}

fn guard() -> Guard {
    Guard::new(Judged(Arc::new(Repeated)).begin(&Six).unwrap(), &Six)
}

fn answers(guard: &mut Guard) -> Vec<bool> {
    (0..7).map(|token| guard.check(token, &Six).unwrap()).collect()
}

const AT_PAIR: [bool; 7] = [true, false, true, false, false, true, false];
const AT_HALF: [bool; 7] = [false, true, false, false, false, false, false];

#[test]
fn control_tokens_are_never_allowed_and_ends_where_the_text_is_complete() {
    let mut guard = guard();
    assert_eq!(answers(&mut guard), AT_PAIR);
    guard.accept(0, &Six).unwrap();
    assert_eq!(answers(&mut guard), AT_HALF);
    assert_eq!((0..7).filter(|&t| guard.possible(t)).collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
}

#[test]
fn nothing_is_asked_twice_and_every_question_counts() {
    let mut guard = guard();
    answers(&mut guard);
    answers(&mut guard);
    // Four texts; that the empty text is complete was known from the beginning but had to be asked.
    assert_eq!(guard.stats().evaluations, 5);
    let fork = guard.fork();
    assert_eq!(fork.stats().evaluations, 0);
}

#[test]
fn rollback_is_exact_and_forks_are_independent() {
    let mut guard = guard();
    guard.accept(2, &Six).unwrap();
    let mut fork = guard.fork();
    guard.accept(0, &Six).unwrap();
    guard.accept(1, &Six).unwrap();
    guard.accept(0, &Six).unwrap();
    assert_eq!(answers(&mut fork), AT_PAIR);
    guard.rollback(1).unwrap();
    assert_eq!(answers(&mut guard), AT_PAIR);
    guard.rollback(1).unwrap();
    assert_eq!(answers(&mut guard), AT_HALF);
    let error = guard.rollback(3).unwrap_err().to_string();
    assert!(error.contains("rollback by 3 tokens where there are 2"), "{error}");
}

#[test]
fn a_predicate_that_allows_nothing_is_an_error() {
    let error = Judged(Arc::new(Nothing)).begin(&Six).unwrap_err().to_string();
    assert!(error.contains("allows none") && error.contains("Next:"), "{error}");
}

#[test]
fn masking_draws_from_what_is_left_and_weighs_it() {
    let logits = [0.6f32, 0.2, 0.1, 0.1, 0.0, 0.0].map(f32::ln);
    let mut sampler = Sampler::new(Sampling::neutral()).unwrap();
    let mut counts = [0u32; 6];
    for position in 0..4000 {
        let drawn = Masking::default().draw(&mut ConstrainedDraw {
            logits: &logits,
            history: &[],
            key: Key::new(1, 0, position),
            sampler: &mut sampler,
            guard: &mut guard(),
            vocabulary: &Six,
            weighted: true,
        });
        let drawn = drawn.unwrap();
        assert!((drawn.log_weight.exp() - 0.7).abs() < 1e-6);
        counts[drawn.token.unwrap() as usize] += 1;
    }
    assert_eq!((counts[1], counts[3], counts[4]), (0, 0, 0));
    assert!((f64::from(counts[2]) / 4000.0 - 1.0 / 7.0).abs() < 0.03, "{counts:?}");
}

#[test]
fn truncation_comes_first_and_may_leave_a_dead_end() {
    // Only `b`, which is not allowed here, survives top-k 1.
    let logits = [0.1f32, 0.8, 0.05, 0.05, 0.0, 0.0].map(f32::ln);
    let constrained = |sampling| {
        let sampler = Box::<Masking>::default();
        let mut constrained = Constrained { guard: guard(), sampler };
        let place = (&logits[..], &[][..], Key::new(0, 0, 0));
        constrained.draw(place, &mut Sampler::new(sampling).unwrap(), &Six)
    };
    let error = constrained(Sampling { top_k: 1, ..Sampling::neutral() }).unwrap_err();
    assert!(error.to_string().contains("--top-k 0"), "{error}");
    // Temperature 0 takes the limit instead: the most probable allowed token.
    assert_eq!(constrained(Sampling::greedy()), Ok(0));
}

#[test]
fn sets_of_tokens() {
    let mut set = TokenSet::default();
    set.reset(70);
    set.insert(69);
    set.insert(3);
    set.insert(1000);
    assert!(set.contains(69) && set.contains(3) && !set.contains(4) && !set.contains(1000));
    let mut other = TokenSet::default();
    other.reset(64);
    other.insert(3);
    set.retain(&other);
    assert!(set.contains(3) && !set.contains(69));
}
