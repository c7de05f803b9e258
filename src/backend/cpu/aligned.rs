//! Memory that begins with a line of the cache: vectors and rows of tiles that cross lines are read in two.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use super::parallel::{Shared, workers};
use super::thread_pool::ThreadPool;
use crate::Result;

/// Bytes of a line of the cache.
pub const LINE: usize = 64;

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; LINE]);

/// Elements in memory that begins with a line of the cache, and ends with one.
#[derive(Clone)]
pub struct AlignedVec<T> {
    lines: Vec<Line>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> AlignedVec<T> {
    /// Without elements, and without memory.
    pub const fn new() -> Self {
        Self { lines: Vec::new(), len: 0, elements: PhantomData }
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn zeros(len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut lines = reserved(bytes)?;
        lines.resize(bytes.div_ceil(LINE), Line([0; LINE]));
        Ok(Self { lines, len, elements: PhantomData })
    }

    /// The leading `len` elements, which become more if there are fewer; what is in them is left over from earlier.
    ///
    /// # Panics
    /// If these are more than memory can be.
    pub fn grow(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            let bytes = len.checked_mul(size_of::<T>()).expect("scratch: the length in bytes overflows");
            let lines = bytes.div_ceil(LINE);
            if lines > self.lines.capacity() {
                self.lines.reserve(lines - self.lines.len());
                in_large_pages(&mut self.lines);
            }
            self.lines.resize(lines, Line([0; LINE]));
            self.len = len;
        }
        &mut self[..len]
    }
}

impl AlignedVec<u8> {
    /// So many parts of `len` bytes, zeros of which `make(part, its bytes)` makes what it shall be; threads share the parts, and with them
    /// the time that the system takes for new memory.
    ///
    /// # Errors
    /// If there is no memory for them.
    ///
    /// # Panics
    /// If a part is not whole lines.
    pub fn in_parts(
        pool: &ThreadPool,
        parts: usize,
        len: usize,
        make: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Self> {
        assert!(len.is_multiple_of(LINE), "memory: parts of {len} bytes");
        let mut lines: Vec<Line> = reserved(parts.saturating_mul(len))?;
        let shared = Shared::new(lines.spare_capacity_mut());
        workers(pool, &mut vec![(); pool.threads()], parts, |(), part| {
            // SAFETY: every part is one task's.
            let part_lines = unsafe { shared.at(part * (len / LINE), len / LINE) };
            part_lines.fill(MaybeUninit::new(Line([0; LINE])));
            // SAFETY: they were written, and any bytes are of the type.
            make(part, unsafe { std::slice::from_raw_parts_mut(part_lines.as_mut_ptr().cast(), len) });
        });
        // SAFETY: every part was written.
        unsafe { lines.set_len(parts * (len / LINE)) };
        Ok(Self { lines, len: parts * len, elements: PhantomData })
    }
}

/// Room for so many bytes.
fn reserved(bytes: usize) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    lines.try_reserve_exact(bytes.div_ceil(LINE)).map_err(|error| crate::Error::Device {
        device: "cpu".to_string(),
        op: "allocation",
        message: format!("{bytes} bytes: {error}"),
    })?;
    in_large_pages(&mut lines);
    Ok(lines)
}

/// Asks the system for large pages behind the elements of a buffer, where whole ones fit: it clears each page when that is first
/// written, and a small one at a time that takes longer than the writing.
pub fn in_large_pages<T>(buffer: &mut Vec<T>) {
    #[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
    {
        const LARGE: usize = 2 << 20;
        let free = buffer.spare_capacity_mut().as_mut_ptr_range();
        let (first, end) = (free.start.addr().next_multiple_of(LARGE), free.end.addr() / LARGE * LARGE);
        if first < end {
            let start = free.start.cast::<libc::c_void>().wrapping_byte_add(first - free.start.addr());
            // SAFETY: pages of the buffer's own, of which nothing changes but how large they are; it may be refused.
            unsafe { libc::madvise(start, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64", not(miri))))]
    let _ = buffer;
}

/// Prefetches elements into the first-level cache.
#[inline(always)]
pub fn prefetch<S>(x: &[S]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in x.chunks(LINE / size_of::<S>()) {
            // SAFETY: changes nothing but the cache.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = x;
}

impl<T: Pod> Default for AlignedVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<T: Pod + PartialEq> PartialEq for AlignedVec<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_memory_begins_with_a_line_and_keeps_what_is_in_it() {
        let mut memory = AlignedVec::<u16>::zeros(3).expect("memory");
        memory[2] = 7;
        for len in [3, 1, 40, 1000, 2] {
            assert_eq!(memory.grow(len).len(), len);
            assert!(memory.as_ptr().cast::<u8>().align_offset(LINE) == 0 && memory[2] == 7, "{len} elements");
        }
        assert_eq!((memory.len(), &memory[3..]), (1000, &[0; 997][..]));
        assert!(AlignedVec::<f64>::zeros(usize::MAX / 4).is_err(), "more than memory");
    }

    #[test]
    fn memory_in_large_pages_is_zeros_and_keeps_what_is_in_it() {
        let len = if cfg!(miri) { 1 << 10 } else { 3 << 20 };
        let mut memory = AlignedVec::<u16>::zeros(len).expect("memory");
        assert!(memory.iter().all(|&x| x == 0));
        memory.iter_mut().enumerate().for_each(|(i, x)| *x = i as u16 | 1);
        let grown = memory.grow(3 * len);
        assert!(grown[..len].iter().enumerate().all(|(i, &x)| x == i as u16 | 1));
        assert!(grown[len..].iter().all(|&x| x == 0));
    }
}
