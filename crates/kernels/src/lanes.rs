//! Sixteen `f32` lanes: the one vector shape of attention and the elementwise kernels.
//!
//! Long because one vocabulary is written three times: portable, AVX2, AVX-512.
//!
//! Each instruction path implements the same lane-wise operations, and kernels are written once
//! over this trait. Every operation is exactly rounded (or bitwise), sums run in a fixed lane
//! order, and products are fused on every path, so results are bit-equal across the paths.
//!
//! Values come only from the unsafe constructors (`splat`, `load..`), whose caller promises that
//! the CPU has the path's features. The operations on values are safe because of that promise.
//! Everything is `inline(always)`: the kernels inline into a `#[target_feature]` entry.
#![allow(unsafe_code)]

/// Number of lanes.
pub(crate) const LANES: usize = 16;

/// See [`Lanes::reciprocal_guess`].
const GUESS: u32 = 0x7ef3_11c7;

/// Sixteen `f32` values in the registers of one instruction path.
pub(crate) trait Lanes: Copy {
    /// Most queries that one register tile of scores may hold.
    const TILE_ROWS: usize;
    /// Whether a value is one register of 32 (AVX-512): wide tiles pay.
    const WIDE: bool;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// Sixteen values from `p`, any alignment.
    unsafe fn load(p: *const f32) -> Self;
    /// Sixteen half-precision values from `p`, widened exactly.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// The first `n <= 16` values from `p`, the other lanes zero; reads nothing past them.
    unsafe fn load_part(p: *const f32, n: usize) -> Self;
    /// Writes sixteen values to `p`, any alignment.
    unsafe fn store(self, p: *mut f32);
    /// Writes lanes `lo..hi` to `p + lo ..`; touches nothing else, so `p` itself may lie outside
    /// the buffer (`hi <= 16`).
    unsafe fn store_range(self, p: *mut f32, lo: usize, hi: usize);

