//! The thread that runs the model: many requests in shared passes.
//!
//! Between two passes it takes in what has come, ends what is late or whose caller has gone, and admits
//! what waits as far as memory and the number of texts allow, the caller with the fewest running requests
//! first. What a batch does not take (particle loops, models that fill masks) runs alone, in its turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tessera_measure::tuned::{self, Tuned};
use tessera_measure::usual::{self, Amount};
use tessera_runtime::{
    Batch, Control, CostCurve, Ended, Event, FinishReason, Outcome, Request, Sequence, Session,
    Shape,
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::Span;

use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::pieces::{How, Piece, note};
use crate::prefixes::Prefixes;

/// What is asked of the model.
pub(crate) enum Work {
    /// Text.
    Text(Box<Request>),
    /// The record of a method, measured while nothing else runs.
    Check(String),
    /// Another model, once all that came before is done.
    Swap(String),
}

/// A model that is to be loaded instead.
pub(crate) struct Swap {
    pub(crate) model: String,
    pub(crate) pieces: UnboundedSender<Piece>,
}

/// Something on its way to the model.
pub(crate) struct Job {
    pub(crate) work: Work,
    /// Which key it came with.
    pub(crate) caller: usize,
    pub(crate) pieces: UnboundedSender<Piece>,
    /// When it has to be done.
    pub(crate) deadline: Instant,
    /// The request that it is part of, for the log.
    pub(crate) span: Span,
}

/// What the worker may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Texts that grow at the same time.
    pub(crate) texts: usize,
    /// Bytes of all caches.
    pub(crate) bytes: usize,
}

/// The most bytes of caches that a request can come to need.
pub(crate) fn bytes_needed(session: &Session, request: &Request) -> usize {
    let longest = request.context.unwrap_or(session.info().context);
    let made = request.max_tokens.unwrap_or(longest);
    let rows = request.prompt.len().saturating_add(made).min(longest);
    rows.saturating_mul(request.choices).saturating_mul(session.cache_bytes_per_token())
}

/// A request in the batch.
struct Running {
    id: u64,
    caller: usize,
    pieces: UnboundedSender<Piece>,
    deadline: Instant,
    /// Tokens of its prompt: as far as others may read its rows.
    prompt: usize,
    texts: usize,
    bytes: usize,
    /// What its last step made, not sent yet.
    fresh: Rc<RefCell<Vec<Piece>>>,
    late: bool,
    span: Span,
}

/// Answers jobs until nobody can send any, or until all that came before a swap is done.
pub(crate) fn run(
    session: &Session,
    jobs: &Receiver<Job>,
    metrics: &Metrics,
    limits: Limits,
) -> Option<Swap> {
    let mut worker = Worker {
        session,
        metrics,
        limits,
        batch: session.batch(Shape::default()),
        waiting: VecDeque::new(),
        running: Vec::new(),
        prefixes: Prefixes::default(),
        curve: curve(session),
        next: 0,
    };
    loop {
        if worker.running.is_empty() && worker.waiting.is_empty() {
            match jobs.recv() {
                Ok(job) => worker.waiting.push_back(job),
                Err(_) => return None,
            }
        }
        // Nothing more now, or never again: what is there is finished.
        while let Ok(job) = jobs.try_recv() {
            worker.waiting.push_back(job);
        }
        worker.weed();
        worker.admit();
        let swap = worker.swap();
        if swap.is_some() {
            return swap;
        }
        worker.step();
    }
}

struct Worker<'s> {
    session: &'s Session,
    metrics: &'s Metrics,
    limits: Limits,
    batch: Batch<'s>,
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    prefixes: Prefixes,
    /// What a pass costs by its rows on this machine, if `tessera tune` has measured it: with it guesses
    /// that do not pay, beside the rows of others too, are left out.
    curve: Option<CostCurve>,
    next: u64,
}

/// The cost curve that was measured for this model here.
fn curve(session: &Session) -> Option<CostCurve> {
    let info = session.info();
    let data = tuned::data_dir(|name| std::env::var_os(name)).ok()?;
    match Tuned::load(&data, &info.name, &info.path, info.threads) {
        Ok(tuned) => tuned.map(|tuned| tuned.curve),
        Err(error) => {
            // No reason not to answer.
            tracing::warn!(%error, "what `tessera tune` found is not used");
            None
        }
    }
}

impl<'s> Worker<'s> {
    /// Ends what is late or whose caller has gone.
    fn weed(&mut self) {
        let (now, metrics) = (Instant::now(), self.metrics);
        self.waiting.retain(|job| {
            // Nothing else is taken in until a swap is made, so it is made in any case.
            let swaps = matches!(job.work, Work::Swap(_));
            let gone = job.pieces.is_closed() && !swaps;
            let late = now > job.deadline && !swaps;
            if gone {
                metrics.left.fetch_add(1, Ordering::Relaxed);
            } else if late {
                metrics.expired();
                // Whoever asked may be gone by now.
                let _ = job.pieces.send(Piece::Late);
            }
            if gone || late {
                metrics.queued.fetch_sub(1, Ordering::Relaxed);
            }
            !(gone || late)
        });
        for one in &mut self.running {
            one.late = now > one.deadline;
            if one.late || one.pieces.is_closed() {
                self.batch.stop(one.id);
            }
        }
    }

