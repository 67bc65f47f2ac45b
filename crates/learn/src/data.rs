//! Documents as rows of tokens.
//!
//! A row begins with the end token and then holds whole documents, each followed by the end token;
//! the last one is cut; or one document alone, filled up with the end token. The order of documents is
//! drawn anew for every epoch, and the row with a given number depends on the seed and the number only,
//! so a run can be continued anywhere.

use tessera_core::dist::Key;
use tessera_model::tokenizer::{Special, Tokenizer};

use crate::recipe::Layout;
use crate::{Error, Result};

/// One document of this many is held out.
const HELD_OUT: usize = 50;
/// The purpose of the numbers that order documents (`Key::purpose`).
const ORDER: u64 = 0x000d_de11;

/// Tokens of all documents.
#[derive(Debug)]
pub struct Data {
    training: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
    end: u32,
    seed: u64,
    length: usize,
    layout: Layout,
    /// Epoch, number of its first row, its rows.
    current: (u64, u64, Vec<Vec<u32>>),
}

impl Data {
    /// Encodes documents for rows of `length` tokens.
    ///
    /// # Errors
    /// Too few documents to train on and to hold some out; one that is too long to be a row alone.
    pub fn new<'t>(
        documents: impl Iterator<Item = &'t str>,
        tokenizer: &Tokenizer,
        end: u32,
        (length, layout): (usize, Layout),
        seed: u64,
    ) -> Result<Self> {
        let (mut training, mut held_out) = (Vec::new(), Vec::new());
        for (index, document) in documents.enumerate() {
            let mut tokens = Vec::new();
            tokenizer.encode(document, Special::AsText, &mut tokens);
            if layout == Layout::Padded && tokens.len() + 2 > length {
                let what = format!(
                    "document {} has {} tokens: with one document a row, at most {} fit. Next: a \
                     larger model.context, or shorter documents",
                    index + 1,
                    tokens.len(),
                    length.saturating_sub(2)
                );
                return Err(Error::Training { what });
            }
            let to = if index % HELD_OUT == HELD_OUT - 1 { &mut held_out } else { &mut training };
            // A long document gives several rows.
            to.extend(tokens.chunks(length.max(2) - 1).map(<[u32]>::to_vec));
        }
        Self::from_tokens(training, held_out, end, (length, layout), seed)
    }

    /// As [`Data::new`], from tokens.
    ///
    /// # Errors
    /// As [`Data::new`].
    pub fn from_tokens(
        training: Vec<Vec<u32>>,
        held_out: Vec<Vec<u32>>,
        end: u32,
        (length, layout): (usize, Layout),
        seed: u64,
    ) -> Result<Self> {
        let shape = (length, layout);
        let current = (0, 0, rows(&training, end, shape, Some(Key::new(seed, 0, 0))));
        let held_out = rows(&held_out, end, shape, None);
        if current.2.is_empty() || held_out.is_empty() {
            let what = format!(
                "the texts give {} rows of {length} tokens to train on and {} to hold out: both \
                 must be at least 1. Next: give more text",
                current.2.len(),
                held_out.len()
            );
            return Err(Error::Training { what });
        }
        Ok(Self { training, held_out, end, seed, length, layout, current })
    }

    /// Tokens of the training documents.
    pub fn tokens(&self) -> usize {
        self.training.iter().map(Vec::len).sum()
    }

    /// Documents, or pieces of long ones, to train on.
    pub fn documents(&self) -> usize {
        self.training.len()
    }

    /// The rows that are held out.
    pub fn held_out(&self) -> &[Vec<u32>] {
        &self.held_out
    }

    /// Row `number` of the endless list of rows.
    pub fn row(&mut self, number: u64) -> &[u32] {
        if number < self.current.1 {
            self.go(0, 0);
        }
        while number >= self.current.1 + self.current.2.len() as u64 {
            let (epoch, first, rows) = &self.current;
            self.go(epoch + 1, first + rows.len() as u64);
        }
        &self.current.2[(number - self.current.1) as usize]
    }

    fn go(&mut self, epoch: u64, first: u64) {
        let key = Key::new(self.seed, 0, epoch as u32);
        let shape = (self.length, self.layout);
        self.current = (epoch, first, rows(&self.training, self.end, shape, Some(key)));
    }
}

/// Lays documents out in rows, in the order that `key` draws.
fn rows(
    documents: &[Vec<u32>],
    end: u32,
    (length, layout): (usize, Layout),
    key: Option<Key>,
) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..documents.len() as u32).collect();
    if let Some(key) = key {
        order.sort_by_key(|&document| key.purpose(ORDER).bits(document));
    }
    let (mut rows, mut row) = (Vec::new(), vec![end]);
    for document in order {
        row.extend(&documents[document as usize]);
        row.push(end);
        if layout == Layout::Padded {
            row.resize(length, end);
        }
        if row.len() >= length {
            row.truncate(length);
            rows.push(std::mem::replace(&mut row, vec![end]));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Data {
        let documents: Vec<Vec<u32>> = (0..40).map(|i| vec![i; 3 + i as usize % 4]).collect();
        Data::from_tokens(documents.clone(), documents[..5].to_vec(), 99, (16, Layout::Packed), 7)
            .unwrap()
    }

    #[test]
    fn rows_begin_with_the_end_token_and_hold_whole_documents() {
        let mut data = data();
        for number in 0..20 {
            let row = data.row(number).to_vec();
            assert_eq!((row.len(), row[0]), (16, 99));
            let parts: Vec<&[u32]> = row[1..].split(|&t| t == 99).collect();
            for whole in &parts[..parts.len() - 1] {
                assert_eq!(whole.len(), 3 + whole[0] as usize % 4);
            }
        }
    }

    #[test]
    fn a_document_alone_is_filled_up_with_the_end_token() {
        let documents: Vec<Vec<u32>> = (1..9).map(|i| vec![i; i as usize]).collect();
        let shape = (10, Layout::Padded);
        let mut data = Data::from_tokens(documents.clone(), documents, 99, shape, 7).unwrap();
        for number in 0..16 {
            let row = data.row(number);
            let n = row[1] as usize;
            let wanted = [vec![99], vec![n as u32; n], vec![99; 9 - n]].concat();
            assert_eq!(row, wanted);
        }
    }

    #[test]
    fn a_row_depends_on_its_number_only() {
        let (mut a, mut b) = (data(), data());
        let forward: Vec<Vec<u32>> = (0..60).map(|n| a.row(n).to_vec()).collect();
        for n in [59, 3, 30, 0, 17] {
            assert_eq!(b.row(n), forward[n as usize]);
        }
        let epoch = a.current.2.len();
        assert_ne!(forward[0], forward[epoch], "every epoch has an order of its own");
        let shape = (16, Layout::Packed);
        assert!(Data::from_tokens(vec![vec![1]], vec![vec![1]], 9, shape, 7).is_err());
    }
}
