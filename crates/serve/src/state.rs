//! What all requests share: the model once it is loaded, the queue to the worker, the counters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use tessera_runtime::{Encoder, Request, Session};

use crate::Config;
use crate::fault::Fault;
use crate::metrics::Metrics;
use crate::pieces::Piece;
use crate::worker::{self, Job, Limits, Swap, Work};

/// What comes of something that was queued.
pub(crate) type Pieces = tokio::sync::mpsc::UnboundedReceiver<Piece>;

/// What a server loads.
pub struct Models {
    /// The model that writes.
    pub session: Session,
    /// A model made for embeddings, if there is one.
    pub encoder: Option<Encoder>,
}

impl From<Session> for Models {
    fn from(session: Session) -> Self {
        Self { session, encoder: None }
    }
}

/// Shared by every handler; cheap to clone.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// The model. Held for reading while a request made for it is queued, so that none made for another
    /// is queued behind a swap.
    session: Arc<RwLock<Option<Arc<Session>>>>,
    encoder: Arc<OnceLock<Arc<Encoder>>>,
    /// Whether the model is being changed for another.
    swapping: Arc<AtomicBool>,
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
    /// Starts the worker's thread, which loads the models first.
    pub fn begin<E: Send + 'static, M: Into<Models>>(
        config: Config,
        load: impl FnOnce() -> Result<M, E> + Send + 'static,
    ) -> (Self, Loading<E>) {
        Self::begin_with(config, load, |_| Err("this server loads no other model".to_owned()))
    }

    /// As [`App::begin`]; `again` loads another model that the operator asks for by name, one of
    /// [`Config::models`].
    pub fn begin_with<E: Send + 'static, M: Into<Models>>(
        config: Config,
        load: impl FnOnce() -> Result<M, E> + Send + 'static,
        mut again: impl FnMut(&str) -> Result<Session, String> + Send + 'static,
    ) -> (Self, Loading<E>) {
        let (jobs, waiting) = channel();
        let limits = Limits { texts: config.texts, bytes: config.cache_bytes };
        let session = Arc::new(RwLock::new(None));
        let encoder = Arc::new(OnceLock::new());
        let metrics = Arc::new(Metrics::default());
        let swapping = Arc::new(AtomicBool::new(false));
        let (failed, failure) = tokio::sync::oneshot::channel();
        let (place, counted) = (Arc::clone(&session), Arc::clone(&metrics));
        let (embeds, swaps) = (Arc::clone(&encoder), Arc::clone(&swapping));
        let gone = Arc::new(AtomicBool::new(false));
        let end = Gone(Arc::clone(&gone));
        let put = move |session: &Arc<Session>| {
            *place.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(session));
        };
        std::thread::spawn(move || {
            let _end = end;
            let mut loaded = match load() {
                Ok(models) => {
                    let Models { session, encoder } = models.into();
                    if let Some(encoder) = encoder {
                        let _ = embeds.set(Arc::new(encoder));
                    }
                    Arc::new(session)
                }
                // The server may have been stopped meanwhile.
                Err(error) => return drop(failed.send(error)),
            };
            put(&loaded);
            drop(failed);
            while let Some(Swap { model, pieces }) =
                worker::run(&loaded, &waiting, &counted, limits)
            {
                let last = match again(&model) {
                    Ok(session) => {
                        loaded = Arc::new(session);
                        put(&loaded);
                        tracing::info!(model, "model swapped");
                        Piece::Swapped
                    }
                    Err(error) => {
                        tracing::error!(model, error, "a model could not be loaded");
                        Piece::Unloaded
                    }
                };
                swaps.store(false, Ordering::Relaxed);
                // Whoever asked may be gone.
                let _ = pieces.send(last);
            }
        });
        let (draining, number) = (AtomicBool::new(false), AtomicU64::new(0));
        let inner =
            Inner { config, session, encoder, swapping, jobs, metrics, draining, gone, number };
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
    /// 503 until it is loaded, and while it is changed for another.
    pub fn session(&self) -> Result<Arc<Session>, Fault> {
        if self.inner.gone.load(Ordering::Relaxed) {
            let message = "the model's thread has ended. Next: start the server again";
            return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "model_gone", message));
        }
        if self.inner.swapping.load(Ordering::Relaxed) {
            return Err(Fault::loading());
        }
        let place = self.inner.session.read().unwrap_or_else(PoisonError::into_inner);
        place.clone().ok_or_else(Fault::loading)
    }

    /// The model made for embeddings, once it is loaded.
    pub(crate) fn encoder(&self) -> Option<&Arc<Encoder>> {
        self.inner.encoder.get()
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

    /// Queues a request made for `session`, of the caller with this key; its pieces come through the channel,
    /// and dropping the channel's end stops the model before its next pass.
    ///
    /// # Errors
    /// 429 where the queue is full, 503 while the server ends or the model is changed.
    pub(crate) fn ask(
        &self,
        session: &Arc<Session>,
        request: Request,
        caller: usize,
        deadline: Instant,
    ) -> Result<Pieces, Fault> {
        self.is_open()?;
        if request.choices > self.config().texts {
            let what = format!("n: at most {} on this server", self.config().texts);
            return Err(Fault::field("n", what));
        }
        let (needed, most) = (worker::bytes_needed(session, &request), self.config().cache_bytes);
        if needed > most {
            let what = format!(
                "max_tokens: prompt and answer may take {needed} bytes of cache, and this server has {most}. \
                 Next: a shorter prompt, fewer tokens or fewer answers"
            );
            return Err(Fault::field("max_tokens", what));
        }
        // No swap begins while this is held.
        let place = self.inner.session.read().unwrap_or_else(PoisonError::into_inner);
        let current = place.as_ref().is_some_and(|current| Arc::ptr_eq(current, session));
        if !current || self.inner.swapping.load(Ordering::Relaxed) {
            return Err(Fault::loading());
        }
        self.queue(Work::Text(Box::new(request)), caller, deadline)
    }

    /// Changes the model for another, once the requests before it are done. What is asked meanwhile is
    /// answered with 503; if the other cannot be loaded, the old one answers again.
    ///
    /// # Errors
    /// 409 while another swap is on its way, else as [`App::ask`].
    pub(crate) fn swap(&self, model: String) -> Result<Pieces, Fault> {
        self.is_open()?;
        let _place = self.inner.session.write().unwrap_or_else(PoisonError::into_inner);
        if self.inner.swapping.swap(true, Ordering::Relaxed) {
            let what = "the model is being changed already. Next: try again in a moment";
            return Err(Fault::new(StatusCode::CONFLICT, "swapping", what));
        }
        let queued = self.queue(Work::Swap(model), 0, self.deadline());
        if queued.is_err() {
            self.inner.swapping.store(false, Ordering::Relaxed);
        }
        queued
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
        let span = tracing::Span::current();
        let job = Job { work, caller, pieces, deadline, span };
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
