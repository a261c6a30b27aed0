//! Zeroed memory that begins with a cache line, on huge pages where it is large.
//!
//! Both matter to kernels: a vector that straddles two lines is two loads, and weights that lie kilobytes apart miss the
//! address cache at every step on pages of 4 KB.

use crate::types::EngineError;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a cache line, and of a huge page on x86-64 and most others.
const LINE: usize = 64;
const HUGE: usize = 2 << 20;

/// Numbers whose zero is all bits zero.
///
/// # Safety
/// All bits zero must be a valid value.
pub unsafe trait Zero: Copy {}
// SAFETY: 0.0 and 0 are all bits zero.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for u8 {}
// SAFETY: as above.
unsafe impl Zero for u16 {}
// SAFETY: as above.
unsafe impl Zero for u32 {}

/// A slice on the heap that begins with a cache line.
pub struct Buffer<T> {
    data: NonNull<T>,
    len: usize,
    /// What was allocated, with room to begin where a line does.
    allocation: Option<(NonNull<u8>, Layout)>,
}

// SAFETY: it owns what it points to, as `Vec` does.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Self { data: NonNull::dangling(), len: 0, allocation: None }
    }
}

impl<T: Zero> Buffer<T> {
    /// A zeroed buffer, or an error instead of an abort when memory runs out; `held` grows by its bytes.
    ///
    /// The pages come from the operating system when they are first written: planning is fast, and what a plan will need is
    /// known (`Memory::bytes_held`) before any of it is taken.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`].
    pub fn zeroed(len: usize, what: &str, held: &mut usize) -> Result<Self, EngineError> {
        let bytes = len.saturating_mul(size_of::<T>());
        if bytes == 0 {
            return Ok(Self::default());
        }
        let align = if bytes >= HUGE { HUGE } else { LINE };
        let out_of_memory = || EngineError::OutOfMemory { what: what.into(), bytes, held: *held };
        // Room to align by hand: memory that the allocator aligns itself would be zeroed, and so touched, at once.
        let padded = bytes.checked_add(align).ok_or_else(out_of_memory)?;
        let layout = Layout::from_size_align(padded, align_of::<T>()).map_err(|_| out_of_memory())?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        let skip = base.as_ptr().align_offset(align);
        assert!(skip <= align, "addresses can be aligned");
        // SAFETY: `skip` is at most the padding.
        let data = unsafe { base.add(skip) };
        if bytes >= HUGE {
            ask_for_huge_pages(data, bytes / HUGE * HUGE);
        }
        *held += bytes;
        Ok(Self { data: data.cast(), len, allocation: Some((base, layout)) })
    }
}

/// Asks the system to back whole huge pages with such; if it does not, nothing is lost.
fn ask_for_huge_pages(data: NonNull<u8>, bytes: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: the range lies in one allocation, and the advice changes no byte of it.
    unsafe {
        libc::madvise(data.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (data, bytes);
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` valid elements (zeros, or what was written), or none.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some((base, layout)) = self.allocation {
            // SAFETY: allocated with this layout in `zeroed`; the elements are plain numbers.
            unsafe { dealloc(base.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_counted() {
        let mut held = 0;
        let large = if cfg!(miri) { [1; 2] } else { [HUGE / 4, HUGE + 3] };
        for len in [1, 15, 1000].into_iter().chain(large) {
            let before = held;
            let mut buffer = Buffer::<f32>::zeroed(len, "a test", &mut held).unwrap();
            assert_eq!((buffer.len(), held - before), (len, 4 * len));
            assert!(buffer.iter().all(|&v| v == 0.0));
            assert_eq!(buffer.as_ptr() as usize % LINE, 0);
            buffer[len - 1] = 1.0;
        }
        assert!(Buffer::<u16>::default().is_empty() && Buffer::<u8>::zeroed(0, "", &mut held).unwrap().is_empty());
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4] {
            let error = Buffer::<f32>::zeroed(len, "all of it", &mut 7).err().unwrap();
            assert!(error.to_string().contains("all of it"), "{error}");
        }
    }
}
