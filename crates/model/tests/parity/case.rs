//! What parity cases are made of, and the records they leave.

use tessera_core::{
    Backbone, CacheOptions, HiddenSite, Input, Keep, KeepPlan, KeyForm, KeySet, KvStore, Mask,
    Pass, Position, Reveal, Row, RowsOut, Segment, Sites, Taps, Write,
};
use tessera_model::toy::Stream;

const LAYERS: usize = 2;
const KV_HEADS: usize = 2;
const HIDDEN: usize = 64;
const VOCAB: u32 = 97;
/// Rows of the prior context, before compaction.
const PRIOR: u32 = 11;
/// Rows of the pass under test.
const ROWS: usize = 4;

/// Labelled numbers, in order.
#[derive(Default)]
pub struct Record(Vec<(String, Vec<f32>)>);

impl Record {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn note(&mut self, label: &str, values: Vec<f32>) {
        self.0.push((label.to_owned(), values));
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn reveal(&mut self, label: &str, reveal: &Reveal) {
        self.note(&format!("{label}: logits"), reveal.all_logits().to_vec());
        for (number, segment) in reveal.segments.iter().enumerate() {
            for (kind, blocks) in [
                ("hidden", &segment.hidden),
                ("attention", &segment.attention),
                ("keys", &segment.keys),
                ("queries", &segment.queries),
            ] {
                // A layer that did not run has nothing to show.
                for (slot, block) in blocks.iter().enumerate().filter(|(_, b)| !b.is_empty()) {
                    let label = format!("{label}: segment {number}, {kind} {slot}");
                    self.note(&label, block.clone());
                }
            }
        }
    }

    pub fn pass(&mut self, backbone: &dyn Backbone, label: &str, pass: &mut Pass<'_, '_>) {
        let mut reveal = Reveal::new();
        backbone.forward(pass, &mut reveal).unwrap_or_else(|e| panic!("{label}: {e}"));
        self.reveal(label, &reveal);
    }

    /// The rows of a cache, with their positions.
    pub fn cache(&mut self, label: &str, cache: &dyn KvStore) {
        let table = cache.table();
        for layer in 0..table.layers() {
            for head in 0..table.kv_heads() {
                let positions = table.positions(layer, head);
                let at = format!("{label}: layer {layer}, head {head}");
                let as_numbers = positions.iter().map(|&p| p as f32).collect();
                self.note(&format!("{at}: positions"), as_numbers);
                for (kind, values) in [("keys", false), ("values", true)] {
                    let rows = (0..positions.len() as Row)
                        .flat_map(|row| cache.read(layer, head, row, values).unwrap())
                        .collect();
                    self.note(&format!("{at}: {kind}"), rows);
                }
            }
        }
    }

    /// Appends `count` causal rows, two at a time, and notes their logits.
    pub fn decode(
        &mut self,
        backbone: &dyn Backbone,
        label: &str,
        cache: &mut dyn KvStore,
        count: u32,
    ) {
        let next = cache.table().next_position();
        let tokens: Vec<u32> = (next..next + count).map(|p| (p * 37 + 11) % VOCAB).collect();
        let positions: Vec<Position> = (next..next + count).collect();
        for (tokens, positions) in tokens.chunks(2).zip(positions.chunks(2)) {
            let segment = Segment::causal(tokens, positions, &mut *cache);
            let mut segments = [Segment { rows_out: RowsOut::All, ..segment }];
            self.pass(backbone, label, &mut Pass::new(&mut segments));
        }
    }

