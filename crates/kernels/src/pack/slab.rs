//! Memory for packed weights: cache-line aligned slices of a few large regions on huge pages.
//!
//! A token reads every weight once, in streams; with 4 KiB pages the address translation alone
//! costs a good part of that. One matrix of a small model is far below a huge page, so matrices
//! share regions. A region is given back when the last slice of it is dropped.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::{KernelError, Result};
use crate::pool::Pool;

/// Alignment of a slice: one cache line, one AVX-512 register.
pub(crate) const LINE: usize = 64;
/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes of a shared region; only touched pages are backed.
const REGION: usize = 64 << 20;

#[derive(Debug)]
struct Region {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the region is plain memory; slices of it are handed out once each (`allocate`), and
// only `Slab::build` writes them, before sharing.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(bytes: usize) -> Result<Region> {
        let error = || KernelError::OutOfMemory(bytes);
        let size = bytes.max(1).checked_next_multiple_of(HUGE).ok_or_else(error)?;
        let layout = Layout::from_size_align(size, HUGE).map_err(|_| error())?;
        // SAFETY: the layout has a size above zero.
        let base = NonNull::new(unsafe { alloc(layout) }).ok_or_else(error)?;
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just allocated; the advice changes no content. Its failure (a
        // kernel without huge pages) costs speed only.
        unsafe {
            libc::madvise(base.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
        }
        Ok(Region { base, layout })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; no slice is left (each holds an `Arc`).
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// A 64-byte aligned, owned byte slice inside a shared region.
#[derive(Debug)]
pub(crate) struct Slab {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

/// The region that the next small slab is cut from, and the bytes of it already given out.
static CURRENT: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

impl Slab {
    /// A slab of `len` bytes made of pieces of `piece` bytes (the last may be shorter), each
    /// zeroed and then given to `fill` with its number, on the pool's threads if there is a pool.
    pub(crate) fn build(
        len: usize,
        piece: usize,
        pool: Option<&Pool>,
        fill: &(dyn Fn(usize, &mut [u8]) + Sync),
    ) -> Result<Slab> {
        let slab = Slab::allocate(len)?;
        let piece = piece.max(1);
        let part = |i: usize| {
            let (from, to) = (i * piece, len.min((i + 1) * piece));
            // SAFETY: the range lies inside the slab, which this function alone owns; pieces are
            // disjoint and each is taken once. It is zeroed before it becomes a slice.
            let bytes = unsafe {
                let start = slab.region.base.as_ptr().add(slab.offset + from);
                start.write_bytes(0, to - from);
                std::slice::from_raw_parts_mut(start, to - from)
            };
            fill(i, bytes);
        };
        let pieces = len.div_ceil(piece);
        match pool {
            Some(pool) => pool.run(pieces, &part),
            None => (0..pieces).for_each(part),
        }
        Ok(slab)
    }

    fn allocate(len: usize) -> Result<Slab> {
        let padded = len.checked_next_multiple_of(LINE).ok_or(KernelError::OutOfMemory(len))?;
        if padded > REGION / 4 {
            let region = Arc::new(Region::new(padded)?);
            return Ok(Slab { region, offset: 0, len });
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = current.0.upgrade()
            && padded <= region.layout.size() - current.1
        {
            let offset = current.1;
            current.1 += padded;
            return Ok(Slab { region, offset, len });
        }
        let region = Arc::new(Region::new(REGION)?);
        *current = (Arc::downgrade(&region), padded);
        Ok(Slab { region, offset: 0, len })
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the region, initialised by `build`, and never written after it.
        unsafe { std::slice::from_raw_parts(self.region.base.as_ptr().add(self.offset), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_aligned_zeroed_and_disjoint() {
        let pool = Pool::new(2);
        let slabs: Vec<Slab> = [0, 1, 63, 64, 65, 100_000, 20 << 20]
            .into_iter()
            .enumerate()
            .map(|(n, len)| {
                Slab::build(len, 77, (n % 2 == 0).then_some(&pool), &|i, bytes| {
                    assert!(bytes.iter().all(|&b| b == 0));
                    bytes.fill((n + i) as u8);
                })
                .unwrap()
            })
            .collect();
        for (n, slab) in slabs.iter().enumerate() {
            assert_eq!(slab.as_ptr() as usize % LINE, 0);
            assert!(slab.iter().enumerate().all(|(at, &b)| b == (n + at / 77) as u8));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        for len in [usize::MAX, usize::MAX / 2] {
            assert!(Slab::build(len, LINE, None, &|_, _| {}).is_err());
        }
    }
}
