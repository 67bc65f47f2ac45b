//! Logarithms of the probabilities of given tokens, with the most probable alternatives: what `logprobs` and
//! `echo` ask for. Of the plain model at temperature 1, whatever methods made the text.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tessera_core::dist::log_sum_exp;
use tessera_measure::quality;
use tessera_runtime::Session;
use tokio::sync::Semaphore;

use crate::fault::Fault;

/// A token with the natural logarithm of its probability.
type Likely = (u32, f64);

/// Tokens of a text with their logarithms, and alternatives at each.
#[derive(Debug)]
pub(crate) struct Scores {
    /// `None` for a text's first token, which nothing predicts.
    tokens: Vec<(u32, Option<f64>)>,
    /// The most probable tokens at each place, most probable first.
    top: Vec<Vec<Likely>>,
}

/// Texts are scored and embedded one at a time: each needs a cache of its own, and a burst must not need them all at once.
pub(crate) static TURN: Semaphore = Semaphore::const_new(1);

/// Scores the tokens of `all` from the `first`-th on.
pub(crate) async fn score(
    session: &Arc<Session>,
    all: Vec<u32>,
    first: usize,
    top: usize,
) -> Result<Scores, Fault> {
    let session = Arc::clone(session);
    if let Err(error) = session.expect_causal("logprobs") {
        return Err(Fault::field("logprobs", error.to_string()));
    }
    // The semaphore is never closed. The turn ends with the work, whoever still waits for it.
    let turn = TURN.acquire().await.map_err(|_| Fault::inside())?;
    let work = move || {
        let _turn = turn;
        let mut scores = Scores { tokens: Vec::new(), top: Vec::new() };
        if first == 0 {
            scores.tokens.push((all[0], None));
            scores.top.push(Vec::new());
        }
        let from = first.max(1);
        let answer = &all[from..];
        quality::visit(session.model(), &all[..from], answer, &mut |at, logits| {
            let whole = log_sum_exp(logits)?;
            let log = |token: u32| f64::from(logits[token as usize]) - whole;
            scores.tokens.push((answer[at], Some(log(answer[at]))));
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            let larger = |a: &u32, b: &u32| {
                logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
            };
            let top = top.min(order.len());
            if top > 0 {
                order.select_nth_unstable_by(top - 1, larger);
            }
            order.truncate(top);
            order.sort_by(larger);
            scores.top.push(order.into_iter().map(|token| (token, log(token))).collect());
            Ok(())
        })?;
        Ok::<Scores, tessera_core::Error>(scores)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Fault::inside()),
    }
}

impl Scores {
    /// As chats tell them.
    pub(crate) fn of_chat(&self, session: &Session) -> Value {
        let one = |token: u32, log: f64| {
            let bytes = session.vocabulary().bytes(token);
            json!({ "token": String::from_utf8_lossy(bytes), "logprob": log, "bytes": bytes })
        };
        let content: Vec<Value> = self
            .tokens
            .iter()
            .zip(&self.top)
            .filter_map(|(&(token, log), top)| {
                let mut line = one(token, log?);
                line["top_logprobs"] = top.iter().map(|&(token, log)| one(token, log)).collect();
                Some(line)
            })
            .collect();
        json!({ "content": content })
    }

    /// As completions tell them: what evaluation harnesses read.
    pub(crate) fn of_completion(&self, session: &Session) -> Value {
        let spelt =
            |token: u32| String::from_utf8_lossy(session.vocabulary().bytes(token)).into_owned();
        let (mut offset, mut offsets) = (0, Vec::with_capacity(self.tokens.len()));
        let mut texts = Vec::with_capacity(self.tokens.len());
        for &(token, _) in &self.tokens {
            let text = spelt(token);
            offsets.push(offset);
            offset += text.chars().count();
            texts.push(text);
        }
        let top: Vec<Value> = self
            .tokens
            .iter()
            .zip(&self.top)
            .map(|((_, log), top)| match log {
                None => Value::Null,
                Some(_) => {
                    let all: Map<String, Value> =
                        top.iter().map(|&(token, log)| (spelt(token), json!(log))).collect();
                    Value::Object(all)
                }
            })
            .collect();
        json!({
            "tokens": texts,
            "token_logprobs": self.tokens.iter().map(|t| t.1).collect::<Vec<_>>(),
            "top_logprobs": top,
            "text_offset": offsets,
        })
    }
}
