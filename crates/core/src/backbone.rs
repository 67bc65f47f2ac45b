//! What a model offers to loops and methods: passes, caches, a vocabulary.

use std::any::Any;

use crate::cache::{CacheTable, KeyForm};
use crate::pass::{Pass, Reveal};
use crate::plan::KeepPlan;
use crate::{Position, Result, Row, TokenId};

/// A model's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Architecture, as model files name it (`llama`, `qwen2`, `gemma3`).
    pub arch: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the head: logits per position.
    pub vocab: usize,
    /// Context length the model was trained for, in tokens.
    pub context: usize,
}

/// How the pairs of values that rotary encoding turns lie in a head.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Pairing {
    /// `(0, 1), (2, 3), ...`: how GGUF files of the llama family store q and k.
    Interleaved,
    /// `(0, d/2), (1, d/2 + 1), ...`.
    #[default]
    Halves,
}

impl Pairing {
    /// The two columns of pair `i` in a head of `dim` values.
    pub fn columns(self, i: usize, dim: usize) -> [usize; 2] {
        match self {
            Self::Interleaved => [2 * i, 2 * i + 1],
            Self::Halves => [i, i + dim / 2],
        }
    }
}

/// What a backbone can do beyond a plain causal pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Embeddings and query-only rows as input.
    pub embeddings: bool,
    /// Tree, block, bidirectional and explicit masks.
    pub masks: bool,
    /// Additive score terms.
    pub bias: bool,
    /// Explicit read sets.
    pub keys: bool,
    /// Rows refreshed in place or discarded after the pass.
    pub writes: bool,
    /// A subset of the layers.
    pub layers: bool,
    /// Taps: hidden states, attention, keys, queries.
    pub taps: bool,
    /// Reduction sites inside the pass.
    pub sites: bool,
    /// Cross-attention or time conditions.
    pub condition: bool,
    /// Attention of every query head among rows of its own ([`crate::Sites::attend`]).
    pub head_rows: bool,
    /// Keys held before rotary encoding.
    pub plain_keys: bool,
    /// Derivatives.
    pub gradients: bool,
}

impl Capabilities {
    /// The names of what `self` (needs) has and `offered` lacks.
    pub fn missing_from(&self, offered: &Self) -> Vec<&'static str> {
        let pairs = [
            (self.embeddings, offered.embeddings, "embeddings as input"),
            (self.masks, offered.masks, "masks other than causal"),
            (self.bias, offered.bias, "score biases"),
            (self.keys, offered.keys, "explicit read sets"),
            (self.writes, offered.writes, "cache rows written in place"),
            (self.layers, offered.layers, "a subset of the layers"),
            (self.taps, offered.taps, "taps"),
            (self.sites, offered.sites, "reduction sites"),
            (self.condition, offered.condition, "conditions"),
            (self.head_rows, offered.head_rows, "rows chosen by query head"),
            (self.plain_keys, offered.plain_keys, "keys before rotary encoding"),
            (self.gradients, offered.gradients, "gradients"),
        ];
        pairs.into_iter().filter(|(need, has, _)| *need && !*has).map(|(_, _, name)| name).collect()
    }
}

/// How a cache is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheOptions {
    /// Rows to make room for at once; the cache grows beyond it as needed.
    pub capacity: usize,
    /// How keys are held.
    pub form: KeyForm,
}

/// A saved state of a cache, to return to with [`KvStore::restore`].
pub struct Checkpoint {
    /// The cache at the time.
    pub store: Box<dyn KvStore>,
}

/// The keys and values of one sequence. The bytes are the backbone's, the table is common.
pub trait KvStore: Send + Sync {
    /// Rows and positions.
    fn table(&self) -> &CacheTable;

    /// Drops the last `count` rows of every head.
    ///
    /// # Errors
    /// [`crate::Error::Cache`] if there are fewer.
    fn rollback(&mut self, count: usize) -> Result<()>;

    /// Of the last `count` rows of every head keeps those that `kept` numbers (from 0, ascending)
    /// and drops the others: the accepted path of a draft.
    ///
    /// # Errors
    /// [`crate::Error::Cache`] if there are fewer rows or `kept` is not such a list; then nothing
    /// has changed.
    fn keep_last(&mut self, count: usize, kept: &[Row]) -> Result<()> {
        self.compact(&KeepPlan::last(self.table(), count, kept)?)
    }

    /// Applies a plan: merges, then keeps the planned rows and frees the memory of the others.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if the plan breaks a law; then nothing has changed.
    fn compact(&mut self, plan: &KeepPlan) -> Result<()>;

