//! Rotary positions (Su et al., arXiv 2104.09864).
//!
//! Pair `i` of a head turns by `position * base^(-2 i / dim) / factor_i`. Angles, cosines and
//! sines are computed in double precision and kept, rounded to single, in a table that grows
//! with the largest position seen.
#![allow(unsafe_code)]

use std::sync::{PoisonError, RwLock};

use super::{load, spread, store};
use crate::Isa;
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::error::{KernelError, Result};
use crate::lanes::{LANES, Lanes, entry};

/// Positions from here on are computed for each call: a table that far would be large.
const TABLE_LIMIT: usize = 1 << 16;
/// The table grows in steps of this many positions.
const TABLE_STEP: usize = 256;
/// Values a thread must get for a part of its own.
const GRAIN: usize = 1 << 14;

/// Rotary encoding of heads: frequencies, pairing, and the table of angles.
#[derive(Debug)]
pub struct Rope {
    /// Angle per position of each pair.
    frequencies: Vec<f64>,
    interleaved: bool,
    /// `[position][2][dim / 2]`: cosines, then sines.
    table: RwLock<Vec<f32>>,
    /// The same by blocks of 16 positions, `[block][2][dim / 2][16]`, for keys that lie so.
    blocks: RwLock<Vec<f32>>,
}