    /// The waiting request whose turn it is: the oldest of the callers that have the fewest running. A swap
    /// comes last: whatever waits beside it came before it.
    fn turn(&self) -> Option<usize> {
        let busy = |caller| self.running.iter().filter(|r| r.caller == caller).count();
        let swaps = |job: &Job| matches!(job.work, Work::Swap(_));
        let key = |&i: &usize| (swaps(&self.waiting[i]), busy(self.waiting[i].caller), i);
        (0..self.waiting.len()).min_by_key(key)
    }

    /// The swap that is all that is left to do.
    fn swap(&mut self) -> Option<Swap> {
        if !self.running.is_empty() {
            return None;
        }
        let first = self.turn()?;
        self.waiting.get(first).filter(|job| matches!(job.work, Work::Swap(_)))?;
        let Job { work: Work::Swap(model), pieces, .. } = self.waiting.remove(first)? else {
            return None;
        };
        self.metrics.queued.fetch_sub(1, Ordering::Relaxed);
        Some(Swap { model, pieces })
    }

    /// Begins what waits, as far as there is room.
    fn admit(&mut self) {
        while let Some(turn) = self.turn() {
            let Some(job) = self.waiting.get(turn) else { return };
            let request = match &job.work {
                Work::Text(request) => request,
                // It waits for the others, and those behind it for it.
                Work::Check(_) if self.running.is_empty() => {
                    self.check(turn);
                    continue;
                }
                Work::Check(_) | Work::Swap(_) => return,
            };
            let (texts, bytes) = (request.choices, bytes_needed(self.session, request));
            let used: usize = self.running.iter().map(|r| r.bytes).sum();
            let grown: usize = self.running.iter().map(|r| r.texts).sum();
            let fits = used.saturating_add(bytes) <= self.limits.bytes
                && grown.saturating_add(texts) <= self.limits.texts;
            if !fits && !self.running.is_empty() {
                return;
            }
            let Some(job) = self.waiting.remove(turn) else { return };
            self.metrics.queued.fetch_sub(1, Ordering::Relaxed);
            self.prefixes.shrink(self.limits.bytes.saturating_sub(used.saturating_add(bytes)));
            self.begin(job, texts, bytes);
        }
    }

    /// Measures a method.
    fn check(&mut self, turn: usize) {
        let Some(Job { work: Work::Check(method), pieces, .. }) = self.waiting.remove(turn) else {
            return;
        };
        self.metrics.queued.fetch_sub(1, Ordering::Relaxed);
        self.metrics.running.store(1, Ordering::Relaxed);
        let cancel = AtomicBool::new(false);
        let mut hear = |done, of| {
            // Whoever asked may be gone: then nobody needs it any more.
            let sent = pieces.send(Piece::Checked { done, of }).is_ok();
            cancel.store(!sent, Ordering::Relaxed);
        };
        let version = concat!("tessera ", env!("CARGO_PKG_VERSION"));
        let amount = Amount::quick();
        let found = usual::check(self.session, &method, &amount, version, &cancel, &mut hear);
        let _ = pieces.send(match found {
            Ok(record) => Piece::Record(Box::new(record)),
            Err(error) => Piece::Unchecked(error),
        });
        self.metrics.running.store(0, Ordering::Relaxed);
    }

    /// A sequence that holds as much as possible of a prompt, of this caller's rows.
    fn sequence(
        &mut self,
        caller: usize,
        prompt: &[u32],
    ) -> Result<Sequence, tessera_runtime::Error> {
        let own = |id: u64| {
            let mine = self.running.iter().find(|r| r.id == id && r.caller == caller);
            mine.map(|r| r.prompt)
        };
        let at_work = self.batch.sequences().filter_map(|(id, s)| Some((s, own(id)?)));
        match self.prefixes.take(caller, prompt, at_work)? {
            Some(sequence) => Ok(sequence),
            None => self.session.sequence(),
        }
    }

