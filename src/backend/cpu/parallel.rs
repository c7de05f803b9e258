//! Work shared by a [`ThreadPool`]. What a task computes never depends on how many there are or on who runs it.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::thread_pool::ThreadPool;

/// Elements that are worth a task: some microseconds of an elementwise operation, as long as a hand-off takes.
pub const GRAIN: usize = 1 << 12;

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
    let len = rows.checked_mul(width).filter(|&len| len <= data.len());
    let Some(len) = len else { panic!("{op}: {rows} x {width} elements in a buffer of {}", data.len()) };
    Rows { data: &mut data[..len], width }
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

/// Parts of a buffer that tasks take in turn, at most: four for each of 16 threads, in an array on the stack.
const PARTS: usize = 64;

/// Runs `f(first row, rows of the part)` over all of `count` rows, in parallel if there are enough elements; `cost`
/// is the number of elements of a row.
pub fn each_part<S: Split>(pool: &ThreadPool, count: usize, cost: usize, whole: S, f: impl Fn(usize, S::Part) + Sync) {
    let most = (count * cost / GRAIN).min(4 * pool.threads()).min(PARTS).min(count);
    if most < 2 || pool.threads() < 2 {
        return f(0, whole.part());
    }
    let step = count.div_ceil(most);
    let mut parts: [Option<S>; PARTS] = [const { None }; PARTS];
    let (mut rest, mut used) = (whole, 0);
    while (used + 1) * step < count {
        let (part, behind) = rest.split(step);
        (parts[used], rest) = (Some(part), behind);
        used += 1;
    }
    parts[used] = Some(rest);
    let shared = Shared::new(&mut parts);
    let next = AtomicUsize::new(0);
    pool.run(used + 1, &|_| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task > used {
                return;
            }
            // SAFETY: every number is drawn once.
            let part = unsafe { shared.at(task, 1) }[0].take().expect("each_part: a part was taken twice");
            f(task * step, part.part());
        }
    });
}

/// Runs `f(slot, task)` for every task `0..tasks`, each slot on one thread at a time.
pub fn workers<S: Send>(pool: &ThreadPool, slots: &mut [S], tasks: usize, f: impl Fn(&mut S, usize) + Sync) {
    drawing(pool, slots, tasks, |slot, draw| {
        while let Some(task) = draw() {
            f(slot, task);
        }
    });
}

/// The same, where a thread draws its next task before it begins one: `f(slot, task, the next one)`.
pub fn workers_ahead<S: Send>(
    pool: &ThreadPool,
    slots: &mut [S],
    tasks: usize,
    f: impl Fn(&mut S, usize, Option<usize>) + Sync,
) {
    drawing(pool, slots, tasks, |slot, draw| {
        let mut current = draw();
        while let Some(task) = current {
            let next = draw();
            f(slot, task, next);
            current = next;
        }
    });
}

/// Runs `f(slot, draw)` on as many threads as there are slots and tasks, which draw tasks from `0..tasks` until there are no more.
fn drawing<S: Send>(
    pool: &ThreadPool,
    slots: &mut [S],
    tasks: usize,
    f: impl Fn(&mut S, &dyn Fn() -> Option<usize>) + Sync,
) {
    let next = AtomicUsize::new(0);
    let used = slots.len().min(tasks);
    let slots = Shared::new(slots);
    pool.run(used, &|thread| {
        // SAFETY: every thread of a run has a number of its own.
        let slot = &mut unsafe { slots.at(thread, 1) }[0];
        f(slot, &|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < tasks));
    });
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

    /// Where `rows` rows of `columns` elements at distance `stride` begin, the first with element `from`, for whoever writes
    /// parts of them at once.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn rows(&self, from: usize, stride: usize, [rows, columns]: [usize; 2]) -> *mut T {
        let end =
            rows.saturating_sub(1).checked_mul(stride).and_then(|rows| rows.checked_add(columns)?.checked_add(from));
        assert!(end.is_some_and(|end| end <= self.len), "{rows} x {columns} elements from {from} on of {}", self.len);
        self.start.wrapping_add(from)
    }

    /// The `len` elements from `from` on.
    ///
    /// # Safety
    /// No other slice of these elements exists meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn at(&self, from: usize, len: usize) -> &mut [T] {
        let inside = from.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} elements from {from} on of {}", self.len);
        // SAFETY: within the buffer, which is borrowed for `'a`, by the check above; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_ahead_are_told_the_task_that_they_do_next() {
        for (threads, tasks) in [(1, 5), (3, 40), (4, 2), (2, 0)] {
            let mut done: Vec<Vec<(usize, Option<usize>)>> = vec![Vec::new(); threads];
            workers_ahead(&ThreadPool::new(threads), &mut done, tasks, |done, task, next| done.push((task, next)));
            for done in &done {
                let following = done.iter().skip(1).map(|&(task, _)| Some(task)).chain([None]);
                assert!(done.iter().map(|&(_, next)| next).eq(following.take(done.len())), "{done:?}");
            }
            let mut all: Vec<usize> = done.concat().into_iter().map(|(task, _)| task).collect();
            all.sort_unstable();
            assert_eq!(all, Vec::from_iter(0..tasks), "{threads} threads");
        }
    }
}
