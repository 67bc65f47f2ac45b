//! Ctrl-C: the first one ends the work in hand cleanly, the second one ends the program.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static RAISED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<()> = OnceLock::new();

/// The flag that Ctrl-C raises, lowered. Without a handler (it could not be installed) Ctrl-C ends
/// the program as it always does.
pub(crate) fn flag() -> &'static AtomicBool {
    INSTALLED.get_or_init(|| {
        let _ = ctrlc::set_handler(|| {
            if RAISED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
    });
    RAISED.store(false, Ordering::Relaxed);
    &RAISED
}
