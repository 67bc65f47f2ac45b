//! The covers against plain enumeration on toy vocabularies.

use std::sync::Arc;

use tessera_core::{TokenId, Vocabulary};
use tessera_testkit::{Scripted, Words};

use super::*;

/// Byte pair encoding over given bytes: merge rules in the order of their rank, an end token last.
struct Merges {
    words: Vec<Vec<u8>>,
    rules: Vec<(TokenId, TokenId, TokenId)>,
}

impl Merges {
    fn new(letters: &str, rules: &[(&str, &str)]) -> Self {
        let mut words: Vec<Vec<u8>> = letters.bytes().map(|b| vec![b]).collect();
        let mut numbered = Vec::new();
        for (left, right) in rules {
            let id = |w: &str, words: &[Vec<u8>]| {
                words.iter().position(|x| x == w.as_bytes()).unwrap() as TokenId
            };
            let (l, r) = (id(left, &words), id(right, &words));
            words.push([left.as_bytes(), right.as_bytes()].concat());
            numbered.push((l, r, words.len() as TokenId - 1));
        }
        Self { words, rules: numbered }
    }

    fn end(&self) -> TokenId {
        self.words.len() as TokenId
    }

    fn control(&self) -> TokenId {
        self.words.len() as TokenId + 1
    }
}

impl Vocabulary for Merges {
    fn len(&self) -> usize {
        self.words.len() + 2
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.words.get(token as usize).map_or(&[], Vec::as_slice)
    }

    fn is_control(&self, token: TokenId) -> bool {
        token as usize >= self.words.len()
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == self.end()
    }

    fn encode(&self, text: &str) -> Vec<TokenId> {
        let letter = |b: u8| self.words.iter().position(|w| w[..] == [b]).unwrap() as TokenId;
        let mut ids: Vec<TokenId> = text.bytes().map(letter).collect();
        for &(left, right, made) in &self.rules {
            let mut at = 0;
            while at + 1 < ids.len() {
                if ids[at] == left && ids[at + 1] == right {
                    ids[at] = made;
                    ids.remove(at + 1);
                }
                at += 1;
            }
        }
        ids
    }
}

fn toy() -> Merges {
    Merges::new(
        "ab",
        &[("a", "b"), ("a", "a"), ("ab", "b"), ("b", "aa"), ("ab", "ab"), ("aa", "aa")],
    )
}

const SPREAD: f32 = 4.0;

fn model(words: &dyn Vocabulary, seed: u64) -> Scripted {
    Scripted::hashed(words.len(), 64, seed, SPREAD)
}

fn strings(letters: &str, longest: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut from = 0;
    for _ in 0..longest {
        let until = all.len();
        for at in from..until {
            for c in letters.chars() {
                let next = format!("{}{c}", all[at]);
                all.push(next);
            }
        }
        from = until;
    }
    all
}

/// The law that the covers are of, by plain enumeration: every token sequence, weighed by the model
/// zeroed where a sequence is not its own encoding, and renormalised.
struct Reference<'a> {
    words: &'a Merges,
    toy: &'a Scripted,
}

impl Reference<'_> {
    fn canonical(&self, tokens: &[TokenId]) -> bool {
        self.words.encode(&self.spelt(tokens)) == tokens
    }

    fn spelt(&self, tokens: &[TokenId]) -> String {
        tokens.iter().map(|&t| std::str::from_utf8(self.words.bytes(t)).unwrap()).collect()
    }

    fn law(&self, tokens: &[TokenId]) -> Vec<f64> {
        let mut ask = crate::continuations::Continuations::new(self.toy).unwrap();
        let text = [&[self.words.control()], tokens].concat();
        let mut law = Vec::new();
        ask.ask(&[text], &mut |_, logits| {
            law = logits.iter().map(|l| f64::from(*l).exp()).collect();
            Ok(())
        })
        .unwrap();
        for (t, p) in (0..).zip(&mut law) {
            let good = t == self.words.end()
                || !self.words.is_control(t) && self.canonical(&[tokens, &[t]].concat());
            if !good {
                *p = 0.0;
            }
        }
        let total: f64 = law.iter().sum();
        law.iter().map(|p| p / total).collect()
    }

    /// The probability that the text begins with `x`; with `whole`, that it is `x`.
    fn mass(&self, x: &str, whole: bool) -> f64 {
        self.from(&mut Vec::new(), x, whole)
    }

    fn from(&self, tokens: &mut Vec<TokenId>, x: &str, whole: bool) -> f64 {
        let spelt = self.spelt(tokens);
        if !whole && spelt.starts_with(x) {
            return 1.0;
        }
        if !x.starts_with(&spelt) {
            return 0.0;
        }
        let law = self.law(tokens);
        if whole && spelt == x {
            return law[self.words.end() as usize];
        }
        let mut sum = 0.0;
        for (t, p) in (0..self.words.end()).zip(law) {
            if p > 0.0 {
                tokens.push(t);
                sum += p * self.from(tokens, x, whole);
                tokens.pop();
            }
        }
        sum
    }
}

