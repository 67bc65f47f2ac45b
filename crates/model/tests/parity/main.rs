//! Backbones against one another: `cargo test -p tessera-model --features candle --test parity`.
//! Without the feature, the cpu backbone is compared with the naive reference alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agreement;
#[cfg(feature = "candle")]
mod candle;
mod case;
mod laws;
mod naive;
