//! Predicates: the smallest way to write a constraint is a yes-or-no question about beginnings of
//! texts. Its state is the text itself, so rollbacks and forks need nothing from it.

use std::fmt::Debug;
use std::sync::Arc;

use crate::backbone::Vocabulary;
use crate::constrain::{Constrain, Constraint, too_far};
use crate::{Error, Result, TokenId};

/// What a [`Predicate`] says about a beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// Some allowed text begins like this.
    pub allowed: bool,
    /// This is an allowed text as it is.
    pub complete: bool,
}

/// Any yes-or-no question about texts: the smallest way to write a constraint.
pub trait Predicate: Send + Sync + Debug {
    /// Judges a beginning; `text` may stop in the middle of a character.
    ///
    /// # Errors
    /// [`Error::Constraint`] if there is no answer.
    fn judge(&self, text: &[u8]) -> Result<Judgement>;
}

/// A predicate as a constraint.
#[derive(Debug, Clone)]
pub struct Judged(pub Arc<dyn Predicate>);

impl Constraint for Judged {
    fn begin(&self, _: &dyn Vocabulary) -> Result<Box<dyn Constrain>> {
        let judgement = self.0.judge(b"")?;
        if !judgement.allowed {
            let what = "the predicate refuses the empty text, so it allows none. \
                        Next: answer true to every text that an allowed one begins with";
            return Err(Error::constraint(what));
        }
        let predicate = Arc::clone(&self.0);
        let complete = vec![Some(judgement.complete)];
        Ok(Box::new(Judging { predicate, text: Vec::new(), ends: vec![0], complete, last: None }))
    }
}

#[derive(Debug, Clone)]
struct Judging {
    predicate: Arc<dyn Predicate>,
    text: Vec<u8>,
    /// Where the text ended after 0, 1, ... tokens.
    ends: Vec<usize>,
    /// What is known about those texts being complete.
    complete: Vec<Option<bool>>,
    /// The last token judged, to know about the text after it.
    last: Option<(TokenId, Judgement)>,
}

impl Judging {
    fn judge(&mut self, bytes: &[u8]) -> Result<Judgement> {
        let length = self.text.len();
        self.text.extend_from_slice(bytes);
        let judgement = self.predicate.judge(&self.text);
        self.text.truncate(length);
        judgement
    }
}

impl Constrain for Judging {
    fn check(&mut self, token: TokenId, bytes: &[u8]) -> Result<bool> {
        let judgement = self.judge(bytes)?;
        self.last = Some((token, judgement));
        Ok(judgement.allowed)
    }

    fn complete(&mut self) -> Result<bool> {
        if let Some(Some(known)) = self.complete.last() {
            return Ok(*known);
        }
        let complete = self.judge(b"")?.complete;
        if let Some(last) = self.complete.last_mut() {
            *last = Some(complete);
        }
        Ok(complete)
    }

    fn accept(&mut self, token: TokenId, bytes: &[u8]) -> Result<()> {
        let known = self.last.take().filter(|(t, _)| *t == token);
        self.text.extend_from_slice(bytes);
        self.ends.push(self.text.len());
        self.complete.push(known.map(|(_, judgement)| judgement.complete));
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> Result<()> {
        let Some(kept) = self.ends.len().checked_sub(tokens).filter(|&n| n > 0) else {
            return Err(too_far(tokens, self.ends.len() - 1));
        };
        self.ends.truncate(kept);
        self.complete.truncate(kept);
        self.text.truncate(self.ends[kept - 1]);
        self.last = None;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constrain> {
        Box::new(self.clone())
    }
}