    /// Gives the rows new positions; only for keys held plain.
    ///
    /// # Errors
    /// [`crate::Error::Cache`] for rotated keys or a wrong count.
    fn reposition(&mut self, positions: &[Position]) -> Result<()>;

    /// Gives the rows of every head their rank as position; only for keys held plain, and heads that
    /// hold equally many rows.
    ///
    /// # Errors
    /// As [`CacheTable::rerank`].
    fn rerank(&mut self) -> Result<()> {
        let ranks: Vec<Position> = (0..self.table().len() as Position).collect();
        self.reposition(&ranks)
    }

    /// An independent copy: what is written to one is never seen by the other.
    ///
    /// # Errors
    /// [`crate::Error::Cache`] if there is no memory for it.
    fn fork(&self) -> Result<Box<dyn KvStore>>;

    /// The cache as it is now, to come back to.
    ///
    /// # Errors
    /// As [`KvStore::fork`].
    fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(Checkpoint { store: self.fork()? })
    }

    /// Returns to a checkpoint of this cache.
    ///
    /// # Errors
    /// [`crate::Error::Cache`] if the checkpoint is of another backbone or shape.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()>;

    /// Reads one key or value row back as f32 (tests, merges, policies).
    ///
    /// # Errors
    /// [`crate::Error::Cache`] if there is no such row.
    fn read(&self, layer: usize, head: usize, row: Row, values: bool) -> Result<Vec<f32>>;

    /// Bytes held, spare capacity included.
    fn bytes(&self) -> usize;

    /// For the backbone that made it.
    fn as_any(&self) -> &dyn Any;

    /// For the backbone that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A model that executes passes.
pub trait Backbone: Send + Sync {
    /// `cpu`, `candle`, ...
    fn name(&self) -> &str;

    /// The model's shape.
    fn spec(&self) -> &ModelSpec;

    /// How rotary encoding pairs the values of a head.
    fn pairing(&self) -> Pairing {
        Pairing::default()
    }

    /// The positions that a layer reads back, if it reads through a sliding window.
    fn window(&self, layer: usize) -> Option<u32> {
        let _ = layer;
        None
    }

    /// What passes it takes.
    fn capabilities(&self) -> Capabilities;

    /// An empty cache.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a key form it does not offer.
    fn new_cache(&self, options: CacheOptions) -> Result<Box<dyn KvStore>>;

    /// Turns the keys of a cache back to what they were before rotary encoding
    /// ([`KeyForm::Plain`]), so that its rows can take other positions. Rounds every key once more.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a backbone that does not offer plain keys.
    fn unrotate(&self, cache: &mut dyn KvStore) -> Result<()> {
        let _ = cache;
        let (backbone, missing) =
            (self.name().to_owned(), "keys before rotary encoding".to_owned());
        Err(crate::Error::Unsupported { backbone, missing })
    }

    /// Runs a pass; fills `reveal` with the wanted logits and taps. On an error the caches are as
    /// they were before the pass.
    ///
    /// # Errors
    /// [`crate::Error::Pass`] for parts that do not fit, [`crate::Error::Unsupported`] for what it
    /// does not offer.
    fn forward(&self, pass: &mut Pass<'_, '_>, reveal: &mut Reveal) -> Result<()>;
}

/// Tokens as bytes, for everything that looks at text.
pub trait Vocabulary: Send + Sync {
    /// Number of tokens.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes a token stands for; empty for control tokens and unknown ids.
    fn bytes(&self, token: TokenId) -> &[u8];

    /// Whether the token is a control token (never part of the text).
    fn is_control(&self, token: TokenId) -> bool;

    /// Whether the token ends generation.
    fn is_end(&self, token: TokenId) -> bool;

    /// Encodes plain text; spellings of control tokens stay text.
    fn encode(&self, text: &str) -> Vec<TokenId>;

    /// Encodes text that breaks off inside a character. Where text is cut into words, the unfinished
    /// character counts as `like`, a character of the kind that it may become.
    ///
    /// A vocabulary that cannot do so encodes the whole characters only, as this default does; the
    /// bytes of its tokens are then not those that were asked for, which a caller must notice.
    fn encode_open(&self, bytes: &[u8], like: char) -> Vec<TokenId> {
        let _ = like;
        let whole = std::str::from_utf8(bytes).map_or_else(|e| e.valid_up_to(), str::len);
        self.encode(&String::from_utf8_lossy(&bytes[..whole]))
    }
}
