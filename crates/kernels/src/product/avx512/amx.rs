//! The integer product with the int8 matrix tiles of AMX, for passes of many rows.
//!
//! **Tested by emulation only**: no machine this was developed on has AMX. The kernel's logic is
//! compared bit for bit with the scalar twin through [`Emulated`](super::tiles) tiles, and a process
//! chooses this path only after [`usable`] has run it on the real tiles and found it equal to the
//! scalar twin; otherwise it uses AVX-512 VNNI.
//!
//! A tile product takes 16 rows and one block of k (32, or 16 in Q6_K, where scales change) to 16
//! outputs. Codes are unpacked once a strip as signed bytes, the offset taken off, so the sums
//! need no correction; they pass through memory to the vector unit, which scales and adds them as
//! the sequence of the product demands, the 16 x 16 accumulators staying in registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use super::ahead::Ahead;
use super::formats::{Format, Q4_0, Q4_1, Q4K, Q5_0, Q6K, Q8_0};
use super::store;
use super::tiles::{Hardware, Tiles};
use crate::pack::strips::{BLOCK, STRIP, VECTOR};
use crate::pack::{Matrix, WeightType};
use crate::product::activations::{Activations, GROUP};
use crate::product::{Job, scalar};

/// Most blocks unpacked at once: 30 KiB.
const CHUNK: usize = 48;

/// Whether this machine has AMX int8, its system grants it, and it computes what the scalar twin
/// does. Asked once a process.
pub(in crate::product) fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| present() && granted() && equals_the_scalar_twin())
}

/// CPUID leaf 7: AMX-TILE and AMX-INT8; XCR0: the system saves both tile states.
fn present() -> bool {
    if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
        return false;
    }
    let int8_tiles = (1 << 24) | (1 << 25);
    let saved = (1 << 17) | (1 << 18);
    // SAFETY: XSAVE is there and enabled (the detection above asks the system's bit).
    __cpuid_count(7, 0).edx & int8_tiles == int8_tiles && unsafe { xcr0() } & saved == saved
}

#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: register 0 exists wherever XSAVE does.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tile data state (feature 18) of this process.
#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    // SAFETY: this call changes nothing but the permission.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18 as libc::c_long) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}

/// Runs a small product of every packed type on the tiles and in plain Rust.
fn equals_the_scalar_twin() -> bool {
    // A full group of rows and a ragged one; two strips, the second ragged.
    let (rows, n, k) = (21, 27, 512);
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 24
    };
    let x: Vec<f32> = (0..rows * k).map(|_| next() as f32 / 64.0 - 2.0).collect();
    let mut a = Activations::new();
    a.quantize_inline(&x, rows, k);
    WeightType::ALL.into_iter().filter(|ty| ty.is_fast()).all(|ty| {
        let Ok(len) = ty.matrix_bytes(n, k) else { return false };
        let mut raw: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        for block in raw.chunks_exact_mut(ty.block_bytes()) {
            // Small positive scales, wherever the type keeps its f16.
            for at in [1, 3, ty.block_bytes() - 1] {
                block[at] = 0x1c;
            }
        }
        let Ok(w) = Matrix::pack(ty, &raw, n, k) else { return false };
        let mut outs = [vec![0.0f32; rows * n], vec![0.0f32; rows * n]];
        for (out, tiles) in outs.iter_mut().zip([true, false]) {
            let out = out.as_mut_ptr();
            let job = Job { weights: &w, out, stride: n, bias: None, accumulate: false };
            // SAFETY: the shapes fit each other, and `usable` has seen that AMX is there.
            unsafe {
                if tiles {
                    run(&job, &a, 0..w.strips());
                } else {
                    scalar::run(&job, &a, 0..w.strips());
                }
            }
        }
        outs[0].iter().zip(&outs[1]).all(|(a, b)| a.to_bits() == b.to_bits())
    })
}

/// # Safety
/// As [`super::super::run_strips`]; the machine has AVX-512 VNNI and AMX, see [`usable`].
pub(in crate::product) unsafe fn run(job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { run_on(&mut Hardware, job, a, strips) };
}

/// # Safety
/// As [`run`], with AMX only if `tiles` are the real ones.
pub(super) unsafe fn run_on<T: Tiles>(
    tiles: &mut T,
    job: &Job<'_>,
    a: &Activations,
    strips: Range<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match job.weights.ty() {
            WeightType::Q8_0 => run_format::<Q8_0, T>(tiles, job, a, strips),
            WeightType::Q5_0 => run_format::<Q5_0, T>(tiles, job, a, strips),
            WeightType::Q4_0 => run_format::<Q4_0, T>(tiles, job, a, strips),
            WeightType::Q4_1 => run_format::<Q4_1, T>(tiles, job, a, strips),
            WeightType::Q4K => run_format::<Q4K, T>(tiles, job, a, strips),
            _ => run_format::<Q6K, T>(tiles, job, a, strips),
        }
        tiles.release();
    }
}