    /// Asks for the cache line at `p` ahead of its use; `p` may be any address.
    fn prefetch(p: *const u8);

    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b` in each lane: a NaN in either gives `b`.
    fn max(self, b: Self) -> Self;
    /// `a < b ? yes : no` in each lane; a NaN in either gives `no`.
    fn select_lt(a: Self, b: Self, yes: Self, no: Self) -> Self;
    /// Bit i is set where `a < b` in lane i; a NaN in either gives 0.
    fn mask_lt(a: Self, b: Self) -> u32;
    /// Writes `first + i` for every bit i of the sixteen that is set, ascending; up to sixteen
    /// numbers are overwritten.
    unsafe fn write_places(mask: u32, first: u32, to: *mut u32);
    /// Lane i of value j becomes lane j of value i.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];
    /// Exchanges lanes 0 and 1, 2 and 3, and so on.
    fn swap_pairs(self) -> Self;
    /// For lanes holding `n + 1.5 * 2^23` (n an integer in -126..=127): `2^n`. A NaN gives 1.
    fn exp2_of_magic(self) -> Self;
    /// A guess of `1 / self` for positive normal values, by subtracting exponents: the bits
    /// `0x7ef3_11c7 - bits`.
    fn reciprocal_guess(self) -> Self;
    /// Lane 0.
    fn first(self) -> f32;
    /// The sum in fixed order: lane i with i + 8, then i + 4, i + 2, i + 1.
    fn reduce_add(self) -> f32;
    /// The largest lane, by [`Lanes::max`] over the same tree.
    fn reduce_max(self) -> f32;
}

/// [`Lanes::write_places`], bit by bit.
#[inline(always)]
unsafe fn write_bits(mask: u32, first: u32, to: *mut u32) {
    let (mut mask, mut to) = (mask, to);
    while mask != 0 {
        // SAFETY: the caller promises room for as many numbers as bits.
        unsafe {
            to.write(first + mask.trailing_zeros());
            to = to.add(1);
        }
        mask &= mask - 1;
    }
}

/// Exact value of a half-precision number.
pub(crate) fn widen(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let exponent = u32::from(h >> 10) & 31;
    let mantissa = u32::from(h & 0x3ff);
    match exponent {
        0 => {
            // Subnormal: mantissa * 2^-24, exact in f32.
            let v = mantissa as f32 * (1.0 / 16_777_216.0);
            f32::from_bits(v.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | (mantissa << 13)),
        e => f32::from_bits(sign | ((e + 112) << 23) | (mantissa << 13)),
    }
}

/// The portable definition the other paths are tested against.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }

    #[inline(always)]
    fn tree(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let mut v = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] = f(v[i], v[i + half]);
            }
        }
        v[0]
    }
}

fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Lanes for Portable {
    const TILE_ROWS: usize = 1;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises sixteen readable values.
        Portable(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller promises sixteen readable values.
        Portable(unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(widen))
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut v = [0.0; LANES];
        for (i, x) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller promises `n` readable values.
            *x = unsafe { p.add(i).read() };
        }
        Portable(v)
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promises sixteen writable values.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_range(self, p: *mut f32, lo: usize, hi: usize) {
        for i in lo..hi {
            // SAFETY: the caller promises that `lo..hi` is writable.
            unsafe { p.wrapping_add(i).write(self.0[i]) }
        }
    }
    #[inline(always)]
    fn prefetch(_: *const u8) {}
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, larger)
    }
    #[inline(always)]
    fn select_lt(a: Self, b: Self, yes: Self, no: Self) -> Self {
        Portable(std::array::from_fn(|i| if a.0[i] < b.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn mask_lt(a: Self, b: Self) -> u32 {
        (0..LANES).map(|i| u32::from(a.0[i] < b.0[i]) << i).sum()
    }
    #[inline(always)]
    unsafe fn write_places(mask: u32, first: u32, to: *mut u32) {
        // SAFETY: the caller's promise.
        unsafe { write_bits(mask, first, to) }
    }
    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|i| Portable(std::array::from_fn(|j| rows[j].0[i])))
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i ^ 1]))
    }
    #[inline(always)]
    fn exp2_of_magic(self) -> Self {
        Portable(self.0.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000))))
    }
    #[inline(always)]
    fn reciprocal_guess(self) -> Self {
        Portable(self.0.map(|y| f32::from_bits(GUESS.wrapping_sub(y.to_bits()))))
    }
    #[inline(always)]
    fn first(self) -> f32 {
        self.0[0]
    }
    #[inline(always)]
    fn reduce_add(self) -> f32 {
        self.tree(|a, b| a + b)
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        self.tree(larger)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{GUESS, LANES, Lanes};
    use std::arch::x86_64::*;

    /// One 512-bit register. A value exists only on a CPU with AVX-512F.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    /// Two 256-bit registers. A value exists only on a CPU with AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    impl Lanes for Avx512 {
        const TILE_ROWS: usize = 8;
        const WIDE: bool = true;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller promises the features.
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller promises the features and sixteen readable values.
            Avx512(unsafe { _mm512_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self {
            // SAFETY: as for `load`.
            // Not `_mm512_cvtph_ps`: it suppresses exceptions, which keeps the load from being
            // folded into the conversion and costs a shuffle.
            Avx512(unsafe {
                let bits = _mm256_loadu_si256(p.cast());
                _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(bits)
            })
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            // SAFETY: masked-out lanes are not read.
            Avx512(unsafe { _mm512_maskz_loadu_ps(range_mask(0, n), p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller promises sixteen writable values.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn store_range(self, p: *mut f32, lo: usize, hi: usize) {
            // SAFETY: masked-out lanes are not written.
            unsafe { _mm512_mask_storeu_ps(p, range_mask(lo, hi), self.0) }
        }
        #[inline(always)]
        fn prefetch(p: *const u8) {
            // SAFETY: a prefetch never faults; every x86-64 processor has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_add_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_sub_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_mul_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_div_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_max_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn select_lt(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0);
                Avx512(_mm512_mask_blend_ps(mask, no.0, yes.0))
            }
        }
        #[inline(always)]
        fn mask_lt(a: Self, b: Self) -> u32 {
            // SAFETY: values exist only where the features do.
            u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0) })
        }
        #[inline(always)]
        unsafe fn write_places(mask: u32, first: u32, to: *mut u32) {
            // SAFETY: the caller promises the features and room for sixteen numbers.
            unsafe {
                let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let places = _mm512_add_epi32(lane, _mm512_set1_epi32(first as i32));
                let packed = _mm512_maskz_compress_epi32(mask as u16, places);
                _mm512_storeu_si512(to.cast(), packed);
            }
        }
        #[inline(always)]
        fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
            let mut quads = rows;
            let mut out = rows;
            // SAFETY: values exist only where the features do.
            unsafe {
                // Value 4 g + j: column j of each quarter, of rows 4 g .. 4 g + 3.
                for g in (0..LANES).step_by(4) {
                    let a = _mm512_unpacklo_ps(rows[g].0, rows[g + 1].0);
                    let b = _mm512_unpackhi_ps(rows[g].0, rows[g + 1].0);
                    let c = _mm512_unpacklo_ps(rows[g + 2].0, rows[g + 3].0);
                    let d = _mm512_unpackhi_ps(rows[g + 2].0, rows[g + 3].0);
                    quads[g] = Avx512(low_pairs(a, c));
                    quads[g + 1] = Avx512(high_pairs(a, c));
                    quads[g + 2] = Avx512(low_pairs(b, d));
                    quads[g + 3] = Avx512(high_pairs(b, d));
                }
                for j in 0..4 {
                    let (a, b) = (quads[j].0, quads[4 + j].0);
                    let (c, d) = (quads[8 + j].0, quads[12 + j].0);
                    let even = _mm512_shuffle_f32x4::<0x88>(a, b);
                    let odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                    let even_high = _mm512_shuffle_f32x4::<0x88>(c, d);
                    let odd_high = _mm512_shuffle_f32x4::<0xdd>(c, d);
                    out[j] = Avx512(_mm512_shuffle_f32x4::<0x88>(even, even_high));
                    out[4 + j] = Avx512(_mm512_shuffle_f32x4::<0x88>(odd, odd_high));
                    out[8 + j] = Avx512(_mm512_shuffle_f32x4::<0xdd>(even, even_high));
                    out[12 + j] = Avx512(_mm512_shuffle_f32x4::<0xdd>(odd, odd_high));
                }
            }
            out
        }
        #[inline(always)]
        fn swap_pairs(self) -> Self {
            // SAFETY: values exist only where the features do.
            Avx512(unsafe { _mm512_permute_ps::<0b10_11_00_01>(self.0) })
        }
        #[inline(always)]
        fn exp2_of_magic(self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                let bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
                let bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x3f80_0000));
                Avx512(_mm512_castsi512_ps(bits))
            }
        }
        #[inline(always)]
        fn reciprocal_guess(self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                let guess = _mm512_set1_epi32(GUESS as i32);
                let bits = _mm512_sub_epi32(guess, _mm512_castps_si512(self.0));
                Avx512(_mm512_castsi512_ps(bits))
            }
        }
        #[inline(always)]
        fn first(self) -> f32 {
            // SAFETY: values exist only where the features do.
            unsafe { _mm512_cvtss_f32(self.0) }
        }
        #[inline(always)]
        fn reduce_add(self) -> f32 {
            self.halves().reduce_add()
        }
        #[inline(always)]
        fn reduce_max(self) -> f32 {
            self.halves().reduce_max()
        }
    }

    #[inline(always)]
    unsafe fn low_pairs(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller promises the features.
        unsafe { _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
    }

    #[inline(always)]
    unsafe fn high_pairs(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller promises the features.
        unsafe { _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
    }

    /// [`Lanes::transpose`] of eight by eight.
    #[inline(always)]
    unsafe fn transpose8(rows: [__m256; 8]) -> [__m256; 8] {
        let (mut quads, mut out) = (rows, rows);
        // SAFETY: the caller promises the features.
        unsafe {
            for g in [0, 4] {
                let a = _mm256_unpacklo_ps(rows[g], rows[g + 1]);
                let b = _mm256_unpackhi_ps(rows[g], rows[g + 1]);
                let c = _mm256_unpacklo_ps(rows[g + 2], rows[g + 3]);
                let d = _mm256_unpackhi_ps(rows[g + 2], rows[g + 3]);
                quads[g] = _mm256_shuffle_ps::<0x44>(a, c);
                quads[g + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                quads[g + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                quads[g + 3] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            for j in 0..4 {
                out[j] = _mm256_permute2f128_ps::<0x20>(quads[j], quads[4 + j]);
                out[4 + j] = _mm256_permute2f128_ps::<0x31>(quads[j], quads[4 + j]);
            }
        }
        out
    }

    impl Avx512 {
        #[inline(always)]
        fn halves(self) -> Avx2 {
            // SAFETY: values exist only where AVX-512F (hence AVX2) does.
            unsafe {
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
                Avx2(_mm512_castps512_ps256(self.0), _mm256_castpd_ps(high))
            }
        }
    }

    #[inline(always)]
    fn range_mask(lo: usize, hi: usize) -> u16 {
        (((1u32 << hi) - 1) & !((1u32 << lo) - 1)) as u16
    }

    impl Lanes for Avx2 {
        const TILE_ROWS: usize = 6;
        const WIDE: bool = false;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller promises the features.
            let v = unsafe { _mm256_set1_ps(x) };
            Avx2(v, v)
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller promises the features and sixteen readable values.
            unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self {
            // SAFETY: as for `load`.
            unsafe {
                Avx2(
                    _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
                )
            }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self {
            let mut v = [0.0f32; LANES];
            // SAFETY: `n` values are readable, and `v` holds sixteen.
            unsafe {
                std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
                Self::load(v.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller promises sixteen writable values.
            unsafe {
                _mm256_storeu_ps(p, self.0);
                _mm256_storeu_ps(p.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_range(self, p: *mut f32, lo: usize, hi: usize) {
            let mut v = [0.0f32; LANES];
            // SAFETY: `v` holds sixteen values; the caller promises that `lo..hi` is writable.
            unsafe {
                self.store(v.as_mut_ptr());
                std::ptr::copy_nonoverlapping(v.as_ptr().add(lo), p.wrapping_add(lo), hi - lo);
            }
        }
        #[inline(always)]
        fn prefetch(p: *const u8) {
            // SAFETY: a prefetch never faults; every x86-64 processor has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe { Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe { Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe { Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe { Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe { Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
        }
        #[inline(always)]
        fn select_lt(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                let low = _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0);
                let high = _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1);
                Avx2(_mm256_blendv_ps(no.0, yes.0, low), _mm256_blendv_ps(no.1, yes.1, high))
            }
        }
        #[inline(always)]
        fn mask_lt(a: Self, b: Self) -> u32 {
            // SAFETY: values exist only where the features do.
            unsafe {
                let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0));
                let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1));
                low as u32 | (high as u32) << 8
            }
        }
        #[inline(always)]
        unsafe fn write_places(mask: u32, first: u32, to: *mut u32) {
            // SAFETY: the caller's promise.
            unsafe { super::write_bits(mask, first, to) }
        }
        #[inline(always)]
        fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
            let mut out = rows;
            let mut quarter = [rows[0].0; 8];
            for half in [0, 8] {
                // SAFETY: values exist only where the features do.
                unsafe {
                    for i in 0..8 {
                        quarter[i] = rows[half + i].0;
                    }
                    let low = transpose8(quarter);
                    for i in 0..8 {
                        quarter[i] = rows[half + i].1;
                    }
                    let high = transpose8(quarter);
                    for i in 0..8 {
                        if half == 0 {
                            out[i].0 = low[i];
                            out[8 + i].0 = high[i];
                        } else {
                            out[i].1 = low[i];
                            out[8 + i].1 = high[i];
                        }
                    }
                }
            }
            out
        }
        #[inline(always)]
        fn swap_pairs(self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                Avx2(
                    _mm256_permute_ps::<0b10_11_00_01>(self.0),
                    _mm256_permute_ps::<0b10_11_00_01>(self.1),
                )
            }
        }
        #[inline(always)]
        fn exp2_of_magic(self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                let one = _mm256_set1_epi32(0x3f80_0000);
                let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.0));
                let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.1));
                Avx2(
                    _mm256_castsi256_ps(_mm256_add_epi32(low, one)),
                    _mm256_castsi256_ps(_mm256_add_epi32(high, one)),
                )
            }
        }
        #[inline(always)]
        fn reciprocal_guess(self) -> Self {
            // SAFETY: values exist only where the features do.
            unsafe {
                let guess = _mm256_set1_epi32(GUESS as i32);
                let low = _mm256_sub_epi32(guess, _mm256_castps_si256(self.0));
                let high = _mm256_sub_epi32(guess, _mm256_castps_si256(self.1));
                Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
            }
        }
        #[inline(always)]
        fn first(self) -> f32 {
            // SAFETY: values exist only where the features do.
            unsafe { _mm256_cvtss_f32(self.0) }
        }
        #[inline(always)]
        fn reduce_add(self) -> f32 {
            // SAFETY: values exist only where the features do.
            unsafe {
                let v = _mm256_add_ps(self.0, self.1);
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
        #[inline(always)]
        fn reduce_max(self) -> f32 {
            // SAFETY: values exist only where the features do.
            unsafe {
                let v = _mm256_max_ps(self.0, self.1);
                let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
    }
}

/// Makes a function that runs a generic kernel on a given instruction path.
///
/// `entry!(fn name(arg: Type, ..) -> Ret = kernel)` defines `unsafe fn name(isa, arg, ..)`,
/// which calls `kernel::<L>(arg, ..)` inside a function compiled for the features of `isa`. Its
/// caller promises that the machine has `isa` and whatever `kernel` asks for.
macro_rules! entry {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn wide($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function's own contract.
                unsafe { $kernel::<$crate::lanes::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn narrow($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function's own contract.
                unsafe { $kernel::<$crate::lanes::Avx2>($($arg),*) }
            }
            // SAFETY: the caller promises the machine has `isa`, and the kernel's own contract.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Amx | $crate::Isa::Avx512Vnni => wide($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx2 => narrow($($arg),*),
                    _ => $kernel::<$crate::lanes::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use entry;
