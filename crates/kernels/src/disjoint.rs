//! A pointer that the parts of one parallel loop share, each writing a place of its own.
#![allow(unsafe_code)]

/// Start of a buffer that several threads write at disjoint places.
///
/// Every dereference states why no other thread touches the place.
#[derive(Debug)]
pub(crate) struct Disjoint<T>(*mut T);

impl<T> Clone for Disjoint<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Disjoint<T> {}

// SAFETY: the pointer is only a number until it is dereferenced, which each user justifies.
unsafe impl<T: Send> Send for Disjoint<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
    /// The start of `buffer`.
    pub(crate) fn new(buffer: &mut [T]) -> Self {
        Disjoint(buffer.as_mut_ptr())
    }

    /// The start of a buffer known by its address.
    pub(crate) fn from_ptr(start: *mut T) -> Self {
        Disjoint(start)
    }

    /// Place `i`; in bounds or not.
    pub(crate) fn at(self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}
