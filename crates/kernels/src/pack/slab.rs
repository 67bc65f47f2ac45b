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
// only their one owner writes them, before sharing.
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
    /// A slab of `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Result<Slab> {
        let mut slab = Slab::allocate(len)?;
        let start = slab.as_mut_ptr();
        // SAFETY: the slab owns these `len` bytes of its region.
        unsafe { start.write_bytes(0, len) };
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

    fn as_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: `offset + len` was checked to lie inside the region.
        unsafe { self.region.base.as_ptr().add(self.offset) }
    }

    /// The bytes, for filling them.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        // SAFETY: initialised by `zeroed`, owned by this slab alone, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), len) }
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: inside the region, initialised by `zeroed`, and written only through `&mut`.
        unsafe { std::slice::from_raw_parts(self.region.base.as_ptr().add(self.offset), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_aligned_zeroed_and_disjoint() {
        let mut slabs: Vec<Slab> =
            [0, 1, 63, 64, 65, 100_000, 20 << 20].map(|n| Slab::zeroed(n).unwrap()).into();
        for (i, slab) in slabs.iter_mut().enumerate() {
            assert_eq!(slab.as_ptr() as usize % LINE, 0);
            assert!(slab.iter().all(|&b| b == 0));
            slab.bytes_mut().fill(u8::try_from(i).unwrap() + 1);
        }
        for (i, slab) in slabs.iter().enumerate() {
            assert!(slab.iter().all(|&b| usize::from(b) == i + 1));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Slab::zeroed(usize::MAX).is_err());
        assert!(Slab::zeroed(usize::MAX / 2).is_err());
    }
}
