//! The float product: any weight type, unpacked to f32 a strip at a time.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ops::Range;

use super::Job;
use super::activations::{Activations, LANES};
use crate::isa::Isa;
use crate::pack::strips::STRIP;

/// Outputs and rows of a register tile.
const OUTS: usize = 4;
const ROWS: usize = 4;

thread_local! {
    /// Unpacked strip, kept from product to product.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// # Safety
/// As [`super::run_strips`].
pub(super) unsafe fn run(isa: Isa, job: &Job<'_>, a: &Activations, strips: Range<usize>) {
    let stride = a.float_stride();
    let mut scratch = SCRATCH.take();
    // The padding of a row must be zero: it is multiplied with the padding of the activations.
    scratch.clear();
    scratch.resize(STRIP * stride, 0.0);
    for s in strips {
        let first = s * STRIP;
        let n = STRIP.min(job.weights.rows() - first);
        for i in 0..n {
            // In range by construction, so there is no error to report.
            let _ = job.weights.row(first + i, &mut scratch[i * stride..][..a.cols()]);
        }
        for r in (0..a.rows()).step_by(ROWS) {
            let rows = ROWS.min(a.rows() - r);
            // SAFETY: the scratch holds 16 padded rows, the activations `rows` padded rows from
            // `r`; the path exists on this machine; stores as the caller promises.
            unsafe {
                let mut acc = [[0.0f32; STRIP]; ROWS];
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx | Isa::Avx512Vnni => strip_avx512(&scratch, a, r, rows, &mut acc),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => strip_avx2(&scratch, a, r, rows, &mut acc),
                    _ => strip::<Portable>(&scratch, a, r, rows, &mut acc),
                }
                for (i, acc) in acc[..rows].iter().enumerate() {
                    job.store(r + i, s, acc);
                }
            }
        }
    }
    SCRATCH.set(scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,fma,avx2")]
unsafe fn strip_avx512(
    w: &[f32],
    a: &Activations,
    r: usize,
    rows: usize,
    acc: &mut [[f32; STRIP]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe { strip::<x86::Wide>(w, a, r, rows, acc) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn strip_avx2(
    w: &[f32],
    a: &Activations,
    r: usize,
    rows: usize,
    acc: &mut [[f32; STRIP]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe { strip::<x86::Pair>(w, a, r, rows, acc) };
}

/// Sixteen lanes of partial sums.
trait Lanes: Copy {
    unsafe fn zero() -> Self;
    /// `self + a * b`, each lane rounded once; both pointers give 16 values.
    unsafe fn fma(self, a: *const f32, b: *const f32) -> Self;
    /// The tree of the module above.
    unsafe fn fold(self) -> f32;
}

/// All outputs of a strip for up to four rows.
#[inline(always)]
unsafe fn strip<L: Lanes>(
    w: &[f32],
    a: &Activations,
    r: usize,
    rows: usize,
    acc: &mut [[f32; STRIP]; ROWS],
) {
    let stride = a.float_stride();
    for o in (0..STRIP).step_by(OUTS) {
        let w = w[o * stride..].as_ptr();
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => tile::<L, 1>(w, a, r, o, acc),
                2 => tile::<L, 2>(w, a, r, o, acc),
                3 => tile::<L, 3>(w, a, r, o, acc),
                _ => tile::<L, 4>(w, a, r, o, acc),
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize>(
    w: *const f32,
    a: &Activations,
    r: usize,
    o: usize,
    out: &mut [[f32; STRIP]; ROWS],
) {
    let stride = a.float_stride();
    let x: [*const f32; R] = std::array::from_fn(|i| a.float_row(r + i).as_ptr());
    // SAFETY: each row has `stride` values, a multiple of 16.
    unsafe {
        let mut acc = [[L::zero(); OUTS]; R];
        for k in (0..stride).step_by(LANES) {
            for (acc, x) in acc.iter_mut().zip(x) {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = acc.fma(w.add(i * stride + k), x.add(k));
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            for (i, acc) in acc.into_iter().enumerate() {
                out[o + i] = acc.fold();
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Portable([f32; LANES]);

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn fma(mut self, a: *const f32, b: *const f32) -> Self {
        for (l, acc) in self.0.iter_mut().enumerate() {
            // SAFETY: both hold 16 values.
            *acc = unsafe { (*a.add(l)).mul_add(*b.add(l), *acc) };
        }
        self
    }

    #[inline(always)]
    unsafe fn fold(self) -> f32 {
        let mut v = self.0;
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                v[l] += v[l + half];
            }
        }
        v[0]
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// One AVX-512 register.
    #[derive(Clone, Copy)]
    pub(super) struct Wide(__m512);

    impl Lanes for Wide {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: used inside `strip_avx512` only.
            unsafe { Wide(_mm512_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn fma(self, a: *const f32, b: *const f32) -> Self {
            // SAFETY: as above; both pointers hold 16 values.
            unsafe { Wide(_mm512_fmadd_ps(_mm512_loadu_ps(a), _mm512_loadu_ps(b), self.0)) }
        }

        #[inline(always)]
        unsafe fn fold(self) -> f32 {
            // SAFETY: as above.
            unsafe {
                Pair(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)).fold()
            }
        }
    }

    /// Two AVX registers: lanes 0..8 and 8..16.
    #[derive(Clone, Copy)]
    pub(super) struct Pair(__m256, __m256);

    impl Lanes for Pair {
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: used inside functions with AVX2 and FMA only.
            unsafe { Pair(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn fma(self, a: *const f32, b: *const f32) -> Self {
            // SAFETY: as above; both pointers hold 16 values.
            unsafe {
                Pair(
                    _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), self.0),
                    _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8)), self.1),
                )
            }
        }

        #[inline(always)]
        unsafe fn fold(self) -> f32 {
            // SAFETY: as above.
            unsafe {
                let v = _mm256_add_ps(self.0, self.1);
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
    }
}
