//! The vocabulary of Tessera: tokens, passes, the cache table, keep-plans, backbones, method
//! entries, events and probability maths.
//!
//! Every other crate speaks these types and no crate below this one exists. There is no tensor
//! arithmetic here: a [`Backbone`] executes a [`Pass`], this crate only says what one is.

pub mod accept;
pub mod backbone;
pub mod cache;
pub mod calibration;
pub mod canvas;
pub mod constrain;
pub mod dist;
pub mod draft;
pub mod entry;
pub mod error;
pub mod event;
pub mod layers;
pub mod pass;
pub mod plan;
pub mod predicate;
pub mod reduce;
pub mod text;
pub mod unmask;
pub mod visible;

pub use accept::{Accept, Decision, Guess};
pub use backbone::{
    Backbone, CacheOptions, Capabilities, Checkpoint, KvStore, ModelSpec, Pairing, Vocabulary,
};
pub use cache::{CacheTable, KeyForm};
pub use calibration::Calibration;
pub use canvas::{Canvas, Filling, Origin};
pub use constrain::{
    CanvasRule, Constrain, Constrained, ConstrainedDraw, ConstrainedSampler, Constraint,
    ConstraintStats, Drawn, Guard, TokenSet,
};
pub use draft::{Draft, DraftContext, DraftTree, Lent, Verdict};
pub use error::Error;
pub use event::{Control, Event, FinishReason};
pub use layers::LayerSchedule;
pub use pass::{
    Condition, HeadSum, HiddenSite, Input, KeySet, Layers, Mask, Pass, Received, Reveal, RowsOut,
    Segment, SegmentReveal, Sites, Taps, Write,
};
pub use plan::{Keep, KeepPlan, Merge};
pub use predicate::{Judged, Judgement, Predicate};
pub use reduce::{CommittedStep, Eviction, Reduce, ReduceContext, StepReceived};
pub use unmask::{
    Commit, End, Evidence, Fill, Hint, InitContext, Look, Prediction, Start, Unmask, Window,
    WindowPlan, WindowView,
};
pub use visible::{Span, Visible};

/// A token's index in its model's vocabulary.
pub type TokenId = u32;

/// The place of a token in its sequence, counted from 0. Not the index of its cache row.
pub type Position = u32;

/// The index of a row in a cache. Rows move when a cache is compacted; positions do not.
pub type Row = u32;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
