//! Token healing, the usual remedy: take the last token back and make what comes instead begin with
//! its bytes. It repairs one boundary; the exact law weighs them all.

use tessera_core::TokenId;

use super::lexicon::Lexicon;

/// The bytes that tokens to come must spell first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healing {
    rest: Vec<u8>,
}

impl Healing {
    /// Takes the last token of `tokens` back, unless it is the only one or has no bytes.
    pub fn new(lexicon: &Lexicon<'_>, tokens: &mut Vec<TokenId>) -> Self {
        let last = tokens.last().map_or(&[][..], |&t| lexicon.bytes(t));
        let rest = last.to_vec();
        if tokens.len() > 1 && !rest.is_empty() {
            tokens.pop();
            return Self { rest };
        }
        Self::default()
    }

    /// Bytes still to be spelt.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Takes every other token's chance away.
    pub fn mask(&self, lexicon: &Lexicon<'_>, logits: &mut [f32]) {
        if self.rest.is_empty() {
            return;
        }
        for (token, logit) in (0..).zip(logits) {
            let bytes = lexicon.bytes(token);
            let good = bytes.starts_with(&self.rest) || self.rest.starts_with(bytes);
            if bytes.is_empty() || !good {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Notes the token chosen; returns those of its bytes that are new.
    pub fn take<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let old = bytes.len().min(self.rest.len());
        self.rest.drain(..old);
        &bytes[old..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Words;

    #[test]
    fn the_last_token_is_taken_back_and_spelt_again() {
        let words = Words::new(["a", "b", "ab", "abc", "bc", "c"]);
        let lexicon = Lexicon::new(&words);
        let mut tokens = vec![5, 2];
        let mut healing = Healing::new(&lexicon, &mut tokens);
        assert_eq!((tokens, healing.rest()), (vec![5], &b"ab"[..]));
        let mut logits = vec![0.0; 8];
        healing.mask(&lexicon, &mut logits);
        let open: Vec<usize> = (0..8).filter(|&i| logits[i] == 0.0).collect();
        assert_eq!(open, [0, 2, 3], "a, ab and abc");
        assert_eq!(healing.take(b"a"), b"");
        let mut logits = vec![0.0; 8];
        healing.mask(&lexicon, &mut logits);
        assert_eq!((0..8).filter(|&i| logits[i] == 0.0).collect::<Vec<_>>(), [1, 4], "b and bc");
        assert_eq!(healing.take(b"bc"), b"c");
        assert_eq!(healing.rest(), b"");
    }

    #[test]
    fn a_lone_token_stays() {
        let words = Words::new(["a"]);
        let lexicon = Lexicon::new(&words);
        let mut tokens = vec![0];
        assert_eq!(Healing::new(&lexicon, &mut tokens).rest(), b"");
        assert_eq!(tokens, [0]);
    }
}
