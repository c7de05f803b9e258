//! Bytes to values and back; knows no device and no model.
pub mod safetensors;
