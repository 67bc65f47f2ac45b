//! Sessions read byte by byte: what precedes a text, filling in the middle, bits per byte.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tessera_core::dist::log_sum_exp;
use tessera_core::{CacheOptions, Pass, Position, Reveal, RowsOut, Segment, TokenId};
use tessera_methods::programs::exact_byte_level::{ByteModel, Ensemble, ExactByteLevel, Lexicon};
use tessera_model::tokenizer::Special;

use crate::{Error, Result, Session};

/// Rows of a pass.
const ROWS: usize = 256;

/// What a completion starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Tokens in front, which are not continued.
    pub stem: Vec<TokenId>,
    /// The text that is continued.
    pub text: Vec<u8>,
}

/// Where the part to be filled in begins, when a text is filled in: what lies between there and the
/// cursor is given as its beginning, so that no mark of the model parts it from what follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MiddleFrom {
    /// At the cursor: the usual prompt, in which a token that the cursor cuts stays cut.
    Cursor,
    /// At the beginning of the cursor's line.
    #[default]
    Line,
}

impl Session {
    /// The vocabulary, sorted for reading bytes.
    pub fn lexicon(&self) -> Lexicon<'_> {
        Lexicon::new(self.tokenizer())
    }

    /// The token that a document starts after: the model's own start mark where texts have one, else
    /// the token that ends documents, else any mark there is.
    pub fn document_mark(&self) -> Option<TokenId> {
        let tokenizer = self.tokenizer();
        let own = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        own.or_else(|| tokenizer.id_of("<|endoftext|>")).or(tokenizer.bos()).or(tokenizer.eos())
    }

    /// A text to continue. A model gives no first token, so a text without a start mark gets
    /// [`Session::document_mark`].
    pub fn opening(&self, text: &str) -> Opening {
        let stem = self.document_mark().into_iter().collect();
        Opening { stem, text: text.as_bytes().to_vec() }
    }

    /// A text with a hole between `prefix` and `suffix`, in the order prefix, suffix, middle.
    ///
    /// # Errors
    /// [`Error::Option`] for a model without tokens for it.
    pub fn fill_in(&self, prefix: &str, suffix: &str, from: MiddleFrom) -> Result<Opening> {
        let tokenizer = self.tokenizer();
        let Some(marks) = tokenizer.fill_in() else {
            let what = format!(
                "suffix: {} has no tokens for filling in the middle. \
                 Next: -m qwen2.5-coder:0.5b, which has them",
                self.info().name
            );
            return Err(Error::Option { what });
        };
        let cut = match from {
            MiddleFrom::Cursor => prefix.len(),
            MiddleFrom::Line => prefix.rfind('\n').map_or(0, |at| at + 1),
        };
        let mut stem = Vec::new();
        stem.extend(tokenizer.bos().filter(|_| tokenizer.adds_bos()));
        stem.push(marks.prefix);
        tokenizer.encode(&prefix[..cut], Special::AsText, &mut stem);
        stem.push(marks.suffix);
        tokenizer.encode(suffix, Special::AsText, &mut stem);
        stem.push(marks.middle);
        Ok(Opening { stem, text: prefix.as_bytes()[cut..].to_vec() })
    }

    /// The tokens of an opening, as a plain prompt has them.
    pub fn plain(&self, opening: &Opening) -> Vec<TokenId> {
        let text = String::from_utf8_lossy(&opening.text);
        let mut tokens = opening.stem.clone();
        self.tokenizer().encode(&text, Special::AsText, &mut tokens);
        tokens
    }

    /// A byte model whose text begins after `stem`.
    ///
    /// # Errors
    /// As [`ByteModel::new`].
    pub fn byte_model<'s>(
        &'s self,
        lexicon: &Arc<Lexicon<'s>>,
        settings: ExactByteLevel,
        stem: &[TokenId],
    ) -> Result<ByteModel<'s>> {
        Ok(ByteModel::new(self.backbone(), lexicon.clone(), settings, stem)?)
    }
}

/// How a long text is cut: windows of bytes, so that models with different vocabularies see the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Windows {
    /// Most bytes that a prediction can see.
    pub window: usize,
    /// Bytes by which the window moves on.
    pub stride: usize,
}

/// A window: its first byte, the first that is scored, and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where it begins.
    pub start: usize,
    /// Where it begins to count.
    pub from: usize,
    /// Where it ends.
    pub end: usize,
}

impl Windows {
    /// The windows of a text; those that count are disjoint and cover it. Cuts are before spaces that
    /// follow a word where there are any, else between characters.
    pub fn of(&self, text: &str) -> Vec<Window> {
        let cut = |at: usize, least: usize| {
            let bytes = text.as_bytes();
            let word = (least + 1..=at.min(bytes.len().saturating_sub(1)))
                .rev()
                .find(|&i| bytes[i] == b' ' && bytes[i - 1].is_ascii_graphic());
            word.unwrap_or_else(|| text.floor_char_boundary(at).max(text.ceil_char_boundary(least)))
        };
        let mut windows: Vec<Window> = Vec::new();
        let (mut start, mut from) = (0, 0);
        while from < text.len() {
            let reach = start + self.window;
            let end = if reach >= text.len() { text.len() } else { cut(reach, from + 1) };
            windows.push(Window { start, from, end });
            from = end;
            start = cut((end + self.stride).saturating_sub(self.window), start).min(end);
        }
        windows
    }
}

/// How well a model predicts a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The model, or `ensemble`.
    pub model: String,
    /// Bits for each byte of the text.
    pub bits_per_byte: f64,
    /// Bits altogether.
    pub bits: f64,
    /// Bytes that counted.
    pub bytes: usize,
    /// Tokens that counted; 0 for an ensemble, which has no tokens of its own.
    pub tokens: usize,
    /// Time, passes of the model included.
    pub seconds: f64,
}

