//! A rough answer to start from: the one that came with a request, or what a causal model writes.

use tessera_core::dist::{argmax, softmax};
use tessera_core::{Error, InitContext, Position, Result, TokenId};

use crate::second_model::SecondModel;

/// A rough answer, at most as long as the canvas: the request's, or else the most probable text of
/// the guide, its end token included.
///
/// # Errors
/// [`Error::Method`] naming `method` if there is neither; whatever a pass reports.
pub(crate) fn answer(context: &InitContext<'_>, method: &str) -> Result<Vec<TokenId>> {
    let canvas = context.canvas;
    let (room, prompt) = (canvas.len() - canvas.prompt(), &canvas.tokens()[..canvas.prompt()]);
    if !context.prior.is_empty() {
        return Ok(context.prior[..context.prior.len().min(room)].to_vec());
    }
    let Some(guide) = context.guide else {
        let what = "needs a rough answer to start from. Next: --prior TEXT, or --draft-model NAME, \
                    which writes one";
        return Err(Error::Method { method: method.to_owned(), what: what.to_owned() });
    };
    let mut second = SecondModel::default();
    let (mut text, vocab) = (prompt.to_vec(), context.vocabulary.len());
    while text.len() < canvas.len() && second.follow(guide, &text)? {
        let mut logits = second.logits(0, vocab).to_vec();
        if let Some(mask) = logits.get_mut(canvas.mask() as usize) {
            *mask = f32::NEG_INFINITY;
        }
        let (token, _) = argmax(&logits)?;
        text.push(token);
        if context.vocabulary.is_end(token) {
            break;
        }
    }
    Ok(text.split_off(prompt.len()))
}

/// How probable the guide finds each token of `answer`, given all before it.
///
/// # Errors
/// [`Error::Method`] naming `method` if there is no guide or it cannot read so much; whatever a pass
/// reports.
pub(crate) fn certainty(
    context: &InitContext<'_>,
    answer: &[TokenId],
    method: &str,
) -> Result<Vec<f64>> {
    let fail = |what: &str| Error::Method { method: method.to_owned(), what: what.to_owned() };
    let Some(guide) = context.guide else {
        let what =
            "needs a model that says how certain the rough answer is. Next: --draft-model NAME";
        return Err(fail(what));
    };
    let prompt = &context.canvas.tokens()[..context.canvas.prompt()];
    let mut second = SecondModel::default();
    let vocab = context.vocabulary.len();
    if answer.is_empty() {
        return Ok(Vec::new());
    }
    if !second.follow(guide, prompt)? || (second.deepest(guide) as usize) < answer.len() {
        return Err(fail("the guide's context is too short for the rough answer"));
    }
    let mut law = Vec::new();
    let mut probability = |logits: &[f32], token: TokenId| {
        law.clear();
        law.resize(logits.len(), 0.0);
        softmax(logits, &mut law)?;
        Ok::<f64, Error>(law.get(token as usize).map_or(0.0, |&p| f64::from(p)))
    };
    let mut all = vec![probability(second.logits(0, vocab), answer[0])?];
    let chain: Vec<(Option<u32>, TokenId)> = (0u32..)
        .map(|i| i.checked_sub(1))
        .zip(answer[..answer.len() - 1].iter().copied())
        .collect();
    if !chain.is_empty() {
        second.grow(guide, &chain)?;
        for (i, &token) in answer[1..].iter().enumerate() {
            all.push(probability(second.logits(i, vocab), token)?);
        }
    }
    Ok(all)
}

/// The tokens of `answer` by their position, where the canvas has a mask for them.
pub(crate) fn placed(context: &InitContext<'_>, answer: &[TokenId]) -> Vec<(Position, TokenId)> {
    let canvas = context.canvas;
    let all = (canvas.prompt() as Position..).zip(answer.iter().copied());
    all.filter(|&(p, token)| canvas.is_masked(p) && token != canvas.mask()).collect()
}
