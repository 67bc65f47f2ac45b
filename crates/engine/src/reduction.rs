//! The reduction policies of one text at work: their parts in passes, and what they evict.

use std::time::Instant;

use tessera_core::pass::{HeadEvidence, HeadSum, ReadEvidence, RowEvidence};
use tessera_core::{
    Backbone, CommittedStep, Error, Eviction, KeyForm, KvStore, Lent, Position, Reduce,
    ReduceContext, Result, Reveal, Row, Sites, StepReceived, TokenId, Vocabulary,
};

use crate::speculation::Speculation;

/// What an eviction did to a cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evicted {
    /// Rows before and after, summed over layers and heads.
    pub(crate) rows: (usize, usize),
    /// Bytes before and after.
    pub(crate) bytes: (usize, usize),
}

impl Evicted {
    /// This eviction and a later one of the same cache as one.
    fn then(self, later: Self) -> Self {
        Self { rows: (self.rows.0, later.rows.1), bytes: (self.bytes.0, later.bytes.1) }
    }
}

/// The policies of one text, and where its next row goes.
#[derive(Debug)]
pub(crate) struct Reduction {
    policies: Vec<Box<dyn Reduce>>,
    /// Position of the next row.
    pub(crate) position: Position,
    /// Rows of prompt and text that have been computed, evicted ones included.
    pub(crate) rows: usize,
    /// Attention that a step's rows gave, as policies are shown it.
    received: Vec<Vec<f32>>,
    /// Time spent deciding and evicting.
    pub(crate) seconds: f64,
}

/// A step of one text, as the loop knows it.
pub(crate) struct Step<'a> {
    pub(crate) backbone: &'a dyn Backbone,
    pub(crate) speculation: &'a Speculation,
    /// Guesses that became text.
    pub(crate) committed: usize,
    /// Prompt and text whose rows have been computed.
    pub(crate) tokens: &'a [TokenId],
    pub(crate) prompt: usize,
    pub(crate) seed: u64,
    pub(crate) choice: u32,
    pub(crate) reveal: &'a Reveal,
    pub(crate) segment: usize,
    /// Rows of the longest head before the step.
    pub(crate) cached: usize,
}

impl Reduction {
    pub(crate) fn new(policies: Vec<Box<dyn Reduce>>, prompt: usize) -> Self {
        let position = prompt as Position;
        Self { policies, position, rows: prompt, received: Vec::new(), seconds: 0.0 }
    }