fn exact() -> ExactByteLevel {
    ExactByteLevel { floor: 0.0, ..ExactByteLevel::default() }
}

fn reader<'m>(toy: &'m Scripted, words: &'m dyn Vocabulary, stem: TokenId) -> ByteModel<'m> {
    ByteModel::new(toy, Arc::new(Lexicon::new(words)), exact(), &[stem]).unwrap()
}

fn near(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!(
        (a - b).abs() <= tolerance * b.abs().max(1e-300) || (a - b).abs() < 1e-15,
        "{what}: {a} {b}"
    );
}

#[test]
fn the_next_byte_has_the_enumerated_law_for_every_text_of_up_to_six_bytes() {
    let words = toy();
    let toy = model(&words, 3);
    let reference = Reference { words: &words, toy: &toy };
    let mut reader = reader(&toy, &words, words.control());
    for x in strings("ab", 6) {
        reader.start(x.as_bytes()).unwrap();
        let law = reader.distribution();
        let own = reference.mass(&x, false);
        near(reader.log_mass().exp(), own, 1e-9, &format!("P({x})"));
        for b in ["a", "b"] {
            let want = reference.mass(&format!("{x}{b}"), false) / own;
            near(law[usize::from(b.as_bytes()[0])], want, 1e-9, &format!("P({b}|{x})"));
        }
        near(law[END], reference.mass(&x, true) / own, 1e-9, &format!("P(end|{x})"));
        near(law.iter().sum(), 1.0, 1e-12, "sum");
    }
}

#[test]
fn advancing_equals_starting_anew_at_every_byte() {
    let words = toy();
    let toy = model(&words, 11);
    let mut anew = reader(&toy, &words, words.control());
    for x in strings("ab", 5).iter().filter(|x| x.len() == 5) {
        let mut steps = reader(&toy, &words, words.control());
        steps.start(b"").unwrap();
        for at in 0..x.len() {
            assert!(steps.advance(x.as_bytes()[at]).unwrap());
            anew.start(&x.as_bytes()[..=at]).unwrap();
            near(steps.log_mass(), anew.log_mass(), 1e-12, x);
            for (a, b) in steps.distribution().iter().zip(anew.distribution()) {
                near(*a, b, 1e-11, &format!("{x} at {at}"));
            }
        }
    }
}

#[test]
fn the_chain_rule_gives_the_probability_of_the_tokens() {
    let words = toy();
    let toy = model(&words, 5);
    let reference = Reference { words: &words, toy: &toy };
    for x in strings("ab", 6) {
        let mut reader = reader(&toy, &words, words.control());
        reader.start(b"").unwrap();
        let mut product = 1.0;
        for &b in x.as_bytes() {
            product *= reader.distribution()[usize::from(b)];
            assert!(reader.advance(b).unwrap());
        }
        product *= reader.distribution()[END];
        let tokens = words.encode(&x);
        let mut want = 1.0;
        for n in 0..tokens.len() {
            want *= reference.law(&tokens[..n])[tokens[n] as usize];
        }
        want *= reference.law(&tokens)[words.end() as usize];
        near(product, want, 1e-9, &x);
    }
}

#[test]
fn with_a_token_for_each_byte_nothing_changes() {
    let words = Words::bytes();
    let toy = Scripted::hashed(258, 64, 7, SPREAD);
    let mut reader = reader(&toy, &words, words.control());
    reader.start(b"x").unwrap();
    let mut ask = crate::continuations::Continuations::new(&toy).unwrap();
    let mut plain = Vec::new();
    ask.ask(&[[words.control(), u32::from(b'x')]], &mut |_, l| {
        plain = l.iter().map(|l| f64::from(*l).exp()).collect();
        Ok(())
    })
    .unwrap();
    plain.remove(256); // The control token.
    // Bytes that begin no text are out of the question.
    for b in (0x80..0xc2).chain(0xf5..=0xff) {
        plain[b] = 0.0;
    }
    let total: f64 = plain.iter().sum();
    for (b, (p, want)) in reader.distribution().iter().zip(plain).enumerate() {
        near(*p, want / total, 1e-9, &format!("byte {b}"));
    }
}

