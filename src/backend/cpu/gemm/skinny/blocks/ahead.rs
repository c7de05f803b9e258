//! What is prefetched: the rows that come next, one after the other.
//!
//! A step of a product takes a little of each of many rows. Prefetched in that order, a stream a row, memory gives less than in one
//! stream, above all where rows are multiples of 2 KiB. (AMD Zen 5, 2026-11-29, one thread, builds beside, 10^9 weights a second before
//! and after, rows of 4096 elements: NF4 27 and 32, int8 17 and 20, Q8_0 19 and 23, Q4_K 25 and 28; rows of 11008: 28 and 34, 20 and 22, 22
//! and 23, 29 and 29.) What is prefetched waits in the second-level cache until all of the current rows are multiplied.

use std::arch::x86_64::*;

use super::super::COLUMNS;
use crate::backend::cpu::aligned::LINE;

/// Bytes of a row, at most, that waits so: 32 of them and as many current ones are half of a cache of 1 MiB.
const LONG: usize = 8 << 10;
/// Bytes ahead of the current ones that are prefetched of each row where they are longer.
const AHEAD: usize = 1 << 10;

/// The bytes that are prefetched.
#[derive(Clone, Copy)]
pub struct Ahead {
    rows: [*const u8; COLUMNS],
    /// The rows that come next, and the bytes of a row.
    next: [*const u8; COLUMNS],
    len: usize,
    /// Whose bytes are next, and which.
    row: usize,
    at: usize,
}

impl Ahead {
    /// Nothing yet of rows of so many bytes, and of those that come next.
    #[inline(always)]
    pub fn new(rows: &[*const u8; COLUMNS], next: &[*const u8; COLUMNS], len: usize) -> Self {
        let (rows, at) = if len > LONG { (rows, AHEAD) } else { (next, 0) };
        Self { rows: *rows, next: *next, len, row: 0, at }
    }

    /// Prefetches so many bytes more, as many as are read of the current rows meanwhile.
    #[inline(always)]
    pub fn prefetch(&mut self, bytes: usize) {
        let first = self.rows[self.row % COLUMNS].wrapping_add(self.at).cast::<i8>();
        for line in 0..bytes.div_ceil(LINE) {
            // SAFETY: changes nothing but the cache. Into the first level, since that also starts the prefetchers of the hardware: into
            // the second alone less arrives, 24 GB/s in place of 30.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(LINE * line)) };
        }
        if self.len > LONG {
            self.row += 1;
            if self.row == COLUMNS {
                (self.row, self.at) = (0, self.at + bytes);
                if self.at >= self.len {
                    (self.rows, self.at) = (self.next, self.at - self.len);
                }
            }
            return;
        }
        self.at += bytes;
        if self.at >= self.len {
            // Most rows follow the one before.
            (self.row, self.at) = (self.row + 1, self.at - self.len);
        }
    }
}
