//! Requests in shared passes: who waits for whom, and what one that fails does to the others. That texts
//! are the same as alone is tested with every method in `crates/runtime/tests/batch.rs`.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use tessera_core::dist::Sampling;
use tessera_core::{
    Backbone, CacheOptions, Capabilities, Control, Error, Event, Input, KvStore, ModelSpec, Pass,
    Result, Reveal, TokenId, Vocabulary,
};
use tessera_engine::{Batch, Model, Request, Sequence, Shape};
use tessera_testkit::{Scripted, Words};

/// A model that cannot compute one token.
struct Brittle {
    inner: Scripted,
    breaks: TokenId,
}

impl Backbone for Brittle {
    fn name(&self) -> &str {
        "brittle"
    }
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>> {
        self.inner.new_cache(options)
    }
    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()> {
        for segment in pass.segments.iter() {
            if let Input::Tokens(tokens) = &segment.input
                && tokens.contains(&self.breaks)
            {
                return Err(Error::pass("this token cannot be"));
            }
        }
        self.inner.forward(pass, reveal)
    }
}

fn request(words: &Words, text: &str) -> Request {
    let prompt = words.encode_bytes(text.as_bytes());
    Request { sampling: Sampling::greedy(), max_tokens: Some(4), ..Request::new(prompt) }
}

fn add(batch: &mut Batch<'_>, model: Model<'_>, id: u64, request: Request) {
    let sequence = Sequence::new(model.backbone, 64).unwrap();
    let listener = Box::new(|_: Event<'_>| Control::Continue);
    assert!(batch.add(id, sequence, request, listener).is_ok());
}

#[test]
fn one_whose_pass_fails_does_not_take_the_others_with_it() {
    let words = Words::bytes();
    let inner = Scripted::saying(words.len(), 4096, words.encode_bytes(b"fine"), words.end());
    let brittle = Brittle { inner, breaks: u32::from(b'#') };
    let model = Model { backbone: &brittle, vocabulary: &words, draft: None, filling: None };
    let mut batch = Batch::new(model, Shape::default());
    for (id, text) in ["a", "b#", "c"].into_iter().enumerate() {
        add(&mut batch, model, id as u64, request(&words, text));
    }
    let mut failed = Vec::new();
    let mut done = 0;
    while !batch.is_empty() {
        for ended in batch.step() {
            match ended.outcome {
                Ok(_) => done += 1,
                Err(error) => failed.push((ended.id, error.to_string())),
            }
        }
    }
    assert_eq!((done, failed.len()), (2, 1), "{failed:?}");
    assert_eq!(failed[0].0, 1);
    assert!(failed[0].1.contains("this token cannot be"));
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_and_the_first_is_never_left_out() {
    let words = Words::bytes();
    let toy = Scripted::saying(words.len(), 4096, words.encode_bytes(b"fine"), words.end());
    let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
    let mut batch = Batch::new(model, Shape { beside: 8, alone: 8 });
    add(&mut batch, model, 0, request(&words, &"long ".repeat(60)));
    let (mut order, mut steps) = (Vec::new(), 0);
    while !batch.is_empty() {
        // Short ones keep coming, more than there is room for.
        if steps < 120 {
            add(&mut batch, model, 1 + steps, request(&words, "short one"));
        }
        order.extend(batch.step().into_iter().map(|ended| (ended.id, steps)));
        steps += 1;
    }
    let place = order.iter().position(|&(id, _)| id == 0).unwrap();
    // Half of the room is its own: 300 tokens at 4 a pass.
    assert!((70..=90).contains(&order[place].1), "{order:?}");
    assert!(place > 20, "short ones ended meanwhile: {order:?}");
    assert_eq!(order[0].0, 1);
}