/// A block of a strip with signed codes, in memory.
#[repr(C, align(64))]
struct Plain {
    codes: [[u8; VECTOR]; 8],
    d: [f32; STRIP],
    /// The minimum, or the scale of the second half.
    other: [f32; STRIP],
}

/// The sums of one tile product, `[row][output]`.
#[repr(C, align(64))]
struct Sums([[i32; STRIP]; GROUP]);

/// Scratch of a thread, kept from product to product.
struct Scratch {
    /// Unpacked blocks; only the capacity is used.
    plain: Vec<Plain>,
    /// Float sums between chunks, `[row][output]`.
    acc: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,fma,avx2")]
unsafe fn run_format<F: Format, T: Tiles>(
    tiles: &mut T,
    job: &Job<'_>,
    a: &Activations,
    strips: Range<usize>,
) {
    let mut scratch = SCRATCH.take().unwrap_or(Scratch { plain: Vec::new(), acc: Vec::new() });
    scratch.plain.reserve(CHUNK);
    if scratch.acc.len() < a.rows() * STRIP {
        scratch.acc.resize(a.rows() * STRIP, 0.0);
    }
    let plain = scratch.plain.as_mut_ptr();
    let acc = scratch.acc.as_mut_ptr();
    let blocks = a.blocks();
    let chunks = blocks.div_ceil(CHUNK).max(1);
    let chunk = blocks.div_ceil(chunks).max(1);
    let k = if F::HALVES { BLOCK / 2 } else { BLOCK };
    // Whole groups and the ragged one have tiles of different height.
    let whole = a.rows() / GROUP * GROUP;
    let ragged = a.rows() - whole;
    for s in strips {
        let strip = job.weights.strip(s).as_ptr();
        for c in 0..chunks {
            let first = (c * chunk).min(blocks);
            let n = chunk.min(blocks - first);
            let groups = a.rows().div_ceil(GROUP);
            let mut ahead = Ahead::new::<F>(job, (s, 1), first + n, chunk, groups * n.div_ceil(2));
            // SAFETY: strips, blocks and rows are in range; the scratch holds a chunk, and a
            // vector of sums for each row.
            unsafe {
                for b in 0..n {
                    unpack::<F>(strip, first + b, plain.add(b));
                }
                let step = Step { s, first, n, begin: c == 0, end: c + 1 == chunks };
                if whole > 0 {
                    tiles.configure(GROUP, k);
                    for r in (0..whole).step_by(GROUP) {
                        let acc = acc.add(r * STRIP);
                        group::<F, T>(tiles, job, a, plain, acc, step, r, GROUP, &mut ahead);
                    }
                }
                if ragged > 0 {
                    tiles.configure(ragged, k);
                    let acc = acc.add(whole * STRIP);
                    group::<F, T>(tiles, job, a, plain, acc, step, whole, ragged, &mut ahead);
                }
            }
        }
    }
    SCRATCH.set(Some(scratch));
}

/// The part of k a group goes through.
#[derive(Clone, Copy)]
struct Step {
    s: usize,
    /// First block and their number.
    first: usize,
    n: usize,
    /// Whether this is the first or the last part of k.
    begin: bool,
    end: bool,
}

#[inline(always)]
unsafe fn unpack<F: Format>(strip: *const u8, b: usize, to: *mut Plain) {
    // SAFETY: the caller gives a block of the strip and room for it.
    unsafe {
        let w = F::block(strip, b);
        let offset = _mm512_set1_epi8(F::OFFSET);
        for (j, codes) in w.codes.into_iter().enumerate() {
            let codes = _mm512_sub_epi8(codes, offset);
            _mm512_store_si512((&raw mut (*to).codes[j]).cast(), codes);
        }
        _mm512_store_ps((&raw mut (*to).d).cast(), w.d);
        let other = if F::HALVES { w.d_high } else { w.m };
        _mm512_store_ps((&raw mut (*to).other).cast(), other);
    }
}

/// One strip by the `rows` rows of the group that begins at row `r`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one call site each for whole and ragged groups
unsafe fn group<F: Format, T: Tiles>(
    tiles: &mut T,
    job: &Job<'_>,
    a: &Activations,
    plain: *const Plain,
    so_far: *mut f32,
    step: Step,
    r: usize,
    rows: usize,
    ahead: &mut Ahead,
) {
    let p = a.planes();
    let base = r * a.blocks() + step.first * rows;
    let mut sums = MaybeUninit::<[Sums; 4]>::uninit();
    let sums = sums.as_mut_ptr().cast::<Sums>();
    // SAFETY: the caller gives `step.n` unpacked blocks, a group of `rows` rows, tiles configured
    // for them and room for `rows` vectors of sums.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); GROUP];
        if !step.begin {
            for (i, acc) in acc.iter_mut().enumerate().take(rows) {
                *acc = _mm512_loadu_ps(so_far.add(i * STRIP));
            }
        }
        let mut b = 0;
        while b < step.n {
            ahead.ask();
            // Tile products of two blocks, then their scaling, so that both units have work.
            let pair = (step.n - b).min(2);
            for t in 0..pair {
                let w = plain.add(b + t);
                let q = p.q.as_ptr().add((base + (b + t) * rows) * BLOCK);
                let right = (&raw const (*w).codes).cast::<u8>();
                let to = sums.add(2 * t).cast::<i32>();
                if F::HALVES {
                    tiles.multiply::<0>(q, BLOCK, right, to);
                    let (q, right) = (q.add(BLOCK / 2), right.add(4 * VECTOR));
                    tiles.multiply::<1>(q, BLOCK, right, sums.add(2 * t + 1).cast());
                } else if t == 0 {
                    tiles.multiply::<0>(q, BLOCK, right, to);
                } else {
                    tiles.multiply::<1>(q, BLOCK, right, to);
                }
            }
            for t in 0..pair {
                let w = plain.add(b + t);
                let slot = base + (b + t) * rows;
                let (s, sum) = (p.s.as_ptr().add(slot), p.sum.as_ptr().add(slot));
                let d = _mm512_load_ps((&raw const (*w).d).cast());
                let other = _mm512_load_ps((&raw const (*w).other).cast());
                for (i, acc) in acc.iter_mut().enumerate().take(rows) {
                    let s = _mm512_set1_ps(*s.add(i));
                    let add = |acc: __m512, half: usize, d: __m512| {
                        let isum = (&raw const (*sums.add(2 * t + half)).0[i]).cast();
                        let isum = _mm512_cvtepi32_ps(_mm512_load_si512(isum));
                        _mm512_fmadd_ps(isum, _mm512_mul_ps(d, s), acc)
                    };
                    *acc = add(*acc, 0, d);
                    if F::HALVES {
                        *acc = add(*acc, 1, other);
                    }
                    if F::MINIMUM {
                        *acc = _mm512_fmadd_ps(other, _mm512_set1_ps(*sum.add(i)), *acc);
                    }
                }
            }
            b += pair;
        }
        for (i, acc) in acc.into_iter().enumerate().take(rows) {
            if step.end {
                store(job, r + i, step.s, acc);
            } else {
                _mm512_storeu_ps(so_far.add(i * STRIP), acc);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tiles::Emulated;
    use super::*;
    use crate::isa::Isa;
    use crate::pack::tests::random_raw;
    use crate::pool::Pool;

    /// The tile kernel on emulated tiles against the scalar twin, every packed type, whole and
    /// ragged groups of rows, one and several chunks of k.
    #[test]
    fn the_tile_kernel_equals_the_scalar_twin_on_emulated_tiles() {
        if !Isa::Avx512Vnni.is_available() {
            println!("skipped: the vector half of the tile kernel needs AVX-512");
            return;
        }
        let pool = Pool::with_options(1, Isa::Scalar, Duration::ZERO).unwrap();
        for ty in WeightType::ALL.into_iter().filter(|ty| ty.is_fast()) {
            let small = ty.block_len().max(96) / ty.block_len() * ty.block_len();
            for (rows, n, k) in [(16, 16, small), (17, 37, 512), (9, 33, 1792), (40, 16, 512)] {
                let w = Matrix::pack(ty, &random_raw(ty, n, k, 9), n, k).unwrap();
                let x: Vec<f32> =
                    (0..rows * k).map(|i| (i * 31 % 257) as f32 / 64.0 - 2.0).collect();
                let mut a = Activations::new();
                a.quantize(&pool, &x, rows, k);
                let mut outs = [vec![0.5f32; rows * n], vec![0.5f32; rows * n]];
                for (out, emulated) in outs.iter_mut().zip([true, false]) {
                    let out = out.as_mut_ptr();
                    let job = Job { weights: &w, out, stride: n, bias: None, accumulate: true };
                    // SAFETY: the shapes fit; the tiles are emulated.
                    unsafe {
                        if emulated {
                            run_on(&mut Emulated::default(), &job, &a, 0..w.strips());
                        } else {
                            scalar::run(&job, &a, 0..w.strips());
                        }
                    }
                }
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&outs[0]), bits(&outs[1]), "{ty} {rows} rows {n}x{k}");
            }
        }
    }

    #[test]
    fn the_path_is_offered_only_where_it_was_checked() {
        assert_eq!(Isa::Amx.is_available(), Isa::Avx512Vnni.is_available() && usable());
    }
}