    /// The same policies for another text that continues the same prompt.
    pub(crate) fn fork(&self) -> Self {
        Self {
            policies: self.policies.iter().map(|p| p.fork()).collect(),
            position: self.position,
            rows: self.rows,
            received: Vec::new(),
            seconds: 0.0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Rows of a pass over the prompt.
    pub(crate) fn chunk(&self, asked: usize) -> usize {
        self.policies.iter().find_map(|p| p.chunk()).unwrap_or(asked).max(1)
    }

    /// The part that a policy takes in the prompt's passes. One does: policies of one site clash.
    pub(crate) fn prefill_sites(&mut self) -> Option<&mut dyn Sites> {
        self.policies.iter_mut().find_map(|p| p.prefill_sites())
    }

    /// The part that a policy takes in the decoding passes.
    pub(crate) fn decode_sites(&mut self) -> Option<&mut dyn Sites> {
        self.policies.iter_mut().find_map(|p| p.decode_sites())
    }

    /// The heads over which the attention of decoding steps is summed, if a policy needs it.
    pub(crate) fn received(&self) -> Option<HeadSum> {
        self.policies.iter().find_map(|p| p.received())
    }

    /// Asks what stays of the prompt.
    pub(crate) fn after_prefill(
        &mut self,
        backbone: &dyn Backbone,
        vocabulary: &dyn Vocabulary,
        cache: &mut dyn KvStore,
        prompt: &[TokenId],
        seed: u64,
    ) -> Result<Option<Evicted>> {
        let start = Instant::now();
        let mut done = None;
        for policy in &mut self.policies {
            let rows = cache.table().len();
            let target = Lent { backbone, cache: &mut *cache, position: self.position };
            let decided =
                policy.after_prefill(&mut ReduceContext { prompt, seed, target, vocabulary })?;
            if cache.table().len() != rows {
                return Err(Error::plan("a reduction policy left rows in the cache"));
            }
            let Some(eviction) = decided else { continue };
            let evicted = apply(&eviction, backbone, cache, &mut self.position)?;
            done = Some(done.map_or(evicted, |first: Evicted| first.then(evicted)));
        }
        self.seconds += start.elapsed().as_secs_f64();
        Ok(done)
    }

    /// Hears of a step whose rows are settled, and asks what stays.
    pub(crate) fn committed(
        &mut self,
        step: &Step<'_>,
        cache: &mut dyn KvStore,
    ) -> Result<Option<Evicted>> {
        let rows = step.committed + 1;
        self.position += rows as Position;
        self.rows += rows;
        if self.policies.is_empty() {
            return Ok(None);
        }
        let start = Instant::now();
        let groups = self.gather(step, rows)?;
        let mut done = None;
        for policy in &mut self.policies {
            let received = StepReceived {
                layers: &self.received,
                groups,
                cached: step.cached,
                columns: step.cached + rows,
            };
            let decided = policy.committed(&CommittedStep {
                table: cache.table(),
                rows,
                tokens: step.tokens,
                prompt: step.prompt,
                seed: step.seed,
                choice: step.choice,
                received,
            })?;
            let Some(eviction) = decided else { continue };
            let evicted = apply(&eviction, step.backbone, cache, &mut self.position)?;
            done = Some(done.map_or(evicted, |first: Evicted| first.then(evicted)));
        }
        self.seconds += start.elapsed().as_secs_f64();
        Ok(done)
    }

    /// Takes the attention of the committed rows, on the cache and on one another, out of what the
    /// pass revealed; returns the number of groups of heads.
    fn gather(&mut self, step: &Step<'_>, rows: usize) -> Result<usize> {
        let Some(heads) = self.received() else { return Ok(0) };
        let spec = step.backbone.spec();
        let groups = heads.groups(spec.heads, spec.kv_heads);
        let kept: Vec<usize> = step.speculation.kept(step.committed).collect();
        let (cached, columns) = (step.cached, step.cached + step.speculation.drafted() + 1);
        let rows_shown = step.speculation.drafted() + 1;
        let shown = step.reveal.segments.get(step.segment).map_or(&[][..], |s| &s.received);
        let whole = |block: &Vec<f32>| block.len() == rows_shown * groups * columns;
        if shown.len() != spec.layers || !shown.iter().all(whole) {
            return Err(Error::pass("taps: the attention received was not shown for every layer"));
        }
        self.received.resize(shown.len(), Vec::new());
        for (block, out) in shown.iter().zip(&mut self.received) {
            out.clear();
            out.reserve(rows * groups * (cached + rows));
            for line in kept.iter().flat_map(|row| (0..groups).map(move |g| row * groups + g)) {
                let from = &block[line * columns..(line + 1) * columns];
                out.extend_from_slice(&from[..cached]);
                out.extend(kept.iter().map(|row| from[cached + row]));
            }
        }
        Ok(groups)
    }
}

/// Evicts; `position` becomes the place of the next row.
fn apply(
    eviction: &Eviction,
    backbone: &dyn Backbone,
    cache: &mut dyn KvStore,
    position: &mut Position,
) -> Result<Evicted> {
    let (rows, bytes) = (cache.table().total_rows(), cache.bytes());
    if eviction.rerank {
        eviction.plan.validate(cache.table())?;
        if !eviction.plan.is_level() {
            return Err(Error::plan("ranks as positions need heads that keep equally many rows"));
        }
        if cache.table().form() == KeyForm::Rotated {
            backbone.unrotate(cache)?;
        }
    }
    cache.compact(&eviction.plan)?;
    if eviction.rerank {
        cache.rerank()?;
        *position = cache.table().len() as Position;
    }
    Ok(Evicted { rows: (rows, cache.table().total_rows()), bytes: (bytes, cache.bytes()) })
}

/// The parts that the policies of a pass's segments take in it.
pub(crate) struct Seats<'a> {
    /// By segment.
    seats: Vec<Option<&'a mut dyn Sites>>,
    /// Cached rows that plans left unread so far, over layers and key heads, by segment.
    pub(crate) unread: Vec<u64>,
}

impl<'a> Seats<'a> {
    /// `None` if none of them takes part.
    pub(crate) fn new(seats: Vec<Option<&'a mut dyn Sites>>) -> Option<Self> {
        let unread = vec![0; seats.len()];
        seats.iter().any(Option::is_some).then_some(Self { seats, unread })
    }
}

impl Sites for Seats<'_> {
    fn reads(&self, layer: usize) -> bool {
        self.seats.iter().flatten().any(|s| s.reads(layer))
    }

    fn keeps(&self, layer: usize) -> bool {
        self.seats.iter().flatten().any(|s| s.keeps(layer))
    }

    fn columns(&self, segment: usize, layer: usize) -> Option<&[Vec<u16>]> {
        self.seats.get(segment)?.as_deref()?.columns(0, layer)
    }

    fn attends(&self, layer: usize) -> bool {
        self.seats.iter().flatten().any(|s| s.attends(layer))
    }

    fn attend(&mut self, evidence: &HeadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        match self.seats.get_mut(evidence.segment) {
            Some(Some(site)) if site.attends(evidence.layer) => {
                site.attend(&HeadEvidence { segment: 0, ..*evidence })
            }
            _ => Ok(None),
        }
    }

    fn read(&mut self, evidence: &ReadEvidence<'_>) -> Result<Option<Vec<Vec<Row>>>> {
        match self.seats.get_mut(evidence.segment) {
            Some(Some(site)) if site.reads(evidence.layer) => {
                let plan = site.read(&ReadEvidence { segment: 0, ..*evidence })?;
                let cached = evidence.cached;
                let unread = |list: &Vec<Row>| {
                    cached - list.partition_point(|&row| (row as usize) < cached).min(cached)
                };
                let sum = plan.iter().flatten().map(unread).sum::<usize>() as u64;
                self.unread[evidence.segment] += sum;
                Ok(plan)
            }
            _ => Ok(None),
        }
    }

    fn keep(&mut self, evidence: &RowEvidence<'_>) -> Result<Option<Vec<u32>>> {
        match self.seats.get_mut(evidence.segment) {
            Some(Some(site)) if site.keeps(evidence.layer) => {
                site.keep(&RowEvidence { segment: 0, ..*evidence })
            }
            _ => Ok(None),
        }
    }
}
