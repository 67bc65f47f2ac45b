//! One description of a forward pass, spoken by every token transformer.
//!
//! Autoregressive decoding is a causal pass of one row; checking a draft is a tree pass; a
//! diffusion step is a bidirectional pass over a window; a next-scale image step is a block pass.
//! Several sequences share one pass as [`Segment`]s, each with its own cache.
//!
//! Long because a pass, its taps and the sites inside it are one vocabulary.

use crate::backbone::KvStore;
use crate::{Position, Result, Row, TokenId};

/// What a row of a segment is made of.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Token ids; the backbone looks their embeddings up.
    Tokens(&'a [TokenId]),
    /// Embeddings, `rows x hidden`, row-major, as they enter the first layer.
    Embeddings(&'a [f32]),
    /// Query-only rows (`rows x hidden`): they read, but no row (not even themselves) reads them,
    /// and nothing of them is written. A position without content.
    Queries(&'a [f32]),
}

/// Which rows of the same segment a row may read, besides the cached rows.
///
/// Cached rows are visible as the kind says, unless [`Segment::keys`] narrows them.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Cached rows and earlier-or-equal rows of the segment, both by *position* `<=` the row's own.
    Causal,
    /// Every cached row and every row of the segment.
    Bidirectional,
    /// Every cached row, the row itself and its ancestors. `parent[i]` is the index of row `i`'s
    /// parent inside the segment (smaller than `i`), or `None` for a child of the cached context.
    Tree {
        /// One parent per row.
        parent: &'a [Option<u32>],
    },
    /// Every cached row, and the rows of the segment whose block number is `<=` the row's own.
    Block {
        /// One block number per row.
        block: &'a [u32],
    },
    /// Any pattern: `bits[row * columns + column]`, where the columns are the cached rows as they
    /// stand before the pass (`0..cached`), followed by the segment's rows. For cached rows that
    /// this pass refreshes in place, the segment's column decides.
    Explicit {
        /// Row-major visibility.
        bits: &'a [bool],
        /// Cached rows plus rows of the segment.
        columns: usize,
    },
}

/// An explicit read set: the cached rows that may be read at all.
#[derive(Debug, Clone, Copy)]
pub enum KeySet<'a> {
    /// The same rows in every layer and head; sorted, unique.
    Rows(&'a [Row]),
    /// Rows per layer and key head: `heads[layer * kv_heads + head]`; each sorted, unique.
    PerHead(&'a [Vec<Row>]),
}

/// What becomes of the keys and values of a segment's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Write<'a> {
    /// Append them to the cache, in order.
    #[default]
    Append,
    /// Write row `i` over cache row `rows[i]`, in place (a refresh). Rows are unique, not sorted.
    Rows(&'a [Row]),
    /// Use them in this pass only; the cache is left as it was.
    Discard,
}

/// The rows of a segment whose logits are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RowsOut<'a> {
    /// The last row only.
    #[default]
    Last,
    /// Every row, in order.
    All,
    /// None: the pass only fills the cache (or its taps).
    None,
    /// These rows, in this order.
    Rows(&'a [u32]),
}

impl RowsOut<'_> {
    /// Number of rows wanted of a segment of `rows` rows.
    pub fn count(&self, rows: usize) -> usize {
        match self {
            Self::Last => rows.min(1),
            Self::All => rows,
            Self::None => 0,
            Self::Rows(r) => r.len(),
        }
    }

    /// The `i`-th wanted row of a segment of `rows` rows.
    pub fn get(&self, i: usize, rows: usize) -> usize {
        match self {
            Self::Last => rows - 1,
            Self::All => i,
            Self::None => 0,
            Self::Rows(r) => r[i] as usize,
        }
    }
}

/// The layers a pass runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layers<'a> {
    /// All of them.
    #[default]
    All,
    /// The first `n`, then the final norm and the head (an early exit).
    First(usize),
    /// These, strictly ascending; the others are skipped (the residual stream passes through) and
    /// nothing is written to their cache rows: such rows hold no content there.
    Only(&'a [usize]),
}

impl Layers<'_> {
    /// Whether layer `layer` runs.
    pub fn runs(&self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::First(n) => layer < *n,
            Self::Only(list) => list.binary_search(&layer).is_ok(),
        }
    }
}

