//! From a canvas to the text of a completion.

use tessera_core::text::{StopMatcher, StreamDecoder};
use tessera_core::{Canvas, Event, FinishReason, Origin, Result, TokenId, Vocabulary};

use crate::autoregressive::Listener;
use crate::request::{Completion, Request};

/// The text of a canvas: up to the first end token, without masks. `cut_at` is the end token that a
/// policy has cut off.
pub(crate) fn finished(
    canvas: &Canvas,
    request: &Request,
    vocabulary: &dyn Vocabulary,
    index: usize,
    cut_at: Option<TokenId>,
    listener: &mut Listener<'_>,
) -> Result<Completion> {
    let end = (!request.ignore_end).then(|| first_end(canvas, vocabulary)).flatten();
    let written = canvas.prompt()..end.unwrap_or(canvas.len());
    let tokens: Vec<TokenId> =
        canvas.tokens()[written].iter().copied().filter(|&token| token != canvas.mask()).collect();
    let (mut decoder, mut piece, mut text) = (StreamDecoder::new(), String::new(), String::new());
    let mut stops = StopMatcher::new(request.stops.iter().map(String::as_str))?;
    for &token in &tokens {
        decoder.push(vocabulary.bytes(token), &mut piece);
    }
    decoder.finish(&mut piece);
    let mut reason = match end {
        Some(at) => FinishReason::End { token: canvas.tokens()[at] },
        None => cut_at.map_or(FinishReason::Length, |token| FinishReason::End { token }),
    };
    if listener.stopped && canvas.masks() > 0 {
        reason = FinishReason::Cancelled;
    }
    match stops.push(&piece, &mut text) {
        Some(at) => reason = FinishReason::Stop { index: at },
        None => stops.finish(&mut text),
    }
    listener.tell(Event::Committed { choice: index, tokens: &tokens, text: &text });
    listener.tell(Event::Finished { choice: index, reason });
    Ok(Completion { tokens, text, reason, logprobs: Vec::new(), complete: None })
}

/// The first end token of the answer.
pub(super) fn first_end(canvas: &Canvas, vocabulary: &dyn Vocabulary) -> Option<usize> {
    let written = |at: &usize| canvas.origins()[*at] != Origin::Masked;
    let ends = |at: &usize| written(at) && vocabulary.is_end(canvas.tokens()[*at]);
    (canvas.prompt()..canvas.len()).find(ends)
}
