//! How much memory a thread may ask for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has asked for and not given back, as far as it did both itself.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most that [`LIVE`] has been since [`measured`] began.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// A single request above this is refused: a mistake that would take the machine's memory ends the program here.
const REFUSED: usize = 4 << 30;

/// The system's allocator, with a count.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // At the end of a thread its locals are gone; nothing is measured then.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

// SAFETY: every call is handed on to the system's allocator with its own arguments, but for requests that are refused
// with a null pointer, as the trait allows; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > REFUSED {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        // SAFETY: the caller's promise about `layout` is the one that is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > REFUSED {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the pointer is from `alloc` or `alloc_zeroed` above, hence from the system's allocator, with this
        // layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work`, and gives with its result the most bytes that it held at one time on this thread.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

#[test]
fn memory_is_counted() {
    let ((), bytes) = measured(|| drop(std::hint::black_box(vec![1u8; 1 << 20])));
    assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    let (rest, bytes) = measured(|| {
        let mut list = Vec::new();
        (0..100_000u64).for_each(|i| list.push(std::hint::black_box(i)));
        list.len()
    });
    assert!(rest == 100_000 && bytes >= 800_000, "{bytes}: a list that grows is counted too");
    assert!(Vec::<u8>::new().try_reserve_exact(REFUSED + 1).is_err());
}