/// Side information for conditional models.
#[derive(Debug, Clone, Copy)]
pub enum Condition<'a> {
    /// Cross-attention memory, `rows x width`, row-major.
    Cross {
        /// The memory.
        memory: &'a [f32],
        /// Its row width.
        width: usize,
    },
    /// Diffusion time in `0..=1`.
    Time(f32),
}

/// One sequence's part of a pass.
pub struct Segment<'a> {
    /// The rows.
    pub input: Input<'a>,
    /// One position per row.
    pub positions: &'a [Position],
    /// Who reads whom.
    pub mask: Mask<'a>,
    /// An explicit read set over the cached rows; `None` reads all that the mask allows.
    pub keys: Option<KeySet<'a>>,
    /// Additive score term, `rows x columns` with the columns of [`Mask::Explicit`], or empty.
    pub bias: &'a [f32],
    /// What becomes of the rows' keys and values.
    pub write: Write<'a>,
    /// The rows whose logits are wanted.
    pub rows_out: RowsOut<'a>,
    /// Side information, for models that take it.
    pub condition: Option<Condition<'a>>,
    /// The sequence's cache; `None` runs without one (nothing cached, nothing kept).
    pub cache: Option<&'a mut dyn KvStore>,
}

impl<'a> Segment<'a> {
    /// A causal segment that appends its rows to `cache` and wants the last row's logits.
    pub fn causal(
        tokens: &'a [TokenId],
        positions: &'a [Position],
        cache: &'a mut dyn KvStore,
    ) -> Self {
        Self {
            input: Input::Tokens(tokens),
            positions,
            mask: Mask::Causal,
            keys: None,
            bias: &[],
            write: Write::Append,
            rows_out: RowsOut::Last,
            condition: None,
            cache: Some(cache),
        }
    }

    /// A segment whose rows all read one another, without a cache: a whole canvas.
    pub fn canvas(tokens: &'a [TokenId], positions: &'a [Position], rows_out: RowsOut<'a>) -> Self {
        Self {
            input: Input::Tokens(tokens),
            positions,
            mask: Mask::Bidirectional,
            keys: None,
            bias: &[],
            write: Write::Discard,
            rows_out,
            condition: None,
            cache: None,
        }
    }
}

/// Where a hidden state is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HiddenSite {
    /// As it enters the first layer.
    Embedding,
    /// The residual stream after layer `n` (from 0).
    After(usize),
    /// After the final norm, as it enters the head.
    Final,
}

/// Over which query heads attention is summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HeadSum {
    /// None: every query head apart.
    #[default]
    Query,
    /// Those that share a key head.
    Key,
    /// All of them.
    All,
}

impl HeadSum {
    /// Number of groups in a model of `heads` query heads over `kv_heads` key heads.
    pub fn groups(self, heads: usize, kv_heads: usize) -> usize {
        match self {
            Self::Query => heads,
            Self::Key => kv_heads,
            Self::All => 1,
        }
    }
}

/// The attention that keys receive, without the cost of keeping all of it: probabilities are
/// summed layer by layer, in row order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Received<'a> {
    /// The layers wanted.
    pub layers: &'a [usize],
    /// The heads summed.
    pub heads: HeadSum,
    /// Keep the rows of the segment apart instead of summing over them.
    pub by_row: bool,
}