#[test]
fn characters_are_finished_before_anything_else_comes() {
    let words = Words::bytes();
    let toy = Scripted::hashed(258, 64, 7, SPREAD);
    let mut reader = reader(&toy, &words, words.control());
    reader.start("x€".as_bytes()[..3].as_ref()).unwrap();
    let law = reader.distribution();
    assert!(law[END] == 0.0 && (0..257).all(|b| (law[b] > 0.0) == (0x80..0xc0).contains(&b)));
    assert!(reader.advance(0xac).unwrap() && reader.distribution()[END] > 0.0);
}

#[test]
fn a_piece_and_its_byte_form_do_not_count_twice() {
    // Token 0 and token 2 both spell `a`; text becomes token 0.
    let words = Words::new(["a", "b", "a", "ab"]);
    let toy = Scripted::new(6, 64, |_, _| {});
    let mut reader = reader(&toy, &words, words.control());
    reader.start(b"").unwrap();
    // Of five equally probable symbols (a, b, ab, the end and the double) four remain.
    let law = reader.distribution();
    near(law[usize::from(b'a')], 0.5, 1e-12, "a");
    near(law[usize::from(b'b')], 0.25, 1e-12, "b");
    near(law[END], 0.25, 1e-12, "end");
}

#[test]
fn an_ensemble_of_equals_is_the_model_and_order_does_not_matter() {
    let words = toy();
    let letters = Merges::new("ab", &[]);
    let (big, small) = (model(&words, 3), model(&letters, 4));
    let one = || reader(&big, &words, words.control());
    let other = || reader(&small, &letters, letters.control());
    let mut alone = one();
    let mut twice = Ensemble::new(vec![one(), one()], &[]).unwrap();
    let mut forth = Ensemble::new(vec![one(), other()], &[1.0, 3.0]).unwrap();
    let mut back = Ensemble::new(vec![other(), one()], &[3.0, 1.0]).unwrap();
    alone.start(b"ab").unwrap();
    let _ = [&mut twice, &mut forth, &mut back].map(|e| e.start(b"ab").unwrap());
    for b in *b"abba" {
        for (i, p) in alone.distribution().into_iter().enumerate() {
            near(twice.distribution()[i], p, 1e-12, "itself");
            near(forth.distribution()[i], back.distribution()[i], 1e-12, "order");
        }
        assert!(alone.advance(b).unwrap());
        let _ = [&mut twice, &mut forth, &mut back].map(|e| assert!(e.advance(b).unwrap()));
    }
    assert!(Ensemble::new(vec![one()], &[0.0]).is_err() && Ensemble::new(vec![], &[]).is_err());
}

#[test]
fn the_fast_mode_is_exact_where_the_model_is_canonical() {
    // A model that itself gives nothing to what is not canonical.
    let words = toy();
    let rules = toy();
    let toy = Scripted::new(words.len(), 64, move |seen, logits| {
        let tokens: Vec<TokenId> = seen.iter().skip(1).map(|s| s.1).collect();
        for (t, logit) in (0..).zip(logits) {
            let next = [&tokens[..], &[t]].concat();
            let text: Vec<u8> = next.iter().flat_map(|&t| rules.bytes(t)).copied().collect();
            let good = t == rules.end()
                || !rules.is_control(t)
                    && rules.encode(std::str::from_utf8(&text).unwrap()) == next;
            *logit = if good { (t * 7 % 5) as f32 * 0.4 } else { -90.0 };
        }
    });
    let lexicon = Arc::new(Lexicon::new(&words));
    let of = |mode| {
        let settings = ExactByteLevel { mode, floor: 0.0 };
        ByteModel::new(&toy, lexicon.clone(), settings, &[words.control()]).unwrap()
    };
    let (mut exact, mut fast) = (of(Mode::Exact), of(Mode::Fast));
    exact.start(b"a").unwrap();
    fast.start(b"a").unwrap();
    for b in *b"babbaabab" {
        for (i, p) in exact.distribution().into_iter().enumerate() {
            near(fast.distribution()[i], p, 1e-9, "fast");
        }
        assert!(exact.advance(b).unwrap() && fast.advance(b).unwrap());
    }
}

#[test]
fn what_cannot_be_spelt_or_has_nothing_before_it_is_refused() {
    let words = Words::new(["a", "b"]);
    let toy = Scripted::hashed(4, 64, 1, 1.0);
    let mut reader = reader(&toy, &words, words.control());
    let error = reader.start(b"axb").unwrap_err().to_string();
    assert!(error.contains("spell"), "{error}");
    let mut bare = ByteModel::new(&toy, Arc::new(Lexicon::new(&words)), exact(), &[]).unwrap();
    let error = bare.start(b"ab").unwrap_err().to_string();
    assert!(error.contains("no token precedes") && error.contains("Next:"), "{error}");
    let spaced = Words::new([" a", "a"]);
    assert!(Lexicon::new(&spaced).encode(b"a") == [1]);
}
