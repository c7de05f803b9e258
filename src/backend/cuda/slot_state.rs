//! Who holds a slot of pinned memory: the hand-off between those who read it and the ring that gives it out again.
//!
//! The ring is used by one thread, which alone gives slots out; holders may let go on any thread. What a holder has read
//! must have been read before the slot's next user writes: letting go releases, and the ring acquires it.

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of holders of a slot.
pub struct SlotState {
    holders: AtomicUsize,
}

impl SlotState {
    /// Held by nobody.
    pub fn new() -> Self {
        Self { holders: AtomicUsize::new(0) }
    }

    /// One holder more. Called by the ring's thread for a slot that is free, or by somebody who holds it.
    pub fn hold(&self) {
        // Whoever calls has already seen all that the slot's earlier users did.
        self.holders.fetch_add(1, Ordering::Relaxed);
    }

    /// One holder less, who does not touch the slot any more.
    pub fn release(&self) {
        self.holders.fetch_sub(1, Ordering::Release);
    }

    /// Whether nobody holds it; then all that holders did has happened before.
    pub fn is_free(&self) -> bool {
        self.holders.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(loom))]
    #[test]
    fn slot_state_counts_its_holders() {
        let state = SlotState::new();
        assert!(state.is_free());
        state.hold();
        state.hold();
        state.release();
        assert!(!state.is_free());
        state.release();
        assert!(state.is_free());
    }

    /// `RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/rustc-loom cargo test --lib slot_state`: in all interleavings.
    #[cfg(loom)]
    #[test]
    fn slot_state_orders_readers_before_the_next_writer_in_loom() {
        use loom::cell::UnsafeCell;
        use loom::sync::Arc;
        use loom::thread;

        loom::model(|| {
            let slot = Arc::new((SlotState::new(), UnsafeCell::new(7u32)));
            // Two holders, as of a capture that has been cloned.
            slot.0.hold();
            slot.0.hold();
            let readers = [0, 1].map(|_| {
                let slot = slot.clone();
                thread::spawn(move || {
                    // SAFETY: loom's cell panics if the write below may happen at the same time.
                    assert_eq!(slot.1.with(|value| unsafe { *value }), 7);
                    slot.0.release();
                })
            });
            // The ring looks once, and either finds the slot free or leaves it alone.
            if slot.0.is_free() {
                // SAFETY: as above.
                slot.1.with_mut(|value| unsafe { *value = 8 });
            }
            readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
        });
    }
}