/// The internals a pass is asked to reveal. Empty by default, and free when empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taps<'a> {
    /// Hidden states, for every row.
    pub hidden: &'a [HiddenSite],
    /// Layers whose attention probabilities are wanted.
    pub attention: &'a [usize],
    /// Layers whose new keys are wanted (after position encoding).
    pub keys: &'a [usize],
    /// Layers whose queries are wanted (after position encoding).
    pub queries: &'a [usize],
    /// Attention received.
    pub received: Received<'a>,
}

impl Taps<'_> {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.hidden.is_empty()
            && self.attention.is_empty()
            && self.keys.is_empty()
            && self.queries.is_empty()
            && self.received.layers.is_empty()
    }
}

/// Gives a policy the keys of one layer while a pass runs.
pub trait KeyReader {
    /// Number of key rows of key head `head`, rows of the running pass included.
    fn rows(&self, head: usize) -> usize;
    /// Copies the key of (`head`, `row`) as it is stored into `out` (`head_dim` values).
    fn key(&self, head: usize, row: Row, out: &mut [f32]);

    /// Per key head the rows that rank highest, ascending; keys take part as attention reads them, after
    /// position encoding, however they are stored.
    ///
    /// This definition reads key after key, and is right for rotated keys only. A backbone that answers [`Sites::columns`] with a layout
    /// of its own overrides it, and may round scores differently.
    ///
    /// # Errors
    /// A request that does not fit the keys.
    fn top(&self, ask: &Top<'_>) -> Result<Vec<Vec<Row>>> {
        ask.check()?;
        let (kv_heads, dim) = (ask.columns.len(), ask.head_dim);
        let group = ask.heads / kv_heads;
        let mut key = vec![0.0; dim];
        let mut chosen = Vec::with_capacity(kv_heads);
        for head in 0..kv_heads {
            let columns = &ask.columns[head];
            let width = ask.heads * dim;
            let queries = ask.queries.chunks_exact(width).flat_map(|row| {
                row[head * group * dim..(head + 1) * group * dim].chunks_exact(dim)
            });
            let mut scored = Vec::new();
            for row in ask.rows.start..ask.rows.end.min(self.rows(head)) {
                self.key(head, row as Row, &mut key);
                let one = |q: &[f32]| -> f32 {
                    columns.iter().map(|&c| q[c as usize] * key[c as usize]).sum()
                };
                let scores = queries.clone().map(one);
                let score = match ask.pooling {
                    Pooling::Sum => scores.sum(),
                    Pooling::Max => scores.fold(f32::NEG_INFINITY, f32::max),
                };
                scored.push((score, row as Row));
            }
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scored.truncate(ask.count);
            let mut rows: Vec<Row> = scored.into_iter().map(|(_, row)| row).collect();
            rows.sort_unstable();
            chosen.push(rows);
        }
        Ok(chosen)
    }
}

/// How the queries that share a key head agree on one score of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The sum of their scores.
    #[default]
    Sum,
    /// The largest of their scores.
    Max,
}

/// A request for the rows whose keys have the largest products with some queries, taken over a few
/// columns of the keys.
#[derive(Debug, Clone)]
pub struct Top<'a> {
    /// Queries, `rows x heads x head_dim`.
    pub queries: &'a [f32],
    /// Query heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The columns that count, one list per key head, as [`Sites::columns`] gave them.
    pub columns: &'a [Vec<u16>],
    /// How the queries of a key head agree.
    pub pooling: Pooling,
    /// The rows that compete, in every head as far as it has them.
    pub rows: std::ops::Range<usize>,
    /// Rows wanted of each key head; of equal ones the older.
    pub count: usize,
}

impl Top<'_> {
    /// Checks that the sizes fit one another.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] naming what does not.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(crate::Error::Plan { what });
        let kv_heads = self.columns.len();
        if kv_heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            return fail(format!("columns for {kv_heads} key heads of {} heads", self.heads));
        }
        if self.head_dim == 0 || !self.queries.len().is_multiple_of(self.heads * self.head_dim) {
            return fail(format!("{} query values to rank by", self.queries.len()));
        }
        match self.columns.iter().flatten().find(|&&c| usize::from(c) >= self.head_dim) {
            Some(c) => fail(format!("column {c} of keys of {} values", self.head_dim)),
            None => Ok(()),
        }
    }
}

