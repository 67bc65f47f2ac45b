//! An answer that comes piece by piece.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::prelude::*;
use tessera_runtime::{Control, Event, Request, Session};

use crate::{failed, raised};

/// Time between two looks for Ctrl-C while nothing comes.
const LOOK: Duration = Duration::from_millis(50);

/// An iterator over the pieces of one answer. Dropping it, or `close()`, stops the model before its
/// next pass.
#[pyclass(module = "tessera", frozen)]
pub struct Stream {
    pieces: Mutex<Receiver<Result<String, tessera_runtime::Error>>>,
    cancel: Arc<AtomicBool>,
}

impl Stream {
    /// Answers `request` on a thread of its own.
    pub(crate) fn begin(session: Arc<Session>, request: Request) -> Self {
        let (send, pieces) = channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&cancel);
        std::thread::spawn(move || {
            let mut listener = |event: Event<'_>| match event {
                Event::Committed { text, .. } if !text.is_empty() => {
                    match send.send(Ok(text.to_owned())) {
                        Ok(()) => Control::Continue,
                        Err(_) => Control::Stop,
                    }
                }
                _ => Control::Continue,
            };
            if let Err(error) = session.generate(&request, &mut listener, &stopped) {
                // Whoever listened may be gone, and then nobody wants to know.
                let _ = send.send(Err(error));
            }
        });
        Self { pieces: Mutex::new(pieces), cancel }
    }
}

#[pymethods]
impl Stream {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        loop {
            let next = py.detach(|| match self.pieces.lock() {
                Ok(pieces) => Some(pieces.recv_timeout(LOOK)),
                Err(_) => None,
            });
            match next {
                None => return Err(failed("the stream was left by a thread that failed")),
                Some(Ok(piece)) => return piece.map(Some).map_err(raised),
                Some(Err(RecvTimeoutError::Disconnected)) => return Ok(None),
                Some(Err(RecvTimeoutError::Timeout)) => py.check_signals()?,
            }
        }
    }

    /// Stops the model before its next pass.
    fn close(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}