    /// The largest difference; the records must have the same form.
    pub fn distance(&self, other: &Self) -> f32 {
        let pairs = self.0.iter().zip(&other.0).flat_map(|(a, b)| a.1.iter().zip(&b.1));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// Equal to `near`, relative to the largest number under a label (or to 1). A key that rounds
    /// to the other half-precision neighbour moves all logits of a row by some 1e-3 of that.
    pub fn assert_near(&self, found: &Self, near: f32, what: &str) {
        let labels = |r: &Self| r.0.iter().map(|e| e.0.clone()).collect::<Vec<_>>();
        assert_eq!(labels(self), labels(found), "{what}");
        for ((label, expected), (_, found)) in self.0.iter().zip(&found.0) {
            assert_eq!(expected.len(), found.len(), "{what}: {label}");
            let scale = expected.iter().fold(1f32, |top, x| top.max(x.abs()));
            for (i, (e, f)) in expected.iter().zip(found).enumerate() {
                assert!((e - f).abs() <= near * scale, "{what}: {label}[{i}] is {f}, expected {e}");
            }
        }
    }
}

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident: $($(#[$each:meta])* $kind:ident),+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$each])* $kind),+ }
        impl $name {
            pub const ALL: &[Self] = &[$(Self::$kind),+];
        }
    };
}

kinds!(MaskKind: Causal, Bidirectional, Tree, Block, Explicit);
kinds!(
    /// What is cached before the pass under test.
    Prior:
    /// The segment has no cache.
    None,
    /// A cache without rows.
    Empty,
    /// A prompt as it was written.
    Chain,
    /// A prompt some of whose rows are gone, the same everywhere.
    Compacted,
    /// Heads of different lengths.
    Ragged
);
kinds!(WriteKind: Append, Refresh, Discard);
kinds!(InputKind: Tokens, Embeddings, Queries);
kinds!(KeysKind: All, Rows, PerHead);

/// One pass under test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub mask: MaskKind,
    pub prior: Prior,
    pub write: WriteKind,
    pub form: KeyForm,
    pub input: InputKind,
    pub keys: KeysKind,
    pub bias: bool,
    pub seed: u64,
}

/// The rows of a segment and everything that a mask may need.
pub struct Rows {
    pub tokens: Vec<u32>,
    pub positions: Vec<Position>,
    parent: Vec<Option<u32>>,
    block: Vec<u32>,
    bits: Vec<bool>,
    columns: usize,
}

impl Rows {
    /// `count` rows that follow position `next`, over `cached` cached rows.
    pub fn new(mask: MaskKind, cached: usize, count: usize, stream: &mut Stream) -> Self {
        Self::after(mask, cached as Position, cached, count, stream)
    }

    fn after(
        mask: MaskKind,
        next: Position,
        cached: usize,
        count: usize,
        stream: &mut Stream,
    ) -> Self {
        let columns = cached + count;
        // Two children of the first row, then a chain below the second.
        let parent = |i: usize| match i {
            0 => None,
            1 | 2 => Some(0),
            i => Some(i as u32 - 1),
        };
        let depth = |i: usize| if i < 2 { i } else { i - 1 };
        let position = |i: usize| {
            next + match mask {
                MaskKind::Tree => depth(i),
                _ => i,
            } as Position
        };
        let bit = |at: usize, stream: &mut Stream| {
            let (row, column) = (at / columns, at % columns);
            column == cached + row || stream.below(3) > 0
        };
        Self {
            tokens: (0..count).map(|_| stream.below(VOCAB)).collect(),
            positions: (0..count).map(position).collect(),
            parent: (0..count).map(parent).collect(),
            block: (0..count).map(|i| i as u32 / 2).collect(),
            bits: (0..count * columns).map(|at| bit(at, stream)).collect(),
            columns,
        }
    }

    pub fn mask(&self, kind: MaskKind) -> Mask<'_> {
        match kind {
            MaskKind::Causal => Mask::Causal,
            MaskKind::Bidirectional => Mask::Bidirectional,
            MaskKind::Tree => Mask::Tree { parent: &self.parent },
            MaskKind::Block => Mask::Block { block: &self.block },
            MaskKind::Explicit => Mask::Explicit { bits: &self.bits, columns: self.columns },
        }
    }
}

/// All that a case's segment borrows.
struct Parts {
    rows: Rows,
    embeddings: Vec<f32>,
    uniform: Vec<Row>,
    per_head: Vec<Vec<Row>>,
    bias: Vec<f32>,
    refresh: Vec<Row>,
}