/// What a layer knows when it asks a policy which cached rows to read.
pub struct ReadEvidence<'a> {
    /// Index of the segment in the pass.
    pub segment: usize,
    /// The layer.
    pub layer: usize,
    /// Queries of the segment after position encoding, `rows x heads x head_dim`.
    pub queries: &'a [f32],
    /// Positions of the segment's rows.
    pub positions: &'a [Position],
    /// Cached rows of the longest key head, before the pass.
    pub cached: usize,
    /// The layer's keys.
    pub keys: &'a dyn KeyReader,
}

/// Tells a policy how much attention keys receive while a pass runs.
pub trait Shares {
    /// The attention probabilities that the last `rows` rows of the segment give, summed over these
    /// rows in order: `heads x keys`, where the keys are the cached rows followed by the segment's.
    ///
    /// # Errors
    /// Whatever the backbone reports.
    fn of_last(&self, rows: usize) -> Result<Vec<f32>>;
}

/// What a layer knows when it asks a policy which rows attend to one another, head by head.
pub struct HeadEvidence<'a> {
    /// Index of the segment in the pass.
    pub segment: usize,
    /// The layer.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Cached rows before the pass.
    pub cached: usize,
    /// Positions of the segment's rows.
    pub positions: &'a [Position],
    /// Attention that keys receive.
    pub shares: &'a dyn Shares,
}

/// What a layer knows when it asks a policy which rows go on to the next layer.
pub struct RowEvidence<'a> {
    /// Index of the segment in the pass.
    pub segment: usize,
    /// The layer just finished.
    pub layer: usize,
    /// Hidden states of the segment's remaining rows, `rows x hidden`.
    pub hidden: &'a [f32],
    /// Positions of the remaining rows.
    pub positions: &'a [Position],
}

/// Reduction sites inside a pass. A backbone asks; the answer is a plan it applies.
pub trait Sites {
    /// Whether [`Sites::read`] wants to be asked at this layer. Cheap.
    fn reads(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }
    /// Whether [`Sites::keep`] wants to be asked after this layer. Cheap.
    fn keeps(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }
    /// The columns of the keys by which [`Sites::read`] will rank rows ([`KeyReader::top`]) of a
    /// segment at this layer, one list per key head; `None` where it will not. A backbone may lay its
    /// keys out for it, which takes a copy the first time.
    fn columns(&self, segment: usize, layer: usize) -> Option<&[Vec<u16>]> {
        let _ = (segment, layer);
        None
    }
    /// The cached rows to read at this layer, per key head (each sorted and unique), or `None` for
    /// all; of them, those that [`Segment::keys`] allows are read. Rows of the running pass stay
    /// visible as the mask says. Lists that name every row are the same as `None`, bit for bit; others
    /// are attended to as if the rest were masked, to rounding.
    ///
    /// # Errors
    /// Whatever the policy finds wrong; the pass stops with it.
    fn read(&mut self, evidence: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        let _ = evidence;
        Ok(None)
    }
    /// Whether [`Sites::attend`] wants to be asked at this layer. Cheap.
    fn attends(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }
    /// The rows that take part in attention at this layer, one list per query head, or `None` for
    /// all. Cached rows are numbered first and are read; behind them come the segment's rows, which
    /// are read and read themselves: a row that is not listed gives that head's output as zero. Each
    /// list is sorted and unique, and all name equally many of the segment's rows. A head's keys are
    /// ordered by their rank.
    ///
    /// # Errors
    /// Whatever the policy finds wrong; the pass stops with it.
    fn attend(&mut self, evidence: &HeadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        let _ = evidence;
        Ok(None)
    }
    /// The rows of the segment (indices into the remaining rows, sorted and unique) that go on to
    /// the next layer, or `None` for all.
    ///
    /// # Errors
    /// Whatever the policy finds wrong; the pass stops with it.
    fn keep(&mut self, evidence: &RowEvidence<'_>) -> Result<Option<Vec<u32>>> {
        let _ = evidence;
        Ok(None)
    }
}