impl Rope {
    /// An encoding that turns the first `dim` values of a head (even, at least 2).
    ///
    /// `factors`, if given, divide the `dim / 2` frequencies. `interleaved` pairs values
    /// `(0, 1), (2, 3), ..`, as GGUF files of the llama family are stored; otherwise
    /// `(0, dim / 2), (1, dim / 2 + 1), ..`.
    ///
    /// Errors: an odd or zero `dim`, a base or factor that is not positive and finite, a wrong
    /// number of factors.
    pub fn new(dim: usize, base: f32, factors: Option<&[f32]>, interleaved: bool) -> Result<Rope> {
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(KernelError::Mismatch("rotary dimension must be even and above zero"));
        }
        let positive = |x: f32| x > 0.0 && x.is_finite();
        if !positive(base) {
            return Err(KernelError::Mismatch("rotary base must be positive and finite"));
        }
        if let Some(factors) = factors {
            if factors.len() != dim / 2 {
                return Err(KernelError::Length {
                    what: "rotary factors",
                    expected: dim / 2,
                    got: factors.len(),
                });
            }
            if !factors.iter().all(|f| positive(*f)) {
                return Err(KernelError::Mismatch("rotary factors must be positive and finite"));
            }
        }
        let frequency = |i: usize| {
            let plain = f64::from(base).powf(-2.0 * i as f64 / dim as f64);
            plain / factors.map_or(1.0, |f| f64::from(f[i]))
        };
        Ok(Rope {
            frequencies: (0..dim / 2).map(frequency).collect(),
            interleaved,
            table: RwLock::new(Vec::new()),
            blocks: RwLock::new(Vec::new()),
        })
    }

    /// Values of a head that are turned.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Turns `x`, `[positions][heads][head_dim]`, in place, each row to its own position.
    ///
    /// Errors: a wrong length, or a head shorter than the rotary dimension.
    pub fn apply(
        &self,
        pool: &Pool,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: &[u32],
    ) -> Result<()> {
        let width = heads.saturating_mul(head_dim);
        let expected = width.saturating_mul(positions.len());
        if x.len() != expected {
            return Err(KernelError::Length { what: "rotary rows", expected, got: x.len() });
        }
        if head_dim < self.dim() {
            return Err(KernelError::Mismatch("a head is shorter than its rotary dimension"));
        }
        if width == 0 {
            return Ok(());
        }
        let largest = positions.iter().copied().max().unwrap_or(0) as usize;
        self.prepare(largest.saturating_add(1));
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let (isa, dim) = (pool.isa(), self.dim());
        let x = Disjoint::new(x);
        spread(pool, positions.len(), GRAIN.div_ceil(width), |rows| {
            let mut far = Vec::new();
            for row in rows {
                let at = positions[row] as usize;
                let turns = match table.get(at * dim..(at + 1) * dim) {
                    Some(turns) => turns,
                    None => {
                        far.clear();
                        self.angles(at, &mut far);
                        &far
                    }
                };
                // SAFETY: each row is `heads` heads of `head_dim` values and is one thread's;
                // `turns` holds `dim <= head_dim` values; the pool's path is available.
                unsafe {
                    let job = Turn {
                        x: x.at(row * width),
                        heads,
                        head_dim,
                        half: dim / 2,
                        turns: turns.as_ptr(),
                    };
                    if self.interleaved {
                        run_interleaved(isa, &job);
                    } else {
                        run_halves(isa, &job);
                    }
                }
            }
        });
        Ok(())
    }

    /// Turns `x` back: what [`Rope::apply`] undoes with the same positions, up to rounding.
    ///
    /// Errors: as [`Rope::apply`].
    pub fn undo(
        &self,
        pool: &Pool,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: &[u32],
    ) -> Result<()> {
        // A turn backwards is a turn forwards of the pair with its values exchanged.
        self.exchange(x, head_dim);
        let done = self.apply(pool, x, heads, head_dim, positions);
        self.exchange(x, head_dim);
        done
    }

    /// Exchanges the two values of every pair.
    fn exchange(&self, x: &mut [f32], head_dim: usize) {
        let dim = self.dim();
        for head in x.chunks_exact_mut(head_dim.max(dim)) {
            if self.interleaved {
                head[..dim].chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
            } else {
                let (first, second) = head[..dim].split_at_mut(dim / 2);
                first.swap_with_slice(second);
            }
        }
    }

    /// Turns a block of up to 16 keys as a cache holds them, `[head_dim][16]`, each to its own
    /// position. `turns` is room for `16 dim` values. The operations are those of [`Rope::apply`].
    pub(crate) fn turn_block(
        &self,
        isa: Isa,
        x: &mut [f32],
        head_dim: usize,
        positions: &[u32],
        turns: &mut [f32],
    ) {
        assert!(x.len() >= head_dim * LANES && head_dim >= self.dim());
        assert!(turns.len() >= self.dim() * LANES && positions.len() <= LANES);
        let (dim, half) = (self.dim(), self.dim() / 2);
        let first = positions.first().map_or(0, |&p| p as usize);
        let run = positions.iter().enumerate().all(|(i, &p)| p as usize == first + i);
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let known = blocks.get(first * dim..(first + LANES) * dim);
        let known = known.filter(|_| run && first.is_multiple_of(LANES));
        if known.is_none() {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            let mut far = Vec::new();
            for (lane, &at) in positions.iter().enumerate() {
                let at = at as usize;
                let row = match table.get(at * dim..(at + 1) * dim) {
                    Some(row) => row,
                    None => {
                        far.clear();
                        self.angles(at, &mut far);
                        &far
                    }
                };
                let lanes = turns[lane..].iter_mut().step_by(LANES);
                lanes.zip(row).for_each(|(to, from)| *to = *from);
            }
        }
        let job = TurnBlock {
            x: x.as_mut_ptr(),
            half,
            // Values of a pair lie this far apart, and pairs this far.
            apart: if self.interleaved { LANES } else { half * LANES },
            next: if self.interleaved { 2 * LANES } else { LANES },
            turns: known.unwrap_or(turns).as_ptr(),
        };
        // SAFETY: the lengths were checked above; the caller's path is available.
        unsafe { run_block(isa, &job) };
    }

    /// Makes the table hold the first `positions` positions, up to its limit.
    pub fn prepare(&self, positions: usize) {
        let wanted = positions.min(TABLE_LIMIT);
        let have = |table: &Vec<f32>| table.len() / self.dim();
        if have(&self.table.read().unwrap_or_else(PoisonError::into_inner)) >= wanted {
            return;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let end = wanted.next_multiple_of(TABLE_STEP);
        for position in have(&table)..end {
            self.angles(position, &mut table);
        }
    }

    /// The same for [`Rope::turn_block`].
    pub(crate) fn prepare_blocks(&self, positions: usize) {
        self.prepare(positions);
        let size = self.dim() * LANES;
        let wanted = positions.min(TABLE_LIMIT).next_multiple_of(TABLE_STEP) / LANES;
        let have = |blocks: &Vec<f32>| blocks.len() / size;
        if have(&self.blocks.read().unwrap_or_else(PoisonError::into_inner)) >= wanted {
            return;
        }
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        for block in table.chunks_exact(size).take(wanted).skip(have(&blocks)) {
            // Positions become lanes.
            let lanes = |turn: usize| (0..LANES).map(move |lane| block[lane * self.dim() + turn]);
            blocks.extend((0..self.dim()).flat_map(lanes));
        }
    }

    /// Appends the cosines and the sines of a position.
    fn angles(&self, position: usize, to: &mut Vec<f32>) {
        let angle = |f: &f64| position as f64 * f;
        to.extend(self.frequencies.iter().map(|f| angle(f).cos() as f32));
        to.extend(self.frequencies.iter().map(|f| angle(f).sin() as f32));
    }
}