impl Score {
    fn new(model: &str, nats: f64, bytes: usize, tokens: usize, start: Instant) -> Self {
        let bits = nats / std::f64::consts::LN_2;
        Self {
            model: model.to_owned(),
            bits_per_byte: bits / bytes.max(1) as f64,
            bits,
            bytes,
            tokens,
            seconds: start.elapsed().as_secs_f64(),
        }
    }
}

/// Scores a text by the tokens that the model's tokenizer makes of it, each window after the
/// document mark.
///
/// # Errors
/// [`Error::Option`] for a text that the vocabulary cannot spell; whatever a pass reports.
pub fn score_tokens(
    session: &Session,
    text: &str,
    windows: &[Window],
    progress: &mut dyn FnMut(usize),
) -> Result<Score> {
    let start = Instant::now();
    let (mut nats, mut tokens) = (0.0, 0);
    let mut reveal = Reveal::new();
    for window in windows {
        let mark = session.document_mark();
        let own = session.vocabulary().encode(&text[window.start..window.end]);
        let spelt: usize = own.iter().map(|&t| session.vocabulary().bytes(t).len()).sum();
        if spelt != window.end - window.start {
            let what = format!(
                "text: {} cannot spell {} of its bytes. Next: use another model, or leave them out",
                session.info().name,
                (window.end - window.start).abs_diff(spelt)
            );
            return Err(Error::Option { what });
        }
        let all: Vec<TokenId> = mark.into_iter().chain(own.iter().copied()).collect();
        let skip = all.len() - own.len();
        let options = CacheOptions { capacity: all.len(), ..Default::default() };
        let mut cache = session.backbone().new_cache(options)?;
        let mut end = window.start;
        let inputs = all.len().saturating_sub(1);
        for at in (0..inputs).step_by(ROWS) {
            let rows = &all[at..inputs.min(at + ROWS)];
            let positions: Vec<Position> = (at as Position..).take(rows.len()).collect();
            let mut segment = Segment::causal(rows, &positions, &mut *cache);
            segment.rows_out = RowsOut::All;
            session.backbone().forward(&mut Pass::new(&mut [segment]), &mut reveal)?;
            for row in 0..rows.len() {
                let index = at + row + 1;
                let token = all[index];
                if index >= skip {
                    end += session.vocabulary().bytes(token).len();
                }
                if end > window.from {
                    let logits = reveal.logits(0, row);
                    nats += log_sum_exp(logits)? - f64::from(logits[token as usize]);
                    tokens += 1;
                }
            }
            progress(end);
        }
    }
    Ok(Score::new(&session.info().name, nats, text.len(), tokens, start))
}

/// Scores a text byte by byte: every member of an ensemble and, if there are several, the ensemble.
/// `stop` is asked after each byte whether to give up.
///
/// # Errors
/// As [`Ensemble::start`] and [`Ensemble::advance`]; a byte that a model holds for impossible.
pub fn score_bytes(
    sessions: &[Session],
    settings: ExactByteLevel,
    weights: &[f64],
    text: &str,
    windows: &[Window],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Score>> {
    let start = Instant::now();
    let mut models = Vec::new();
    for session in sessions {
        let stem: Vec<TokenId> = session.document_mark().into_iter().collect();
        models.push(session.byte_model(&Arc::new(session.lexicon()), settings, &stem)?);
    }
    let mut ensemble = Ensemble::new(models, weights)?;
    let mut nats = vec![0.0; sessions.len() + 1];
    for window in windows {
        let bytes = text.as_bytes();
        ensemble.start(&bytes[window.start..window.from])?;
        for (at, &byte) in bytes.iter().enumerate().take(window.end).skip(window.from) {
            let symbol = usize::from(byte);
            let laws = ensemble.each();
            for (nats, law) in nats.iter_mut().zip(laws) {
                // One that is silent would have to say something: nothing is what it gives.
                *nats -= law.map_or(0.0, |law| law[symbol]).ln();
            }
            if let Some(all) = nats.last_mut() {
                *all -= ensemble.distribution()[symbol].ln();
            }
            if !ensemble.advance(byte)? {
                let what = format!(
                    "text: no model thinks byte {at} possible ({byte:#04x}). Next: see with \
                     `tessera score` without --exact-bytes which model cannot spell it"
                );
                return Err(Error::Option { what });
            }
            progress(at + 1);
        }
    }
    let mut scores: Vec<Score> = sessions
        .iter()
        .zip(&nats)
        .map(|(session, nats)| Score::new(&session.info().name, *nats, text.len(), 0, start))
        .collect();
    if sessions.len() > 1 {
        scores.push(Score::new("ensemble", nats[sessions.len()], text.len(), 0, start));
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_count_every_byte_once_and_see_what_precedes() {
        let text = "one two three four five six seven eight nine ten \u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9} end";
        for window in [16, 20, 40, 200] {
            let plan = Windows { window, stride: window / 2 }.of(text);
            assert_eq!((plan[0].start, plan[0].from), (0, 0));
            assert_eq!(plan.last().unwrap().end, text.len());
            for (a, b) in plan.iter().zip(&plan[1..]) {
                assert!(a.end == b.from && b.start <= b.from && b.end > b.from, "{plan:?}");
                assert!(b.start >= a.start && text.is_char_boundary(b.start));
            }
            assert!(plan.iter().all(|w| w.end - w.start <= window + 8), "{plan:?}");
        }
        assert!(Windows { window: 16, stride: 8 }.of("").is_empty());
    }
}
