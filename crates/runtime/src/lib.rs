//! The library's front door: joins models, methods and loops into sessions.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use tessera_runtime::{Control, Message, Options, Prompt, Session};
//!
//! let session = Session::open("smollm2", &Options::default())?;
//! let question = [Message::new("user", "Why is the sky blue?")];
//! let request = session.request(&Prompt::Chat(&question))?;
//! let never = AtomicBool::new(false);
//! let outcome = session.generate(&request, &mut |_| Control::Continue, &never)?;
//! println!("{}", outcome.choices[0].text);
//! # Ok::<(), tessera_runtime::Error>(())
//! ```

mod backend;
pub mod bytes;
mod calibration;
mod companion;
mod error;
pub mod holes;
mod prompt;
mod session;

pub use backend::Backend;
pub use calibration::{data_dir, plain_name};
pub use error::Error;
pub use holes::Holes;
pub use prompt::Prompt;
pub use session::{Info, Options, Session};
pub use tessera_core::dist::Sampling;
pub use tessera_core::entry::{MethodCall, MethodEntry};
pub use tessera_core::{
    Constraint, Control, Event, FinishReason, Judged, Judgement, Predicate, TokenId, Vocabulary,
};
pub use tessera_engine::{
    Batch, Completion, CostCurve, Ended, Listen, Outcome, Particle, Population, Recipe, Request,
    Sequence, Shape, Stats,
};
pub use tessera_methods::continuations::Continuations;
pub use tessera_methods::programs::{exact_byte_level, reagent, zonkey};
pub use tessera_methods::{ENTRIES as METHODS, predicate};
pub use tessera_model::chat::{Chat, Message};
pub use tessera_model::encoder::{EncodeError, Encoder};
pub use tessera_model::tokenizer::Special;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