/// A forward pass over one or several sequences.
pub struct Pass<'a, 's> {
    /// The sequences; each has its own cache, so rows never see another segment's rows.
    pub segments: &'s mut [Segment<'a>],
    /// The layers to run.
    pub layers: Layers<'a>,
    /// The internals wanted.
    pub taps: Taps<'a>,
    /// Reduction sites, if a policy takes part.
    pub sites: Option<&'s mut dyn Sites>,
}

impl<'a, 's> Pass<'a, 's> {
    /// A plain pass: all layers, no taps, no sites.
    pub fn new(segments: &'s mut [Segment<'a>]) -> Self {
        Self { segments, layers: Layers::All, taps: Taps::default(), sites: None }
    }
}

/// The internals of one segment, in the order in which the taps asked for them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SegmentReveal {
    /// Hidden states, one `rows x hidden` block per site.
    pub hidden: Vec<Vec<f32>>,
    /// Attention probabilities, one `rows x heads x columns` block per layer, where the columns
    /// are the cached rows followed by the segment's rows.
    pub attention: Vec<Vec<f32>>,
    /// New keys after position encoding, one `rows x kv_heads x head_dim` block per layer.
    pub keys: Vec<Vec<f32>>,
    /// Queries after position encoding, one `rows x heads x head_dim` block per layer.
    pub queries: Vec<Vec<f32>>,
    /// Attention received: one `groups x columns` block per layer, or `rows x groups x columns` by
    /// row, with the columns of [`SegmentReveal::attention`].
    pub received: Vec<Vec<f32>>,
}

/// What a pass shows: logits of the wanted rows and the internals asked for.
///
/// Reused from pass to pass so that decoding does not allocate.
#[derive(Debug, Clone, Default)]
pub struct Reveal {
    logits: Vec<f32>,
    vocab: usize,
    offsets: Vec<usize>,
    /// One entry per segment when taps asked for anything, else empty.
    pub segments: Vec<SegmentReveal>,
}

impl Reveal {
    /// An empty reveal.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares for a pass whose segments want `rows[i]` logits rows each; returns the buffer,
    /// `sum(rows) x vocab`, to fill. Called by backbones.
    pub fn prepare(&mut self, vocab: usize, rows: impl IntoIterator<Item = usize>) -> &mut [f32] {
        self.vocab = vocab;
        self.offsets.clear();
        self.offsets.push(0);
        let mut total = 0;
        for n in rows {
            total += n;
            self.offsets.push(total);
        }
        self.segments.clear();
        // Stale values are overwritten by the backbone: no need to clear what is already there.
        self.logits.resize(total * vocab, 0.0);
        self.all_logits_mut()
    }

    /// Vocabulary size, the length of a row of logits.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Number of logits rows of segment `segment`.
    pub fn rows(&self, segment: usize) -> usize {
        match (self.offsets.get(segment), self.offsets.get(segment + 1)) {
            (Some(a), Some(b)) => b - a,
            _ => 0,
        }
    }

    /// Logits of the `i`-th wanted row of `segment`; empty if there is no such row.
    pub fn logits(&self, segment: usize, i: usize) -> &[f32] {
        if i >= self.rows(segment) {
            return &[];
        }
        let at = (self.offsets[segment] + i) * self.vocab;
        &self.logits[at..at + self.vocab]
    }

    /// All logits, segment after segment, row-major.
    pub fn all_logits(&self) -> &[f32] {
        &self.logits
    }

    /// All logits, for the backbone that fills them after [`Reveal::prepare`].
    pub fn all_logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }
}
