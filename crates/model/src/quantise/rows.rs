//! Rows of a tensor as f32, in pieces of fixed size on several threads.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::base::GroupError;
use crate::file_error::{Fault, FileError, quoted};
use crate::weights::{WeightInfo, WeightSource};

/// About how many weights a piece has. Fixed: sums over pieces must not depend on the machine.
const PIECE: usize = 1 << 17;

/// What is done with a piece: its values, and how many make a row.
type Work<'a, T> = dyn Fn(&[f32], usize) -> Result<T, GroupError> + Sync + 'a;

/// Calls `work` for every piece of whole rows (with the piece's values and row length) and returns
/// the results in the order of rows. `progress` hears how many weights are done, from any thread.
///
/// # Errors
/// When the tensor cannot be read, or the first (in the order of rows) that `work` reports.
pub(super) fn map_rows<T: Send>(
    source: &dyn WeightSource,
    name: &str,
    info: &WeightInfo,
    progress: &(dyn Fn(u64) + Sync),
    work: &Work<'_, T>,
) -> Result<Vec<T>, FileError> {
    let (rows, cols) = (info.shape.rows(), info.shape.cols());
    let step = (PIECE / cols.max(1)).max(1);
    let pieces = rows.div_ceil(step);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<T, FileError>>>> =
        Mutex::new((0..pieces).map(|_| None).collect());
    let one = |range: Range<usize>, raw: &mut Vec<u8>, values: &mut Vec<f32>| {
        source.read_rows(name, range.clone(), raw)?;
        let at = |found: &dyn std::fmt::Display, expected: &str| {
            let field = format!("tensor {}: data", quoted(name));
            Fault::malformed(field, found, expected).at(source.path())
        };
        values.resize(range.len() * cols, 0.0);
        tessera_kernels::dequantize(info.ty, raw, values).map_err(|e| at(&e, "whole blocks"))?;
        work(values, cols).map_err(|e| at(&e, "finite weights that fit the scheme"))
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(pieces);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (mut raw, mut values) = (Vec::new(), Vec::new());
                loop {
                    let piece = next.fetch_add(1, Ordering::Relaxed);
                    if piece >= pieces {
                        return;
                    }
                    let range = piece * step..rows.min((piece + 1) * step);
                    let done = range.len() * cols;
                    let result = one(range, &mut raw, &mut values);
                    if result.is_err() {
                        // Nothing after this piece matters.
                        next.store(pieces, Ordering::Relaxed);
                    }
                    if let Ok(mut results) = results.lock() {
                        results[piece] = Some(result);
                    }
                    progress(done as u64);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    let mut out = Vec::with_capacity(pieces);
    let mut rest = results.into_iter();
    for result in rest.by_ref() {
        match result {
            Some(result) => out.push(result?),
            // A later piece failed before this one was taken.
            None => break,
        }
    }
    match rest.flatten().find_map(Result::err) {
        Some(error) => Err(error),
        None => Ok(out),
    }
}
