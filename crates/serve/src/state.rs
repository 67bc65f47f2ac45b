//! What all requests share: the model once it is loaded, the queue to the worker, the counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tessera_runtime::{Request, Session};

use crate::Config;
use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::worker::{self, Job, Limits, Piece, Work};

/// What comes of something that was queued.
pub(crate) type Pieces = tokio::sync::mpsc::UnboundedReceiver<Piece>;

/// Shared by every handler; cheap to clone.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    session: Arc<OnceLock<Arc<Session>>>,
    jobs: Sender<Job>,
    metrics: Arc<Metrics>,
    draining: AtomicBool,
    /// Whether the worker's thread has ended, which it never should before the server does.
    gone: Arc<AtomicBool>,
    number: AtomicU64,
}

/// Raises its flag when it is dropped, by a panic too.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The end of loading: how a server hears that there will be no model.
pub struct Loading<E> {
    failure: tokio::sync::oneshot::Receiver<E>,
}

impl<E> Loading<E> {
    /// What went wrong; `None` once the model is there.
    pub async fn failure(self) -> Option<E> {
        self.failure.await.ok()
    }
}

/// A seed for requests that bring none.
pub(crate) fn any_seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Told in the answer, so it stays within what every JSON reader can hold.
    (now.as_nanos() as u64).wrapping_add(NEXT.fetch_add(0x9e37_79b9, Ordering::Relaxed)) % (1 << 53)
}

impl App {
    /// Starts the worker's thread, which loads the model first.
    pub fn begin<E: Send + 'static>(
        config: Config,
        load: impl FnOnce() -> Result<Session, E> + Send + 'static,
    ) -> (Self, Loading<E>) {
        let (jobs, waiting) = channel();
        let limits = Limits { texts: config.texts, bytes: config.cache_bytes };
        let session = Arc::new(OnceLock::new());
        let metrics = Arc::new(Metrics::default());
        let (failed, failure) = tokio::sync::oneshot::channel();
        let (place, counted) = (Arc::clone(&session), Arc::clone(&metrics));
        let gone = Arc::new(AtomicBool::new(false));
        let end = Gone(Arc::clone(&gone));
        std::thread::spawn(move || {
            let _end = end;
            match load() {
                Ok(loaded) => {
                    let loaded = Arc::new(loaded);
                    let _ = place.set(Arc::clone(&loaded));
                    drop(failed);
                    worker::run(&loaded, &waiting, &counted, limits);
                }
                // The server may have been stopped meanwhile.
                Err(error) => drop(failed.send(error)),
            }
        });
        let (draining, number) = (AtomicBool::new(false), AtomicU64::new(0));
        let inner = Inner { config, session, jobs, metrics, draining, gone, number };
        (Self { inner: Arc::new(inner) }, Loading { failure })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The model.
    ///
    /// # Errors
    /// 503 until it is loaded.
    pub fn session(&self) -> Result<&Arc<Session>, Fault> {
        if self.inner.gone.load(Ordering::Relaxed) {
            let message = "the model's thread has ended. Next: start the server again";
            return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "model_gone", message));
        }
        self.inner.session.get().ok_or_else(Fault::loading)
    }

    /// When a request that comes now has to be done.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config().longest
    }

    /// Takes no new requests for text.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
    }

    /// A name for an answer, with the seconds since 1970.
    pub(crate) fn stamp(&self, kind: &str) -> (String, u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let number = self.inner.number.fetch_add(1, Ordering::Relaxed);
        (format!("{kind}-{:x}-{number}", now.as_millis()), now.as_secs())
    }

    /// Queues a request for the caller with this key; its pieces come through the channel, and dropping
    /// the channel's end stops the model before its next pass.
    ///
    /// # Errors
    /// 429 where the queue is full, 503 while the server ends.
    pub(crate) fn ask(
        &self,
        request: Request,
        caller: usize,
        deadline: Instant,
    ) -> Result<Pieces, Fault> {
        self.is_open()?;
        if request.choices > self.config().texts {
            let what = format!("n: at most {} on this server", self.config().texts);
            return Err(Fault::field("n", what));
        }
        let (needed, most) =
            (worker::bytes_needed(self.session()?, &request), self.config().cache_bytes);
        if needed > most {
            let what = format!(
                "max_tokens: prompt and answer may take {needed} bytes of cache, and this server has {most}. \
                 Next: a shorter prompt, fewer tokens or fewer answers"
            );
            return Err(Fault::field("max_tokens", what));
        }
        self.queue(Work::Text(Box::new(request)), caller, deadline)
    }

    /// Queues a quick check of a method. It waits until nothing else runs, and others wait for it.
    ///
    /// # Errors
    /// As [`App::ask`].
    pub(crate) fn check(&self, method: String, caller: usize) -> Result<Pieces, Fault> {
        self.is_open()?;
        self.queue(Work::Check(method), caller, self.deadline())
    }

    fn is_open(&self) -> Result<(), Fault> {
        if self.inner.draining.load(Ordering::Relaxed) {
            let message = "the server is shutting down. Next: try again later";
            return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message));
        }
        Ok(())
    }

    fn queue(&self, work: Work, caller: usize, deadline: Instant) -> Result<Pieces, Fault> {
        let (pieces, receive) = tokio::sync::mpsc::unbounded_channel();
        let job = Job { work, caller, pieces, deadline };
        // Counted before the worker can count it off.
        let queued = &self.metrics().queued;
        if queued.fetch_add(1, Ordering::Relaxed) >= self.config().queue as u64 {
            queued.fetch_sub(1, Ordering::Relaxed);
            self.metrics().refused.fetch_add(1, Ordering::Relaxed);
            let message = format!(
                "{} requests are waiting. Next: try again in a moment",
                self.config().queue
            );
            return Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message));
        }
        if self.inner.jobs.send(job).is_err() {
            queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Fault::inside());
        }
        Ok(receive)
    }
}
