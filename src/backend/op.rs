//! What every operation's arguments have in common.

/// What the arguments of every operation know of themselves.
pub trait Op {
    /// The operation's name, as errors, logs and profiles have it.
    const NAME: &'static str;

    /// Asserts that every buffer is as long as its shape and every dimension in its range.
    ///
    /// # Panics
    /// With the operation's name, the argument's, what it is and what it must be.
    fn check(&self);

    /// Multiply-adds of its products with weights.
    fn multiply_adds(&self) -> u64 {
        0
    }
}
