//! The matrix tiles of AMX, as a small trait with two implementations: the instructions, and an
//! emulation in plain Rust that lets the tile kernel be tested on machines without them.
#![allow(unsafe_code)]

use std::arch::asm;

/// Two sets of three tiles: sums (rows x 16 i32), left operand (rows x `k` i8), right operand
/// (`k / 4` lines of 16 x 4 i8). The set is the constant argument, 0 or 1.
pub(super) trait Tiles {
    /// Shapes the tiles: 1 to 16 rows, and `k` a multiple of 4 up to 64.
    unsafe fn configure(&mut self, rows: usize, k: usize);
    /// `sums = left * right`, with the left rows `stride` bytes apart, the right lines 64, and the
    /// rows of sums stored 64 bytes apart.
    unsafe fn multiply<const SET: usize>(
        &mut self,
        left: *const i8,
        stride: usize,
        right: *const u8,
        sums: *mut i32,
    );
    /// Gives the tiles back.
    unsafe fn release(&mut self);
}

/// The instructions themselves. Stable Rust has no intrinsics for them.
pub(super) struct Hardware;

/// The 64 bytes `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles for Hardware {
    unsafe fn configure(&mut self, rows: usize, k: usize) {
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        for set in 0..2 {
            let shapes = [(rows, 64), (rows, k), (k / 4, 64)];
            for (tile, (rows, bytes)) in shapes.into_iter().enumerate() {
                config.rows[3 * set + tile] = rows as u8;
                config.bytes[3 * set + tile] = bytes as u16;
            }
        }
        // SAFETY: the machine has AMX and the process may use it (`amx::usable`).
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply<const SET: usize>(
        &mut self,
        left: *const i8,
        stride: usize,
        right: *const u8,
        sums: *mut i32,
    ) {
        // SAFETY: the caller gives memory of the configured shapes.
        unsafe {
            if SET == 0 {
                asm!(
                    "tilezero tmm0",
                    "tileloadd tmm1, [{left} + {stride}]",
                    "tileloadd tmm2, [{right} + {line}]",
                    "tdpbssd tmm0, tmm1, tmm2",
                    "tilestored [{sums} + {line}], tmm0",
                    left = in(reg) left,
                    stride = in(reg) stride,
                    right = in(reg) right,
                    line = in(reg) 64usize,
                    sums = in(reg) sums,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm3",
                    "tileloadd tmm4, [{left} + {stride}]",
                    "tileloadd tmm5, [{right} + {line}]",
                    "tdpbssd tmm3, tmm4, tmm5",
                    "tilestored [{sums} + {line}], tmm3",
                    left = in(reg) left,
                    stride = in(reg) stride,
                    right = in(reg) right,
                    line = in(reg) 64usize,
                    sums = in(reg) sums,
                    out("tmm3") _, out("tmm4") _, out("tmm5") _,
                    options(nostack),
                );
            }
        }
    }

    unsafe fn release(&mut self) {
        // SAFETY: as `configure`.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// What the instructions do, in plain Rust.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Emulated {
    rows: usize,
    k: usize,
}

#[cfg(test)]
impl Tiles for Emulated {
    unsafe fn configure(&mut self, rows: usize, k: usize) {
        assert!((1..=16).contains(&rows) && k <= 64 && k.is_multiple_of(4));
        (self.rows, self.k) = (rows, k);
    }

    unsafe fn multiply<const SET: usize>(
        &mut self,
        left: *const i8,
        stride: usize,
        right: *const u8,
        sums: *mut i32,
    ) {
        assert!(SET < 2 && self.rows > 0, "not configured");
        for r in 0..self.rows {
            for o in 0..16 {
                let mut sum = 0i32;
                for k in 0..self.k {
                    // SAFETY: the caller gives memory of the configured shapes.
                    let (a, b) = unsafe {
                        (*left.add(r * stride + k), *right.add(k / 4 * 64 + 4 * o + k % 4))
                    };
                    sum = sum.wrapping_add(i32::from(a) * i32::from(b.cast_signed()));
                }
                // SAFETY: as above.
                unsafe { *sums.add(16 * r + o) = sum };
            }
        }
    }

    unsafe fn release(&mut self) {
        self.rows = 0;
    }
}