impl Case {
    /// Four causal tokens appended to an empty cache.
    pub fn plain() -> Self {
        Self {
            mask: MaskKind::Causal,
            prior: Prior::Empty,
            write: WriteKind::Append,
            form: KeyForm::Rotated,
            input: InputKind::Tokens,
            keys: KeysKind::All,
            bias: false,
            seed: 1,
        }
    }

    /// Whether the parts fit one another.
    fn makes_sense(&self) -> bool {
        let refresh = self.write == WriteKind::Refresh;
        let bare = matches!(self.prior, Prior::None | Prior::Empty);
        !(refresh && (bare || self.input == InputKind::Queries))
            && !(self.prior == Prior::None && self.form == KeyForm::Plain)
    }

    /// Every mask with every prior, write and key form; of the other choices all, or one of them
    /// in turn.
    pub fn product(whole: bool) -> Vec<Self> {
        let mut all = Vec::new();
        let mut turn = Stream::new(17);
        for &mask in MaskKind::ALL {
            for &prior in Prior::ALL {
                for &write in WriteKind::ALL {
                    for form in [KeyForm::Rotated, KeyForm::Plain] {
                        let seed = all.len() as u64;
                        let base = Self { mask, prior, write, form, seed, ..Self::plain() };
                        let mut others = Vec::new();
                        for &input in InputKind::ALL {
                            for &keys in KeysKind::ALL {
                                for bias in [false, true] {
                                    others.push(Self { input, keys, bias, ..base });
                                }
                            }
                        }
                        others.retain(Self::makes_sense);
                        if whole || others.is_empty() {
                            all.extend(others);
                        } else {
                            all.push(others[turn.below(others.len() as u32) as usize]);
                        }
                    }
                }
            }
        }
        all
    }

    /// A cache with the case's prior context; `None` if the case has none.
    fn prior(&self, backbone: &dyn Backbone, record: &mut Record) -> Option<Box<dyn KvStore>> {
        if self.prior == Prior::None {
            return None;
        }
        let options = CacheOptions { capacity: 0, form: self.form };
        let mut cache = backbone.new_cache(options).unwrap();
        if self.prior != Prior::Empty {
            record.decode(backbone, "prior", &mut *cache, PRIOR);
        }
        if self.prior == Prior::Compacted {
            let keep = Keep::rows([0, 1, 3, 6, 7, 10]);
            cache.compact(&KeepPlan::uniform(LAYERS, KV_HEADS, keep)).unwrap();
        }
        if self.prior == Prior::Ragged {
            let keeps = (0..4).map(|i| Keep::rows((0..PRIOR).filter(move |r| r % (i + 2) != 1)));
            let plan = KeepPlan::per_head(LAYERS, KV_HEADS, keeps.collect()).unwrap();
            cache.compact(&plan).unwrap();
        }
        Some(cache)
    }

    fn parts(&self, cache: Option<&dyn KvStore>) -> Parts {
        let mut stream = Stream::new(self.seed.wrapping_add(1000));
        let table = cache.map(KvStore::table);
        let cached = table.map_or(0, |t| t.len());
        let next = table.map_or(0, |t| t.next_position());
        let mut rows = Rows::after(self.mask, next, cached, ROWS, &mut stream);
        let refresh: Vec<Row> = vec![3, 0, 4, 1];
        if self.write == WriteKind::Refresh
            && let Some(table) = table
        {
            let held = table.positions(0, 0);
            rows.positions = refresh.iter().map(|&row| held[row as usize]).collect();
        }
        let shortest = table.map_or(0, |t| {
            let heads = (0..LAYERS).flat_map(|l| (0..KV_HEADS).map(move |h| (l, h)));
            heads.map(|(l, h)| t.positions(l, h).len()).min().unwrap_or(0)
        });
        let mut pick = |n: usize| (0..n as Row).filter(|_| stream.below(3) > 0).collect();
        let uniform = pick(shortest);
        let per_head = (0..LAYERS * KV_HEADS)
            .map(|at| pick(table.map_or(0, |t| t.positions(at / KV_HEADS, at % KV_HEADS).len())))
            .collect();
        let bias = (0..if self.bias { ROWS * (cached + ROWS) } else { 0 })
            .map(|_| if stream.below(8) == 0 { f32::NEG_INFINITY } else { stream.normal() })
            .collect();
        let embeddings = (0..ROWS * HIDDEN).map(|_| stream.normal()).collect();
        Parts { rows, embeddings, uniform, per_head, bias, refresh }
    }