    fn begin(&mut self, job: Job, texts: usize, bytes: usize) {
        let Job { work, caller, pieces, deadline, span } = job;
        let entered = span.clone().entered();
        let Work::Text(mut request) = work else { return };
        if let Some(curve) = &self.curve
            && request.recipe.curve().is_none()
        {
            match request.recipe.clone().with_curve(curve.clone()) {
                Ok(recipe) => request.recipe = recipe,
                Err(error) => return self.fail(&pieces, error.into()),
            }
        }
        let begun = self.session.ready(*request).and_then(|request| {
            let takes = self.batch.takes(&request)?;
            let sequence = self.sequence(caller, &request.prompt)?;
            Ok((request, takes, sequence))
        });
        let (request, takes, sequence) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.fail(&pieces, error),
        };
        if !takes {
            return self.alone(request, sequence, caller, &pieces, deadline);
        }
        let id = self.next;
        self.next += 1;
        let fresh = Rc::new(RefCell::new(Vec::new()));
        let prompt = request.prompt.len();
        let to = Rc::clone(&fresh);
        let listener = move |event: Event<'_>| {
            note(&mut to.borrow_mut(), event, How::Drawn);
            Control::Continue
        };
        match self.batch.add(id, sequence, request, Box::new(listener)) {
            Ok(()) => {
                let late = false;
                self.running.push(Running {
                    id,
                    caller,
                    pieces,
                    deadline,
                    prompt,
                    texts,
                    bytes,
                    fresh,
                    late,
                    span: entered.exit(),
                });
                self.metrics.running.store(self.running.len() as u64, Ordering::Relaxed);
            }
            Err(refused) => {
                let (sequence, error) = *refused;
                self.prefixes.keep(caller, sequence);
                self.fail(&pieces, error.into());
            }
        }
    }

    /// One pass; what it made is sent, and what has ended is told.
    fn step(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let before = self.batch.passes();
        let ended = self.batch.step();
        let passes = (self.batch.passes() - before) as u64;
        self.metrics.passes.fetch_add(passes, Ordering::Relaxed);
        for one in &self.running {
            for piece in one.fresh.borrow_mut().drain(..) {
                // Whoever asked may be gone: the next round sees it.
                let _ = one.pieces.send(piece);
            }
        }
        for Ended { id, sequence, outcome } in ended {
            let Some(place) = self.running.iter().position(|r| r.id == id) else { continue };
            let one = self.running.swap_remove(place);
            for piece in one.fresh.borrow_mut().drain(..) {
                let _ = one.pieces.send(piece);
            }
            let outcome = outcome.map_err(Into::into);
            one.span.in_scope(|| self.conclude(&one.pieces, outcome, one.late));
            self.prefixes.keep(one.caller, sequence);
        }
        self.metrics.running.store(self.running.len() as u64, Ordering::Relaxed);
    }

    /// Runs a request that no batch takes, on its own.
    fn alone(
        &mut self,
        request: Request,
        mut sequence: Sequence,
        caller: usize,
        pieces: &UnboundedSender<Piece>,
        deadline: Instant,
    ) {
        self.metrics.running.store(self.running.len() as u64 + 1, Ordering::Relaxed);
        let how = if self.session.filling().is_some() { How::Filled } else { How::Drawn };
        let late = Cell::new(false);
        let mut fresh = Vec::new();
        let mut listener = |event: Event<'_>| {
            // An answer that is whole is not late any more.
            let ended = matches!(event, Event::Finished { .. });
            note(&mut fresh, event, how);
            let sent = fresh.drain(..).all(|piece| pieces.send(piece).is_ok());
            late.set(late.get() || !ended && Instant::now() > deadline);
            match sent && !pieces.is_closed() && !late.get() {
                true => Control::Continue,
                false => Control::Stop,
            }
        };
        let never = AtomicBool::new(false);
        let outcome = self.session.generate_in(&mut sequence, &request, &mut listener, &never);
        if let Ok(outcome) = &outcome {
            self.metrics.passes.fetch_add(outcome.stats.passes as u64, Ordering::Relaxed);
        }
        self.conclude(pieces, outcome, late.get());
        self.prefixes.keep(caller, sequence);
        self.metrics.running.store(self.running.len() as u64, Ordering::Relaxed);
    }

    /// Tells whoever asked what came of it.
    fn conclude(
        &self,
        pieces: &UnboundedSender<Piece>,
        outcome: Result<Outcome, tessera_runtime::Error>,
        late: bool,
    ) {
        match outcome {
            Ok(outcome) => {
                let cancelled =
                    |c: &tessera_runtime::Completion| matches!(c.reason, FinishReason::Cancelled);
                let late = late && outcome.choices.iter().any(cancelled);
                let (stats, left) = (&outcome.stats, pieces.is_closed());
                self.metrics.done(stats, late, left);
                tracing::info!(
                    prompt_tokens = stats.prompt_tokens,
                    reused_tokens = stats.reused_tokens,
                    drawn_tokens = stats.drawn_tokens,
                    drafted_tokens = stats.drafted_tokens,
                    accepted_tokens = stats.accepted_tokens,
                    prefill_seconds = stats.prefill_seconds,
                    decode_seconds = stats.decode_seconds,
                    late,
                    left,
                    "generated"
                );
                let last = if late { Piece::Late } else { Piece::Done(Box::new(outcome)) };
                // Whoever asked may be gone.
                let _ = pieces.send(last);
            }
            Err(error) => self.fail(pieces, error),
        }
    }

    fn fail(&self, pieces: &UnboundedSender<Piece>, error: tessera_runtime::Error) {
        self.metrics.failed.fetch_add(1, Ordering::Relaxed);
        // What is wrong with a request is told to whoever sent it, and may quote it.
        if Fault::of(&error).status.is_server_error() {
            tracing::error!(%error, "a request failed");
        }
        let _ = pieces.send(Piece::Failed(error));
    }
}
