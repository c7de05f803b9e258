//! Placeholder until the reader lands.
/// A tensor of a checkpoint.
pub struct TensorView;
