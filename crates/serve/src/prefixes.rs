//! Sequences that may be used again: rows of prompts that were computed before.
//!
//! Kept by caller: none ever reads another's rows.

use tessera_runtime::Sequence;

/// Most sequences kept; the one that was used longest ago makes room.
const KEPT: usize = 64;

/// Fewest tokens for which copying a sequence is worth it.
const WORTH: usize = 16;

/// Sequences at rest, the one used last at the end.
#[derive(Default)]
pub(crate) struct Prefixes {
    kept: Vec<(usize, Sequence)>,
}

/// How many tokens two lists begin with in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Prefixes {
    /// Keeps a sequence for its caller.
    pub(crate) fn keep(&mut self, caller: usize, sequence: Sequence) {
        if sequence.tokens().is_empty() {
            return;
        }
        self.kept.push((caller, sequence));
        if self.kept.len() > KEPT {
            self.kept.remove(0);
        }
    }

    /// Lets go of those used longest ago until the others hold at most so many bytes.
    pub(crate) fn shrink(&mut self, most: usize) {
        let mut held: usize = self.kept.iter().map(|(_, s)| s.bytes()).sum();
        while held > most && !self.kept.is_empty() {
            held -= self.kept.remove(0).1.bytes();
        }
    }

    /// The sequence that holds the most of `prompt`: one at rest is taken, or copied if it also holds much
    /// else; one `at_work` (with how many of its tokens may be read) is copied. `None` if there is nothing
    /// to be had.
    pub(crate) fn take<'s>(
        &mut self,
        caller: usize,
        prompt: &[u32],
        at_work: impl Iterator<Item = (&'s Sequence, usize)>,
    ) -> Result<Option<Sequence>, tessera_runtime::Error> {
        let at_rest = (0..self.kept.len())
            .filter(|&i| self.kept[i].0 == caller)
            .map(|i| (common(self.kept[i].1.tokens(), prompt), i))
            // The one used last, of equals.
            .max();
        let rest = at_rest.map_or(0, |(found, _)| found);
        let working = at_work
            .map(|(sequence, most)| (common(sequence.tokens(), prompt).min(most), sequence))
            .max_by_key(|(found, _)| *found);
        if let Some((found, sequence)) = working
            && found >= rest + WORTH
        {
            let mut copy = sequence.fork()?;
            copy.truncate(found)?;
            return Ok(Some(copy));
        }
        match at_rest {
            Some((found, place)) if found > 0 => {
                let held = self.kept[place].1.tokens().len();
                if found * 2 < held && found >= WORTH {
                    let mut copy = self.kept[place].1.fork()?;
                    copy.truncate(found)?;
                    return Ok(Some(copy));
                }
                Ok(Some(self.kept.remove(place).1))
            }
            _ => Ok(None),
        }
    }
}
