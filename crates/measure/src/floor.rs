//! How fast this machine reads memory: the floor under the time of a token.

use std::hint::black_box;
use std::time::Instant;

/// How long the measurement may take.
const SECONDS: f64 = 0.25;

/// Bytes per second that `threads` threads read from a buffer of `bytes` bytes, best of several
/// rounds. Buffers as large as the model sit where the model sits: in the cache or in memory.
pub fn bandwidth(threads: usize, bytes: usize) -> f64 {
    let words = (bytes / 8 / threads).clamp(1 << 14, 1 << 26);
    // Never zeros: those may all be one page that was never written.
    let buffers: Vec<Vec<u64>> = (1..=threads).map(|t| vec![t as u64; words]).collect();
    let total = (threads * words * 8) as f64;
    // The first round is a warm-up.
    round(&buffers);
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for _ in 0..3 {
        best = best.min(round(&buffers));
    }
    while start.elapsed().as_secs_f64() < SECONDS {
        best = best.min(round(&buffers));
    }
    total / best
}

/// Seconds that the slowest thread takes for its buffer.
fn round(buffers: &[Vec<u64>]) -> f64 {
    std::thread::scope(|scope| {
        let readers: Vec<_> = buffers.iter().map(|b| scope.spawn(move || read(b))).collect();
        readers.into_iter().filter_map(|r| r.join().ok()).fold(0.0, f64::max)
    })
}

fn read(buffer: &[u64]) -> f64 {
    let start = Instant::now();
    // Several sums at once, or the additions would wait for one another.
    let mut sums = [0u64; 32];
    for block in buffer.chunks_exact(32) {
        for (sum, word) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(*word);
        }
    }
    black_box(sums);
    start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_a_positive_number() {
        let value = bandwidth(2, 1 << 16);
        assert!(value.is_finite() && value > 0.0);
    }
}
