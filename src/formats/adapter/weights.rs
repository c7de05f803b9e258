//! The tensors of an adapter's directory, in either form that PEFT has written.

use std::path::Path;

use crate::Result;
use crate::formats::safetensors::Checkpoint;
use crate::formats::torch;

/// The weights as PEFT writes them.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Those of its older releases: tensors as `torch.save` writes them.
pub const PICKLE: &str = "adapter_model.bin";

/// Opens an adapter's weights in either form, by the file's extension.
///
/// # Errors
/// As [`Checkpoint::open`] and [`torch::read`].
pub fn open(file: &Path) -> Result<Checkpoint> {
    match file.extension().is_some_and(|extension| extension == "bin") {
        true => torch::read(file),
        false => Checkpoint::open(file),
    }
}
