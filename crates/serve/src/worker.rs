//! The thread that runs the model: one request after the other, in the order in which they came.
//!
//! Each caller keeps one sequence, so that a conversation that goes on computes only what is new; callers
//! never read one another's rows.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tessera_runtime::{Control, Event, FinishReason, Outcome, Request, Sequence, Session};
use tokio::sync::mpsc::UnboundedSender;

use crate::fault::Fault;
use crate::metrics::Metrics;

/// Callers whose sequences are kept; the one that asked longest ago makes room.
const KEPT: usize = 8;

/// A request on its way to the model.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Which key it came with.
    pub(crate) caller: usize,
    pub(crate) pieces: UnboundedSender<Piece>,
    /// When it has to be done.
    pub(crate) deadline: Instant,
}

/// What becomes of a request, piece by piece.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text of a choice.
    Text { choice: usize, text: String },
    /// A choice has ended.
    Ended { choice: usize, reason: FinishReason },
    /// All of it.
    Done(Box<Outcome>),
    /// It took longer than a request may.
    Late,
    /// It failed.
    Failed(tessera_runtime::Error),
}

/// Answers jobs until nobody can send any.
pub(crate) fn run(session: &Session, jobs: &Receiver<Job>, metrics: &Metrics) {
    let mut kept: Vec<(usize, Sequence)> = Vec::new();
    while let Ok(job) = jobs.recv() {
        metrics.queued.fetch_sub(1, Ordering::Relaxed);
        if job.pieces.is_closed() {
            metrics.left.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if Instant::now() > job.deadline {
            metrics.expired();
            // Whoever asked may be gone.
            let _ = job.pieces.send(Piece::Late);
            continue;
        }
        metrics.running.store(1, Ordering::Relaxed);
        let place = kept.iter().position(|(caller, _)| *caller == job.caller);
        let own = match place {
            Some(place) => Ok(kept.remove(place).1),
            None => session.sequence(),
        };
        match own {
            Ok(mut sequence) => {
                let last = answer(session, &mut sequence, &job, metrics);
                // Whoever asked may be gone.
                let _ = job.pieces.send(last);
                kept.push((job.caller, sequence));
                if kept.len() > KEPT {
                    kept.remove(0);
                }
            }
            Err(error) => drop(job.pieces.send(Piece::Failed(error))),
        }
        metrics.running.store(0, Ordering::Relaxed);
    }
}

/// Runs one job; returns its last piece.
fn answer(session: &Session, sequence: &mut Sequence, job: &Job, metrics: &Metrics) -> Piece {
    let mut late = false;
    let mut listener = |event: Event<'_>| {
        let sent = match event {
            Event::Committed { choice, text, .. } if !text.is_empty() => {
                job.pieces.send(Piece::Text { choice, text: text.to_owned() }).is_ok()
            }
            Event::Finished { choice, reason } => {
                job.pieces.send(Piece::Ended { choice, reason }).is_ok()
            }
            _ => !job.pieces.is_closed(),
        };
        // An answer that is whole is not late any more.
        let ended = matches!(event, Event::Finished { .. });
        late |= !ended && Instant::now() > job.deadline;
        if sent && !late { Control::Continue } else { Control::Stop }
    };
    let outcome =
        session.generate_in(sequence, &job.request, &mut listener, &AtomicBool::new(false));
    match outcome {
        Ok(outcome) => {
            metrics.done(&outcome.stats, late, job.pieces.is_closed());
            match late {
                true => Piece::Late,
                false => Piece::Done(Box::new(outcome)),
            }
        }
        Err(error) => {
            metrics.failed.fetch_add(1, Ordering::Relaxed);
            // What is wrong with a request is told to whoever sent it, and may quote it.
            if Fault::of(&error).status.is_server_error() {
                let _ = writeln!(std::io::stderr(), "a request failed: {error}");
            }
            Piece::Failed(error)
        }
    }
}