impl Clone for Rope {
    fn clone(&self) -> Self {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        Rope {
            frequencies: self.frequencies.clone(),
            interleaved: self.interleaved,
            table: RwLock::new(table),
            blocks: RwLock::new(Vec::new()),
        }
    }
}

/// One row to turn.
struct Turn {
    x: *mut f32,
    heads: usize,
    head_dim: usize,
    /// Number of pairs.
    half: usize,
    /// `half` cosines, `half` sines.
    turns: *const f32,
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` with `a` in the first half and `b` in the second.
#[inline(always)]
unsafe fn halves<L: Lanes>(job: &Turn) {
    let half = job.half;
    for i in (0..half).step_by(LANES) {
        // SAFETY: the caller promises `heads` heads of at least `2 half` values and the turns.
        unsafe {
            let n = half - i;
            let cos = load::<L>(job.turns.add(i), n);
            let sin = load::<L>(job.turns.add(half + i), n);
            let minus = L::splat(0.0).sub(sin);
            for head in 0..job.heads {
                let first = job.x.add(head * job.head_dim + i);
                let second = first.add(half);
                let (a, b) = (load::<L>(first, n), load::<L>(second, n));
                store(a.fma(cos, b.mul(minus)), first, n);
                store(b.fma(cos, a.mul(sin)), second, n);
            }
        }
    }
}

/// The same with `a` and `b` side by side.
#[inline(always)]
unsafe fn interleaved<L: Lanes>(job: &Turn) {
    let dim = 2 * job.half;
    for i in (0..dim).step_by(LANES) {
        // SAFETY: as in `halves`; each pair takes one cosine and one sine, twice, the sine
        // negated where the first of the pair stands.
        unsafe {
            let n = dim - i;
            let (mut cos, mut sin) = ([0.0f32; LANES], [0.0f32; LANES]);
            for j in 0..n.min(LANES) {
                let (c, s) = ((i + j) / 2, job.half + (i + j) / 2);
                cos[j] = *job.turns.add(c);
                sin[j] = if j % 2 == 0 { -*job.turns.add(s) } else { *job.turns.add(s) };
            }
            let (cos, sin) = (L::load(cos.as_ptr()), L::load(sin.as_ptr()));
            for head in 0..job.heads {
                let at = job.x.add(head * job.head_dim + i);
                let v = load::<L>(at, n);
                store(v.fma(cos, v.swap_pairs().mul(sin)), at, n);
            }
        }
    }
}

/// A block of 16 keys to turn, `[dim][16]`.
struct TurnBlock {
    x: *mut f32,
    half: usize,
    apart: usize,
    next: usize,
    /// `[2 half][16]`: cosines, then sines.
    turns: *const f32,
}

/// The same for 16 keys at once, a lane each.
#[inline(always)]
unsafe fn block<L: Lanes>(job: &TurnBlock) {
    for i in 0..job.half {
        // SAFETY: the caller promises `2 half` lines of 16 values in `x` and in `turns`.
        unsafe {
            let (cos, sin) =
                (L::load(job.turns.add(i * LANES)), L::load(job.turns.add((job.half + i) * LANES)));
            let first = job.x.add(i * job.next);
            let second = first.add(job.apart);
            let (a, b) = (L::load(first), L::load(second));
            let minus = L::splat(0.0).sub(sin);
            a.fma(cos, b.mul(minus)).store(first);
            b.fma(cos, a.mul(sin)).store(second);
        }
    }
}

entry!(fn run_block(job: &TurnBlock) = block);
entry!(fn run_halves(job: &Turn) = halves);
entry!(fn run_interleaved(job: &Turn) = interleaved);
