//! How good a text is in the eyes of the plain model.

use tessera_core::dist::log_sum_exp;
use tessera_core::{
    CacheOptions, Error, Pass, Position, Result, Reveal, RowsOut, Segment, TokenId,
};
use tessera_engine::Model;

/// Rows per pass.
const CHUNK: usize = 256;

/// Calls `visit` with the index of each token of `answer` and the logits it was chosen from.
///
/// # Errors
/// An empty prompt, a text that does not fit the context, whatever a pass reports.
pub fn visit(
    model: Model<'_>,
    prompt: &[TokenId],
    answer: &[TokenId],
    visit: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::setting("prompt", "empty", "at least one token: write something"));
    }
    if answer.is_empty() {
        return Ok(());
    }
    // The last token is only predicted.
    let text: Vec<TokenId> = prompt.iter().chain(&answer[..answer.len() - 1]).copied().collect();
    let options = CacheOptions { capacity: text.len(), ..CacheOptions::default() };
    let mut cache = model.backbone.new_cache(options)?;
    let mut reveal = Reveal::new();
    for start in (0..text.len()).step_by(CHUNK) {
        let tokens = &text[start..(start + CHUNK).min(text.len())];
        let positions: Vec<Position> = (start as Position..).take(tokens.len()).collect();
        let mut segment = Segment::causal(tokens, &positions, &mut *cache);
        segment.rows_out = RowsOut::All;
        model.backbone.forward(&mut Pass::new(&mut [segment]), &mut reveal)?;
        for row in 0..tokens.len() {
            // The row of position p predicts position p + 1.
            if let Some(at) = (start + row + 1).checked_sub(prompt.len()) {
                visit(at, reveal.logits(0, row))?;
            }
        }
    }
    Ok(())
}

/// Who judges texts of `model`: itself, or, where it fills masks and gives a text no probability from left
/// to right, the causal model beside it, if there is one.
pub fn judge(model: Model<'_>) -> Option<Model<'_>> {
    match model.filling {
        None => Some(model),
        Some(_) => Some(Model { backbone: model.draft?, draft: None, filling: None, ..model }),
    }
}

/// Perplexity of the answers, all together, under the plain model at temperature 1; 1 if there is
/// no token.
///
/// # Errors
/// As [`visit`].
pub fn perplexity(model: Model<'_>, texts: &[(&[TokenId], &[TokenId])]) -> Result<f64> {
    let (mut surprise, mut count) = (0.0, 0usize);
    for &(prompt, answer) in texts {
        visit(model, prompt, answer, &mut |at, logits| {
            surprise += log_sum_exp(logits)? - f64::from(logits[answer[at] as usize]);
            count += 1;
            Ok(())
        })?;
    }
    Ok((surprise / count.max(1) as f64).exp())
}

/// Different pairs of neighbouring tokens in all answers together, as a share of all pairs (distinct-2);
/// 1 if there is none.
pub fn distinct(texts: &[(&[TokenId], &[TokenId])]) -> f64 {
    let pairs = || texts.iter().flat_map(|(_, answer)| answer.windows(2));
    let different: std::collections::HashSet<&[TokenId]> = pairs().collect();
    match pairs().count() {
        0 => 1.0,
        all => different.len() as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use tessera_testkit::{Scripted, Words};

    use super::*;

    #[test]
    fn a_uniform_model_is_as_perplexed_as_it_has_tokens() {
        let (toy, words) = (Scripted::new(50, 700, |_, _| {}), Words::bytes());
        let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
        let answer: Vec<u32> = (0..600).map(|i| i % 50).collect();
        let value = perplexity(model, &[(&[1, 2, 3], &answer), (&[4], &[5])]).unwrap();
        assert!((value - 50.0).abs() < 1e-6, "{value}");
        assert_eq!(perplexity(model, &[]).unwrap(), 1.0);
    }

    #[test]
    fn logits_are_those_before_the_token() {
        // It says the token after the last one: certain where that comes, impossible elsewhere.
        let toy = Scripted::new(50, 700, |seen, logits| {
            logits[(seen[seen.len() - 1].1 as usize + 1) % 50] = 60.0;
        });
        let words = Words::bytes();
        let model = Model { backbone: &toy, vocabulary: &words, draft: None, filling: None };
        let good = perplexity(model, &[(&[7, 8], &[9, 10, 11])]).unwrap();
        let bad = perplexity(model, &[(&[7, 8], &[8, 9, 10])]).unwrap();
        assert!((good - 1.0).abs() < 1e-9 && bad > 1e6, "{good} {bad}");
    }
}