    fn segment<'a>(&self, parts: &'a Parts, cache: Option<&'a mut dyn KvStore>) -> Segment<'a> {
        Segment {
            input: match self.input {
                InputKind::Tokens => Input::Tokens(&parts.rows.tokens),
                InputKind::Embeddings => Input::Embeddings(&parts.embeddings),
                InputKind::Queries => Input::Queries(&parts.embeddings),
            },
            positions: &parts.rows.positions,
            mask: parts.rows.mask(self.mask),
            keys: match self.keys {
                KeysKind::All => None,
                KeysKind::Rows => Some(KeySet::Rows(&parts.uniform)),
                KeysKind::PerHead => Some(KeySet::PerHead(&parts.per_head)),
            },
            bias: &parts.bias,
            write: match self.write {
                WriteKind::Append => Write::Append,
                WriteKind::Refresh => Write::Rows(&parts.refresh),
                WriteKind::Discard => Write::Discard,
            },
            rows_out: RowsOut::All,
            condition: None,
            cache,
        }
    }

    /// Runs the case: the pass under test with every tap, the cache after it, and decoding on it.
    pub fn run(&self, backbone: &dyn Backbone) -> Record {
        run_all(backbone, &[*self], RowsOut::All, None)
    }

    /// The case with only the logits of these rows wanted.
    pub fn run_for(
        &self,
        backbone: &dyn Backbone,
        rows_out: RowsOut<'_>,
        sites: &mut dyn Sites,
    ) -> Record {
        run_all(backbone, &[*self], rows_out, Some(sites))
    }
}

/// Runs the passes of several cases as the segments of one pass.
pub fn run_together(backbone: &dyn Backbone, cases: &[Case]) -> Record {
    run_all(backbone, cases, RowsOut::All, None)
}

fn run_all(
    backbone: &dyn Backbone,
    cases: &[Case],
    rows_out: RowsOut<'_>,
    sites: Option<&mut dyn Sites>,
) -> Record {
    let mut record = Record::default();
    let mut caches: Vec<Option<Box<dyn KvStore>>> =
        cases.iter().map(|case| case.prior(backbone, &mut record)).collect();
    let parts: Vec<Parts> =
        cases.iter().zip(&caches).map(|(case, cache)| case.parts(cache.as_deref())).collect();
    {
        let mut segments = Vec::new();
        for ((case, parts), cache) in cases.iter().zip(&parts).zip(&mut caches) {
            // Spelled out, so that the trait object's lifetime shortens to the borrow's.
            let cache: Option<&mut dyn KvStore> = match cache {
                Some(cache) => Some(&mut **cache),
                None => None,
            };
            segments.push(Segment { rows_out, ..case.segment(parts, cache) });
        }
        let mut pass = Pass::new(&mut segments);
        pass.taps = Taps {
            hidden: &[HiddenSite::Embedding, HiddenSite::After(0), HiddenSite::Final],
            attention: &[0, 1],
            keys: &[1],
            queries: &[1],
            ..Taps::default()
        };
        pass.sites = match sites {
            Some(sites) => Some(sites),
            None => None,
        };
        record.pass(backbone, "under test", &mut pass);
    }
    for cache in caches.iter_mut().flatten() {
        record.cache("after", &**cache);
        record.decode(backbone, "decoded", &mut **cache, 3);
    }
    record
}
