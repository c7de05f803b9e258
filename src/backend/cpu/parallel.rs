//! Work on the thread pool. What a task computes never depends on how many there are or on who runs it.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements below which waking another thread costs more than it saves.
pub const GRAIN: usize = 1 << 15;

/// Rows of a buffer that tasks take apart.
pub struct Rows<'a, T> {
    data: &'a mut [T],
    width: usize,
}

/// The leading `rows` rows of `width` elements of a buffer.
///
/// # Panics
/// If the buffer is shorter.
pub fn rows<'a, T>(op: &str, data: &'a mut [T], rows: usize, width: usize) -> Rows<'a, T> {
    assert!(data.len() >= rows * width, "{op}: {rows} x {width} elements in a buffer of {}", data.len());
    Rows { data: &mut data[..rows * width], width }
}

/// Something that can be cut between two rows.
pub trait Split: Send + Sized {
    /// What a task gets.
    type Part;
    /// Cuts before row `row`.
    fn split(self, row: usize) -> (Self, Self);
    /// The whole.
    fn part(self) -> Self::Part;
}

impl<'a, T: Send> Split for Rows<'a, T> {
    type Part = &'a mut [T];
    fn split(self, row: usize) -> (Self, Self) {
        let (a, b) = self.data.split_at_mut(row * self.width);
        (Self { data: a, width: self.width }, Self { data: b, width: self.width })
    }
    fn part(self) -> Self::Part {
        self.data
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    type Part = (A::Part, B::Part);
    fn split(self, row: usize) -> (Self, Self) {
        let ((a0, a1), (b0, b1)) = (self.0.split(row), self.1.split(row));
        ((a0, b0), (a1, b1))
    }
    fn part(self) -> Self::Part {
        (self.0.part(), self.1.part())
    }
}

/// Runs `f(first row, rows of the part)` over all of `count` rows, in parallel if there are enough elements; `cost`
/// is the number of elements of a row.
pub fn each_part<S: Split>(count: usize, cost: usize, whole: S, f: impl Fn(usize, S::Part) + Sync) {
    if count * cost < 2 * GRAIN || count < 2 {
        return f(0, whole.part());
    }
    let grain = GRAIN.div_ceil(cost).max(count.div_ceil(4 * rayon::current_num_threads()));
    halve(0, count, grain, whole, &f);
}

fn halve<S: Split>(first: usize, count: usize, grain: usize, whole: S, f: &(impl Fn(usize, S::Part) + Sync)) {
    if count <= grain {
        return f(first, whole.part());
    }
    let middle = count / 2;
    let (a, b) = whole.split(middle);
    rayon::join(|| halve(first, middle, grain, a, f), || halve(first + middle, count - middle, grain, b, f));
}

/// Runs `f(slot, task)` for every task `0..tasks`, each slot on one thread at a time.
pub fn workers<S: Send>(slots: &mut [S], tasks: usize, f: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = |slot: &mut S| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            f(slot, task);
        }
    };
    let used = slots.len().min(tasks);
    match &mut slots[..used] {
        [] => {}
        [slot] => work(slot),
        slots => rayon::scope(|scope| slots.iter_mut().for_each(|slot| scope.spawn(|_| work(slot)))),
    }
}

/// A matrix that several threads write disjoint parts of.
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through `Shared::at`, whose caller promises that no two threads use one element.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Over a buffer.
    pub fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), buffer: PhantomData }
    }

    /// The `len` elements from `from` on.
    ///
    /// # Safety
    /// No other slice of these elements exists meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn at(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from + len <= self.len, "elements {from}..{} of {}", from + len, self.len);
        // SAFETY: within the buffer, which is borrowed for `'a`, by the check above; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
