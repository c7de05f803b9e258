//! Bytes to values and back; knows no device and no model.
//!
//! The only place of the library that opens files. Every reader validates before it returns, and an error names the
//! file, the field, what was expected and what was found. Every writer goes through [`atomic`]: a file appears under
//! its final name only when it is complete and on disk.

#[forbid(unsafe_code)]
pub mod activations;
#[forbid(unsafe_code)]
pub mod adapter;
#[forbid(unsafe_code)]
pub mod atomic;
#[forbid(unsafe_code)]
pub mod bitsandbytes;
#[forbid(unsafe_code)]
pub mod chat;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod control_vector;
#[forbid(unsafe_code)]
pub mod digest;
#[forbid(unsafe_code)]
pub mod edits;
#[forbid(unsafe_code)]
pub mod embedded;
#[forbid(unsafe_code)]
pub mod generation_config;
#[forbid(unsafe_code)]
pub mod gguf;
#[forbid(unsafe_code)]
pub mod hub;
#[forbid(unsafe_code)]
pub(crate) mod jinja;
#[forbid(unsafe_code)]
pub mod json;
#[forbid(unsafe_code)]
pub mod jsonl;
#[forbid(unsafe_code)]
pub mod keys;
#[forbid(unsafe_code)]
pub mod lines;
#[forbid(unsafe_code)]
pub mod lock;
#[forbid(unsafe_code)]
pub mod memory;
#[forbid(unsafe_code)]
pub mod npy;
#[forbid(unsafe_code)]
pub mod prequantized;
#[forbid(unsafe_code)]
pub mod pretrained;
#[forbid(unsafe_code)]
pub mod quantized;
#[forbid(unsafe_code)]
pub mod records;
pub mod safetensors;
#[forbid(unsafe_code)]
pub mod stops;
#[forbid(unsafe_code)]
mod strftime;
#[forbid(unsafe_code)]
pub mod tables;
#[forbid(unsafe_code)]
pub mod tfevents;
#[forbid(unsafe_code)]
pub mod tokenizer;
#[forbid(unsafe_code)]
pub mod torch;
#[forbid(unsafe_code)]
pub mod torchao;
#[forbid(unsafe_code)]
pub mod trace_events;
#[forbid(unsafe_code)]
pub mod yaml;
