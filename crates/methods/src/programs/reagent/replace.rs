//! What a token may be replaced by, so that the text stays a text.

use tessera_core::dist::{Key, top_k};
use tessera_core::{
    Backbone, CacheOptions, Pass, Position, Result, Reveal, RowsOut, Segment, TokenId, Vocabulary,
};

use super::{ReAGent, Source};

/// The kind of a token, by its spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A space and letters: the beginning of a word.
    Word,
    /// Letters without a space: mostly a piece of a word.
    Piece,
    /// Digits, perhaps after a space.
    Digits,
    /// White space.
    Space,
    /// Anything else that is text: punctuation, symbols, bytes.
    Marks,
    /// Never part of a text.
    Control,
}

impl Class {
    const ALL: [Self; 6] =
        [Self::Word, Self::Piece, Self::Digits, Self::Space, Self::Marks, Self::Control];

    /// The class of a token.
    pub fn of(vocabulary: &dyn Vocabulary, token: TokenId) -> Self {
        let bytes = vocabulary.bytes(token);
        if vocabulary.is_control(token) || vocabulary.is_end(token) || bytes.is_empty() {
            return Self::Control;
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return Self::Marks };
        let word = text.trim_start_matches(' ');
        match word.chars().next() {
            None => Self::Space,
            _ if word.chars().all(char::is_whitespace) => Self::Space,
            _ if word.chars().all(char::is_numeric) => Self::Digits,
            Some(c) if c.is_alphabetic() && word.len() < text.len() => Self::Word,
            Some(c) if c.is_alphabetic() => Self::Piece,
            _ => Self::Marks,
        }
    }
}

/// Draws replacements for the tokens of one context.
pub struct Replacer {
    /// For each position, what it may become: an index into `lists`.
    list: Vec<usize>,
    lists: Vec<Vec<TokenId>>,
}

impl Replacer {
    /// For `context`; the source `model` takes one pass.
    ///
    /// # Errors
    /// Whatever the pass reports.
    pub fn new(
        backbone: &dyn Backbone,
        vocabulary: &dyn Vocabulary,
        settings: &ReAGent,
        context: &[TokenId],
    ) -> Result<Self> {
        // A head may have more rows than there are tokens, or fewer.
        let ids = 0..vocabulary.len().min(backbone.spec().vocab) as TokenId;
        let text = |t: TokenId| Class::of(vocabulary, t) != Class::Control;
        Ok(match settings.replace {
            Source::Vocabulary => Self {
                list: vec![0; context.len()],
                lists: vec![ids.filter(|&t| text(t)).collect()],
            },
            Source::Class => {
                let mut lists = vec![Vec::new(); Class::ALL.len()];
                let place = |t: TokenId| {
                    let class = Class::of(vocabulary, t);
                    Class::ALL.iter().position(|c| *c == class).unwrap_or_default()
                };
                ids.for_each(|t| lists[place(t)].push(t));
                Self { list: context.iter().map(|&t| place(t)).collect(), lists }
            }
            Source::Model => {
                let mut lists = guesses(backbone, context, settings.candidates, &text)?;
                // Nothing precedes the first token: anything may be there.
                lists[0] = ids.filter(|&t| text(t)).collect();
                Self { list: (0..context.len()).collect(), lists }
            }
        })
    }

    /// The replacement for the token at `position`, drawn uniformly with `key`.
    pub fn draw(&self, context: &[TokenId], position: usize, key: Key) -> TokenId {
        let list = &self.lists[self.list[position]];
        let at = (key.uniform(position as TokenId) * list.len() as f64) as usize;
        list.get(at).copied().unwrap_or(context[position])
    }
}

/// The most probable text tokens at each position, given what precedes it.
fn guesses(
    backbone: &dyn Backbone,
    context: &[TokenId],
    count: usize,
    text: &dyn Fn(TokenId) -> bool,
) -> Result<Vec<Vec<TokenId>>> {
    let positions: Vec<Position> = (0..context.len() as Position).collect();
    let mut cache = backbone.new_cache(CacheOptions::default())?;
    let mut segment = Segment::causal(context, &positions, &mut *cache);
    segment.rows_out = RowsOut::All;
    let mut reveal = Reveal::new();
    backbone.forward(&mut Pass::new(&mut [segment]), &mut reveal)?;
    let mut lists = vec![Vec::new()];
    let mut kept = Vec::new();
    for row in 0..context.len().saturating_sub(1) {
        kept.clear();
        let mut logits = reveal.logits(0, row).to_vec();
        for (t, logit) in (0..).zip(&mut logits) {
            if !text(t) {
                *logit = f32::NEG_INFINITY;
            }
        }
        top_k(&logits, count, &mut kept);
        lists.push(kept.iter().map(|c| c.id).collect());
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::{Scripted, Words};

    #[test]
    fn classes_by_spelling() {
        let words =
            Words::new([" the", "ing", " 12", "7", "  ", "\n", "!", " (", "\u{e9}a", "\t a"]);
        let of = |t| Class::of(&words, t);
        use Class::{Control, Digits, Marks, Piece, Space, Word};
        let all: Vec<Class> = (0..12).map(of).collect();
        let want = [
            Word, Piece, Digits, Digits, Space, Space, Marks, Marks, Piece, Marks, Control, Control,
        ];
        assert_eq!(all, want);
    }

    #[test]
    fn every_source_draws_from_its_own_list() {
        let words = Words::new([" a", " b", "c", "d", "1", "2"]);
        let toy = Scripted::new(8, 64, |seen, logits| {
            let last = seen[seen.len() - 1].1;
            logits[(last as usize + 1) % 6] = 9.0;
            logits[7] = 20.0;
        });
        let context = [0, 2, 4];
        let drawn = |replace| {
            let settings = ReAGent { replace, candidates: 1, ..ReAGent::default() };
            let replacer = Replacer::new(&toy, &words, &settings, &context).unwrap();
            let mut seen = [[false; 8]; 3];
            for i in 0..200 {
                for (p, seen) in seen.iter_mut().enumerate() {
                    seen[replacer.draw(&context, p, Key::new(1, 0, i)) as usize] = true;
                }
            }
            seen.map(|s| (0..8).filter(|&t| s[t]).collect::<Vec<_>>())
        };
        assert_eq!(drawn(Source::Class), [vec![0, 1], vec![2, 3], vec![4, 5]]);
        assert_eq!(drawn(Source::Vocabulary), [0, 1, 2].map(|_| vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(drawn(Source::Model), [vec![0, 1, 2, 3, 4, 5], vec![1], vec![3]]);
    }
}
